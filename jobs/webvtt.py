"""Events as a WebVTT file, for players and editors, and for the captions of the page."""

from collections.abc import Mapping, Sequence
from typing import Any


def event_cues(events: Sequence[Mapping[str, Any]], late_us: int) -> list[tuple[str, int, int, str]]:
    """The cues of events, at the times of a player, which are `late_us` microseconds more than the video's."""
    return [
        (
            row["event_id"],
            row["start_us"] + late_us,
            row["end_us"] + late_us,
            f"[{row['label']}] {row['description']}" if row["label"] else row["description"],
        )
        for row in events
    ]


def webvtt(cues: Sequence[tuple[str, int, int, str]]) -> str:
    """Cues of (id, start and end in microseconds, text) as a WebVTT file (https://www.w3.org/TR/webvtt1/).

    Starts are rounded down and ends up to a millisecond. A text is one line with the three signs escaped that have a
    meaning there. A cue with the id "" has none.
    """
    blocks = ["WEBVTT"]
    for identifier, start_us, end_us, text in cues:
        escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        times = f"{_time(start_us // 1000)} --> {_time(-(-end_us // 1000))}"
        blocks.append("\n".join([*([identifier] if identifier else []), times, escaped]))
    return "\n\n".join(blocks) + "\n"


def _time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{rest:03}"
