"""The events of overlapping windows -> the events of the video, each one once, and chapters above them."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise

from pipeline.parse_events import pair_times
from pipeline.records import Chapter, Event, EventSource, WindowEvent, WindowSpan, stable_id

_WORD = re.compile(r"\w+")
_LEAST_WORDS = 0.6  # how alike two descriptions of one event are at least
_LEAST_TIME = 0.5  # the share of time in common that two views of one event have at least, if their words differ
_CHAPTER_GAP_US = 10_000_000  # nothing happens for so long: what comes next is another chapter
_CHAPTER_US = 300_000_000  # a chapter of this length ends as soon as nothing happens


@dataclass(frozen=True, slots=True)
class _View:
    """An event as one window shows it."""

    span: WindowSpan
    event: WindowEvent

    @property
    def starts_inside(self) -> bool:
        """Whether the window shows the start, not only its own border."""
        return self.event.start_us > self.span.start_us

    @property
    def ends_inside(self) -> bool:
        return self.event.end_us < self.span.end_us


_Thread = list[_View]  # the views of one event, in order of window


def merge_events(video_id: str, windows: Sequence[tuple[WindowSpan, Sequence[WindowEvent]]]) -> list[Event]:
    """The events of a video from its windows in order, in order of start.

    Two windows show the same event where, in the time both see, the two views agree: their descriptions are the same
    and they meet, or the descriptions are alike and half of the time is common to both. Each view of a window goes
    with one view of the window before at most, the best pairs first, so that of two alike events neither swallows the
    other. What one window says twice in the same words, with half of the shorter one's time in both, is one view, the
    longer one; where the times of one are reversed, so that neither can be trusted, any time in both will do, and the
    other is kept. Windows that only touch have one event where both views touch the border with the same words. A long
    event is followed from window to window like this; views that never were in the same time are never compared.

    An event starts where the first view that shows its start has it, and ends where the last view that shows its end
    has it; its words are those of the window that shows most of it. Flags besides those of its views: `open_start` and
    `open_end`, where only the border of a window (not the video's own first or last) is known, and `repeated`.
    """
    if not windows:
        return []
    done: list[_Thread] = []
    running: list[_Thread] = []
    for span, events in windows:
        done += [thread for thread in running if thread[-1].span.end_us < span.start_us]
        running = [thread for thread in running if thread[-1].span.end_us >= span.start_us]
        running = _continued(running, [_View(span, event) for event in _each_once(events)])
    first_us, last_us = windows[0][0].start_us, max(span.end_us for span, _ in windows)
    merged = [_merged(video_id, thread, first_us, last_us) for thread in done + running]
    return _with_chapters(_with_ids(sorted(merged, key=_order)))


def chapters_of(events: Sequence[Event]) -> list[Chapter]:
    """The chapters that `merge_events` put its events into, in order."""
    runs: dict[str, list[Event]] = {}
    for event in events:
        runs.setdefault(event.chapter_id, []).append(event)
    return [_chapter(run) for run in runs.values()]


def _each_once(events: Sequence[WindowEvent]) -> list[WindowEvent]:
    """The events of one window, in their order, without those that another one says already: a longer one, or one whose
    times can be trusted."""
    kept: dict[int, WindowEvent] = {}
    best_first = sorted(
        enumerate(events), key=lambda item: ("reversed" in item[1].flags, item[1].start_us - item[1].end_us)
    )
    for index, event in best_first:
        said = next((place for place, other in kept.items() if _says_again(event, other)), None)
        if said is not None:
            kept[said] = replace(kept[said], flags=(*kept[said].flags, "repeated"))
        else:
            kept[index] = event
    return [kept[index] for index in sorted(kept)]


def _says_again(event: WindowEvent, better: WindowEvent) -> bool:
    common = min(event.end_us, better.end_us) - max(event.start_us, better.start_us)
    least = 1 if "reversed" in event.flags else _LEAST_TIME * (event.end_us - event.start_us)
    return common >= least and event.label == better.label and _words(event) == _words(better)


def _continued(threads: Sequence[_Thread], views: Sequence[_View]) -> list[_Thread]:
    """The threads with the views of the next window, each added to the one it continues or a new one."""
    likenesses = [
        (likeness, row, column)
        for row, thread in enumerate(threads)
        for column, view in enumerate(views)
        if (likeness := _likeness(thread[-1], view))
    ]
    row_of: dict[int, int] = {}
    for _, row, column in sorted(likenesses, key=lambda item: (item[0], -item[1], -item[2]), reverse=True):
        if column not in row_of and row not in row_of.values():
            row_of[column] = row
    column_of = {row: column for column, row in row_of.items()}
    longer = [[*thread, views[column_of[row]]] if row in column_of else thread for row, thread in enumerate(threads)]
    return longer + [[view] for column, view in enumerate(views) if column not in row_of]


def _likeness(earlier: _View, later: _View) -> tuple[float, float] | None:
    """How well two views of different windows agree, (words, time), each 0 to 1; None where they are two events."""
    zone = later.span.start_us, earlier.span.end_us
    is_same = _words(earlier.event) == _words(later.event)
    if zone[0] >= zone[1]:
        touch = zone[0] == zone[1] and not earlier.ends_inside and not later.starts_inside
        return (1.0, 0.0) if is_same and touch else None
    first, second = _inside(earlier.event, zone), _inside(later.event, zone)
    common = min(first[1], second[1]) - max(first[0], second[0])
    share = max(common, 0) / max(max(first[1], second[1]) - min(first[0], second[0]), 1)
    if is_same:
        return (1.0, share) if common > 0 or _is_near(earlier, later) else None
    if share < _LEAST_TIME or earlier.event.label != later.event.label:
        return None
    alike = _alike(_words(earlier.event), _words(later.event))
    return (alike, share) if alike >= _LEAST_WORDS else None


def _is_near(earlier: _View, later: _View) -> bool:
    """Whether two views are no more than a frame pair apart: each window rounds to its own frames."""
    gap = max(earlier.event.start_us, later.event.start_us) - min(earlier.event.end_us, later.event.end_us)
    return gap <= max(_pair_us(earlier.span), _pair_us(later.span))


def _inside(event: WindowEvent, zone: tuple[int, int]) -> tuple[int, int]:
    """An event's span as far as it lies in a zone; empty at the zone's border where it lies outside."""
    start, end = (min(max(time, zone[0]), zone[1]) for time in (event.start_us, event.end_us))
    return start, end


def _pair_us(span: WindowSpan) -> int:
    """The longest time from one frame pair of a window to the next."""
    starts = [first for first, _ in pair_times(span)]
    return max((later - earlier for earlier, later in pairwise(starts)), default=0)


def _words(event: WindowEvent) -> list[str]:
    return _WORD.findall(event.description.casefold())


def _alike(first: list[str], second: list[str]) -> float:
    """How alike two descriptions are, 0 to below 1: the share of words in common (Jaccard) or, for words that were read
    a letter wrong, of letters in common."""
    both, either = Counter(first) & Counter(second), Counter(first) | Counter(second)
    letters = SequenceMatcher(None, " ".join(first), " ".join(second), autojunk=False).ratio()
    return min(max(both.total() / max(either.total(), 1), letters), 0.99)


def _merged(video_id: str, thread: _Thread, first_us: int, last_us: int) -> Event:
    fullest = max(thread, key=lambda view: view.event.end_us - view.event.start_us).event
    starts = [view.event.start_us for view in thread if view.starts_inside]
    ends = [view.event.end_us for view in thread if view.ends_inside]
    start_us = starts[0] if starts else min(view.event.start_us for view in thread)
    end_us = ends[-1] if ends else max(view.event.end_us for view in thread)
    if start_us >= end_us:  # the windows disagree by more than the event is long
        start_us, end_us = fullest.start_us, fullest.end_us
    open_flags = {
        "open_start": not starts and start_us > first_us,
        "open_end": not ends and end_us < last_us,
    }
    flags = [flag for view in thread for flag in view.event.flags] + [
        flag for flag, is_so in open_flags.items() if is_so
    ]
    return Event(
        event_id="",
        video_id=video_id,
        chapter_id="",
        start_us=start_us,
        end_us=end_us,
        label=fullest.label,
        description=fullest.description,
        confidence=fullest.confidence,
        flags=tuple(dict.fromkeys(flags)),
        sources=tuple(_source(view) for view in thread),
    )


def _source(view: _View) -> EventSource:
    return EventSource(view.span.index, view.event.start_us, view.event.end_us, view.event.description)


def _order(event: Event) -> tuple[int, int, str, str]:
    return event.start_us, event.end_us, event.description, event.label


def _with_ids(events: Sequence[Event]) -> list[Event]:
    """Ids from what an event is; the second of two equal ones counts as such."""
    seen: Counter[tuple[int, int, str, str]] = Counter()
    named = []
    for event in events:
        seen[_order(event)] += 1
        parts = (event.start_us, event.end_us, event.label, event.description, seen[_order(event)])
        named.append(replace(event, event_id=stable_id(event.video_id, "event", *map(str, parts))))
    return named


def _with_chapters(events: Sequence[Event]) -> list[Event]:
    """The events with the id of their chapter: the hash of its first event's id."""
    return [
        replace(event, chapter_id=stable_id(run[0].video_id, "chapter", run[0].event_id))
        for run in _runs(events)
        for event in run
    ]


def _runs(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Events in order of start, cut where nothing happens for 10 seconds, after 5 minutes where nothing happens."""
    run: list[Event] = []
    end_us = 0
    for event in events:
        gap_us = event.start_us - end_us
        if run and (gap_us >= _CHAPTER_GAP_US or (gap_us >= 0 and end_us - run[0].start_us >= _CHAPTER_US)):
            yield run
            run = []
        end_us = max(end_us, event.end_us) if run else event.end_us
        run.append(event)
    if run:
        yield run


def _chapter(run: Sequence[Event]) -> Chapter:
    longest = max(run, key=lambda event: event.end_us - event.start_us)
    return Chapter(
        chapter_id=run[0].chapter_id,
        video_id=run[0].video_id,
        start_us=run[0].start_us,
        end_us=max(event.end_us for event in run),
        label=Counter(event.label for event in run).most_common(1)[0][0],
        title=longest.description,
        events=len(run),
    )
