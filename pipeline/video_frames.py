"""Frames of a video sampled by presentation time, window after window, each decoded once, upright in 8-bit RGB.

A window is sampled on a grid of its own that begins where it does: of each interval of the grid the first frame that
begins to show in it, at its own time. So nothing depends on frame numbers or on an average rate.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from pipeline.video_color import is_unlike_srgb, to_srgb
from pipeline.video_file import VideoFile
from pipeline.video_parts import JoinedVideo
from pipeline.video_windows import PlannedWindow

SKIP_US = (
    4_000_000  # a stretch of which no frame is wanted is jumped over when it is longer: key frames are rarely closer
)


@dataclass(slots=True)
class SampledWindow:
    """What was sampled of a window."""

    planned: PlannedWindow
    frame_us: list[int] = field(default_factory=list)
    frames: list[NDArray[np.uint8]] = field(default_factory=list)  # [H, W, 3] each
    is_held: bool = False  # no frame begins in it: it shows the one that began before
    has_other_size: bool = False  # a frame of it is stored in another size than the video's first
    file_end_us: int | None = None  # where the file ended before the window did

    def wanted_us(self, fps: float) -> int:
        """The earliest time of a frame that is wanted next."""
        if not self.frame_us:
            return self.planned.start_us
        done = math.floor((self.frame_us[-1] - self.planned.start_us) * fps / 1_000_000 + 1e-9) + 1
        return self.planned.start_us + math.ceil(done * 1_000_000 / fps - 1e-6)


def sample_windows(
    video: VideoFile | JoinedVideo,
    windows: Sequence[PlannedWindow],
    *,
    fps: float,
    size: tuple[int, int],
    orientation: "Orientation",
    stored: tuple[int, int] | None = None,
) -> Iterator[SampledWindow]:
    """The windows (in order), each as soon as its last frame is passed; `size`: (height, width) of upright frames;
    `stored`: of the video's first frame as it is stored, when it is not the first of these windows.

    Holds the frames of the windows that overlap at one place, whatever the length of the video.
    """
    painter = Painter(size, orientation, stored)
    waiting = [SampledWindow(window) for window in windows]
    can_skip, place_us = True, -1  # `place_us`: of the last frame
    target_us = waiting[0].planned.start_us
    while waiting:
        held: tuple[int, VideoFrame] | None = None
        first = True
        for time_us, frame in video.frames(target_us):
            if first and time_us <= place_us:
                can_skip = False  # one key frame for a long stretch: jumping only means decoding it again
            first = False
            if time_us <= place_us:
                held = (time_us, frame)
                continue
            place_us = time_us
            while waiting and waiting[0].planned.end_us <= time_us:
                yield _finished(waiting.pop(0), held, painter)
            held = (time_us, frame)
            _take(waiting, time_us, frame, fps, painter)
            if not waiting:
                return
            target_us = _next_wanted(waiting, fps)
            if can_skip and target_us - time_us > SKIP_US:
                break
        else:
            for window in waiting:
                window.file_end_us = max(video.end_us, place_us + 1)
                yield _finished(window, held, painter)
            return


def _take(waiting: list[SampledWindow], time_us: int, frame: VideoFrame, fps: float, painter: "Painter") -> None:
    """Gives the frame to the windows that want it."""
    image = None
    for window in waiting:
        if window.planned.start_us > time_us:
            break
        if time_us < window.planned.end_us and time_us >= window.wanted_us(fps):
            image = painter.paint(frame) if image is None else image
            window.has_other_size |= painter.has_changed(frame)
            window.frame_us.append(time_us)
            window.frames.append(image)


def _next_wanted(waiting: list[SampledWindow], fps: float) -> int:
    """The earliest time at which some window wants a frame; a window that has all of its own wants none."""
    times = []
    for window in waiting:
        wanted = window.wanted_us(fps)
        if wanted < window.planned.end_us:
            times.append(wanted)
        if window.planned.start_us > (times[0] if times else -1) and times:
            break
    return min(times, default=waiting[-1].planned.end_us)


def _finished(window: SampledWindow, held: tuple[int, VideoFrame] | None, painter: "Painter") -> SampledWindow:
    start_us = window.planned.start_us
    shows_on = held is not None and (window.file_end_us is None or window.file_end_us > start_us)
    if not window.frames and held is not None and shows_on:
        window.frame_us.append(max(start_us, held[0]))
        window.frames.append(painter.paint(held[1]))
        window.has_other_size |= painter.has_changed(held[1])
        window.is_held = True
    return window


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored frame becomes upright: first turned over the diagonal, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation(self) -> int:
        """Degrees clockwise, mirroring left out."""
        if not self.transpose:
            return 180 if self.flip_y else 0
        return 90 if self.flip_x else 270


def orientation_of(frame: VideoFrame) -> Orientation:
    """By the display matrix that travels with the frame; other signs, such as names of tracks, are not trusted."""
    try:
        side_data = cast(Iterable[SideData], frame.side_data)  # PyAV's types take it for a mapping
    except ValueError:  # PyAV refuses all of it where some is of a kind it does not know, as EXIF or a camera's pose is
        return _turned(-frame.rotation % 360)
    for data in side_data:
        if data.type == SideDataType.DISPLAYMATRIX:
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype="<i4")[:9].tolist()
            if abs(b) > abs(a):  # x' = a x + c y, y' = b x + d y
                return Orientation(True, c < 0, b < 0)
            return Orientation(False, a < 0, d < 0)
    return Orientation()


def _turned(degrees: int) -> Orientation:
    """The orientation for degrees clockwise, without mirroring."""
    quarter = round(degrees / 90) % 4
    return Orientation(quarter % 2 == 1, quarter in (1, 2), quarter in (2, 3))


class Painter:
    """Turns decoded frames into upright uint8 RGB of one size, reusing its scaler."""

    def __init__(self, size: tuple[int, int], orientation: Orientation, stored: tuple[int, int] | None = None) -> None:
        height, width = size
        self._orientation = orientation
        self._first = stored  # (height, width) of the first frame, whose shape `size` has
        self._stored = (width, height) if orientation.transpose else (height, width)
        self._reformatter = VideoReformatter()

    def paint(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3]; a frame of another shape than the first one's keeps its own between black bars."""
        height, width = self._fitting(frame)
        trc, primaries = frame.color_trc, frame.color_primaries
        is_unlike = is_unlike_srgb(trc, primaries)
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb48le" if is_unlike else "rgb24",  # dark HDR has fewer than 8 bits of 8
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        pixels = rgb.to_ndarray()
        image = to_srgb(cast(NDArray[np.uint16], pixels), trc, primaries) if is_unlike else pixels
        if (height, width) != self._stored:
            boxed = np.zeros((*self._stored, 3), np.uint8)
            top, left = (self._stored[0] - height) // 2, (self._stored[1] - width) // 2
            boxed[top : top + height, left : left + width] = image
            image = boxed
        if self._orientation.transpose:
            image = image.transpose(1, 0, 2)
        if self._orientation.flip_x:
            image = image[:, ::-1]
        if self._orientation.flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def has_changed(self, frame: VideoFrame) -> bool:
        """Whether the frame is stored in another size than the first one that was painted."""
        return self._first is not None and (frame.height, frame.width) != self._first

    def _fitting(self, frame: VideoFrame) -> tuple[int, int]:
        """(height, width) of the frame where it fits, in the shape of its own; pixels are as square as the first's."""
        self._first = self._first or (frame.height, frame.width)
        height, width = (
            side * shown / first
            for side, shown, first in zip((frame.height, frame.width), self._stored, self._first, strict=True)
        )
        share = min(self._stored[0] / height, self._stored[1] / width)
        return max(1, round(height * share)), max(1, round(width * share))
