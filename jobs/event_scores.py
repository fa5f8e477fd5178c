"""How well the events that were told fit the events that happened: recall, ends, what was invented, what came twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Self

from jobs.sample_videos import SampleEvent
from pipeline.records import Event

MICROSECONDS = 1_000_000
LEAST_IOU = 0.7  # of a moment that was found: what grounding benchmarks ask for


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers that add up, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class EventScores(Counts):
    """Counts of events; those of several videos add up."""

    true: int = 0  # events that happened
    told: int = 0  # events that were told
    found: int = 0  # of the true ones: told in the same words and at least in part at the same time
    recalled: int = 0  # of the true ones: found with an IoU of 0.7 or more (R@1 at IoU 0.7)
    dated: int = 0  # of the true ones: found with both ends within a frame pair
    doubled: int = 0  # of those told: a true event that another one told fits better
    invented: int = 0  # of those told: no true event has these words and any of this time
    misworded: int = 0  # of the invented: a true event that was not found has at least half of this time

    @property
    def recall(self) -> float:
        """Share of the true events that are recalled; 1 where nothing happened."""
        return self.recalled / self.true if self.true else 1.0

    @property
    def dated_share(self) -> float:
        return self.dated / self.true if self.true else 1.0


def score_events(
    told: Sequence[SampleEvent], truth: Sequence[SampleEvent], *, pair_seconds: float = 1.0
) -> EventScores:
    """Matches told and true events of the same words (but for case and spaces) one to one, the highest IoU first.

    `pair_seconds` is from one frame pair to the next: what both ends may be off by.
    """
    match_of = _matched(told, truth)
    ious = {true: _iou(told[said], truth[true]) for true, said in match_of.items()}
    missed = [event for index, event in enumerate(truth) if index not in match_of]
    unmatched = [event for index, event in enumerate(told) if index not in match_of.values()]
    invented = [event for event in unmatched if not any(_agree(event, true) for true in truth)]
    return EventScores(
        true=len(truth),
        told=len(told),
        found=len(match_of),
        recalled=sum(iou >= LEAST_IOU for iou in ious.values()),
        dated=sum(_is_dated(told[said], truth[true], pair_seconds) for true, said in match_of.items()),
        doubled=len(unmatched) - len(invented),
        invented=len(invented),
        misworded=sum(any(_iou(event, true) >= 0.5 for true in missed) for event in invented),
    )


def is_moment(said: SampleEvent, truth: Iterable[SampleEvent]) -> bool:
    """Whether it is when one of the true events of the same words happened."""
    return any(_agree(said, true) and _iou(said, true) >= LEAST_IOU for true in truth)


def told_events(events: Iterable[Event]) -> list[SampleEvent]:
    """Events of an index, in seconds."""
    return [told_event(event.start_us, event.end_us, event.description) for event in events]


def told_event(start_us: int, end_us: int, description: str) -> SampleEvent:
    return SampleEvent(start_us / MICROSECONDS, end_us / MICROSECONDS, description)


def as_sampled(
    truth: Iterable[SampleEvent], pair_seconds: Sequence[tuple[float, float]], end_seconds: float
) -> list[SampleEvent]:
    """The truth as far as frame pairs with these times show it, which is all a model can tell: from the first frame of
    the first pair that shows an event to the second frame of the last one, as `pipeline.parse_events` places answers.

    What no frame shows is left out. The last pair of all reaches as far as what was sampled, to `end_seconds`.
    """
    sampled = []
    for event in truth:
        shown = event.shown_in(pair_seconds)
        if shown:
            start = pair_seconds[shown[0]][0]
            end = end_seconds if shown[-1] == len(pair_seconds) - 1 else pair_seconds[shown[-1]][1]
            sampled.append(SampleEvent(start, end, event.description))
    return sampled


def match_greedily(pairs: Iterable[tuple[float, int, int]]) -> dict[int, int]:
    """(score, index, other index) -> index: other index, one to one: the highest scores first, then lowest indexes."""
    match_of: dict[int, int] = {}
    for _, index, other in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:])):
        if index not in match_of and other not in match_of.values():
            match_of[index] = other
    return match_of


def _matched(told: Sequence[SampleEvent], truth: Sequence[SampleEvent]) -> dict[int, int]:
    """Index of a true event -> index of the told one that goes with it."""
    pairs = [
        (_iou(said, true), true_index, told_index)
        for true_index, true in enumerate(truth)
        for told_index, said in enumerate(told)
        if _agree(said, true)
    ]
    return match_greedily(pairs)


def _agree(first: SampleEvent, second: SampleEvent) -> bool:
    return _words(first) == _words(second) and _iou(first, second) > 0


def _words(event: SampleEvent) -> list[str]:
    return event.description.casefold().split()


def _iou(first: SampleEvent, second: SampleEvent) -> float:
    """Intersection over union of two spans of time."""
    common = min(first.end_seconds, second.end_seconds) - max(first.start_seconds, second.start_seconds)
    both = max(first.end_seconds, second.end_seconds) - min(first.start_seconds, second.start_seconds)
    return max(common, 0.0) / both if both > 0 else 0.0


def _is_dated(said: SampleEvent, true: SampleEvent, pair_seconds: float) -> bool:
    offs = abs(said.start_seconds - true.start_seconds), abs(said.end_seconds - true.end_seconds)
    return max(offs) <= pair_seconds + 1e-6
