"""Pass 3: the tables people read are derived from the parts that count, one file of each for every shard of the survey.

The names of the files depend on nothing but the shard, their rows on nothing but the survey and the sealed parts: doing
a shard again writes the same tables.
"""

import hashlib
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.books import SEALED, Books, FrozenSurvey
from pipeline.manifest import ClosedShard, Counts, TableFile
from pipeline.parse_pages import skipped_page
from pipeline.records import DocumentStatus, ErrorCode, Failure, PageStatus, Stage
from pipeline.rows import Row
from pipeline.store import Store, StoreOptions, join
from pipeline.streaming import collect, stream
from pipeline.tables import (
    PARTS,
    DocumentRow,
    PdfInfo,
    blocks_table,
    document_markdown,
    documents_table,
    pages_table,
    parts_table,
    to_parquet,
)

SHARD_MEMORY_BYTES = 2**30

_SHARDS = pa.schema([("shard", pa.int64()), ("part", pa.list_(pa.string())), ("unit_id", pa.list_(pa.string()))])
_PAGE_COLUMNS = ("doc_id", "page_no", "status", "error_stage", "error_code", "error_message", "attempts", "markdown")


def close_shards(store: StoreOptions, output: str, survey: FrozenSurvey, sealed: pa.Table) -> Iterator[ClosedShard]:
    """Writes the tables, a shard in each Ray task; `sealed`: (part, unit_id) of every unit of the survey, each once."""
    books = Books(Store(store), output)
    place = {unit_id: index for index, unit_id in enumerate(sealed["unit_id"].to_pylist())}
    rows = []
    for shard in range(survey.shards):
        mine = sealed.take([place[unit_id] for unit_id in books.survey_units(survey, shard)["unit_id"].to_pylist()])
        rows.append({"shard": shard, "part": mine["part"].to_pylist(), "unit_id": mine["unit_id"].to_pylist()})
    closed = stream(pa.Table.from_pylist(rows, schema=_SHARDS), rows_per_block=1).map(
        _close_row,  # type: ignore[arg-type] # Ray's types know no further arguments
        fn_args=[store, output, survey],
        num_cpus=1,
        memory=SHARD_MEMORY_BYTES,
    )
    for block in collect(closed):
        yield from (pickle.loads(rest) for rest in block["rest"].to_pylist())


def _close_row(row: Row, store: StoreOptions, output: str, survey: FrozenSurvey) -> Row:
    sealed = pa.table({"part": row["part"], "unit_id": row["unit_id"]}, schema=SEALED)
    return {"rest": pickle.dumps(close_shard(Books(Store(store), output), survey, row["shard"], sealed))}


def close_shard(books: Books, survey: FrozenSurvey, shard: int, sealed: pa.Table) -> ClosedShard:
    """Writes documents, pages and blocks of one shard. `sealed`: (part, unit_id) of the shard's units, each once."""
    assets, units = books.survey_assets(survey, shard), books.survey_units(survey, shard)
    pages = shard_pages(assets, units, read_units(books, sealed))
    tables = {
        "documents": documents_table(document_rows(assets, pages)),
        "pages": pages_table(pages),
        "blocks": blocks_table(pages),
    }
    files, written = [], {}
    for name, table in tables.items():
        file, data = f"{name}/{name}-{shard:05d}.parquet", to_parquet(table)
        books.store.put(join(books.output, file), data)
        files.append(TableFile(file, len(table), len(data), hashlib.sha256(data).hexdigest()))
        written[name] = pq.read_table(pa.BufferReader(data))
    return ClosedShard(
        tables=tuple(files),
        documents=_count(written["documents"]),
        pages=_count(written["pages"]),
        blocks=len(written["blocks"]),
        tokens_in=pc.sum(written["pages"]["tokens_in"]).as_py() or 0,
        tokens_out=pc.sum(written["pages"]["tokens_out"]).as_py() or 0,
    )


def read_units(books: Books, sealed: pa.Table) -> pa.Table:
    """The rows of these units, each from the one part in which it counts, in the shape of PARTS."""
    unit_ids = defaultdict(list)
    for part, unit_id in zip(sealed["part"].to_pylist(), sealed["unit_id"].to_pylist(), strict=True):
        unit_ids[part].append(unit_id)
    parts = []
    for part in sorted(unit_ids):
        rows = books.read_part(part)
        parts.append(rows.filter(pc.is_in(rows["unit_id"], value_set=pa.array(unit_ids[part]))))
    return pa.concat_tables([PARTS.empty_table(), *parts])


