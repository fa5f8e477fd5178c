"""Answers about a window become events on the video's clock, whatever their shape, and what is wrong is flagged."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.event_times import read_range, read_time
from pipeline.parse_events import pair_times, parse_events
from pipeline.records import WindowEvent, WindowSpan

SECOND = 1_000_000


def window(start: float = 100.0, seconds: float = 60.0, origin: float | None = None) -> WindowSpan:
    """A window sampled twice a second; its times count from its start unless said otherwise."""
    frames = tuple(round((start + index / 2) * SECOND) for index in range(int(seconds * 2)))
    start_us = round(start * SECOND)
    return WindowSpan(3, start_us, start_us + round(seconds * SECOND), frames, round((origin or start) * SECOND))


def spans(text: str, *, seconds: float = 60.0) -> list[tuple[float, float, str]]:
    """(start, end, description) of a window's events, in seconds from its start."""
    found = parse_events(text, window(100.0, seconds), finish_reason="stop")
    return [(event.start_us / SECOND - 100, event.end_us / SECOND - 100, event.description) for event in found.events]


def flags(text: str, finish_reason: str = "stop") -> tuple[str, ...]:
    return parse_events(text, window(), finish_reason=finish_reason).flags


@pytest.mark.parametrize(
    "text",
    [
        '[{"start": 23.2, "end": 47.2, "description": "trim the fat"}]',
        '{"00:23.00 - 00:47.00": "trim the fat"}',
        '```json\n{"00:23.00 - 00:47.00": "trim the fat"}\n```',
        'Here:\n```json\n[{"start_time": "00:23.00", "end_time": "00:47.00", "event": "trim the fat"}]\n```\nDone.',
        '{"events":[{"start_time":"00:00:23","end_time":"00:00:47","event":"trim the fat"}]}',
        '[{"timestamp": "00:23 - 00:47", "caption": "trim the fat"}]',
        '[{"timestamps": [23.2, 47.2], "sentence": "trim the fat"}]',
        '[{"startTime": "23.2s", "End Time": "47.2 seconds", "action": " trim the fat "}]',
        '[{"start": "<23.2 seconds>", "end": "<47.2 seconds>", "description": "trim the fat"}]',
        '{"23.2 - 47.2": {"description": "trim the fat"}}',
        '{"23.2 - 47.2": ["trim the fat"]}',
        "00:23 - 00:47: trim the fat",
        "1. 00:23.00 \u2013 00:47.00 trim the fat.",
        "- **23.2 - 47.2**: trim the fat",
        "* [23.2s to 47.2s] trim the fat",
        "<23.2 seconds> - <47.2 seconds> trim the fat",
        "0:00:23.000 --> 0:00:47.000 trim the fat",
        "trim the fat (23.2 - 47.2 seconds)",
        "<think>At 1.0 - 2.0 seconds nothing.</think>[[23.2, 47.2]]trim",
        '[{"start": 23.2, "end": 47.2, "description": "trim the fat"}]<|im_end|>\n<|endoftext|>',
    ],
)
def test_every_shape_of_one_event_is_read_alike(text: str) -> None:
    ((start, end, description),) = spans(text)
    assert (start, end) == (23.0, 47.5)
    assert description == ("" if text.endswith("trim") else "trim the fat")
    assert flags(text) == ()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3, 3),
        (3.25, 3.25),
        ("3.25", 3.25),
        ("01:02", 62),
        ("01:02.50", 62.5),
        ("00:01:02,500", 62.5),
        ("10:00:00", 36000),
        ("75:30", 4530),
        ("12 sec", 12),
        ("1:75", None),
        ("1:75:00", None),
        ("1:2:3:4", None),
        ("soon", None),
        ("3 people", None),
        (True, None),
        (None, None),
        (-1, None),
        (float("nan"), None),
        (10**400, None),
    ],
)
def test_a_time_is_read_or_it_is_none(value: object, seconds: float | None) -> None:
    assert read_time(value) == seconds


def test_a_range_is_two_times_and_nothing_else() -> None:
    assert read_range("00:05 - 00:09.50") == (5, 9.5)
    assert read_range("[5 to 9.5]") == (5, 9.5)
    assert read_range([5, "00:09.5"]) == (5, 9.5)
    assert read_range("from 5 to 9") is None
    assert read_range("2024-05-01") is None
    assert read_range([1, 2, 3]) is None


def test_two_events_with_one_range_as_their_key_are_two() -> None:
    assert spans('{"0:05 - 0:09": "a dog", "0:05 - 0:09": "a cat"}') == [(5, 9.5, "a cat"), (5, 9.5, "a dog")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"start": 3.2, "end": 7.2, "description": "one"}, {"start": 9.2, "end": 11.2, "event": "two"}, {"start": 2',
        '```\n{"events": [{"start": 3.2, "end": 7.2, "event": "one"}, {"start": 9.2, "end": 11.2, "event": "two"}, {"',
        '{"00:03 - 00:07": "one", "00:09 - 00:11": "two", "00:13 - 00:1',
        '{"00:03 - 00:07": "one", "00:09 - 00:11": "two", "00:13 - 00:15": "thr',
    ],
)
def test_of_an_answer_cut_off_the_whole_events_are_kept(text: str) -> None:
    assert spans(text) == [(3, 7.5, "one"), (9, 11.5, "two")]
    assert flags(text, "length") == ("cut_off", "broken_json")


def test_pairs_cut_off_are_kept_as_far_as_they_are_whole() -> None:
    assert spans("[[3.2, 7.2], [9.2, 11.2], [13") == [(3, 7.5, ""), (9, 11.5, "")]


