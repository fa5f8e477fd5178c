"""The videos, windows, events and chapters of a shard, from its assets and the rows of its windows."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.event_tables import chapters_table, events_table
from pipeline.merge_events import chapters_of, merge_events
from pipeline.records import (
    Chapter,
    DocumentStatus,
    ErrorCode,
    Event,
    Failure,
    Stage,
    WindowEvent,
    WindowSpan,
    WindowStatus,
)
from pipeline.schema import list_of
from pipeline.tables import Source, outcome_of
from pipeline.video_tables import VIDEO_FACTS, VideoRow, videos_table, windows_table
from pipeline.video_windows import PlannedWindow, plan_stretches

_EMPTY: dict[pa.DataType, Any] = {pa.string(): "", pa.bool_(): False, list_of(pa.string()): []}
_TRUNCATED = (ErrorCode.TRUNCATED_FILE.value,)


def video_tables(assets: pa.Table, windows: pa.Table) -> dict[str, pa.Table]:
    """The tables by name. `assets`: ASSETS rows in order; `windows`: WINDOW_PARTS rows, every one once, in order."""
    videos: list[VideoRow] = []
    events: list[Event] = []
    chapters: list[Chapter] = []
    start = 0
    planned: list[PlannedWindow] = []
    for asset in assets.to_pylist():
        rows = windows.slice(start, asset["pages"]).to_pylist()
        start += asset["pages"]
        assert all(row["video_id"] == asset["asset_id"] for row in rows)
        facts = json.loads(asset["info"]) if asset["info"] else {}
        plan = plan_stretches(facts["stretches"], facts["window_us"], facts["step_us"]) if facts else ()
        assert len(plan) == len(rows), f"{asset['uri']}: {len(rows)} windows of {len(plan)}"
        planned += plan
        merged = merge_events(asset["asset_id"], [_with_span(row) for row in rows if row["status"] != "failed"])
        videos.append(_video_row(asset, facts, rows, len(merged)))
        events += merged
        chapters += chapters_of(merged)
    return {
        "videos": videos_table(videos),
        "windows": windows_table(_with_times(windows, planned)),
        "events": events_table(events),
        "chapters": chapters_table(chapters),
    }


def _with_times(windows: pa.Table, planned: Sequence[PlannedWindow]) -> pa.Table:
    """The windows with their times: one that failed was written without, and gets those of its plan."""
    has_failed = pc.equal(windows["status"], WindowStatus.FAILED.value)
    for name in ("start_us", "end_us", "core_end_us"):
        times = pa.chunked_array([pa.array([getattr(window, name) for window in planned], pa.int64())])
        times = pc.if_else(has_failed, times, windows[name])
        windows = windows.set_column(windows.schema.get_field_index(name), windows.schema.field(name), times)
    return windows


def _with_span(row: dict[str, Any]) -> tuple[WindowSpan, list[WindowEvent]]:
    span = WindowSpan(row["window_no"], row["start_us"], row["end_us"], tuple(row["frame_us"]), row["origin_us"])
    events = [WindowEvent(**event | {"flags": tuple(event["flags"])}) for event in row["window_events"]]
    return span, events


def _video_row(
    asset: dict[str, Any], facts: dict[str, Any], windows: Sequence[dict[str, Any]], events: int
) -> VideoRow:
    count = {status: sum(row["status"] == status for row in windows) for status in WindowStatus}
    status, failure = outcome_of(asset, windows)
    if failure is None and any(_is_truncated(row) for row in windows):
        failure = Failure(Stage.RENDER, ErrorCode.TRUNCATED_FILE, "the file ends before its header says")
        status = DocumentStatus.PARTIAL
    elif failure is None and (holes := sum("frames_missing" in row["flags"] for row in windows)):
        message = f"frames are missing in {holes} windows, which have the flag"
        failure, status = Failure(Stage.RENDER, ErrorCode.FRAMES_MISSING, message), DocumentStatus.PARTIAL
    time_base = facts.get("time_base", (0, 1))
    facts = facts | {"time_base_num": time_base[0], "time_base_den": time_base[1]}
    return VideoRow(
        video_id=asset["asset_id"],
        source=Source.of(asset),
        status=status,
        failure=failure,
        facts={fact.name: facts.get(fact.name, _EMPTY.get(fact.type, 0)) for fact in VIDEO_FACTS},
        is_truncated=any(_is_truncated(row) for row in windows),
        decode_errors=sum(row["decode_errors"] for row in windows),
        corrupt_frames=sum(row["corrupt_frames"] for row in windows),
        windows_ok=count[WindowStatus.OK],
        windows_truncated=count[WindowStatus.TRUNCATED],
        windows_unparseable=count[WindowStatus.UNPARSEABLE],
        windows_failed=count[WindowStatus.FAILED],
        events=events,
        tokens_in=sum(row["tokens_in"] for row in windows),
        tokens_out=sum(row["tokens_out"] for row in windows),
        user=tuple(asset["user"]),
    )


def _is_truncated(row: dict[str, Any]) -> bool:
    return row["error_code"] in _TRUNCATED or "truncated_file" in row["flags"]
