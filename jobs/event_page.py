"""The page of an index: a timeline for each video, its events with thumbnails, click to play. One file, no server."""

import base64
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.event_index import clock
from jobs.webvtt import event_cues, webvtt

_HERE = Path(__file__).parent
_MICROSECONDS = 1_000_000
_MINUTE, _HOUR = 60 * _MICROSECONDS, 3600 * _MICROSECONDS
_TICK_STEPS_US = (
    *(100_000, 200_000, 500_000, _MICROSECONDS, 2_000_000, 5_000_000, 10_000_000, 15_000_000, 30_000_000),
    *(_MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE),
    *(_HOUR, 2 * _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, 24 * _HOUR),
)
_MOST_TICKS = 8
_LABELS_UP_TO = 93.0  # per cent of the axis: a label further to the right would be cut off
# What HTML forbids in a text, escaped or not (https://html.spec.whatwg.org/#preprocessing-the-input-stream), and the
# marks that turn the direction of what follows, with which a name looks like another.
_NO_TEXT = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)


@dataclass(frozen=True, slots=True)
class VideoEvents:
    """A video with rows of its tables in order of time, and where a player finds it ("" where it cannot)."""

    video: Mapping[str, Any]
    events: Sequence[dict[str, Any]]
    chapters: Sequence[dict[str, Any]]
    gaps: Sequence[dict[str, Any]]
    source_url: str

    @property
    def is_failed(self) -> bool:
        return bool(self.video["status"] == "failed")


def thumbnail_file(event_id: str) -> str:
    """Where the picture of an event lies, relative to the page."""
    return f"thumbnails/{quote(event_id.replace('#', '-'), safe='')}.jpg"


def poster_file(video_id: str) -> str:
    return f"posters/{video_id}.jpg"


def event_page(title: str, videos: Sequence[VideoEvents], pictures: Collection[str], question: str = "") -> str:
    """The page as HTML. `pictures`: the files there are of `thumbnail_file` and `poster_file`; `question`: what the
    model was asked, "" where it was asked for events.

    Everything that is not ours is escaped, and the page's policy lets no script run but our own.
    """
    script = (_HERE / "event_page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_text,
    )
    return environment.get_template("event_page.html").render(
        title=title,
        question=question,
        kind="answer" if question else "event",
        videos=[_article(video, pictures) for video in videos],
        events=sum(len(video.events) for video in videos),
        failed=sum(video.is_failed for video in videos),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _as_text(value: Any) -> Any:
    return _NO_TEXT.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _article(video: VideoEvents, pictures: Collection[str]) -> dict[str, Any]:
    row, late_us = (
        video.video,
        video.video["start_offset_us"],
    )  # buttons open at the player's time, words say the video's
    last_us = max((event["end_us"] for event in video.events), default=0)
    length_us = max(row["duration_us"] or 0, last_us, 1)
    poster = poster_file(row["video_id"])
    captions = webvtt([("", *cue[1:]) for cue in event_cues(video.events, late_us)])
    return {
        "id": row["video_id"],
        "name": row["filename"],
        "uri": row["source_uri"],
        "is_failed": video.is_failed,
        "reason": row["error_message"],
        "code": row["error_code"],
        "length": _moment(length_us, round_up=True),
        "late": late_us / _MICROSECONDS,
        "seconds": length_us / _MICROSECONDS,
        "source": video.source_url,
        "poster": poster if poster in pictures else "",
        "captions": base64.b64encode(captions.encode()).decode() if video.events else "",
        "ticks": _ticks(length_us),
        "lanes": _bars(video, length_us),
        "gaps": [_span(gap) | {"code": gap["error_code"], "reason": gap["error_message"]} for gap in video.gaps],
        "rows": len(video.events) + len(video.gaps),  # so much room is kept until it is laid out
        "parts": _parts(video, pictures),
    }


def _parts(video: VideoEvents, pictures: Collection[str]) -> list[dict[str, Any]]:
    """Chapters with their events; events without a chapter are a part without a title."""
    late_us = video.video["start_offset_us"]
    titles = {chapter["chapter_id"]: chapter for chapter in video.chapters}
    parts = []
    for chapter_id, events in groupby(video.events, key=lambda event: event["chapter_id"]):
        chapter = titles.pop(chapter_id, None)
        parts.append(
            {
                "chapter": chapter
                and {
                    "id": chapter_id,
                    "at": (chapter["start_us"] + late_us) / _MICROSECONDS,
                    "title": chapter["title"],
                    **_span(chapter),
                },
                "events": [
                    {
                        "id": event["event_id"],
                        "at": (event["start_us"] + late_us) / _MICROSECONDS,
                        "label": event["label"],
                        "words": event["description"],
                        "thumbnail": file if (file := thumbnail_file(event["event_id"])) in pictures else "",
                        **_span(event),
                    }
                    for event in events
                ],
            }
        )
    return parts


def _span(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"start": _moment(row["start_us"]), "end": _moment(row["end_us"], round_up=True)}


def _moment(time_us: int, *, round_up: bool = False) -> dict[str, str]:
    """A time to read, and as a duration of HTML's <time>."""
    return {"clock": clock(time_us, round_up=round_up), "machine": f"PT{time_us / _MICROSECONDS:.3f}S"}


def _bars(video: VideoEvents, length_us: int) -> list[list[dict[str, Any]]]:
    """Lanes of the timeline from the top: chapters, what could not be read, events."""

    def bar(row: Mapping[str, Any], kind: str, target: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "left": round(100 * row["start_us"] / length_us, 3),
            "width": round(100 * (row["end_us"] - row["start_us"]) / length_us, 3),
            "target": target,  # the id of the button that stands for the same
        }

    chapters = [bar(chapter, "chapter", chapter["chapter_id"]) for chapter in video.chapters]
    gaps = [bar(gap, "gap", "") for gap in video.gaps]
    lanes = [[bar(event, "event", event["event_id"]) for event in lane] for lane in _lanes(video.events)]
    return [lane for lane in (chapters, gaps, *lanes) if lane]


def _lanes(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Events in order of start, spread so that in one lane none overlaps another."""
    lanes: list[list[Mapping[str, Any]]] = []
    for event in events:
        free = next((lane for lane in lanes if lane[-1]["end_us"] <= event["start_us"]), None)
        if free is None:
            lanes.append([event])
        else:
            free.append(event)
    return lanes


def _ticks(length_us: int) -> list[dict[str, Any]]:
    """Where the axis is marked: round times, so many that their labels do not touch."""
    days = -(-length_us // (_MOST_TICKS * 24 * _HOUR)) * 24 * _HOUR
    step_us = next((step for step in _TICK_STEPS_US if length_us <= _MOST_TICKS * step), days)
    ticks = []
    for time_us in range(0, length_us, step_us):
        left = round(100 * time_us / length_us, 3)
        label = clock(time_us) if step_us % _MICROSECONDS else clock(time_us).removesuffix(".0")
        ticks.append({"left": left, "label": label if left <= _LABELS_UP_TO else ""})
    return ticks
