"""Videos: what opening one tells, how it is cut into windows, and its windows decoded."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from pipeline.records import BadInput, ErrorCode, Failure, Stage, Window, WindowFacts, WindowSpan
from pipeline.shot_cuts import shot_cuts
from pipeline.video_color import HDR
from pipeline.video_file import VideoFile, is_encrypted_matroska, open_video
from pipeline.video_frames import Orientation, SampledWindow, orientation_of, sample_windows
from pipeline.video_parts import JoinedVideo, part_of, split_parts
from pipeline.video_timeline import Timeline, joined, measure
from pipeline.video_windows import PlannedWindow, VideoOptions, frame_dimensions, plan_stretches, window_tokens

VFR_SHARE = 0.1  # an interval that differs by more than this share from the usual one is odd
ODD_SHARE = 0.03  # of intervals that may be odd before the rate is variable: single frames are lost in any recording
HOLE_SAMPLES, HOLE_FRAMES = 3, 8  # intervals of the sampling grid and of frames; longer ones are holes
FRAMES_LOOKED_AT = 24
TRUNCATED_US = 1_000_000  # what may be missing at the end before it is said: headers are rarely exact


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What opening a video tells."""

    media_type: str
    container: str
    codec: str
    pixel_format: str
    width: int  # as displayed: upright, square pixels
    height: int
    coded_width: int
    coded_height: int
    rotation: int  # degrees clockwise that made it upright
    is_mirrored: bool
    is_hdr: bool
    time_base: tuple[int, int]
    start_pts: int  # where the video's clock has its 0, in units of time_base
    duration_us: int
    stretches: tuple[tuple[int, int], ...]  # [start, end) in us of what there is to see: one, but where the clock jumps
    flags: tuple[str, ...]  # of timestamps_restart, timestamps_jump, duration_wrong, part_unreadable
    parts: tuple[tuple[int, int, int], ...]  # (first byte, end, length in us) of files that were joined; else none
    start_offset_us: int  # how much later than a player's clock the video's begins
    average_fps: float
    is_vfr: bool  # as far as looks at places all over the file show
    timing: str  # pts, decode_order (AVI) or counted (raw streams)
    video_tracks: int
    has_audio: bool
    frame_width: int  # what the model sees
    frame_height: int
    fps: float  # the plan: frames sampled a second, and where windows begin and end
    window_us: int
    step_us: int
    shot_cuts: bool
    piece_tokens: tuple[int, ...]  # visual tokens of each window


def inspect_video(file: BinaryIO, options: VideoOptions) -> VideoInfo:
    """Opens a video, decodes its first frames, and plans its windows. Raises BadInput when nothing can be decoded."""
    places = split_parts(file)
    with open_video(part_of(file, *places[0]) if len(places) > 1 else file) as video:
        first, times_us = None, []
        for time_us, frame in video.frames():  # of which one is kept: of 8K in 10 bits, 24 would take 2.4 GB
            first = first or frame
            times_us.append(time_us)
            if len(times_us) == FRAMES_LOOKED_AT:
                break
        if first is None:
            if video.is_encrypted or is_encrypted_matroska(file):
                message = "its video is encrypted (DRM): give a file without"
                raise BadInput(Stage.OPEN, ErrorCode.ENCRYPTED, message)
            if video.is_cut_off():
                message = "the file ends before its first frame: fetch it again, whole"
                raise BadInput(Stage.OPEN, ErrorCode.TRUNCATED_FILE, message)
            errors = len(video.errors_us)
            message = f"no frame could be decoded ({errors} damaged packets)"
            raise BadInput(Stage.OPEN, ErrorCode.NO_FRAMES, message)
        timeline, parts = _measure_parts(file, measure(video), places)
        duration_us = max(timeline.end_us, times_us[-1] + 1)
        stretches = timeline.stretches if len(timeline.stretches) > 1 else ((0, duration_us),)
        # Where a clock starts again, seeking by time leads anywhere.
        runs = [times_us, *([] if "timestamps_restart" in timeline.flags else video.spread_times(duration_us))]
        orientation = orientation_of(first)
        height, width = _display_size(video, first.height, first.width, orientation)
        try:
            size = frame_dimensions(duration_us, height, width, options)
        except ValueError as error:
            raise BadInput(Stage.OPEN, ErrorCode.BAD_DIMENSIONS, str(error)) from error
        planned = plan_stretches(stretches, options.window_us, options.step_us)
        if len(planned) > options.max_windows:
            message = f"{len(planned)} windows, more than max_windows {options.max_windows}"
            raise BadInput(Stage.OPEN, ErrorCode.TOO_MANY_WINDOWS, message)
        context, stream = video.stream.codec_context, video.stream
        return VideoInfo(
            media_type=_media_type(video.container.format.name),
            container=video.container.format.name,
            codec=context.codec.name,
            pixel_format=first.format.name,
            width=width,
            height=height,
            coded_width=first.width,
            coded_height=first.height,
            rotation=orientation.rotation,
            is_mirrored=(orientation.flip_x ^ orientation.flip_y) != orientation.transpose,
            is_hdr=first.color_trc in HDR,
            time_base=(video.time_base.numerator, video.time_base.denominator),
            start_pts=video.start_pts,
            duration_us=duration_us,
            stretches=stretches,
            flags=timeline.flags,
            parts=parts,
            start_offset_us=video.start_offset_us,
            average_fps=float(stream.average_rate or 0),
            is_vfr=_is_vfr(runs),
            timing="counted" if video.is_raw else "decode_order" if video.is_in_decode_order else "pts",
            video_tracks=len(video.container.streams.video),
            has_audio=bool(video.container.streams.audio),
            frame_width=size[1],
            frame_height=size[0],
            fps=options.sizes.fps,
            window_us=options.window_us,
            step_us=options.step_us,
            shot_cuts=options.shot_cuts,
            piece_tokens=tuple(window_tokens(window, size, options) for window in planned),
        )


