"""Sample clips say the truth: against the pixels of every instant, and against the frames of an encoded file."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from jobs.sample_text import is_held_out, vocabulary
from jobs.sample_videos import (
    COLORS,
    SHORTEST_GAP_SECONDS,
    SHORTEST_SECONDS,
    SampleClip,
    SampleEvent,
    answer_for,
    clip_window,
    disturb,
    is_clear,
    make_clip,
    pairs_of,
    write_video,
)


def make_clips(count: int, *, seed: int, seconds: float = 30.0, size: tuple[int, int] = (160, 96)) -> list[SampleClip]:
    rng = np.random.default_rng(seed)
    return [make_clip(rng, seconds=seconds, size=size, held_out=False) for _ in range(count)]


def shape_pixels(pixels_HWC: np.ndarray, event: SampleEvent) -> np.ndarray:
    """The (row, column) of every pixel in the colour the event's description names, [N, 2]."""
    return np.argwhere((pixels_HWC == COLORS[event.description.split()[1]]).all(-1))


def is_card(event: SampleEvent) -> bool:
    return event.description.startswith("title card")


def contrast(pixels_HWC: np.ndarray) -> int:
    """How far the brightest and the darkest pixels of a frame lie apart, 0 to 255."""
    grey = pixels_HWC.mean(-1)
    return int(grey.max() - grey.min())


@pytest.mark.parametrize("size", [(160, 96), (320, 256)])
def test_a_shape_has_its_pixels_at_exactly_the_instants_of_its_event(size: tuple[int, int]) -> None:
    seen = 0
    for clip in make_clips(12, seed=1, size=size):
        for event in (event for event in clip.events if not is_card(event)):
            color = event.description.split()[1]
            others = [other for other in clip.events if other is not event and color in other.description]
            for time in (event.start_seconds, event.end_seconds - 1e-6):
                found = shape_pixels(clip.frame(time), event)
                sides = np.ptp(found, axis=0) + 1
                assert (sides >= 20 * min(size[0] / 160, size[1] / 96)).all(), (event, sides)
            for time in (event.start_seconds - 1e-6, event.end_seconds):
                if not any(other.start_seconds <= time < other.end_seconds for other in others):
                    assert len(shape_pixels(clip.frame(time), event)) == 0, event
            seen += 1
    assert seen > 30


def test_a_shape_moves_as_its_description_says() -> None:
    signs = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0), "stays": (0, 0)}
    seen = set()
    for clip in make_clips(20, seed=2):
        for event in (event for event in clip.events if not is_card(event)):
            motion = event.description.split()[-1]
            times = np.arange(event.start_seconds, event.end_seconds, 0.5)
            centers = np.array([shape_pixels(clip.frame(time), event).mean(0) for time in times])
            steps = np.diff(centers, axis=0)
            assert (np.sign(steps) == signs[motion]).all(), event
            assert (np.abs(steps).max(1) >= 5).all() or motion == "stays", event
            seen.add(motion)
    assert seen == set(signs)


def test_a_title_card_can_be_read_from_cut_to_cut_and_elsewhere_there_is_only_background() -> None:
    cards = 0
    for clip in make_clips(20, seed=3):
        for event in filter(is_card, clip.events):
            first, last = clip.frame(event.start_seconds), clip.frame(event.end_seconds - 1e-6)
            assert (first == last).all()
            assert contrast(first) > 80, event
            cards += 1
        for time in np.arange(0, clip.seconds, 0.1):
            if not any(event.start_seconds <= time < event.end_seconds for event in clip.events):
                assert contrast(clip.frame(time)) <= 22
    assert cards > 20


def test_no_event_is_short_and_the_same_one_does_not_come_back_at_once() -> None:
    for clip in make_clips(40, seed=4, seconds=60):
        assert list(clip.events) == sorted(clip.events, key=lambda event: event.start_seconds)
        last_end: dict[str, float] = {}
        for event in clip.events:
            assert 0 <= event.start_seconds < event.end_seconds <= clip.seconds
            assert event.end_seconds - event.start_seconds >= SHORTEST_SECONDS - 1e-9
            gap = event.start_seconds - last_end.get(event.description, -1e9)
            assert gap >= SHORTEST_GAP_SECONDS
            last_end[event.description] = event.end_seconds


def test_some_clips_are_empty_and_some_events_are_long() -> None:
    clips = make_clips(100, seed=5)
    assert 0 < sum(not clip.events for clip in clips) < 20
    assert max(event.end_seconds - event.start_seconds for clip in clips for event in clip.events) > 10


