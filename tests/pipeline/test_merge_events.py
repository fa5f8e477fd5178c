"""Events cut by overlapping windows are put together again: against the true events, drawn at random."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.merge_events import chapters_of, merge_events
from pipeline.records import Event, WindowEvent, WindowSpan

HALF = 500_000  # microseconds from frame to frame
Truth = tuple[int, int, str]  # start and end in frames, description

DESCRIPTIONS = (
    "a red circle moves left",
    "a red circle stays",
    "a red square moves left",
    'title card "Alpha"',
    "rain",
)


def windows_of(frames: int, length: int, overlap: int) -> list[WindowSpan]:
    """Windows of `length` frames, each beginning `overlap` frames before the last one ends."""
    starts = range(0, max(frames - overlap, 1), length - overlap)
    return [window(number, start, min(start + length, frames)) for number, start in enumerate(starts, 1)]


def window(number: int, first: int, last: int) -> WindowSpan:
    times = tuple(range(first * HALF, last * HALF, HALF))
    return WindowSpan(number, first * HALF, last * HALF, times, first * HALF)


def cut(truth: list[Truth], span: WindowSpan) -> list[WindowEvent]:
    """What a perfect model says of a window: every event as far as it lies inside, in order of start."""
    pieces = []
    for start, end, description in truth:
        start_us, end_us = max(start * HALF, span.start_us), min(end * HALF, span.end_us)
        if start_us < end_us:
            pieces.append(WindowEvent(start_us, end_us, description, "", None, ()))
    return sorted(pieces, key=lambda piece: (piece.start_us, piece.end_us, piece.description))


def merged(truth: list[Truth], spans: list[WindowSpan]) -> list[Event]:
    return merge_events("video", [(span, cut(truth, span)) for span in spans])


def spans_of(events: list[Event]) -> list[Truth]:
    return sorted((event.start_us // HALF, event.end_us // HALF, event.description) for event in events)


@st.composite
def truths(draw: st.DrawFn) -> tuple[int, list[Truth]]:
    """The frames of a video and its events; equal descriptions are three frames apart and more, others may overlap."""
    frames = draw(st.integers(10, 400))
    truth: list[Truth] = []
    for description in DESCRIPTIONS:
        start = draw(st.integers(0, 60))
        while start < frames:
            end = min(start + draw(st.integers(1, 150)), frames)
            truth.append((start, end, description))
            start = end + draw(st.integers(3, 200))
    return frames, sorted(truth)


@settings(max_examples=150, deadline=None)
@given(truths(), st.integers(8, 120), st.data())
def test_events_cut_by_overlapping_windows_are_the_true_events_again(given_: tuple[int, list[Truth]], length, data):
    frames, truth = given_
    overlap = data.draw(st.integers(0, length // 2))
    spans = windows_of(frames, length, overlap)
    events = merged(truth, spans)
    assert spans_of(events) == truth
    for event in events:
        shown = [span.index for span in spans if event.start_us < span.end_us and event.end_us > span.start_us]
        assert [source.window for source in event.sources] == shown
        assert event.flags == () or overlap == 0  # without overlap a border in the video may be all there is to see
    assert len({event.event_id for event in events}) == len(events)


@settings(max_examples=100, deadline=None)
@given(truths(), st.integers(40, 120), st.randoms(use_true_random=False))
def test_borders_off_by_a_frame_pair_still_give_each_event_once(given_, length: int, draw: random.Random) -> None:
    frames, truth = given_
    truth = [item for index, item in enumerate(truth) if item[1] - item[0] >= 6 and index % 2 == 0]
    windows = []
    for span in windows_of(frames, length, 20):
        pieces = []
        for piece in cut(truth, span):
            moved = [time + draw.choice((-HALF, 0, HALF)) for time in (piece.start_us, piece.end_us)]
            start_us = (
                piece.start_us
                if piece.start_us == span.start_us
                else min(max(moved[0], span.start_us), span.end_us - HALF)
            )
            end_us = piece.end_us if piece.end_us == span.end_us else min(moved[1], span.end_us)
            if start_us < end_us:
                pieces.append(WindowEvent(start_us, end_us, piece.description, "", None, ()))
        windows.append((span, pieces))
    found = merge_events("video", windows)
    for start, end, description in truth:
        near = [
            event
            for event in found
            if event.description == description
            and abs(event.start_us - start * HALF) <= 2 * HALF
            and abs(event.end_us - end * HALF) <= 2 * HALF
        ]
        assert len(near) == 1, (start, end, description)
    assert len(found) == len(truth)


def test_ids_are_the_same_in_every_run_and_differ_between_videos() -> None:
    truth = [(3, 9, "rain"), (30, 90, "rain"), (40, 60, "snow")]
    spans = windows_of(120, 50, 10)
    first, again = merged(truth, spans), merged(truth, spans)
    assert first == again
    other = merge_events("other video", [(span, cut(truth, span)) for span in spans])
    assert not {event.event_id for event in first} & {event.event_id for event in other}


def test_two_views_in_other_words_are_one_event_with_the_words_of_the_longer_view() -> None:
    spans = windows_of(200, 100, 20)
    said = [
        (spans[0], [WindowEvent(70 * HALF, 100 * HALF, "a man trims the fat off the meat", "", 0.9, ())]),
        (spans[1], [WindowEvent(80 * HALF, 95 * HALF, "man trims fat off the meat", "", 0.5, ("clamped",))]),
    ]
    (event,) = merge_events("video", said)
    assert (event.start_us, event.end_us) == (70 * HALF, 95 * HALF)
    assert event.description == "a man trims the fat off the meat"
    assert event.confidence == 0.9
    assert event.flags == ("clamped",)
    assert [source.description for source in event.sources] == [said[0][1][0].description, said[1][1][0].description]


@pytest.mark.parametrize(
    ("sliver", "whole"),
    [
        ("a red circle stays", "a red circle moves left"),  # one frame does not say where it moves
        ('title card "Alpna bete"', 'title card "Alpha beta"'),
    ],
)
def test_a_sliver_at_a_border_is_part_of_the_event_that_the_next_window_shows(sliver: str, whole: str) -> None:
    spans = windows_of(200, 100, 20)
    said = [
        (spans[0], [WindowEvent(99 * HALF, 100 * HALF, sliver, "", None, ())]),
        (spans[1], [WindowEvent(98 * HALF, 110 * HALF, whole, "", None, ())]),
    ]
    (event,) = merge_events("video", said)
    assert (event.description, event.start_us, event.end_us) == (whole, 99 * HALF, 110 * HALF)


@pytest.mark.parametrize(
    ("second", "spans"),
    [
        ((40, 50, "Rain"), [(10, 50)]),  # inside, but for its case
        ((44, 54, "rain"), [(10, 50)]),  # half and more of it
        ((10, 50, "rain"), [(10, 50)]),
        ((47, 57, "rain"), [(10, 50), (47, 57)]),  # the frame pair that two events share
        ((40, 50, "snow"), [(10, 50), (40, 50)]),
    ],
)
def test_what_a_window_says_twice_is_one_event(second: Truth, spans: list[tuple[int, int]]) -> None:
    said = [WindowEvent(s * HALF, e * HALF, words, "", None, ()) for s, e, words in ((10, 50, "rain"), second)]
    for events in (said, said[::-1]):
        found = merge_events("video", [(window(1, 0, 60), events)])
        assert [(event.start_us // HALF, event.end_us // HALF) for event in found] == spans
        assert [event.flags for event in found] == ([("repeated",)] if len(spans) == 1 else [(), ()])


@pytest.mark.parametrize(("start", "is_one"), [(17, True), (18, False), (24, False)])
def test_an_event_that_ends_before_it_starts_is_no_second_one_where_it_meets_one_of_its_words(
    start: int, is_one: bool
) -> None:
    whole = WindowEvent(8 * HALF, 18 * HALF, "rain", "", None, ())
    turned = WindowEvent(start * HALF, 40 * HALF, "rain", "", None, ("reversed",))  # longer
    for events in ([whole, turned], [turned, whole]):
        found = merge_events("video", [(window(1, 0, 60), events)])
        kept = [event for event in found if (event.start_us, event.end_us) == (whole.start_us, whole.end_us)]
        assert [event.flags for event in kept] == [("repeated",) if is_one else ()]
        assert len(found) == 2 - is_one


def test_alike_events_at_one_time_stay_two() -> None:
    spans = windows_of(200, 100, 20)
    truth = [(85, 95, "a red circle moves left"), (85, 95, "a red square moves left")]
    assert spans_of(merged(truth, spans)) == truth


def test_different_events_in_the_same_time_stay_two_even_if_each_window_saw_one() -> None:
    spans = windows_of(200, 100, 20)
    said = [
        (spans[0], [WindowEvent(85 * HALF, 95 * HALF, "a dog barks", "", None, ())]),
        (spans[1], [WindowEvent(85 * HALF, 95 * HALF, "the sun sets slowly", "", None, ())]),
    ]
    assert len(merge_events("video", said)) == 2


def test_an_end_that_only_a_border_shows_is_said_to_be_open() -> None:
    spans = windows_of(200, 100, 20)
    said = [(spans[0], [WindowEvent(0, 100 * HALF, "a dog barks", "", None, ())]), (spans[1], [])]
    (event,) = merge_events("video", said)
    assert event.flags == ("open_end",)
    (event,) = merge_events(
        "video", [(spans[0], []), (spans[1], [WindowEvent(80 * HALF, 200 * HALF, "b", "", None, ())])]
    )
    assert event.flags == ("open_start",)


def test_nothing_gives_nothing() -> None:
    assert merge_events("video", []) == []
    assert merge_events("video", [(span, []) for span in windows_of(200, 100, 20)]) == []
    assert chapters_of([]) == []


def test_chapters_end_where_nothing_happens_for_ten_seconds() -> None:
    truth = [(0, 10, "one"), (5, 40, "two"), (59, 70, "three"), (90, 95, "four"), (300, 310, "five")]
    events = merged(truth, windows_of(400, 100, 20))
    chapters = chapters_of(events)
    assert [
        (chapter.start_us // HALF, chapter.end_us // HALF, chapter.title, chapter.events) for chapter in chapters
    ] == [
        (0, 70, "two", 3),
        (90, 95, "four", 1),
        (300, 310, "five", 1),
    ]
    assert [event.chapter_id for event in events] == [chapters[index].chapter_id for index in (0, 0, 0, 1, 2)]


def test_a_long_chapter_ends_at_the_next_pause() -> None:
    truth = [(start, start + 20, f"number {start}") for start in range(0, 2000, 22)]
    chapters = chapters_of(merged(truth, windows_of(2100, 120, 20)))
    assert len(chapters) == 4
    for chapter, following in pairwise(chapters):
        assert chapter.end_us <= following.start_us
        assert 300_000_000 <= chapter.end_us - chapter.start_us < 312_000_000


def test_a_day_of_windows_is_merged_in_seconds() -> None:
    truth = [(start, start + 9, f"number {start}") for start in range(0, 172_800, 48)]
    windows = []
    for span in windows_of(172_800, 120, 20):
        first = max(span.start_us // HALF // 48 - 1, 0)
        windows.append((span, cut(truth[first : first + 5], span)))
    assert spans_of(merge_events("video", windows)) == truth
