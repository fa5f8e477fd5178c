"""A row of the windows table from answers about it."""

from dataclasses import replace

from model.request import Completion
from pipeline.parse_windows import parse_window
from pipeline.prompts import VideoPrompt
from pipeline.records import WindowFacts, WindowSpan

FACTS = WindowFacts(
    span=WindowSpan(1, 0, 2_000_000, (0, 500_000, 1_000_000, 1_500_000), 0),
    core_end_us=2_000_000,
    width=32,
    height=32,
    decode_errors=0,
    corrupt_frames=0,
    cut_us=(1_000_000,),
    flags=(),
    decode_ms=1.0,
)
ANSWER = Completion(
    "key", '[{"start": 0.2, "end": 1.2, "description": "rain"}]', (1, 2), 9, "stop", -0.1, -0.5, 0, 0, 0
)


def test_what_a_thinking_model_reasons_has_a_column_of_its_own():
    prompt = VideoPrompt(("events", "events"), ("", ""), "events")
    thoughts = [replace(ANSWER, reasoning="It rains."), replace(ANSWER, reasoning="Still [0 - 1].")]
    row = parse_window("video", FACTS, thoughts, prompt, keep_raw=True)
    assert row.reasoning == "It rains.\nStill [0 - 1]."
    assert row.raw_output == f"{ANSWER.text}\n{ANSWER.text}"
    assert {event.description for event in row.events} == {"rain"}
    assert parse_window("video", FACTS, [ANSWER, ANSWER], prompt, keep_raw=False).reasoning == ""
