"""How videos and windows look in Arrow and Parquet. Nothing is null but a confidence that was not given."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.elements import clean_text
from pipeline.event_tables import VIDEO_ID
from pipeline.records import DocumentStatus, Failure, WindowRow
from pipeline.schema import column, list_of
from pipeline.tables import ERROR_COLUMNS, SOURCE_COLUMNS, Source, failure_columns, source_columns

_STRING, _TEXT, _FLAG = pa.string(), pa.large_string(), pa.bool_()
_INT16, _INT32, _INT64, _FLOAT, _DOUBLE = pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()
# What opening a video tells, by the names of VideoInfo; empty for an input that could not be opened.
VIDEO_FACTS = (
    column("container", _STRING, "FFmpeg's name of the container"),
    column("codec", _STRING, "the decoder of the video track"),
    column("pixel_format", _STRING, "as stored, like yuv420p10le"),
    column("width", _INT32, "pixels as displayed: upright, square"),
    column("height", _INT32, "pixels as displayed"),
    column("coded_width", _INT32, "pixels as stored"),
    column("coded_height", _INT32, "pixels as stored"),
    column("rotation", _INT16, "degrees clockwise that make it upright"),
    column("is_mirrored", _FLAG, "whether it is stored mirrored"),
    column("is_hdr", _FLAG, "whether its colours are PQ or HLG; the model sees them in 8 bits"),
    column("time_base_num", _INT32, "the unit of the file's own timestamps in seconds: num / den"),
    column("time_base_den", _INT32, "the same"),
    column("start_pts", _INT64, "the file's own timestamp of the first instant, which is 0 on the video's clock"),
    column(
        "duration_us", _INT64, "length of the video track by the headers, counted where they say nothing or are wrong"
    ),
    column(
        "flags",
        list_of(_STRING),
        "timestamps_restart (joined parts on one clock), timestamps_jump (a hole without windows), duration_wrong, "
        "part_unreadable",
    ),
    column("start_offset_us", _INT64, "what to add to times for a player's, whose clock begins with the first track"),
    column("average_fps", _DOUBLE, "frames a second by the headers: no measure of time"),
    column("is_vfr", _FLAG, "whether the time from frame to frame varies, as far as looks all over the file show"),
    column("timing", _STRING, "where times come from: pts, decode_order (AVI) or counted (streams without times)"),
    column("video_tracks", _INT16, "how many there are; the best one was read"),
    column("has_audio", _FLAG, "whether there is sound"),
    column("fps", _DOUBLE, "the plan: frames sampled each second"),
    column("window_us", _INT64, "the plan: length of a window"),
    column("step_us", _INT64, "the plan: from the start of a window to the start of the next"),
    column("shot_cuts", _FLAG, "the plan: whether a window ends early where a shot does"),
    column("frame_width", _INT32, "the plan: pixels of a frame as the model sees it"),
    column("frame_height", _INT32, "the same"),
)
VIDEOS = pa.schema(
    [
        VIDEO_ID,
        *SOURCE_COLUMNS,
        column("status", _STRING, "ok, partial (some window failed or was cut off, or the file ends early) or failed"),
        *ERROR_COLUMNS,
        *VIDEO_FACTS,
        column("is_truncated", _FLAG, "whether the file ends before its header says"),
        column("decode_errors", _INT32, "packets that could not be decoded, in what was read"),
        column("corrupt_frames", _INT32, "frames marked as damaged by the decoder"),
        column("windows_total", _INT32, "windows of the plan; the next three add up to it"),
        column("windows_ok", _INT32, "windows answered to the end"),
        column("windows_truncated", _INT32, "windows whose answer reached max_new_tokens, or repeats itself"),
        column("windows_unparseable", _INT32, "windows in whose answer nothing can be read"),
        column("windows_failed", _INT32, "windows that could not be read"),
        column("events", _INT32, "events found"),
        column("tokens_in", _INT64, "prompt tokens of all windows, frames included"),
        column("tokens_out", _INT64, "generated tokens of all windows"),
        column("user", pa.map_(_STRING, _STRING), "the other columns of the input manifest"),
    ]
)
WINDOWS = pa.schema(
    [
        VIDEO_ID,
        column("window_no", _INT32, "1-based number of the window in its video"),
        column("window_id", _STRING, "video_id#window_no"),
        column("status", _STRING, "ok, truncated, unparseable or failed"),
        *ERROR_COLUMNS,
        column(
            "flags",
            list_of(_STRING),
            "peculiarities, like truncated_file, held_frame, frames_missing, size_change, ends_at_cut, broken_json or "
            "outside_window",
        ),
        column("start_us", _INT64, "microseconds from the first instant of the video track"),
        column("end_us", _INT64, "the same, exclusive; earlier than the plan has it with the flag ends_at_cut"),
        column("core_end_us", _INT64, "where the next window begins"),
        column("origin_us", _INT64, "where the times in the prompt and the answer count from"),
        column("frame_us", list_of(_INT64), "when each frame that was shown to the model begins to show"),
        column("width", _INT32, "pixels of a frame as the model saw it"),
        column("height", _INT32, "the same"),
        column("decode_errors", _INT32, "packets from start_us to core_end_us that could not be decoded"),
        column("corrupt_frames", _INT32, "frames of the same time marked as damaged; none was shown"),
        column("cut_us", list_of(_INT64), "when shots begin, of those that begin inside: times of sampled frames"),
        column("events", _INT32, "events this window shows"),
        column("answer", _TEXT, 'the answer to a question; "" where events were asked for'),
        column("finish_reason", _STRING, 'stop, length (cut off), repetition or "" (the model was not asked)'),
        column("mean_logprob", _FLOAT, "mean natural log probability of the generated tokens"),
        column("min_logprob", _FLOAT, "the least of them"),
        column("tokens_in", _INT32, "prompt tokens, frames included"),
        column("tokens_out", _INT32, "generated tokens"),
        column("steps", _INT32, "forward passes that gave it tokens: fewer than tokens where drafts were right"),
        column("drafted_tokens", _INT32, "tokens proposed from the answer about the window before"),
        column("accepted_tokens", _INT32, "of these, the ones the model wrote itself"),
        column("resumes", _INT32, "how often an answer was taken up again behind a loop, with another sampling"),
        column("decode_ms", _FLOAT, "milliseconds to decode it"),
        column("queue_ms", _FLOAT, "milliseconds its prompts waited for the model, added up"),
        column("infer_ms", _FLOAT, "milliseconds its prompts were worked on, added up"),
        column("reasoning", _TEXT, 'what a thinking model wrote before its answers; otherwise ""'),
        column("raw_output", _TEXT, 'what the model wrote, if the job keeps it; otherwise ""'),
    ]
)
_WINDOW_EVENT = pa.struct(
    [
        pa.field("start_us", _INT64, False),
        pa.field("end_us", _INT64, False),
        pa.field("description", _STRING, False),
        pa.field("label", _STRING, False),
        pa.field("confidence", _FLOAT),
        pa.field("flags", list_of(_STRING), False),
    ]
)
WINDOW_PARTS = pa.schema(
    [
        column("unit_id", _STRING, "the unit of work the window belongs to"),
        *WINDOWS,
        column("window_events", list_of(_WINDOW_EVENT), "what this window says, before windows are merged"),
    ]
)


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One row of the videos table."""

    video_id: str
    source: Source
    status: DocumentStatus
    failure: Failure | None
    facts: dict[str, Any]  # VIDEO_FACTS by name
    is_truncated: bool
    decode_errors: int
    corrupt_frames: int
    windows_ok: int
    windows_truncated: int
    windows_unparseable: int
    windows_failed: int
    events: int
    tokens_in: int
    tokens_out: int
    user: tuple[tuple[str, str], ...]


