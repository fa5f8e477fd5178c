"""How far a job is, counted in the parts that are there: also while it runs, by anybody who can read its output."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.books import Books, FrozenSurvey
from pipeline.manifest import read_manifest

READING_THREADS = 32


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What the books say now."""

    survey: FrozenSurvey | None  # None before every input was opened
    epochs: int  # runs that were started
    finished: bool
    pages: Counter[str] = field(default_factory=Counter)  # that have their rows, by status
    failed: Counter[str] = field(default_factory=Counter)  # of them, by error code


def job_status(books: Books) -> JobStatus:
    """Counts each unit once: the sealed parts, and those of the newest epoch, which count when it is sealed."""
    survey, newest = books.survey(), books.newest_epoch()
    if survey is None or newest is None:
        return JobStatus(survey, 0 if newest is None else newest + 1, finished=False)
    sealed = books.sealed(newest)
    of_part: dict[str, set[str]] = {}
    for part, unit_id in zip(sealed["part"].to_pylist(), sealed["unit_id"].to_pylist(), strict=True):
        of_part.setdefault(part, set()).add(unit_id)
    parts = [*of_part, *(part for part in books.parts(newest) if part not in of_part)]
    counted: set[str] = set(sealed["unit_id"].to_pylist())
    pages, failed = Counter[str](), Counter[str]()
    with ThreadPoolExecutor(READING_THREADS) as threads:
        columns = ["unit_id", "status", "error_code"]
        for part, rows in zip(parts, threads.map(lambda part: books.read_part(part, columns), parts), strict=True):
            mine = of_part.get(part)
            if mine is None:  # not sealed yet
                mine = set(rows["unit_id"].to_pylist()) - counted
                counted |= mine
            for row in _of_units(rows, mine):
                pages[row["status"]] += 1
                failed[row["error_code"]] += row["status"] == "failed"
    return JobStatus(survey, newest + 1, read_manifest(books.store, books.output) is not None, pages, +failed)


def _of_units(rows: pa.Table, unit_ids: set[str]) -> list[dict[str, str]]:
    return [row for row in rows.to_pylist() if row["unit_id"] in unit_ids]
