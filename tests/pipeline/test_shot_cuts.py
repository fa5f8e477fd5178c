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


def texture(rng: np.random.Generator) -> np.ndarray:
    tone = rng.integers(70, 190)
    return np.kron(rng.integers(tone - 60, tone + 60, (SIDE // 16, SIDE // 16, 3)), np.ones((16, 16, 1))).clip(0, 255)


def sampled(show, seconds: float, rng: np.random.Generator, *, fps: int = 2) -> np.ndarray:
    """Frames of a picture that is a function of the time, with some noise."""
    frames = [show(number / fps) + rng.integers(-4, 5, (SIDE, SIDE, 3)) for number in range(int(seconds * fps))]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def mixed(one, other, share: float):
    share = min(1.0, max(0.0, share))
    return one * (1 - share) + other * share


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [0.2, 0.5, 0.8, 1.0, 1.3, 1.7, 2.0, 2.5, 3.0])
def test_a_transition_is_one_cut_at_most_however_long_it_is(length, seed):
    rng = np.random.default_rng(seed)
    one, other = texture(rng), texture(rng)
    black = np.zeros_like(one)
    begin = 5 + rng.random() / 2

    def dip(time):
        away = begin + length + 0.3
        return (
            mixed(one, black, (time - begin) / length) if time < away else mixed(black, other, (time - away) / length)
        )

    (cut,) = shot_cuts(sampled(lambda time: mixed(one, other, (time - begin) / length), 12, rng))
    assert begin <= cut / 2 <= begin + length + 0.5
    slow = length > 1.0
    assert len(shot_cuts(sampled(lambda time: mixed(black, one, (time - begin) / length), 12, rng))) <= 1 - slow
    assert len(shot_cuts(sampled(lambda time: mixed(one, black, (time - begin) / length), 12, rng))) <= 1 - slow
    assert len(shot_cuts(sampled(lambda time: mixed(one, one * 0.3, (time - begin) / length), 12, rng))) <= 1 - slow
    assert len(shot_cuts(sampled(dip, 14, rng))) <= 2 - slow


@pytest.mark.parametrize("tone", [0, 255])
def test_a_flash_is_no_cut_and_one_black_frame_between_shots_is_one(tone):
    rng = np.random.default_rng(3)
    one, other, plain = texture(rng), texture(rng), np.full((SIDE, SIDE, 3), tone)
    assert shot_cuts(sampled(lambda time: plain if time == 4 else one, 8, rng)) == []
    shown = {True: one, False: other}
    assert shot_cuts(sampled(lambda time: plain if time == 4 else shown[time < 4], 8, rng)) == [9]


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
