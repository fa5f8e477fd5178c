"""How far a job is, counted in the parts that are there: also while it runs, by anybody who can read its output."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.books import Books, FrozenSurvey
from pipeline.kinds import Kind, kind_of
from pipeline.lease import count_runs
from pipeline.manifest import finished_manifest

READING_THREADS = 32
Outcome = tuple[str, str]  # status and error code of a piece


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What the books say now."""

    survey: FrozenSurvey | None  # None before every input was opened
    runs: int  # that were started, each by a command
    finished: bool
    kind: Kind
    pieces: Counter[str] = field(default_factory=Counter)  # that have their rows, by status
    failed: Counter[str] = field(default_factory=Counter)  # of them, by error code


def job_status(books: Books) -> JobStatus:
    """Counts each piece once: in the sealed parts, and in those of the newest epoch, which count when it is sealed."""
    survey, newest, kind = books.survey(), books.newest_epoch(), kind_of(books.record())
    runs = count_runs(books.store, books.output)
    if survey is None or newest is None:
        return JobStatus(survey, runs, finished=False, kind=kind)
    units = books.all_units(survey)
    outcomes = _count(books, kind, newest, units)
    pieces, failed = Counter[str](), Counter[str]()
    for (status, code), count in outcomes.items():
        pieces[status] += count
        failed[code] += count if status == "failed" else 0
    is_finished = finished_manifest(books.store, books.output, survey) is not None
    return JobStatus(survey, runs, is_finished, kind, pieces, +failed)


def _count(books: Books, kind: Kind, newest: int, units: pa.Table) -> Counter[Outcome]:
    """Pieces of the units by outcome: each unit in the first part that has it, each piece in its last try."""
    tries = dict(zip(units["unit_id"].to_pylist(), units["tries"].to_pylist(), strict=True))
    retried: dict[tuple[str, int], tuple[int, Outcome]] = {
        (unit["asset_id"], number): (-1, ("", ""))
        for unit in units.to_pylist()
        if unit["tries"]
        for number in range(unit["first"], unit["last"] + 1)
    }
    sealed = books.sealed(newest)
    of_part: dict[str, set[str]] = {}
    for part, unit_id in zip(sealed["part"].to_pylist(), sealed["unit_id"].to_pylist(), strict=True):
        of_part.setdefault(part, set()).add(unit_id)
    parts = [*of_part, *(part for part in books.parts(newest) if part not in of_part)]
    counted = set(sealed["unit_id"].to_pylist())
    outcomes = Counter[Outcome]()
    with ThreadPoolExecutor(READING_THREADS) as threads:
        columns = ["unit_id", kind.asset_id, kind.piece_no, "status", "error_code"]
        for part, rows in zip(parts, threads.map(lambda part: books.read_part(part, columns), parts), strict=True):
            mine = of_part.get(part)
            if mine is None:  # not sealed yet
                mine = set(rows["unit_id"].to_pylist()) - counted
                counted |= mine
            for unit_id, asset_id, number, *outcome in zip(*(rows[name].to_pylist() for name in columns), strict=True):
                piece, (status, code) = (asset_id, number), outcome
                if unit_id not in mine or unit_id not in tries:
                    continue
                if piece in retried:
                    retried[piece] = max(retried[piece], (tries[unit_id], (status, code)))
                else:
                    outcomes[status, code] += 1
    outcomes.update(outcome for tried, outcome in retried.values() if tried >= 0)
    return outcomes
