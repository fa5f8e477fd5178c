"""What failed is read again, and nothing else: a retry is a new survey that takes the place of the last one.

It has the same inputs and units, those that could not be opened opened again, and further units for the pages or
windows that failed. From there on it is a job like any other, which can be killed and goes on; closing takes the last
try of each. An input that is another version by now is read anew, whole, so that none is a mixture of two.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.books import Books, FrozenSurvey
from pipeline.flow import Setup
from pipeline.kinds import Kind
from pipeline.progress import Progress
from pipeline.records import Asset, BadInput, ErrorCode, Failure, Unit
from pipeline.resources import Resources
from pipeline.rows import MAX_ROW_BYTES, Row, unit_to_row
from pipeline.store import Store, join
from pipeline.survey import ASSETS, MAX_UNIT_PAGES, UNITS, asset_failure, asset_row, cut_units, open_assets

_CHANGED = (ErrorCode.CHANGED_DURING_RUN, ErrorCode.NOT_FOUND)
_FAILED = pa.schema(
    [("asset_id", pa.string()), ("number", pa.int32()), ("error_code", pa.string()), ("attempts", pa.int32())]
)


def begin_retry(setup: Setup, codes: Collection[str], resources: Resources, stream: TextIO) -> FrozenSurvey | None:
    """The new survey of a finished job, or None when nothing failed with one of `codes` (none: with any code).

    Pieces that were cut off or whose answer cannot be read did not fail; they are retried when their code is named.
    """
    books = setup.books
    survey = books.survey()
    assert setup.finished is not None, f"{books.output} is not finished: what is left of it comes first"
    assert survey is not None
    epoch = books.claim_epoch()
    failed = [failed_pieces(books, setup.kind, shard, codes) for shard in range(survey.shards)]
    reopened = _reopen(setup, survey, failed, codes, resources, stream)
    if not reopened and not any(map(len, failed)):
        return None
    bytes_per_token = setup.media.bytes_per_token
    shards = (
        retried_shard(
            books.survey_assets(survey, shard),
            books.survey_units(survey, shard),
            failed[shard],
            reopened,
            pages=setup.job.piece_ranges,
            bytes_per_token=bytes_per_token,
        )
        for shard in range(survey.shards)
    )
    return books.freeze_survey(epoch, shards, number=survey.number + 1)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the last retry of a job brought."""

    inputs: int = 0  # that were opened again
    inputs_fine: int = 0
    pieces: int = 0  # that were read again, those of the inputs above left out
    pieces_fine: int = 0

    def text(self, pieces: str) -> str:
        """`recovered 3 of 5 pages; 2 failed again`"""
        parts = ((self.inputs, self.inputs_fine, "inputs"), (self.pieces, self.pieces_fine, pieces))
        return "\n".join(
            f"recovered {fine:,} of {tried:,} {what}; {tried - fine:,} failed again"
            for tried, fine, what in parts
            if tried
        )


def recovered(books: Books, kind: Kind) -> Recovered:
    """Of a finished job whose last survey is that of a retry, also when it was broken off in between."""
    surveys = list(books.surveys())
    if len(surveys) < 2:
        return Recovered()
    before, now = surveys[-2:]
    inputs, pieces = list[bool](), list[bool]()
    for shard in range(now.shards):
        rows = zip(
            books.survey_assets(before, shard).to_pylist(), books.survey_assets(now, shard).to_pylist(), strict=True
        )
        inputs += [new["error_code"] == "" for old, new in rows if new != old]
        known = set(books.survey_units(before, shard)["unit_id"].to_pylist())
        units = [unit for unit in books.survey_units(now, shard).to_pylist() if unit["unit_id"] not in known]
        data = books.store.read(join(books.output, f"{kind.pieces}/{kind.pieces}-{shard:05d}.parquet"))
        table = pq.read_table(pa.BufferReader(data), columns=[kind.asset_id, kind.piece_no, "error_code"])
        code_of = {(asset_id, number): code for asset_id, number, code in zip(*table.to_pydict().values(), strict=True)}
        pieces += [
            code_of[unit["asset_id"], number] == ""
            for unit in units
            if unit["tries"]
            for number in range(unit["first"], unit["last"] + 1)
        ]
    return Recovered(len(inputs), sum(inputs), len(pieces), sum(pieces))


