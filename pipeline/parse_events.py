"""Answers about a window -> its events on the video's clock: tolerant of any shape, honest about what was wrong."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.elements import clean_text, without_special_tokens
from pipeline.event_times import find_leading_time, find_ranges, read_range, read_time, words_around
from pipeline.records import ParsedEvents, WindowEvent, WindowSpan

_MICROSECONDS = 1_000_000
_DEEPEST = 8  # lists and objects inside each other that are looked into
_STARTS = ("start", "starttime", "startseconds", "starttimestamp", "startsec", "begin", "begintime", "from", "tstart")
_ENDS = ("end", "endtime", "endseconds", "endtimestamp", "endsec", "stop", "to", "until", "tend")
_RANGES = ("timestamp", "timestamps", "timerange", "timeinterval", "interval", "span", "segment", "range", "time")
_DESCRIPTIONS = ("description", "event", "caption", "sentence", "text", "action", "activity", "summary", "content")
_LABELS = ("label", "category", "type", "kind", "class")
_CONFIDENCES = ("confidence", "score", "probability")
_THOUGHT = re.compile(r"\A.*?</think>", re.DOTALL)
_FENCE = re.compile(r"```[A-Za-z]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_STRING_PAIR = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*("(?:[^"\\]|\\.)*")')


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs: two events may have the same range as their key."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An event as written: times in seconds from the window's origin, None where they could not be read."""

    start: float | None
    end: float | None
    description: str
    label: str = ""
    confidence: float | None = None


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, strict=False)


def parse_events(text: str, span: WindowSpan, *, finish_reason: str, query: str = "") -> ParsedEvents:
    """The events of an answer, in order of start, and flags of what was wrong with it.

    Read are JSON (lists of objects with a start and an end, objects whose keys are ranges, pairs of times; in a fence,
    between words, cut off) and lines of prose with ranges. `query` describes spans that come without words: it is what
    was asked for.

    A time means the frame pair whose own time text is nearest, for that is all a model has seen. An event starts with
    the first frame of its first pair. It ends with the second frame of its last pair: the truth lies between that
    pair's first frame and the next pair's, so this errs least, half a pair at most. An event in the window's first or
    last pair reaches the window's border.

    Flags of the answer: `cut_off` (it reached its token limit), `broken_json`, `unparseable` (nothing in it is an
    event, yet it is not empty), `unreadable_time` (an event was left out, its times cannot be read), `outside_window`
    (an event was left out, it does not touch the window), `repeated` (said twice, kept once). Flags of an event:
    `clamped` (partly outside), `reversed` (its end stood before its start), `no_end` (its end is its start).
    """
    answer = without_special_tokens(_THOUGHT.sub("", clean_text(text)))
    found, is_broken, is_json = _read(answer, query)
    flags = [
        *(["cut_off"] if finish_reason == "length" else []),
        *(["broken_json"] if is_broken else []),
        *(["unparseable"] if answer and not found and not is_json and finish_reason != "length" else []),
    ]
    events: list[WindowEvent] = []
    for item in found:
        placed = _placed(item, span, query)
        if isinstance(placed, str):
            flags.append(placed)
        elif placed in events:
            flags.append("repeated")
        else:
            events.append(placed)
    events.sort(key=lambda event: (event.start_us, event.end_us, event.description))
    return ParsedEvents(tuple(events), tuple(dict.fromkeys(flags)))


def pair_times(span: WindowSpan) -> list[tuple[int, int]]:
    """When the frames shown together begin to show; an odd last one is shown twice."""
    frames = span.frame_us
    return [(first, frames[min(2 * index + 1, len(frames) - 1)]) for index, first in enumerate(frames[::2])]