@pytest.mark.parametrize("text", ["", "[]", "```json\n[]\n```", "{}", '{"events": []}', " <|im_end|>"])
def test_nothing_is_no_event_and_no_flag(text: str) -> None:
    assert parse_events(text, window(), finish_reason="stop") == parse_events("", window(), finish_reason="stop")
    assert spans(text) == []
    assert flags(text) == ()


def test_an_answer_without_events_in_it_is_flagged() -> None:
    assert flags("There is a man with 2 - 3 people at 5.") == ("unparseable",)
    assert flags('[{"start": "soon", "end": "later", "description": "rain"}]') == ("unreadable_time",)
    assert flags('{"start": 3.2, "end": "??", "description": "rain"}') == ("unreadable_time",)


def test_times_count_from_the_origin_and_stay_inside_the_window() -> None:
    span = window(3600.0, 10.0, origin=3590.0)
    found = parse_events('{"start": 12.2, "end": 14.2, "event": "a"}', span, finish_reason="stop")
    assert [(event.start_us, event.end_us) for event in found.events] == [(3602 * SECOND, 3604_500_000)]
    found = parse_events('{"start": 3.0, "end": 14.2, "event": "a"}', span, finish_reason="stop")
    assert found.events == (WindowEvent(3600 * SECOND, 3604_500_000, "a", "", None, ("clamped",)),)
    found = parse_events('{"start": 2.0, "end": 4.0, "event": "a"}', span, finish_reason="stop")
    assert (found.events, found.flags) == ((), ("outside_window",))


def test_what_is_impossible_is_flagged() -> None:
    (event,) = parse_events('{"start": 9.2, "end": 4.2, "event": "a"}', window(), finish_reason="stop").events
    assert event == WindowEvent(104 * SECOND, 109_500_000, "a", "", None, ("reversed",))
    (event,) = parse_events('{"time": 9.2, "label": "goal"}', window(), finish_reason="stop").events
    assert event == WindowEvent(109 * SECOND, 109_500_000, "goal", "goal", None, ("no_end",))
    twice = json.dumps([{"start": 1.2, "end": 4.2, "event": "a"}] * 2)
    assert len(spans(twice)) == 1
    assert flags(twice) == ("repeated",)


def test_label_and_confidence_are_kept() -> None:
    text = '[{"start": 1.2, "end": 4.2, "caption": "a goal", "label": "goal", "confidence": 0.75}]'
    (event,) = parse_events(text, window(), finish_reason="stop").events
    assert (event.description, event.label, event.confidence) == ("a goal", "goal", 0.75)


def test_the_words_of_a_span_asked_for_are_the_query() -> None:
    text = "The event happens in 3.2 - 7.2 seconds, and again from 9.2 to 11.2 seconds."
    found = parse_events(text, window(), finish_reason="stop", query="a dog barks")
    assert [event.description for event in found.events] == ["a dog barks"] * 2
    found = parse_events("[[3.2, 7.2]]", window(), finish_reason="stop", query="a dog barks")
    assert [event.description for event in found.events] == ["a dog barks"]


def test_an_odd_last_frame_is_a_pair_of_its_own() -> None:
    span = WindowSpan(1, 0, 1_500_000, (0, 500_000, 1_000_000), 0)
    assert pair_times(span) == [(0, 500_000), (1_000_000, 1_000_000)]
    (event,) = parse_events('[{"start": 1.0, "end": 1.0, "event": "a"}]', span, finish_reason="stop").events
    assert (event.start_us, event.end_us) == (1_000_000, 1_500_000)


FRAMES = st.lists(st.integers(0, 60 * SECOND), min_size=1, max_size=40, unique=True).map(sorted)


@settings(max_examples=150, deadline=None)
@given(FRAMES, st.integers(0, 10 * SECOND), st.data())
def test_the_time_texts_of_two_pairs_give_the_frames_between_them(frames: list[int], offset: int, data) -> None:
    frames = [frame + offset for frame in frames]
    span = WindowSpan(1, frames[0], frames[-1] + SECOND, tuple(frames), frames[0])
    pairs = [frames[index : index + 2] for index in range(0, len(frames), 2)]
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(pairs) - 1)] * 2)))
    start, end = (sum(pair) / len(pair) / SECOND - frames[0] / SECOND for pair in (pairs[first], pairs[last]))
    found = parse_events(json.dumps([{"start": start, "end": end, "event": "a"}]), span, finish_reason="stop")
    expected = (
        span.start_us if first == 0 else pairs[first][0],
        span.end_us if last == len(pairs) - 1 else pairs[last][1],
    )
    middles = [sum(pair) / len(pair) for pair in pairs]
    if min((abs(a - b) for a in middles for b in middles if a != b), default=SECOND) > 4:  # a microsecond is rounded
        assert [(event.start_us, event.end_us) for event in found.events] == [expected]


PIECES = st.sampled_from(
    [
        "[",
        "]",
        "{",
        "}",
        '"',
        ":",
        ",",
        " - ",
        "00:03",
        "7.5",
        "start",
        '"end": 4',
        "```json",
        "\n",
        "a dog",
        "\\",
        "<1.0 s>",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=40).map("".join)))
def test_any_text_gives_events_inside_the_window(text: str) -> None:
    span = window()
    for event in parse_events(text, span, finish_reason="length").events:
        assert span.start_us <= event.start_us < event.end_us <= span.end_us
        assert {event.start_us, event.end_us} <= {*span.frame_us, span.end_us}


def test_brackets_without_end_cost_little() -> None:
    for text in ("[" * 20_000, '{"a":' * 4_000, "0 - " * 10_000, "1:" * 10_000, '[{"start": 1,' * 3_000):
        assert len(parse_events(text, window(), finish_reason="length").events) <= 1