def retried_shard(
    assets: pa.Table, units: pa.Table, failed: pa.Table, reopened: dict[int, Row], *, pages: str, bytes_per_token: int
) -> tuple[pa.Table, pa.Table]:
    """(assets, units) of a shard: `reopened` rows of ASSETS put in place by order, `failed` pieces as new units.

    `failed`: (asset_id, number, attempts) of each, in order.
    """
    rows = assets.to_pylist()
    new = [reopened[row["order"]] for row in rows if row["order"] in reopened]
    replaced = {row["asset_id"] for row in rows if row["order"] in reopened}
    kept = units.filter(pc.invert(pc.is_in(units["asset_id"], value_set=pa.array(replaced, pa.string()))))
    max_tokens = MAX_ROW_BYTES // bytes_per_token
    again = [unit_to_row(unit) for unit in _units_again(rows, failed, max_tokens) if unit.asset_id not in replaced]
    tables = [
        kept,
        cut_units(pa.Table.from_pylist(new, schema=ASSETS), pages, bytes_per_token=bytes_per_token),
        pa.Table.from_pylist(again, schema=UNITS),
    ]
    assets = pa.Table.from_pylist([reopened.get(row["order"], row) for row in rows], schema=ASSETS)
    return assets, pa.concat_tables(tables)


def failed_pieces(books: Books, kind: Kind, shard: int, codes: Collection[str]) -> pa.Table:
    """The pieces of a shard that are to be read again."""
    data = books.store.read(join(books.output, f"{kind.pieces}/{kind.pieces}-{shard:05d}.parquet"))
    columns = [kind.asset_id, kind.piece_no, "error_code", "attempts"]
    table = pq.read_table(pa.BufferReader(data), columns=[*columns, "status"])
    is_failed = pc.equal(table["status"], "failed")
    if codes:  # of whatever status: what was cut off or cannot be read has a code, too
        is_failed = pc.is_in(table["error_code"], value_set=pa.array(codes, pa.string()))
    return table.filter(is_failed).select(columns).rename_columns(_FAILED.names).cast(_FAILED)


def _units_again(assets: Iterable[Row], failed: pa.Table, max_tokens: int) -> Iterator[Unit]:
    """Runs of consecutive failed pieces that were tried equally often, of `max_tokens` or one piece."""
    pieces: dict[str, list[tuple[int, int]]] = {}
    for row in failed.to_pylist():
        pieces.setdefault(row["asset_id"], []).append((row["number"], row["attempts"]))
    for asset in assets:
        run: Unit | None = None
        for number, tries in pieces.get(asset["asset_id"], ()):
            tokens = asset["page_tokens"][number - 1]
            is_next = run and (run.last, run.tries) == (number - 1, tries)
            if run and is_next and number - run.first < MAX_UNIT_PAGES and run.tokens + tokens <= max_tokens:
                run = replace(run, last=number, tokens=run.tokens + tokens)
                continue
            if run:
                yield run
            run = Unit(asset["asset_id"], asset["uri"], asset["size"], asset["etag"], number, number, tokens, tries)
        if run:
            yield run


def _reopen(
    setup: Setup,
    survey: FrozenSurvey,
    failed: list[pa.Table],
    codes: Collection[str],
    resources: Resources,
    stream: TextIO,
) -> dict[int, Row]:
    """Rows of ASSETS by their order: the inputs that could not be opened, and those that have changed, opened now."""
    tries, waiting, rows = Counter[int](), [], {}
    for shard, pieces in enumerate(failed):
        is_changed = pc.is_in(pieces["error_code"], value_set=pa.array([code.value for code in _CHANGED]))
        changed = set(pieces.filter(is_changed)["asset_id"].to_pylist())
        for row in setup.books.survey_assets(survey, shard).to_pylist():
            is_named = row["error_code"] and (not codes or row["error_code"] in codes)
            if not is_named and row["asset_id"] not in changed:
                continue
            now = _as_it_is_now(setup.books.store, row)
            if isinstance(now, Failure):
                if is_named:
                    rows[row["order"]] = row | asset_failure(replace(now, attempts=row["attempts"] + 1))
            elif is_named or now.etag != row["etag"]:
                tries[row["order"]] = row["attempts"]
                waiting.append(asset_row(row["order"], now, None))
    progress = Progress("inputs", len(waiting), stream)
    listing = pa.Table.from_pylist(waiting, schema=ASSETS)
    opened = open_assets(
        listing, setup.job.store_options, setup.media, seconds=setup.job.piece_timeout_seconds, resources=resources
    )
    with closing(opened):
        for block in opened:
            for row in block.to_pylist():
                again = {"attempts": row["attempts"] + tries[row["order"]]} if row["error_code"] else {}
                rows[row["order"]] = row | again
            progress.add(len(block), failed=filter(None, block["error_code"].to_pylist()))
    if waiting:
        progress.finish()
    return rows


def _as_it_is_now(store: Store, row: Row) -> Asset | Failure:
    try:
        return replace(store.stat(row["uri"]), user=tuple(row["user"]))
    except BadInput as error:
        return error.failure