def _placed(item: _Found, span: WindowSpan, query: str) -> WindowEvent | str:
    """The event on the video's clock, or the flag that says why it has no place."""
    if item.start is None:
        return "unreadable_time"
    flags = []
    start, end = item.start, item.end
    if end is None:
        flags.append("no_end")
        end = start
    if end < start:
        flags.append("reversed")
        start, end = end, start
    first_us, last_us = (span.origin_us + round(seconds * _MICROSECONDS) for seconds in (start, end))
    pairs = pair_times(span)
    if not pairs or last_us < span.start_us or first_us > span.end_us:
        return "outside_window"
    if first_us < span.start_us or last_us > span.end_us:
        flags.append("clamped")
    middles = [(first + second) // 2 for first, second in pairs]
    first_pair, last_pair = _nearest(middles, first_us), _nearest(middles, last_us)
    start_us = span.start_us if first_pair == 0 else pairs[first_pair][0]
    end_us = span.end_us if last_pair == len(pairs) - 1 else pairs[last_pair][1]
    assert span.start_us <= start_us < end_us <= span.end_us, (span, item)
    words = item.description or query or item.label
    return WindowEvent(start_us, end_us, words, item.label, item.confidence, tuple(flags))


def _nearest(middles: Sequence[int], time_us: int) -> int:
    """The index of the pair whose middle is nearest to a time; the earlier of two."""
    index = bisect_left(middles, time_us)
    if index == 0:
        return 0
    if index == len(middles):
        return index - 1
    return index if middles[index] - time_us < time_us - middles[index - 1] else index - 1


def _read(answer: str, query: str) -> tuple[list[_Found], bool, bool]:
    """What an answer says, whether it has JSON that does not end or is wrong, and whether it is JSON at all."""
    fenced = [match[1] for match in _FENCE.finditer(answer)]
    bodies = fenced if any("{" in body or "[" in body for body in fenced) else [answer]
    found: list[_Found] = []
    is_broken = is_json = False
    for body in bodies:
        values, body_is_broken = _json_values(body)
        for value in values:
            found += _walk(value, 0)
            is_json = True
        is_broken |= body_is_broken
    if found:
        return found, is_broken, True
    # Brackets and braces may be prose as well. What prose says around a span asked for is no description of it.
    prose = [replace(item, description=query or item.description) for item in _prose(answer)]
    return prose, is_broken and not prose, is_json


def _json_values(text: str) -> tuple[list[Any], bool]:
    """The whole JSON lists and objects in a text, the outermost of each, and whether something there is not whole."""
    values: list[Any] = []
    is_broken = False
    place = 0
    while (opening := re.compile(r"[\[{]").search(text, place)) is not None:
        try:
            value, place = _DECODER.raw_decode(text, opening.start())
            values.append(value)
        except RecursionError:
            return values, True
        except ValueError:
            is_broken = True
            place = opening.end()
            pair = _STRING_PAIR.match(text, _past_space(text, place))
            while pair:  # {"0:00 - 0:03": "whole", "0:05 - 0:
                values.append(_Object([(pair[1], _DECODER.decode(pair[2]))]))
                place = pair.end()
                comma = re.compile(r"\s*,\s*").match(text, place)
                pair = _STRING_PAIR.match(text, comma.end()) if comma else None
    return values, is_broken


def _past_space(text: str, place: int) -> int:
    return place + len(text[place:]) - len(text[place:].lstrip())


def _walk(value: Any, depth: int) -> Iterator[_Found]:
    """The events in a JSON value, in its order."""
    if depth > _DEEPEST:
        return
    if isinstance(value, _Object):
        event = _event(value)
        if event:
            yield event
            return
        for key, inner in value:
            times = read_range(key)
            if times:
                yield from _keyed(times, inner)
            else:
                yield from _walk(inner, depth + 1)
    elif isinstance(value, list):
        times = read_range(value)
        if times:
            yield _Found(*times, "")
            return
        for inner in value:
            yield from _walk(inner, depth + 1)
    elif isinstance(value, str):
        yield from _prose(value)


def _keyed(times: tuple[float, float], value: Any) -> Iterator[_Found]:
    """The events under a key that is a range: words, an object with words, or a list of either."""
    for inner in value if isinstance(value, list) and not isinstance(value, _Object) else [value]:
        if isinstance(inner, _Object):
            fields = _fields(inner)
            yield _Found(*times, _words(fields, _DESCRIPTIONS), _words(fields, _LABELS), _confidence(fields))
        else:
            yield _Found(*times, inner.strip() if isinstance(inner, str) else "")


def _event(pairs: _Object) -> _Found | None:
    """An object as an event, if it has a start or a range."""
    fields = _fields(pairs)
    words, label, confidence = _words(fields, _DESCRIPTIONS), _words(fields, _LABELS), _confidence(fields)
    start = next((fields[name] for name in _STARTS if name in fields), None)
    end = next((fields[name] for name in _ENDS if name in fields), None)
    if start is not None:
        first, last = read_time(start), read_time(end)
        is_unreadable = end is not None and last is None
        return _Found(None if is_unreadable else first, last, words, label, confidence)
    for value in (fields[name] for name in _RANGES if name in fields):
        first, last = read_range(value) or (read_time(value), None)
        if first is not None or ((words or label) and isinstance(value, str | int | float)):
            return _Found(first, last, words, label, confidence)
    return None


def _fields(pairs: _Object) -> dict[str, Any]:
    """An object's fields by the letters of their names, the first of each."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        fields.setdefault(re.sub(r"[^a-z]", "", key.lower()), value)
    return fields


def _words(fields: dict[str, Any], names: Sequence[str]) -> str:
    return next((fields[name].strip() for name in names if isinstance(fields.get(name), str)), "")


def _confidence(fields: dict[str, Any]) -> float | None:
    for name in _CONFIDENCES:
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
    return None


def _prose(text: str) -> Iterator[_Found]:
    """Events of lines with ranges, or that begin with a time. Where a line has one range, its words describe it."""
    for line in text.splitlines():
        ranges = list(find_ranges(line))
        leading = None if ranges else find_leading_time(line)
        if leading:
            yield _Found(leading.start, None, words_around(line, leading))
        for times in ranges:
            yield _Found(times.start, times.end, words_around(line, times) if len(ranges) == 1 else "")
