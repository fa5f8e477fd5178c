"""A row of the windows table from answers about it."""

from dataclasses import replace

import pytest

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


EVENTS = VideoPrompt(("events",), ("",), "events")
QUERIES = VideoPrompt(("rain?", "snow?"), ("rain", "snow"), "events")


def outcome(prompt, *answers):
    row = parse_window("video", FACTS, answers, prompt, keep_raw=False)
    return row.status, row.failure and row.failure.code


def test_a_looping_answer_is_cut_off_as_that_of_a_page_is():
    looping = replace(ANSWER, finish_reason="repetition")
    assert outcome(EVENTS, looping) == ("truncated", "output_repeated")
    assert outcome(QUERIES, ANSWER, looping) == ("truncated", "output_repeated")
    row = parse_window("video", FACTS, [looping], EVENTS, keep_raw=False)
    assert (row.finish_reason, len(row.events)) == ("repetition", 1)


@pytest.mark.parametrize("text", ["I cannot tell.", '[{"start": ', '[{"start": "soon", "end": "later"}]'])
def test_an_answer_in_which_nothing_can_be_read_is_not_ok(text):
    assert outcome(EVENTS, replace(ANSWER, text=text)) == ("unparseable", "unparseable")


@pytest.mark.parametrize("text", ["", " \n", "\u200b "])
def test_no_answer_to_a_question_is_not_ok(text):
    question = VideoPrompt(("who?",), ("",), "text")
    assert outcome(question, replace(ANSWER, text=text)) == ("unparseable", "unparseable")
    assert outcome(question, replace(ANSWER, text="nobody")) == ("ok", None)


@pytest.mark.parametrize("text", ["[]", "```json\n[]\n```"])
def test_an_answer_that_nothing_happens_is_ok(text):
    assert outcome(EVENTS, replace(ANSWER, text=text)) == ("ok", None)
    assert outcome(QUERIES, replace(ANSWER, text=text), ANSWER) == ("ok", None)


@pytest.mark.parametrize("text", ["", "Hm.", "[["])
def test_a_query_that_was_not_answered_does_not_look_as_if_it_did_not_happen(text):
    row = parse_window("video", FACTS, [ANSWER, replace(ANSWER, text=text)], QUERIES, keep_raw=False)
    assert row.status == "unparseable"
    assert "'snow'" in row.failure.message
    assert [event.label for event in row.events] == ["rain"]


def test_windows_say_how_their_answers_were_drafted():
    drafted = replace(ANSWER, steps=2, drafted_tokens=7, accepted_tokens=5, resumes=1)
    row = parse_window("video", FACTS, [drafted, drafted], QUERIES, keep_raw=False)
    assert (row.steps, row.drafted_tokens, row.accepted_tokens, row.resumes) == (4, 14, 10, 2)
