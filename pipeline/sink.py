"""The last stage of the reading pass: answers become rows, rows become a part, one atomic put commits it."""

from dataclasses import dataclass, replace

import pyarrow as pa

from model.request import Completion
from pipeline.books import Books
from pipeline.kinds import Kind, PieceRow
from pipeline.prompts import PagePrompt, VideoPrompt
from pipeline.records import Failure
from pipeline.rows import AnsweredPiece, AnsweredUnit, Receipt
from pipeline.store import Store, StoreOptions
from pipeline.tables import to_parquet


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkOptions:
    """How answers become rows, and where they go."""

    store: StoreOptions
    output: str
    epoch: int
    kind: Kind
    prompt: PagePrompt | VideoPrompt
    keep_raw: bool


class PartWriter:
    """The actor that writes: a batch of answered units in, the receipt of their part out."""

    def __init__(self, options: SinkOptions) -> None:
        self._options = options
        self._store = Store(options.store)
        self._books = Books(self._store, options.output)

    def __call__(self, batch: pa.Table) -> pa.Table:
        answered = [AnsweredUnit.from_row(row) for row in batch.to_pylist()]
        rows = [(unit.unit.unit_id, row) for unit in answered for row in piece_rows(unit, self._options)]
        unit_ids = [unit.unit.unit_id for unit in answered]
        part_uri = self._books.part_uri(self._options.epoch, unit_ids)
        # If absent: a part never changes once it is there. A retry finds its first attempt, which holds the same units.
        self._store.put_if_absent(part_uri, to_parquet(self._options.kind.parts_table(rows)))
        receipt = Receipt(
            asset_ids=tuple(unit.unit.asset_id for unit in answered),
            pieces=len(rows),
            found=sum(row.found for _, row in rows),
            media_us=sum(row.media_us for _, row in rows),
            tokens_out=sum(row.tokens_out for _, row in rows),
            failed=tuple(row.failure.code.value for _, row in rows if row.status == "failed" and row.failure),
            loads=tuple(unit.load for unit in answered),
        )
        return pa.Table.from_pylist([receipt.to_row()])


def piece_rows(answered: AnsweredUnit, options: SinkOptions) -> list[PieceRow]:
    """One row for each piece of the unit, in order. The pieces that came must be the pieces of the unit."""
    asset_id = answered.unit.asset_id
    rows = [_row(asset_id, piece, options) for piece in answered.pieces]
    rows += [options.kind.failed(asset_id, number, failure) for number, failure in answered.failures]
    rows = [_with_earlier_tries(row, answered.unit.tries) for row in sorted(rows, key=lambda row: row.number)]
    wanted = list(range(answered.unit.first, answered.unit.last + 1))
    assert [row.number for row in rows] == wanted, f"{answered.unit}: pieces {[row.number for row in rows]} came"
    return rows


def _with_earlier_tries(row: PieceRow, tries: int) -> PieceRow:
    return replace(row, failure=replace(row.failure, attempts=row.failure.attempts + tries)) if row.failure else row


def _row(asset_id: str, piece: AnsweredPiece, options: SinkOptions) -> PieceRow:
    completions = [answer for answer in piece.answers if isinstance(answer, Completion)]
    rejected = next((answer for answer in piece.answers if isinstance(answer, Failure)), None)
    if rejected is not None:
        return options.kind.failed(asset_id, piece.facts.number, rejected)
    return options.kind.parse(asset_id, piece.facts, completions, options.prompt, options.keep_raw)
