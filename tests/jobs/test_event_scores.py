"""Scores of told events: by hand, against brute force over all matchings, and for a perfect model over sample clips."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.event_scores import EventScores, as_sampled, score_events, told_events
from jobs.sample_videos import SampleEvent, clip_window, make_clip, pairs_of
from tests.jobs.event_runs import indexed


def test_every_kind_of_right_and_wrong_is_counted() -> None:
    truth = [
        SampleEvent(0, 10, "a"),  # told well
        SampleEvent(20, 30, "b"),  # told with one end off
        SampleEvent(40, 44, "c"),  # told in other words
        SampleEvent(50, 60, "d"),  # told twice
        SampleEvent(70, 80, "e"),  # not told
    ]
    told = [
        SampleEvent(0.5, 10.9, " A"),
        SampleEvent(20, 33, "b"),
        SampleEvent(40, 44, "cc"),
        SampleEvent(50, 60, "d"),
        SampleEvent(52, 60, "d"),
        SampleEvent(90, 99, "a"),
    ]
    expected = EventScores(true=5, told=6, found=3, recalled=3, dated=2, doubled=1, invented=2, misworded=1)
    assert score_events(told, truth) == expected
    assert expected.recall == pytest.approx(0.6)
    assert expected + expected == EventScores(10, 12, 6, 6, 4, 2, 4, 2)


def test_nothing_told_of_nothing_is_perfect() -> None:
    assert score_events([], []) == EventScores()
    assert EventScores().recall == 1.0
    assert score_events([SampleEvent(0, 1, "a")], []).invented == 1


def best_recall(told: list[SampleEvent], truth: list[SampleEvent]) -> int:
    """The most true events any one-to-one matching recalls, by trying them all."""

    def fits(said: SampleEvent | None, true: SampleEvent) -> bool:
        if said is None or said.description != true.description:
            return False
        hits = [int(said.start_seconds) <= i < int(said.end_seconds) for i in range(40)]
        facts = [int(true.start_seconds) <= i < int(true.end_seconds) for i in range(40)]
        both = sum(a and b for a, b in zip(hits, facts, strict=True))
        return both / sum(a or b for a, b in zip(hits, facts, strict=True)) >= 0.7

    choices = permutations([*told, *[None] * len(truth)], len(truth))
    return max(sum(fits(said, true) for said, true in zip(chosen, truth, strict=True)) for chosen in choices)


SPANS = st.tuples(st.integers(0, 20), st.integers(1, 12), st.sampled_from("ab"))
EVENTS = st.lists(SPANS.map(lambda span: SampleEvent(span[0], span[0] + span[1], span[2])), max_size=3)


def apart(events: list[SampleEvent]) -> bool:
    """Whether events of the same words never overlap, as true ones do not."""
    return all(
        first is second
        or first.description != second.description
        or min(first.end_seconds, second.end_seconds) <= max(first.start_seconds, second.start_seconds)
        for first in events
        for second in events
    )


@settings(max_examples=200, deadline=None)
@given(EVENTS, EVENTS.filter(apart))
def test_recall_is_that_of_the_best_matching(told: list[SampleEvent], truth: list[SampleEvent]) -> None:
    scores = score_events(told, truth)
    assert scores.recalled == best_recall(told, truth)
    assert scores.told == scores.found + scores.doubled + scores.invented


def test_a_perfect_model_is_scored_perfect_on_what_the_frames_show() -> None:
    rng = np.random.default_rng(3)
    exact, sampled = EventScores(), EventScores()
    for _ in range(20):
        clip = make_clip(rng, seconds=60.0, size=(160, 96), held_out=False)
        told = told_events(indexed(clip, "video"))
        exact += score_events(told, clip.events)
        shown = as_sampled(clip.events, pairs_of(clip_window(clip, 0.0, clip.seconds)[1]), clip.seconds)
        sampled += score_events(told, shown)
    assert exact.true > 100
    assert (exact.found, exact.dated, exact.doubled, exact.invented) == (exact.true, exact.true, 0, 0)
    assert sampled.recalled == sampled.dated == sampled.true == sampled.told == exact.true
