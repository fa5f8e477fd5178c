"""Times as models write them: seconds, mm:ss.ff, HH:MM:SS and ranges of them, read out of prose and JSON values."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_UNIT = r"(?:seconds?|secs?|s)\b"
_CLOCK = r"(?:\d{1,3}:)?\d{1,3}:\d{1,2}(?:[.,]\d+)?"


def _pattern(prefix: str) -> str:
    """A time with the groups clock, number and unit, their names prefixed."""
    number = rf"(?P<{prefix}clock>{_CLOCK})|(?P<{prefix}number>\d+(?:\.\d+)?)"
    return rf"<?\s*(?<![\d.:])(?:{number})(?!\d|[.:]\d)\s*(?P<{prefix}unit>{_UNIT})?\s*>?"


_BETWEEN = r"\s*(?:-->|->|~|[-\u2010-\u2015\u2212]|\bto\b|\buntil\b|\band\b|,)\s*"
_RANGE = re.compile(_pattern("start_") + _BETWEEN + _pattern("end_"), re.IGNORECASE)
_ONE = re.compile(_pattern(""), re.IGNORECASE)
_NUMBERED = re.compile(r"(?:[-*\u2022]\s+|\(?\d+[.)]\s+|#+\s+)+")
_OPENING = " \t[(*`\"'|"
_LONGEST_SECONDS = 10**9


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Two times in seconds as they were written, and where in the text: characters [first, last)."""

    start: float
    end: float
    first: int
    last: int


def read_time(value: object) -> float | None:
    """Seconds of a JSON value: a number, or a string that is one time and nothing else. None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value <= _LONGEST_SECONDS else None
    if not isinstance(value, str):
        return None
    match = _ONE.fullmatch(value.strip())
    return _seconds(match["clock"], match["number"]) if match else None


def read_range(value: object) -> tuple[float, float] | None:
    """Two times of a JSON value: a list of two, or a string that is a range and nothing else."""
    if isinstance(value, list) and len(value) == 2:
        start, end = map(read_time, value)
        return None if start is None or end is None else (start, end)
    if not isinstance(value, str):
        return None
    match = _RANGE.fullmatch(value.strip().strip("[]()").strip())
    return _range(match) if match else None


def find_ranges(line: str) -> Iterator[TimeRange]:
    """The ranges of times in a line of prose.

    Plain whole numbers are one only where they have a unit or begin the line: "2 - 3 people" is no time.
    """
    opening = _opening(line)
    for match in _RANGE.finditer(line):
        is_time = (
            match["start_clock"] and match["end_clock"]
            if match["start_clock"] or match["end_clock"]
            else match["start_unit"] or match["end_unit"] or _begins(match, opening)
        )
        times = _range(match) if is_time else None
        if times:
            yield TimeRange(*times, match.start(), match.end())


def find_leading_time(line: str) -> TimeRange | None:
    """The one time a line begins with: a clock, or seconds with their unit."""
    match = _ONE.match(line, _opening(line))
    if not match or not (match["clock"] or match["unit"]):
        return None
    seconds = _seconds(match["clock"], match["number"])
    return None if seconds is None else TimeRange(seconds, seconds, match.start(), match.end())


def words_around(line: str, times: TimeRange) -> str:
    """A line without its bullet or number, the times, and the marks around them."""
    numbered = _NUMBERED.match(line, len(line) - len(line.lstrip()))
    before = line[numbered.end() if numbered else 0 : times.first].strip(" \t-*#([`\"'|")
    after = line[times.last :].strip(" \t-*:)].,`\"'|\u2013\u2014")
    return f"{before} {after}".strip()


def _opening(line: str) -> int:
    """Where a line begins behind its bullet or number and its brackets."""
    numbered = _NUMBERED.match(line, len(line) - len(line.lstrip()))
    start = numbered.end() if numbered else 0
    return start + len(line[start:]) - len(line[start:].lstrip(_OPENING))


def _begins(match: re.Match[str], opening: int) -> bool:
    """Whether plain numbers begin their line and end a phrase there: "0 - 5: text", not "2 - 3 people"."""
    rest = match.string[match.end() :].lstrip("])*`\"' ")
    return match.start() == opening and (not rest or rest[0] in ":,-|\u2013\u2014")


def _range(match: re.Match[str]) -> tuple[float, float] | None:
    start = _seconds(match["start_clock"], match["start_number"])
    end = _seconds(match["end_clock"], match["end_number"])
    return None if start is None or end is None else (start, end)


def _seconds(clock: str | None, number: str | None) -> float | None:
    """Seconds of h:m:s, m:s or plain seconds; None where minutes or seconds of a clock are over 59."""
    if number:
        seconds = float(number)
        return seconds if math.isfinite(seconds) and seconds <= _LONGEST_SECONDS else None
    assert clock
    *larger, last = clock.replace(",", ".").split(":")
    parts = [*map(float, larger), float(last)]
    if any(part >= 60 for part in parts[1:]):
        return None
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))
