"""The page of an index: a timeline for each video, its events with thumbnails, click to play. One file, no server."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.event_index import clock

_HERE = Path(__file__).parent
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class VideoEvents:
    """A video with its events and chapters as rows of the tables, and where a player finds it ("" where it cannot)."""

    video: Mapping[str, Any]
    events: Sequence[dict[str, Any]]
    chapters: Sequence[dict[str, Any]]
    source_url: str


def event_page(title: str, videos: Sequence[VideoEvents], thumbnails: Mapping[str, str]) -> str:
    """The page as HTML. `thumbnails`: event_id -> URL of its picture. Everything that is not ours is escaped, and the
    page's policy lets no script run but our own."""
    script = (_HERE / "event_page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("event_page.html").render(
        title=title,
        videos=[_section(video, thumbnails) for video in videos],
        events=sum(len(video.events) for video in videos),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _section(video: VideoEvents, thumbnails: Mapping[str, str]) -> dict[str, Any]:
    late_us = video.video["start_offset_us"]  # buttons open at the player's time, words say the video's
    last_us = max((event["end_us"] for event in video.events), default=0)
    length_us = max(video.video["duration_us"] or 0, last_us, 1)
    chapters = [_bar(chapter, "chapter", chapter["title"], length_us, late_us) for chapter in video.chapters]
    lanes = [
        [_bar(event, "event", event["description"], length_us, late_us) for event in lane]
        for lane in _lanes(video.events)
    ]
    return {
        "id": video.video["video_id"],
        "name": video.video["filename"],
        "uri": video.video["source_uri"],
        "length": clock(length_us, round_up=True),
        "source": video.source_url,
        "lanes": [chapters, *lanes],
        "events": [
            {
                "id": event["event_id"],
                "start": (event["start_us"] + late_us) / _MICROSECONDS,
                "time": f"{clock(event['start_us'])} - {clock(event['end_us'], round_up=True)}",
                "label": event["label"],
                "words": event["description"],
                "thumbnail": thumbnails.get(event["event_id"], ""),
            }
            for event in video.events
        ],
    }


def _bar(row: Mapping[str, Any], kind: str, words: str, length_us: int, late_us: int) -> dict[str, Any]:
    start_us, end_us = row["start_us"], row["end_us"]
    return {
        "kind": kind,
        "left": round(100 * start_us / length_us, 3),
        "width": round(100 * (end_us - start_us) / length_us, 3),
        "start": (start_us + late_us) / _MICROSECONDS,
        "words": f"{clock(start_us)} {words}",
    }


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
