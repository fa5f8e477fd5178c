"""A finished index of events in a folder, made from sample clips by perfect answers about overlapping windows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.sample_videos import SampleClip, answer_for, make_clip, pairs_of, write_video
from pipeline.event_tables import chapters_table, events_table
from pipeline.merge_events import chapters_of, merge_events
from pipeline.parse_events import parse_events
from pipeline.records import Event, WindowSpan, stable_id
from pipeline.tables import to_parquet
from pipeline.video_tables import WINDOWS

SECOND = 1_000_000


def video_id(uri: str) -> str:
    return stable_id(uri)


def indexed(clip: SampleClip, uri: str, *, window: float = 20.0, overlap: float = 6.0) -> list[Event]:
    """The events of a clip as a perfect model would tell them, window by window, at 2 fps."""
    windows = []
    start = 0.0
    while not windows or start + overlap < clip.seconds:
        end = min(start + window, clip.seconds)
        times = [start + index / 2 for index in range(round((end - start) * 2))]
        frames = tuple(round(time * SECOND) for time in times)
        span = WindowSpan(len(windows) + 1, round(start * SECOND), round(end * SECOND), frames, round(start * SECOND))
        answer = answer_for(clip, pairs_of(times), origin=start)
        parsed = parse_events(answer, span, finish_reason="stop")
        assert parsed.flags == ()
        windows.append((span, parsed.events))
        start += window - overlap
    return merge_events(video_id(uri), windows)


def window(uri: str, number: int, span: tuple[float, float], **columns: Any) -> dict[str, Any]:
    """A row of the table of windows, as far as an index reads it."""
    start_us, end_us = (round(second * SECOND) for second in span)
    row = {"video_id": video_id(uri), "window_id": f"{video_id(uri)}#{number}", "start_us": start_us, "end_us": end_us}
    return row | {"status": "ok", "error_code": "", "error_message": "", "flags": [], "answer": ""} | columns


def write_run(
    folder: Path,
    videos: Sequence[tuple[str, int, Sequence[Event]]],
    *,
    late_us: int = 0,
    windows: Sequence[dict[str, Any]] = (),
    failures: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    question: str = "",
) -> None:
    """OUTPUT of a job over (uri, duration in microseconds, events) of each video; their ids are `video_id(uri)`.

    `failures`: (error_code, error_message) by uri, of those that could not be read.
    """
    columns = {
        "video_id": [video_id(uri) for uri, _, _ in videos],
        "source_uri": [uri for uri, _, _ in videos],
        "filename": [uri.rsplit("/", 1)[-1] for uri, _, _ in videos],
        "status": ["failed" if uri in failures else "ok" for uri, _, _ in videos],
        "error_code": [failures.get(uri, ("", ""))[0] for uri, _, _ in videos],
        "error_message": [failures.get(uri, ("", ""))[1] for uri, _, _ in videos],
        "duration_us": [duration for _, duration, _ in videos],
        "start_offset_us": [late_us] * len(videos),
    }
    events = [event for _, _, found in videos for event in found]
    windows_schema = pa.schema([WINDOWS.field(name) for name in window("", 1, (0, 1))])
    tables = {
        "videos": pa.table(columns),
        "windows": pa.Table.from_pylist(list(windows), schema=windows_schema),
        "events": events_table(events),
        "chapters": chapters_table(chapters_of(events)),
    }
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "part-0.parquet").write_bytes(to_parquet(table))
    (folder / "_job.json").write_text(json.dumps({"config": {"question": question}}))
    (folder / "_SUCCESS").touch()


def write_sample_run(folder: Path, *, clips: int, seconds: float = 40.0, seed: int = 0) -> list[SampleClip]:
    """Sample videos in folder/videos and their index in folder/out."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    made = [make_clip(rng, seconds=seconds, size=(160, 96), held_out=False) for _ in range(clips)]
    videos = []
    for number, clip in enumerate(made):
        path = folder / "videos" / f"clip {number}.mp4"
        write_video(path, clip, fps=8)
        videos.append((str(path), round(seconds * SECOND), indexed(clip, str(path))))
    write_run(folder / "out", videos)
    return made
