"""Pass 3: the tables people read are derived from the parts that count, one file of each for every shard of the survey.

The names of the files depend on nothing but the shard, their rows on nothing but the survey and the sealed parts: doing
a shard again writes the same tables.
"""

import hashlib
import pickle
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.books import SEALED, Books, FrozenSurvey
from pipeline.kinds import Kind
from pipeline.manifest import ClosedShard, Counts, TableFile
from pipeline.rows import Row
from pipeline.store import Store, StoreOptions, join
from pipeline.streaming import Stream, collect, stream
from pipeline.tables import to_parquet

SHARD_MEMORY_BYTES = 2**30

_SHARDS = pa.schema([("shard", pa.int64()), ("part", pa.list_(pa.string())), ("unit_id", pa.list_(pa.string()))])


def close_shards(
    store: StoreOptions, output: str, survey: FrozenSurvey, sealed: pa.Table, kind: Kind
) -> Stream[ClosedShard]:
    """Writes the tables, a shard in each Ray task; `sealed`: (part, unit_id) of every unit of the survey, each once."""
    books = Books(Store(store), output)
    place = {unit_id: index for index, unit_id in enumerate(sealed["unit_id"].to_pylist())}
    rows = []
    for shard in range(survey.shards):
        units = books.survey_units(survey, shard)["unit_id"].to_pylist()
        mine = sealed.take(pa.array([place[unit_id] for unit_id in units], pa.int64()))  # also of a shard without units
        rows.append({"shard": shard, "part": mine["part"].to_pylist(), "unit_id": mine["unit_id"].to_pylist()})
    closed = stream(pa.Table.from_pylist(rows, schema=_SHARDS), rows_per_block=1).map(
        _close_row,  # type: ignore[arg-type] # Ray's types know no further arguments
        fn_args=[store, output, survey, kind],
        num_cpus=1,
        memory=SHARD_MEMORY_BYTES,
    )
    for block in collect(closed):
        yield from (pickle.loads(rest) for rest in block["rest"].to_pylist())


def _close_row(row: Row, store: StoreOptions, output: str, survey: FrozenSurvey, kind: Kind) -> Row:
    sealed = pa.table({"part": row["part"], "unit_id": row["unit_id"]}, schema=SEALED)
    return {"rest": pickle.dumps(close_shard(Books(Store(store), output), survey, row["shard"], sealed, kind))}


def close_shard(books: Books, survey: FrozenSurvey, shard: int, sealed: pa.Table, kind: Kind) -> ClosedShard:
    """Writes the tables of one shard. `sealed`: (part, unit_id) of the shard's units, each once."""
    assets, units = books.survey_assets(survey, shard), books.survey_units(survey, shard)
    pieces = shard_pieces(assets, units, read_units(books, sealed, kind), kind)
    files, written = [], {}
    for name, table in kind.tables(assets, pieces).items():
        file, data = f"{name}/{name}-{shard:05d}.parquet", to_parquet(table)
        books.store.put(join(books.output, file), data)
        files.append(TableFile(file, len(table), len(data), hashlib.sha256(data).hexdigest()))
        written[name] = pq.read_table(pa.BufferReader(data))
    return ClosedShard(
        tables=tuple(files),
        assets=_count(written[kind.assets]),
        pieces=_count(written[kind.pieces]),
        found=len(written[kind.found]),
        tokens_in=pc.sum(written[kind.pieces]["tokens_in"]).as_py() or 0,
        tokens_out=pc.sum(written[kind.pieces]["tokens_out"]).as_py() or 0,
    )


def read_units(books: Books, sealed: pa.Table, kind: Kind) -> pa.Table:
    """The rows of these units, each from the one part in which it counts, in the shape of the kind's parts."""
    unit_ids = defaultdict(list)
    for part, unit_id in zip(sealed["part"].to_pylist(), sealed["unit_id"].to_pylist(), strict=True):
        unit_ids[part].append(unit_id)
    parts = []
    for part in sorted(unit_ids):
        rows = books.read_part(part)
        parts.append(rows.filter(pc.is_in(rows["unit_id"], value_set=pa.array(unit_ids[part]))))
    return pa.concat_tables([kind.parts.empty_table(), *parts])


def shard_pieces(assets: pa.Table, units: pa.Table, read: pa.Table, kind: Kind) -> pa.Table:
    """Every piece of the assets exactly once, in the order of assets and pieces, in the shape of the kind's parts.

    Of a piece that was retried, `read` has a row for each time: the last one stays.
    """
    skipped = kind.parts_table(("", kind.skipped(asset_id, number)) for asset_id, number in _skipped(assets, units))
    pieces = pa.concat_tables([read, skipped])
    place = pc.index_in(pieces[kind.asset_id], value_set=assets["asset_id"].combine_chunks()).to_numpy()
    number = pieces[kind.piece_no].to_numpy()
    tries_of = (
        units["tries"]
        .combine_chunks()
        .take(pc.index_in(pieces["unit_id"].combine_chunks(), value_set=units["unit_id"].combine_chunks()))
    )
    tries = pc.fill_null(tries_of, 0).to_numpy()
    order = np.lexsort((tries, number, place))
    is_newest = np.ones(len(order), dtype=bool)
    is_newest[:-1] = ~(
        (place[order][:-1] == place[order][1:])
        & (number[order][:-1] == number[order][1:])
        & (tries[order][:-1] < tries[order][1:])
    )
    order = order[is_newest]
    wanted = [(at, number) for at, count in enumerate(assets["pages"].to_pylist()) for number in range(1, count + 1)]
    wanted_place, wanted_number = np.array(wanted, dtype=np.int64).reshape(-1, 2).T
    assert np.array_equal(place[order], wanted_place), "some asset has too few or too many rows for its pieces"
    assert np.array_equal(number[order], wanted_number), "some piece has no row, or two"
    return pieces.take(order)


def _skipped(assets: pa.Table, units: pa.Table) -> Iterable[tuple[str, int]]:
    """(asset_id, page_no) of the pages that are in no unit."""
    wanted: defaultdict[str, set[int]] = defaultdict(set)
    for unit in units.select(["asset_id", "first", "last"]).to_pylist():
        wanted[unit["asset_id"]].update(range(unit["first"], unit["last"] + 1))
    for asset in assets.select(["asset_id", "pages"]).to_pylist():
        for page_no in range(1, asset["pages"] + 1):
            if page_no not in wanted[asset["asset_id"]]:
                yield asset["asset_id"], page_no


def _count(table: pa.Table) -> Counts:
    counted = []
    for column in ("status", "error_code"):
        groups = table.group_by(column).aggregate([([], "count_all")])
        counted.append(dict(zip(groups[column].to_pylist(), groups["count_all"].to_pylist(), strict=True)))
    by_status, by_error = counted
    by_error.pop("", None)
    return Counts(by_status, by_error)