def _measure_parts(
    file: BinaryIO, first: Timeline, places: Sequence[tuple[int, int]]
) -> tuple[Timeline, tuple[tuple[int, int, int], ...]]:
    """The timeline of all parts, and (first byte, end, length in us) of each; of those that cannot be opened, none."""
    if len(places) == 1:
        return first, ()
    timelines, readable, flags = [first], [places[0]], []
    for place in places[1:]:
        try:
            with open_video(part_of(file, *place)) as video:
                timelines.append(measure(video))
                readable.append(place)
        except BadInput:
            flags.append("part_unreadable")
    timeline = joined(timelines)
    parts = tuple((start, end, each.end_us) for (start, end), each in zip(readable, timelines, strict=True))
    return replace(timeline, flags=(*timeline.flags, *dict.fromkeys(flags))), parts


def read_windows(file: BinaryIO, numbers: Sequence[int], info: VideoInfo) -> Iterator[Window | tuple[int, Failure]]:
    """One item for each of `numbers` (1-based, ascending) of the windows planned in `info`, in order.

    Raises BadInput when the video cannot be opened, and whatever `file` raises when it cannot be read from.
    """
    planned = plan_stretches(info.stretches, info.window_us, info.step_us)
    wanted = [planned[number - 1] for number in numbers]
    with _opened(file, info) as video:
        first = next(video.frames(), None)
        orientation = orientation_of(first[1]) if first else Orientation()
        began = time.perf_counter()
        sampled = sample_windows(
            video,
            wanted,
            fps=info.fps,
            size=(info.frame_height, info.frame_width),
            orientation=orientation,
            stored=(info.coded_height, info.coded_width),
        )
        for window in sampled:
            yield _window(window, video, info, 1000 * (time.perf_counter() - began))
            began = time.perf_counter()


@contextmanager
def _opened(file: BinaryIO, info: VideoInfo) -> Iterator[VideoFile | JoinedVideo]:
    if info.parts:
        yield JoinedVideo([(part_of(file, start, end), length_us) for start, end, length_us in info.parts])
    else:
        with open_video(file, restarts="timestamps_restart" in info.flags) as video:
            yield video


def _window(
    sampled: SampledWindow, video: VideoFile | JoinedVideo, info: VideoInfo, decode_ms: float
) -> Window | tuple[int, Failure]:
    planned = sampled.planned
    end_us = sampled.file_end_us
    is_truncated = end_us is not None and end_us < planned.end_us - TRUNCATED_US
    if not sampled.frames:
        return planned.index, _no_frames(planned, video, end_us if is_truncated else None)
    frames = np.stack(sampled.frames)
    cuts = shot_cuts(frames)
    shown = last_cut_in_overlap(planned, sampled.frame_us, cuts) if info.shot_cuts else None
    flags = [
        ("truncated_file", is_truncated),
        ("held_frame", sampled.is_held),
        ("frames_missing", not sampled.is_held and _has_hole(sampled, video, info)),
        ("size_change", sampled.has_other_size),
        ("ends_at_cut", shown is not None),
    ]
    window_end_us = planned.end_us if shown is None else sampled.frame_us[shown]
    frames, frame_us = frames[:shown], tuple(sampled.frame_us[:shown])
    facts = WindowFacts(
        span=WindowSpan(planned.index, planned.start_us, window_end_us, frame_us, planned.start_us),
        core_end_us=planned.core_end_us,
        width=frames.shape[2],
        height=frames.shape[1],
        decode_errors=_count(video.errors_us, planned),
        corrupt_frames=_count(video.corrupt_us, planned),
        cut_us=tuple(frame_us[index] for index in cuts if index < len(frame_us)),
        flags=tuple(flag for flag, holds in flags if holds),
        decode_ms=decode_ms,
    )
    return Window(facts, frames)


