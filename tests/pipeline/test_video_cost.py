"""What decoding costs: memory of a ten-hour video, time beside bare PyAV, bytes read for some windows only."""

import io
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.native import VIDEO_CHUNK_BYTES
from pipeline.ranged import RangedFile
from pipeline.videos import inspect_video, read_windows
from tests.memory import resident
from tests.pipeline.video_files import options, read_all, write_frames

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]


def write_noise(path: Path, seconds: int, *, rate: int, size: tuple[int, int], gop: int) -> None:
    """A moving texture, which costs bytes and time as footage does."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (size[1] // 8 + 64, size[0] // 8 + 64, 3), np.uint8)
    large = np.kron(texture, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": str(gop), "preset": "ultrafast"})
        stream.width, stream.height = size
        for number in range(seconds * rate):
            at = number % 400
            pixels = np.ascontiguousarray(large[at : at + size[1], at : at + size[0]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_a_ten_hour_video_stays_in_memory_bounds(tmp_path):
    write_frames(
        tmp_path / "a.mp4",
        [number * 1000 for number in range(36_000 * 2)],
        Fraction(1, 2000),
        codec_options={"g": "1200", "bf": "2", "preset": "ultrafast"},
    )
    code = (
        "import sys; from pathlib import Path; from tests.pipeline.test_video_cost import count_windows\n"
        "count_windows(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")], cwd=ROOT, check=True, capture_output=True, text=True
    )
    windows, peak_mb, seconds = done.stdout.split()
    print(f"{windows} windows, peak {peak_mb} MB, {seconds} s")
    assert int(windows) == 720
    assert float(peak_mb) < 1500


def count_windows(path: Path) -> None:
    began, windows = time.monotonic(), 0
    with path.open("rb") as file:
        info = inspect_video(file, options())
        numbers = range(1, len(info.piece_tokens) + 1)
        for start in range(0, len(numbers), 6):  # as units have it
            windows += len([1 for _ in read_windows(file, numbers[start : start + 6], info)])
    peak_mb = resident("VmHWM") / 2**20
    print(windows, f"{peak_mb:.0f}", f"{time.monotonic() - began:.0f}")


def test_sampling_costs_little_more_than_bare_decoding(tmp_path):
    write_noise(tmp_path / "a.mp4", 60, rate=30, size=(1280, 720), gop=60)
    ratios = []
    for _ in range(3):
        began = time.process_time()
        with av.open(str(tmp_path / "a.mp4")) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            frames = sum(1 for _ in container.decode(stream))
        bare = time.process_time() - began
        began = time.process_time()
        read_all(tmp_path / "a.mp4", options())
        ratios.append(bare / (time.process_time() - began))
    print(f"{frames} frames: bare decoding takes {max(ratios):.2f} of sampling's time; {[round(r, 2) for r in ratios]}")
    assert max(ratios) >= 0.9


def test_some_windows_are_read_without_the_rest_of_the_file(tmp_path):
    write_noise(tmp_path / "a.mp4", 600, rate=10, size=(640, 352), gop=20)
    data = (tmp_path / "a.mp4").read_bytes()
    fetched = []

    def fetch(start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return data[start:stop]

    def file() -> io.BufferedReader:
        return io.BufferedReader(RangedFile(len(data), fetch, chunk_bytes=VIDEO_CHUNK_BYTES), buffer_size=64 << 10)

    info = inspect_video(file(), options())
    at_open = sum(fetched)
    fetched.clear()
    wanted = [4, 8]
    assert len(list(read_windows(file(), wanted, info))) == 2
    share = len(wanted) * info.window_us / info.duration_us * len(data)
    print(f"{len(data):,} bytes; opened with {at_open:,}; two windows took {sum(fetched) / share:.2f} of their share")
    assert sum(fetched) < 1.2 * share
