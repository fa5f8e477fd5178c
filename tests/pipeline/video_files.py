"""Generated videos whose frames say when they show: the brightness of a frame is its number."""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from model.preprocessing import VideoSizes
from pipeline.records import Window
from pipeline.video_windows import VideoOptions, video_options
from pipeline.videos import VideoInfo, inspect_video, read_windows

SIZES = VideoSizes(fps=2.0, max_frames=256, min_pixels=4096, max_pixels=1572864)


def options(**changes: Any) -> VideoOptions:
    wanted: dict[str, Any] = {"fps": 0, "window_seconds": 0, "overlap_seconds": -1, "max_tokens_per_window": 0}
    return video_options(SIZES, pixel_multiple=32, prompts_per_window=1, **wanted | changes)


def write_frames(
    path: Path,
    pts: Sequence[int],
    time_base: Fraction,
    *,
    codec: str = "libx264",
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    size: tuple[int, int] = (64, 64),
    pixel_format: str = "yuv420p",
) -> None:
    """A video with a grey frame at each of `pts`, the n-th as bright as `level(n)`."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        rate = Fraction(1) if len(pts) < 2 else Fraction(1) / (Fraction(pts[1] - pts[0]) * time_base)
        stream = container.add_stream(codec, rate=rate.limit_denominator(60_000), options=codec_options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        for number, time in enumerate(pts):
            pixels = np.full((size[1], size[0], 3), level(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_lights(path: Path, seconds: int, lights: Sequence[tuple[float, float]], rate: int = 10) -> None:
    """A dark video with a light that is on in these stretches of it, in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": "30"})
        stream.width, stream.height = 64, 64
        for number in range(seconds * rate):
            is_on = any(start <= number / rate < end for start, end in lights)
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 230 if is_on else 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def level(number: int) -> int:
    """Brightness of the n-th frame: neighbours are far apart."""
    return 20 + (number * 37) % 200


def read_all(path: Path, wanted: VideoOptions) -> tuple[VideoInfo, list[Window | tuple[int, Any]]]:
    with path.open("rb") as file:
        info = inspect_video(file, wanted)
        file.seek(0)
        return info, list(read_windows(file, range(1, len(info.piece_tokens) + 1), info))


def expected_times(times_us: Sequence[int], start_us: int, end_us: int, fps: float) -> list[int]:
    """By definition: of each interval of the window's grid the first frame that begins in it, when it has not been
    taken already."""
    chosen = []
    for number in range(math.ceil((end_us - start_us) * fps / 1e6)):
        left, right = start_us + number * 1e6 / fps, start_us + (number + 1) * 1e6 / fps
        inside = [time for time in times_us if left - 0.5 <= time < min(right - 0.5, end_us)]
        chosen += inside[:1]
    return chosen