def last_cut_in_overlap(planned: PlannedWindow, frame_us: Sequence[int], cuts: Sequence[int]) -> int | None:
    """The index of the frame before which a window ends early: the last cut in the second half of what it shares with
    the next window. That one shows everything from there on, and half of the overlap is left to compare them by."""
    earliest_us = (planned.core_end_us + planned.end_us) // 2
    return next((index for index in reversed(cuts) if earliest_us <= frame_us[index] < planned.end_us), None)


def _is_vfr(runs: Sequence[Sequence[int]]) -> bool:
    """Whether intervals differ in more places than lost frames explain; `runs`: of times one behind the other."""
    steps = [later - earlier for run in runs for earlier, later in pairwise(run)]
    usual = sorted(steps)[len(steps) // 2] if steps else 0
    odd = sum(abs(step - usual) > max(2_000, VFR_SHARE * usual) for step in steps)  # some round to milliseconds
    return odd > ODD_SHARE * len(steps)


def _has_hole(sampled: SampledWindow, video: VideoFile | JoinedVideo, info: VideoInfo) -> bool:
    """Whether frames are missing that were wanted: where some are damaged, or where so many do not come that no still
    explains it. Of a video of variable rate, and of AVI, which leaves out what does not change, that is not known."""
    step_us = 1_000_000 / info.fps
    end_us = min(sampled.planned.end_us, sampled.file_end_us or sampled.planned.end_us)
    damaged = (*video.errors_us, *video.corrupt_us)
    is_even = not info.is_vfr and info.timing == "pts"
    usual_us = 1_000_000 / info.average_fps if info.average_fps > 0 else step_us
    for earlier_us, later_us in pairwise((sampled.planned.start_us, *sampled.frame_us, end_us)):
        if later_us - earlier_us > HOLE_SAMPLES * step_us and (
            any(earlier_us <= time_us < later_us for time_us in damaged)
            or (is_even and later_us - earlier_us > HOLE_FRAMES * usual_us)
        ):
            return True
    return False


def _count(times_us: Sequence[int], planned: PlannedWindow) -> int:
    return len({time_us for time_us in times_us if planned.start_us <= time_us < planned.core_end_us})


def _no_frames(planned: PlannedWindow, video: VideoFile | JoinedVideo, file_end_us: int | None) -> Failure:
    if file_end_us is not None:
        message = f"the file ends at {file_end_us / 1e6:.1f} s, before its header says"
        return Failure(Stage.RENDER, ErrorCode.TRUNCATED_FILE, message)
    errors = _count(video.errors_us, planned)
    message = f"no frame could be decoded from {planned.start_us / 1e6:.1f} s on ({errors} damaged packets)"
    return Failure(Stage.RENDER, ErrorCode.NO_FRAMES, message)


def _display_size(video: VideoFile, height: int, width: int, orientation: Orientation) -> tuple[int, int]:
    """(height, width) upright with square pixels."""
    aspect = video.stream.sample_aspect_ratio or video.stream.codec_context.sample_aspect_ratio
    if aspect and 1 / 16 < aspect < 16:
        width = max(1, round(width * aspect))
    return (width, height) if orientation.transpose else (height, width)


def _media_type(container: str) -> str:
    """The registered type for FFmpeg's name of a container; the name itself where there is none."""
    names = {
        "mov,mp4,m4a,3gp,3g2,mj2": "video/mp4",
        "matroska,webm": "video/matroska",
        "avi": "video/x-msvideo",
        "mpegts": "video/mp2t",
        "mpeg": "video/mpeg",
        "flv": "video/x-flv",
        "ogg": "video/ogg",
        "mxf": "application/mxf",
    }
    return names.get(container, f"video/x-{container}")
