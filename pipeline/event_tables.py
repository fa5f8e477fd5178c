"""How events and chapters look in Arrow and Parquet. Nothing is null but a confidence that was not given."""

from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa

from pipeline.elements import clean_text
from pipeline.records import Chapter, Event
from pipeline.schema import column, list_of, struct

_STRING, _INT32, _INT64 = pa.string(), pa.int32(), pa.int64()
_SOURCE = struct(("window", _INT32), ("start_us", _INT64), ("end_us", _INT64), ("description", _STRING))
VIDEO_ID = column("video_id", _STRING, "hash of the input's uri and version: the same in every run")
_CHAPTER_ID = column("chapter_id", _STRING, "hash of the video and the chapter's first event")
_START = column("start_us", _INT64, "microseconds from the first instant of the video track")
_END = column("end_us", _INT64, "the same, exclusive")

EVENTS = pa.schema(
    [
        column("event_id", _STRING, "hash of the video, the span and the words: the same in every run"),
        VIDEO_ID,
        _CHAPTER_ID,
        _START,
        _END,
        column("description", _STRING, "what happens, in the words of the window that shows most of it"),
        column("label", _STRING, 'its kind, if the answer gives one; "" otherwise'),
        column("confidence", pa.float32(), "0 to 1, as the answer claims it; null if it does not", nullable=True),
        column("flags", list_of(_STRING), "peculiarities, like clamped, reversed, repeated, open_start or open_end"),
        column("sources", list_of(_SOURCE), "what each window that shows it said, in order"),
    ]
)
CHAPTERS = pa.schema(
    [
        _CHAPTER_ID,
        VIDEO_ID,
        _START,
        _END,
        column("title", _STRING, "the description of its longest event"),
        column("label", _STRING, "the label most of its events have"),
        column("events", _INT32, "how many events it has"),
    ]
)


def events_table(events: Iterable[Event]) -> pa.Table:
    """The events in the shape of EVENTS."""
    rows = [
        asdict(event)
        | {
            "description": clean_text(event.description),
            "label": clean_text(event.label),
            "sources": [asdict(source) | {"description": clean_text(source.description)} for source in event.sources],
        }
        for event in events
    ]
    return pa.Table.from_pylist(rows, schema=EVENTS)


def chapters_table(chapters: Iterable[Chapter]) -> pa.Table:
    """The chapters in the shape of CHAPTERS."""
    rows = [
        asdict(chapter) | {"title": clean_text(chapter.title), "label": clean_text(chapter.label)}
        for chapter in chapters
    ]
    return pa.Table.from_pylist(rows, schema=CHAPTERS)