def videos_table(rows: Iterable[VideoRow]) -> pa.Table:
    """The rows in the shape of VIDEOS."""
    return pa.Table.from_pylist([_video_columns(row) for row in rows], schema=VIDEOS)


def window_parts_table(rows: Iterable[tuple[str, WindowRow]]) -> pa.Table:
    """(unit_id, row) pairs in the shape of WINDOW_PARTS."""
    columns = [{"unit_id": unit_id} | _window_columns(row) for unit_id, row in rows]
    return pa.Table.from_pylist(columns, schema=WINDOW_PARTS)


def windows_table(parts: pa.Table) -> pa.Table:
    """The rows of a WINDOW_PARTS table in the shape of WINDOWS, in their order."""
    return parts.select(WINDOWS.names).cast(WINDOWS)


def _video_columns(row: VideoRow) -> dict[str, Any]:
    apart = ("source", "failure", "facts")
    columns = {name: getattr(row, name) for name in VideoRow.__dataclass_fields__ if name not in apart}
    total = row.windows_ok + row.windows_truncated + row.windows_unparseable + row.windows_failed
    return (
        columns
        | source_columns(row.source)
        | row.facts
        | failure_columns(row.failure)
        | {"status": row.status.value, "windows_total": total, "user": list(row.user)}
    )


def _window_columns(row: WindowRow) -> dict[str, Any]:
    columns = asdict(row)
    events = [
        event | {"description": clean_text(event["description"]), "label": clean_text(event["label"])}
        for event in columns.pop("events")
    ]
    del columns["failure"]
    return (
        columns
        | failure_columns(row.failure)
        | {
            "window_id": f"{row.video_id}#{row.window_no}",
            "status": row.status.value,
            "events": len(events),
            "window_events": events,
        }
    )
