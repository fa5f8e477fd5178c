"""What a person sees: one line that moves while a pass runs, and the plan as text. No Ray, no files."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TextIO

from pipeline.books import FrozenSurvey

MOST_NAMED = 10
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.2


def duration(seconds: float) -> str:
    """`42 s`, `6 min`, `3 h 20 min`, `2 d 5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def rate(count: float, seconds: float) -> str:
    """Things a second, with a decimal where it matters."""
    value = count / seconds if seconds > 0 else 0.0
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def some_of(names: Sequence[str]) -> str:
    """The first ten, and how many more."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def failures(by_code: Mapping[str, int]) -> str:
    """`failed 3 (encrypted 2, corrupt 1)`, the most frequent first; `failed 0` when there are none."""
    ordered = sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    detail = ", ".join(f"{code} {count:,}" for code, count in ordered)
    return f"failed {sum(by_code.values()):,}" + (f" ({detail})" if detail else "")


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a pass has come."""

    unit: str  # what is counted: inputs, pages, table files
    done: int
    total: int
    seconds: float = 0.0  # since the pass began
    done_before: int = 0  # of `done`, by earlier runs: no measure of this one's speed
    tokens: int = 0  # generated in this run
    failed: Mapping[str, int] = field(default_factory=dict)  # by error code
    assets: str = ""  # what the pieces belong to: documents, videos; "" when that is not followed
    assets_done: int = 0
    assets_total: int = 0
    found: str = ""  # what is found in the pieces
    found_count: int = 0  # in this run
    media_seconds: float = 0.0  # of video, in this run


def progress_line(tally: Tally) -> str:
    """`pages 1,234/5,678 (21.7 %) · 12.3 pages/s · 8,910 tok/s · failed 3 (encrypted 2, corrupt 1) · 6 min left`"""
    share = 100 * tally.done / tally.total if tally.total else 100.0
    made = tally.done - tally.done_before
    parts = [
        f"{tally.unit} {tally.done:,}/{tally.total:,} ({share:.1f} %)",
        f"{rate(made, tally.seconds)} {tally.unit}/s",
    ]
    if tally.assets:
        parts.insert(1, f"{tally.assets} {tally.assets_done:,}/{tally.assets_total:,}")
    if tally.media_seconds:
        parts.append(f"{tally.media_seconds / 3600:,.2f} h of video, {rate(tally.media_seconds, tally.seconds)} h/h")
    if tally.found_count:
        parts.append(f"{tally.found_count:,} {tally.found}")
    if tally.tokens:
        parts.append(f"{rate(tally.tokens, tally.seconds)} tok/s")
    if tally.failed:
        parts.append(failures(tally.failed))
    if made and tally.done < tally.total:
        parts.append(f"{duration((tally.total - tally.done) * tally.seconds / made)} left")
    return " · ".join(parts)


class Progress:
    """Counts a pass and shows how far it is: in place on a terminal, otherwise as a line every ten seconds."""

    def __init__(
        self,
        unit: str,
        total: int,
        stream: TextIO,
        *,
        done: int = 0,
        failed: Mapping[str, int] = MappingProxyType({}),
        assets: str = "",
        assets_total: int = 0,
        found: str = "",
    ) -> None:
        """`done` and `failed` (by error code) are there before the pass begins; `assets` and `found` say what the
        pieces belong to and what is found in them."""
        self._stream = stream
        self._in_place = stream.isatty()
        self._interval = SECONDS_BETWEEN_UPDATES if self._in_place else SECONDS_BETWEEN_LINES
        self._tally = Tally(
            unit=unit,
            done=done,
            total=total,
            done_before=done,
            assets=assets,
            assets_total=assets_total,
            found=found,
        )
        self._failed = Counter(failed)
        self._began = self._shown_at = time.monotonic()
        self._shown = ""

    def add(
        self,
        done: int,
        *,
        tokens: int = 0,
        failed: Iterable[str] = (),
        found: int = 0,
        media_us: int = 0,
        assets_left: int = 0,
    ) -> None:
        """`failed`: an error code for each failure; `assets_left`: of all, not yet done."""
        self._failed.update(failed)
        self._tally = replace(
            self._tally,
            done=self._tally.done + done,
            tokens=self._tally.tokens + tokens,
            seconds=time.monotonic() - self._began,
            failed=self._failed,
            found_count=self._tally.found_count + found,
            media_seconds=self._tally.media_seconds + media_us / 1_000_000,
            assets_done=self._tally.assets_total - assets_left,
        )
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def finish(self) -> None:
        """Shows the end of the pass, whatever the time."""
        self._show()
        if self._in_place:
            self._stream.write("\n")

    def _show(self) -> None:
        line, self._shown_at = progress_line(self._tally), time.monotonic()
        if line != self._shown:
            # Padding wipes what a longer line left behind.
            self._stream.write(f"\r{line:<{len(self._shown)}}" if self._in_place else line + "\n")
            self._stream.flush()
        self._shown = line


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of a whole run."""

    tokens_out: int  # as answers mostly are
    most_tokens_out: int  # every answer as long as it may be
    start_seconds: float  # Ray, and the inputs opened: as long as it took just now
    load_seconds: float  # the weights
    read_seconds: float
    basis: str  # of `read_seconds`

    @property
    def seconds(self) -> float:
        return self.start_seconds + self.load_seconds + self.read_seconds


def plan_text(survey: FrozenSurvey, pieces: str, estimated: Estimate, plan: str = "") -> str:
    """What --plan shows. `pieces`: what inputs are cut into, and the `plan` how."""
    readable = survey.assets - sum(survey.failed.values())
    lines = [
        f"inputs   {survey.assets:,}: {readable:,} can be read, {failures(survey.failed)}",
        f"{pieces:<8} {survey.unit_pages:,} to read of {survey.pages:,}",
        f"tokens   {survey.unit_tokens:,} visual tokens in; out about {estimated.tokens_out:,}, at most "
        f"{estimated.most_tokens_out:,}",
        f"time     about {duration(estimated.seconds)}: {duration(estimated.start_seconds)} to start and to open the "
        f"inputs, {duration(estimated.load_seconds)} to load the model, {duration(estimated.read_seconds)} to read "
        f"({estimated.basis})",
    ]
    return "\n".join([*lines, f"plan     {plan}"] if plan else lines)