def test_more_happens_in_clips_that_are_trained_on_than_in_held_out_ones() -> None:
    rng = np.random.default_rng(8)
    events = {
        held_out: sum(len(make_clip(rng, seconds=48, size=(160, 96), held_out=held_out).events) for _ in range(40))
        for held_out in (False, True)
    }
    assert events[False] > 1.2 * events[True]


def test_held_out_cards_have_held_out_words_only_and_others_invented_ones_too() -> None:
    rng = np.random.default_rng(6)
    for held_out in (False, True):
        clips = [make_clip(rng, seconds=40, size=(160, 96), held_out=held_out) for _ in range(10)]
        texts = [event.description.split('"')[1] for clip in clips for event in clip.events if is_card(event)]
        assert texts
        words = [word.lower() for text in texts for word in text.split()]
        assert set(map(is_held_out, words)) == {held_out}
        invented = np.mean([word not in vocabulary(held_out) for word in words])
        assert invented == 0 if held_out else 0.25 < invented < 0.75


def test_the_answer_gives_the_times_of_the_first_and_last_pair_that_show_an_event() -> None:
    for clip in make_clips(20, seed=7):
        frames_THWC, times = clip_window(clip, 7.0, 13.0)
        assert frames_THWC.shape == (26, 96, 160, 3)
        assert all((clip.frame(time) == frame).all() for time, frame in zip(times, frames_THWC, strict=True))
        answer = answer_for(clip, pairs_of(times), origin=7.0)
        expected = set()
        for event in clip.events:
            shown = [time for time in times if event.start_seconds <= time < event.end_seconds]
            if shown:  # the window's pairs are [7, 7.5], [8, 8.5], ...: their means count 0.25, 1.25, ... from 7
                first, last = (float(f"{int(time - 7.0) + 0.25:.1f}") for time in (shown[0], shown[-1]))
                expected.add((first, last, event.description))
        found = [(item["start"], item["end"], item["description"]) for item in json.loads(answer or "[]")]
        assert set(found) == expected
        assert len(found) == len(expected)
        assert [start for start, _, _ in found] == sorted(start for start, _, _ in found)
        assert bool(answer) == bool(found)


def test_the_answer_is_written_in_one_way() -> None:
    clip = make_clips(1, seed=8)[0]
    event = SampleEvent(1.0, 4.2, 'title card "Alpha beta"')
    clip = SampleClip(clip.seconds, clip.size, clip.scenes, (event,))
    pairs = [(0.0, 0.5), (1.0, 1.5), (2.0, 2.5), (3.0, 3.5), (4.0, 4.5), (5.0, 5.5)]
    assert answer_for(clip, pairs) == r'[{"start": 1.2, "description": "title card \"Alpha beta\"", "end": 4.2}]'
    assert answer_for(clip, pairs[5:]) == ""


def test_a_window_is_clear_unless_its_border_leaves_one_frame_of_an_event() -> None:
    clip = make_clips(1, seed=8)[0]
    clip = SampleClip(clip.seconds, clip.size, clip.scenes, (SampleEvent(2.2, 9.0, "a red circle moves left"),))
    assert is_clear(clip, [0, 0.5, 1, 1.5, 2])
    assert not is_clear(clip, [1, 1.5, 2, 2.5])
    assert is_clear(clip, [1, 1.5, 2, 2.5, 3])


def test_an_odd_last_frame_is_paired_with_itself() -> None:
    assert pairs_of((0.0, 0.5, 1.0)) == [(0.0, 0.5), (1.0, 1.0)]


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".webm", "libvpx-vp9")])
def test_a_written_video_has_the_frames_of_the_clip(tmp_path: Path, suffix: str, codec: str) -> None:
    clip = make_clips(1, seed=9, seconds=6.0)[0]
    path = tmp_path / f"clip{suffix}"
    write_video(path, clip, fps=12, codec=codec)
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(frames) == 72
    for index, (time, pixels_HWC) in enumerate(frames):
        assert time == pytest.approx(index / 12, abs=0.002)
        assert np.abs(pixels_HWC - clip.frame(index / 12).astype(int)).mean() < 6


def test_a_disturbed_frame_is_noisy_but_the_same() -> None:
    frames_THWC, _ = clip_window(make_clips(1, seed=10)[0], 0, 5)
    disturbed_THWC = disturb(np.random.default_rng(0), frames_THWC)
    difference = np.abs(disturbed_THWC - frames_THWC.astype(int)).mean((1, 2, 3))
    assert ((difference > 0) & (difference < 15)).all()
