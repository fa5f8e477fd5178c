"""The last stage of the reading pass: answers become rows, rows become a part, one atomic put commits it."""

from dataclasses import dataclass, replace

import pyarrow as pa

from model.request import Completion
from pipeline.books import Books
from pipeline.parse_pages import failed_page, parse_page
from pipeline.prompts import Output
from pipeline.records import Failure, PageRow
from pipeline.rows import AnsweredPage, AnsweredUnit, Receipt
from pipeline.store import Store, StoreOptions
from pipeline.tables import parts_table, to_parquet


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkOptions:
    """How answers become rows, and where they go."""

    store: StoreOptions
    output: str
    epoch: int
    output_format: Output
    keep_raw: bool


class PartWriter:
    """The actor that writes: a batch of answered units in, the receipt of their part out."""

    def __init__(self, options: SinkOptions) -> None:
        self._options = options
        self._store = Store(options.store)
        self._books = Books(self._store, options.output)

    def __call__(self, batch: pa.Table) -> pa.Table:
        answered = [AnsweredUnit.from_row(row) for row in batch.to_pylist()]
        rows = [(unit.unit.unit_id, row) for unit in answered for row in page_rows(unit, self._options)]
        unit_ids = [unit.unit.unit_id for unit in answered]
        part_uri = self._books.part_uri(self._options.epoch, unit_ids)
        # If absent: a part never changes once it is there. A retry finds its first attempt, which holds the same units.
        self._store.put_if_absent(part_uri, to_parquet(parts_table(rows)))
        receipt = Receipt(
            units=len(answered),
            pages=len(rows),
            tokens_out=sum(row.tokens_out for _, row in rows),
            failed=tuple(row.failure.code.value for _, row in rows if row.status == "failed" and row.failure),
            loads=tuple(unit.load for unit in answered),
        )
        return pa.Table.from_pylist([receipt.to_row()])


def page_rows(answered: AnsweredUnit, options: SinkOptions) -> list[PageRow]:
    """One row for each page of the unit, in order. The pages that came must be the pages of the unit."""
    doc_id = answered.unit.asset_id
    rows = [_row(doc_id, page, options) for page in answered.pages]
    rows += [failed_page(doc_id, page_no, failure) for page_no, failure in answered.failures]
    rows = [_with_earlier_tries(row, answered.unit.tries) for row in sorted(rows, key=lambda row: row.page_no)]
    wanted = list(range(answered.unit.first, answered.unit.last + 1))
    assert [row.page_no for row in rows] == wanted, f"{answered.unit}: pages {[row.page_no for row in rows]} came"
    return rows


def _with_earlier_tries(row: PageRow, tries: int) -> PageRow:
    return replace(row, failure=replace(row.failure, attempts=row.failure.attempts + tries)) if row.failure else row


def _row(doc_id: str, page: AnsweredPage, options: SinkOptions) -> PageRow:
    completions = [answer for answer in page.answers if isinstance(answer, Completion)]
    rejected = next((answer for answer in page.answers if isinstance(answer, Failure)), None)
    if rejected is not None:
        return failed_page(doc_id, page.facts.page_no, rejected)
    return parse_page(doc_id, page.facts, completions, options.output_format, keep_raw=options.keep_raw)
