"""Shot cuts are found between shots and nowhere else, and a window may end at one without anything being lost."""

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.shot_cuts import shot_cuts
from pipeline.video_windows import plan_windows
from pipeline.videos import last_cut_in_overlap
from tests.pipeline.video_files import options, read_all

SIDE = 96


def shots(rng: np.random.Generator, lengths: list[int], *, speed: int) -> np.ndarray:
    """Textures of blocks, each of a brightness of its own, over which a camera moves `speed` pixels a frame."""
    frames = []
    for number, length in enumerate(lengths):
        tone = 60 if number % 2 else 190
        texture = rng.integers(tone - 50, tone + 50, (SIDE // 16, (SIDE + speed * length) // 16 + 1, 3))
        scene = np.kron(texture, np.ones((16, 16, 1))).astype(np.uint8)
        frames += [scene[:, at * speed : at * speed + SIDE] for at in range(length)]
    return np.stack(frames)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("speed", [0, 1, 3, 12])
def test_cuts_are_found_and_moving_cameras_are_none(seed, speed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 20, 6).tolist()
    noise = rng.integers(-6, 7, (sum(lengths), SIDE, SIDE, 3))
    frames = np.clip(shots(rng, lengths, speed=speed) + noise, 0, 255).astype(np.uint8)
    assert shot_cuts(frames) == np.cumsum(lengths)[:-1].tolist()


def test_one_frame_or_a_still_has_no_cut():
    assert shot_cuts(np.zeros((1, SIDE, SIDE, 3), np.uint8)) == []
    assert shot_cuts(np.full((9, SIDE, SIDE, 3), 99, np.uint8)) == []


def write_shots(path: Path, seconds: int, cuts: list[float]) -> None:
    """Ten frames a second, dark and bright in turn from cut to cut."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        for number in range(seconds * 10):
            tone = 40 if sum(cut <= number / 10 for cut in cuts) % 2 else 200
            pixels = np.full((64, 64, 3), tone, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


CUTS = [3.0, 16.2, 17.3, 18.6, 31.0]  # windows of 20 s every 15: two of them lie in the second half of an overlap


def test_a_window_ends_at_the_last_cut_in_the_second_half_of_its_overlap(tmp_path):
    write_shots(tmp_path / "a.mp4", 50, CUTS)
    info, windows = read_all(tmp_path / "a.mp4", options(window_seconds=20, overlap_seconds=5))
    assert info.shot_cuts
    spans = [window.facts.span for window in windows]
    assert [(span.start_us / 1e6, span.end_us / 1e6) for span in spans] == [(0, 19.0), (15, 35), (30, 50)]
    assert [window.facts.flags for window in windows] == [("ends_at_cut",), (), ()]
    assert windows[0].facts.cut_us == (3_000_000, 16_500_000, 17_500_000)
    assert windows[1].facts.cut_us == (16_500_000, 17_500_000, 19_000_000, 31_000_000)
    whole = read_all(tmp_path / "a.mp4", options(window_seconds=20, overlap_seconds=5, shot_cuts=False))[1]
    for window, longer in zip(windows, whole, strict=True):
        frames = len(window.facts.span.frame_us)
        assert longer.facts.span.frame_us[:frames] == window.facts.span.frame_us
        assert all(time_us >= window.facts.span.end_us for time_us in longer.facts.span.frame_us[frames:])
        np.testing.assert_array_equal(longer.frames_THWC[:frames], window.frames_THWC)
    assert [window.facts.span.end_us for window in whole] == [20_000_000, 35_000_000, 50_000_000]


def test_the_next_window_always_begins_before_the_cut_at_which_one_ends():
    rng = np.random.default_rng(0)
    for _ in range(200):
        window_us, step_us = 10_000_000, int(rng.integers(5, 21)) * 500_000
        for planned in plan_windows(int(rng.integers(1, 60_000_000)), window_us, min(step_us, window_us)):
            frame_us = list(range(planned.start_us, planned.end_us, 500_000))
            cuts = sorted(rng.choice(len(frame_us), len(frame_us) // 3, replace=False).tolist())
            shown = last_cut_in_overlap(planned, frame_us, cuts)
            overlap_us = planned.end_us - planned.core_end_us
            if shown is None:
                assert not any(planned.end_us - overlap_us // 2 <= frame_us[cut] for cut in cuts)
            else:
                assert planned.core_end_us + overlap_us // 2 <= frame_us[shown] < planned.end_us
