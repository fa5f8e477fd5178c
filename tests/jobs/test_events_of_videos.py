"""From an encoded file to its events with everything but the model: windows, perfect answers, merging, scores."""

from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jobs.event_scores import score_events, told_events
from jobs.sample_videos import SampleClip, answer_for, make_clip, pairs_of, write_video
from model.preprocessing import VideoSizes
from pipeline.merge_events import merge_events
from pipeline.parse_events import parse_events
from pipeline.records import Event, Window
from pipeline.video_windows import video_options
from pipeline.videos import inspect_video, read_windows

SECOND = 1_000_000
SIZE = (160, 96)


def decoded_windows(content: bytes, *, window: float, overlap: float) -> list[Window]:
    pixels = SIZE[0] * SIZE[1]
    options = video_options(
        VideoSizes(fps=2.0, max_frames=768, min_pixels=pixels, max_pixels=768 * pixels),
        fps=2.0,
        window_seconds=window,
        overlap_seconds=overlap,
        max_tokens_per_window=0,
        pixel_multiple=32,
        prompts_per_window=1,
    )
    info = inspect_video(BytesIO(content), options)
    items = list(read_windows(BytesIO(content), range(1, len(info.piece_tokens) + 1), info))
    windows = [item for item in items if isinstance(item, Window)]
    assert len(windows) == len(items)
    return windows


def told_by_a_perfect_model(clip: SampleClip, windows: list[Window]) -> list[Event]:
    said = []
    for window in windows:
        span = window.facts.span
        pairs = pairs_of([time_us / SECOND for time_us in span.frame_us])
        parsed = parse_events(answer_for(clip, pairs, span.origin_us / SECOND), span, finish_reason="stop")
        assert parsed.flags == ()
        said.append((span, parsed.events))
    return merge_events("video", said)


@pytest.mark.parametrize(("fps", "suffix"), [(24, ".mp4"), (Fraction(30000, 1001), ".mkv"), (5, ".mp4")])
def test_every_event_of_a_video_is_told_once_and_dated_within_a_frame_pair(
    fps: int | Fraction, suffix: str, tmp_path: Path
) -> None:
    clip = make_clip(np.random.default_rng(11), seconds=60.0, size=SIZE, held_out=False)
    write_video(tmp_path / f"clip{suffix}", clip, fps=fps)
    windows = decoded_windows((tmp_path / f"clip{suffix}").read_bytes(), window=20.0, overlap=5.0)
    spans = [window.facts.span for window in windows]
    assert len(spans) == 4
    assert any(
        event.start_seconds * SECOND < first.end_us < event.end_seconds * SECOND
        for first, _ in pairwise(spans)
        for event in clip.events
    )
    for window in windows:
        for frame_us, pixels_HWC in zip(window.facts.span.frame_us, window.frames_THWC, strict=True):
            assert np.abs(pixels_HWC - clip.frame(frame_us / SECOND + 5e-4).astype(int)).mean() < 6
    scores = score_events(told_events(told_by_a_perfect_model(clip, windows)), clip.events)
    assert scores.true == scores.told == scores.found == scores.dated > 10
    assert scores.doubled == scores.invented == 0
