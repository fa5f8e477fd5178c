"""How a video is cut into windows: their times, how many frames each has and how large those are. Knows no file."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.preprocessing import VideoSizes

DEFAULT_WINDOW_SECONDS = 60.0
MAX_WINDOWS = 10_000
OVERLAP_SHARE = 6  # by default windows overlap by a sixth of their length
TEXT_TOKENS_PER_PAIR = 12  # `<1234.5 seconds>`, a token for each digit, and the marks around the frames


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOptions:
    """How videos are read. Raises ValueError for what makes no sense."""

    sizes: VideoSizes  # frames per second, and the bounds of a window's pixels
    window_us: int
    step_us: int  # from the start of a window to the start of the next; a multiple of the sampling interval
    shot_cuts: bool = True  # a window ends early, in the second half of an overlap, where a shot does
    pixel_multiple: int = 32
    prompts_per_window: int = 1
    max_windows: int = MAX_WINDOWS  # of one video

    def __post_init__(self) -> None:
        if not 0 < self.step_us <= self.window_us:
            raise ValueError(f"windows of {self.window_us} us every {self.step_us} us leave gaps, or never end")
        if self.max_windows < 1:
            raise ValueError(f"max_windows must be at least 1, not {self.max_windows}")

    @property
    def frames(self) -> int:
        """Of a whole window."""
        return max(1, round(self.window_us * self.sizes.fps / 1_000_000))

    @property
    def visual_tokens(self) -> int:
        """At most, of a window."""
        return self.sizes.max_pixels // (2 * self.pixel_multiple**2)

    @property
    def largest_image(self) -> int:
        """Visual tokens of a frame pair, at most: a short clip may spend on its one what a window has for all."""
        return self.visual_tokens

    @property
    def prompt_tokens(self) -> int:
        """At most, of a window: its frames and the times between them, without the instruction."""
        return self.visual_tokens + TEXT_TOKENS_PER_PAIR * -(-self.frames // 2)

    @property
    def plan(self) -> str:
        """In words, for --plan."""
        return (
            f"windows of {self.window_us / 1e6:g} s every {self.step_us / 1e6:g} s"
            f"{', ended early by shot cuts' if self.shot_cuts and self.step_us < self.window_us else ''}, "
            f"{self.sizes.fps:g} frames a second, {self.frames} frames of at most "
            f"{self.sizes.max_pixels // self.frames:,} pixels, at most {self.visual_tokens:,} visual tokens a window"
        )

    @property
    def bytes_per_token(self) -> int:
        """Of the pixels that a visual token is made of: those of a frame pair."""
        return 2 * 3 * self.pixel_multiple**2


def video_options(
    sizes: VideoSizes,
    *,
    fps: float,
    window_seconds: float,
    overlap_seconds: float,
    max_tokens_per_window: int,
    pixel_multiple: int,
    prompts_per_window: int,
    max_frames_per_window: int = 0,
    shot_cuts: bool = True,
    max_windows: int = MAX_WINDOWS,
) -> VideoOptions:
    """The options for what a user gave; 0 (for the overlap: less than 0) leaves a choice to us.

    Frames per second, length and tokens of a window bound each other: what is given is kept, the length gives way to
    the most frames, which are those the checkpoint wants unless others are given. Raises ValueError where they
    contradict each other.
    """
    fps = fps or sizes.fps
    interval_us = 1_000_000 / fps
    max_frames = max_frames_per_window or sizes.max_frames
    longest = max_frames / fps
    seconds = window_seconds or min(DEFAULT_WINDOW_SECONDS, longest)
    if seconds > longest:
        raise ValueError(
            f"window_seconds {seconds:g} at {fps:g} frames per second are {seconds * fps:.0f} frames, the checkpoint "
            f"takes {max_frames}: give at most {longest:g} seconds, fewer frames per second, or more "
            "max_frames_per_window"
        )
    if seconds < 2 / fps:
        raise ValueError(f"window_seconds {seconds:g} holds no two frames at {fps:g} frames per second")
    overlap = overlap_seconds if overlap_seconds >= 0 else seconds / OVERLAP_SHARE
    if overlap > seconds / 2:
        raise ValueError(f"overlap_seconds {overlap:g} is more than half of window_seconds {seconds:g}")
    max_pixels = sizes.max_pixels
    if max_tokens_per_window:  # a visual token is a square of `pixel_multiple` pixels in two frames
        max_pixels = max_tokens_per_window * 2 * pixel_multiple**2
    frames = round(seconds * fps)
    if max_pixels < frames * pixel_multiple**2:
        raise ValueError(
            f"max_tokens_per_window {max_tokens_per_window} is less than a token for each pair of {frames} frames"
        )
    # Steps of whole sampling intervals: the frames of an overlap are the same in both windows.
    steps = max(1, round((seconds - overlap) * fps))
    return VideoOptions(
        sizes=VideoSizes(fps, max_frames, min(sizes.min_pixels, max_pixels), max_pixels),
        window_us=round(seconds * 1_000_000),
        step_us=round(steps * interval_us),
        shot_cuts=shot_cuts,
        pixel_multiple=pixel_multiple,
        prompts_per_window=prompts_per_window,
        max_windows=max_windows,
    )


@dataclass(frozen=True, slots=True)
class PlannedWindow:
    """A window before anything was decoded: [start_us, end_us) on the video's clock."""

    index: int  # from 1
    start_us: int
    end_us: int
    core_end_us: int  # where the next one begins; the end for the last


def plan_windows(duration_us: int, window_us: int, step_us: int) -> tuple[PlannedWindow, ...]:
    """Windows that cover [0, duration_us); each but the first shows something that the one before does not."""
    count = 1 + max(0, -(-(duration_us - window_us) // step_us))
    windows = []
    for number in range(count):
        start = number * step_us
        end = min(start + window_us, duration_us)
        windows.append(PlannedWindow(number + 1, start, end, start + step_us if number + 1 < count else end))
    return tuple(windows)


def plan_stretches(stretches: Sequence[tuple[int, int]], window_us: int, step_us: int) -> tuple[PlannedWindow, ...]:
    """The windows of each [start, end), one stretch after the other: none shows what lies between them."""
    windows: list[PlannedWindow] = []
    for start_us, end_us in stretches:
        windows += [
            PlannedWindow(
                len(windows) + window.index,
                start_us + window.start_us,
                start_us + window.end_us,
                start_us + window.core_end_us,
            )
            for window in plan_windows(end_us - start_us, window_us, step_us)
        ]
    return tuple(windows)


def frame_dimensions(duration_us: int, height: int, width: int, options: VideoOptions) -> tuple[int, int]:
    """(height, width) of the frames of every window of a video. Raises ValueError for an aspect over 200."""
    frames = max(2, round(min(duration_us, options.window_us) * options.sizes.fps / 1_000_000))
    return options.sizes.frame_dimensions(frames + frames % 2, height, width, multiple=options.pixel_multiple)


def window_tokens(window: PlannedWindow, size: tuple[int, int], options: VideoOptions) -> int:
    """Visual tokens of all prompts of a window."""
    frames = max(1, round((window.end_us - window.start_us) * options.sizes.fps / 1_000_000))
    rows, columns = (side // options.pixel_multiple for side in size)
    return -(-frames // 2) * rows * columns * options.prompts_per_window