def shard_pages(assets: pa.Table, units: pa.Table, read: pa.Table) -> pa.Table:
    """Every page of the assets exactly once, in the order of assets and pages, in the shape of PARTS.

    Of a page that was retried, `read` has a row for each time: the last one stays.
    """
    skipped = parts_table([("", skipped_page(asset_id, page_no)) for asset_id, page_no in _skipped(assets, units)])
    pages = pa.concat_tables([read, skipped])
    place = pc.index_in(pages["doc_id"], value_set=assets["asset_id"].combine_chunks()).to_numpy()
    page_no = pages["page_no"].to_numpy()
    tries_of = (
        units["tries"]
        .combine_chunks()
        .take(pc.index_in(pages["unit_id"].combine_chunks(), value_set=units["unit_id"].combine_chunks()))
    )
    tries = pc.fill_null(tries_of, 0).to_numpy()
    order = np.lexsort((tries, page_no, place))
    is_newest = np.ones(len(order), dtype=bool)
    is_newest[:-1] = ~(
        (place[order][:-1] == place[order][1:])
        & (page_no[order][:-1] == page_no[order][1:])
        & (tries[order][:-1] < tries[order][1:])
    )
    order = order[is_newest]
    wanted = [(at, number) for at, count in enumerate(assets["pages"].to_pylist()) for number in range(1, count + 1)]
    wanted_place, wanted_page_no = np.array(wanted, dtype=np.int64).reshape(-1, 2).T
    assert np.array_equal(place[order], wanted_place), "some document has too few or too many rows for its pages"
    assert np.array_equal(page_no[order], wanted_page_no), "some page has no row, or two"
    return pages.take(order)


def document_rows(assets: pa.Table, pages: pa.Table) -> Iterable[DocumentRow]:
    """One row for each asset, in order; `pages` as `shard_pages` made them."""
    start = 0
    columns = pages.select([*_PAGE_COLUMNS, "tokens_in", "tokens_out"])
    for asset in assets.to_pylist():
        of_asset = columns.slice(start, asset["pages"]).to_pylist()
        start += asset["pages"]
        assert all(page["doc_id"] == asset["asset_id"] for page in of_asset)
        yield _document_row(asset, of_asset)


def _skipped(assets: pa.Table, units: pa.Table) -> Iterable[tuple[str, int]]:
    """(asset_id, page_no) of the pages that are in no unit."""
    wanted: defaultdict[str, set[int]] = defaultdict(set)
    for unit in units.select(["asset_id", "first", "last"]).to_pylist():
        wanted[unit["asset_id"]].update(range(unit["first"], unit["last"] + 1))
    for asset in assets.select(["asset_id", "pages"]).to_pylist():
        for page_no in range(1, asset["pages"] + 1):
            if page_no not in wanted[asset["asset_id"]]:
                yield asset["asset_id"], page_no


def _document_row(asset: dict[str, Any], pages: Sequence[dict[str, Any]]) -> DocumentRow:
    count = {status: sum(page["status"] == status for page in pages) for status in PageStatus}
    status, failure = _outcome(asset, pages, count)
    markdown, spans = document_markdown([(page["page_no"], page["markdown"]) for page in pages])
    return DocumentRow(
        doc_id=asset["asset_id"],
        source_uri=asset["uri"],
        source_etag=asset["etag"],
        source_size=asset["size"],
        media_type=asset["media_type"],
        filename=asset["uri"].rsplit("/", 1)[-1],
        status=status,
        failure=failure,
        pages_total=len(pages),
        pages_ok=count[PageStatus.OK],
        pages_blank=count[PageStatus.BLANK],
        pages_truncated=count[PageStatus.TRUNCATED],
        pages_failed=count[PageStatus.FAILED],
        pages_skipped=count[PageStatus.SKIPPED],
        title=asset["title"],
        markdown=markdown,
        page_spans=spans,
        pdf_info=PdfInfo(
            author=asset["author"],
            producer=asset["producer"],
            creator=asset["creator"],
            encrypted=asset["encrypted"],
            has_forms=asset["has_forms"],
            has_xfa=asset["has_xfa"],
        ),
        tokens_in=sum(page["tokens_in"] for page in pages),
        tokens_out=sum(page["tokens_out"] for page in pages),
        user=tuple(asset["user"]),
    )


def _outcome(
    asset: dict[str, Any], pages: Sequence[dict[str, Any]], count: dict[PageStatus, int]
) -> tuple[DocumentStatus, Failure | None]:
    """A document's status, and the first thing that went wrong in it: failed pages before those cut off."""
    if asset["error_code"]:
        return DocumentStatus.FAILED, _failure(asset)
    troubled = [page for status in ("failed", "truncated") for page in pages if page["status"] == status]
    if not troubled:
        return DocumentStatus.OK, None
    all_failed = count[PageStatus.FAILED] == len(pages) - count[PageStatus.SKIPPED]
    return DocumentStatus.FAILED if all_failed else DocumentStatus.PARTIAL, _failure(troubled[0])


def _failure(row: dict[str, Any]) -> Failure:
    return Failure(Stage(row["error_stage"]), ErrorCode(row["error_code"]), row["error_message"], row["attempts"])


def _count(table: pa.Table) -> Counts:
    counted = []
    for column in ("status", "error_code"):
        groups = table.group_by(column).aggregate([([], "count_all")])
        counted.append(dict(zip(groups[column].to_pylist(), groups["count_all"].to_pylist(), strict=True)))
    by_status, by_error = counted
    by_error.pop("", None)
    return Counts(by_status, by_error)
