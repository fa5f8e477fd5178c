"""Windows are planned so that frames, times and answer fit: minutes as the checkpoint wants them, or hours."""

from fractions import Fraction

import numpy as np
import pytest

from model.preprocessing import VideoSizes
from model.processor import Processor
from model.request import Frames, Sampling
from pipeline.flow import prepare
from pipeline.job import IndexJob, resolve_model
from pipeline.video_windows import PlannedWindow, VideoOptions, frame_dimensions, video_options, window_tokens
from tests.pipeline.video_files import options, read_all, write_frames

QWEN3_VL = VideoSizes(fps=2.0, max_frames=768, min_pixels=4096, max_pixels=25_165_824)  # as the official files say
HOUR = 3600.0


def planned(**changes: float) -> VideoOptions:
    wanted = {"fps": 0.0, "window_seconds": 0.0, "overlap_seconds": -1.0, "max_tokens_per_window": 0}
    return video_options(QWEN3_VL, pixel_multiple=32, prompts_per_window=1, **wanted | changes)


def test_a_window_holds_hours_where_the_context_does():
    """Three hours at a frame every two seconds, in the 256K tokens of Qwen3-VL."""
    wanted = planned(fps=0.5, window_seconds=3 * HOUR, max_frames_per_window=5400, max_tokens_per_window=216_000)
    size = frame_dimensions(round(3 * HOUR * 1e6), 720, 1280, wanted)
    tokens = window_tokens(PlannedWindow(1, 0, round(3 * HOUR * 1e6), round(3 * HOUR * 1e6)), size, wanted)
    assert 0.8 * 216_000 < tokens <= 216_000
    assert tokens < wanted.prompt_tokens < 262_144


def test_more_frames_than_the_checkpoint_wants_must_be_asked_for():
    with pytest.raises(ValueError, match="or more max_frames_per_window"):
        planned(window_seconds=500.0)
    assert planned(window_seconds=500.0, max_frames_per_window=1000).frames == 1000


def test_two_hours_are_one_window_with_a_frame_every_five_seconds(tmp_path):
    write_frames(tmp_path / "a.mp4", [5 * number for number in range(1440)], Fraction(1, 1), codec_options={"bf": "0"})
    wanted = options(fps=0.2, window_seconds=2 * HOUR, max_frames_per_window=1440, max_tokens_per_window=2880)
    _, (window,) = read_all(tmp_path / "a.mp4", wanted)
    assert window.facts.span.frame_us == tuple(5_000_000 * number for number in range(1440))
    assert window.frames_THWC.shape[1] * window.frames_THWC.shape[2] == 4 * 32**2


def test_no_prompt_is_longer_than_the_plan_says():
    processor = Processor.from_pretrained(resolve_model("model/demo"))
    for seconds in (10.0, 100.0, 9990.0):
        wanted = options(fps=100 / seconds, window_seconds=seconds, max_tokens_per_window=100)
        frames = np.zeros((100, 32, 32, 3), np.uint8)
        times = tuple(seconds * number / 100 for number in range(100))
        prompt = processor.encode("key", [Frames(frames, times)], Sampling())
        bare = processor.encode("key", [Frames(frames[:1]), ""], Sampling())
        assert 300 < len(prompt.token_ids_T) - len(bare.token_ids_T) <= wanted.prompt_tokens


def test_windows_beyond_the_context_are_refused_and_yarn_makes_room_for_them(tmp_path):
    job = {"input": str(tmp_path), "output": str(tmp_path / "out"), "max_tokens_per_window": 12_000}
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="the context is 8,192"):
        prepare(IndexJob(**job))
    prepare(IndexJob(**job, max_context=16_000, rope_scaling=2.0))
