"""Recounts a job from its files alone: survey, seals, parts, tables and manifest must tell the same story.

Nothing that was counted while the job ran is believed. What differs comes back as sentences, none when all is well.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.books import Books, FrozenSurvey
from pipeline.close import read_units, shard_pieces
from pipeline.kinds import DOCUMENT_KIND, Kind, kind_of
from pipeline.manifest import Counts, Manifest, TableFile, finished_manifest
from pipeline.store import Store, join

MAX_EXAMPLES = 3
AGAIN = "run the job's command again, which writes it anew"
NEW_OUTPUT = "run the job again with another OUTPUT"


@dataclass(frozen=True, slots=True)
class Recount:
    """What was found in the files."""

    kind: Kind = DOCUMENT_KIND
    inputs: int = 0  # of the survey
    units: int = 0
    parts: int = 0  # that count
    late_parts: int = 0  # that came after their epoch was sealed: they do not count, and do no harm
    assets: Counter[str] | None = None  # by status
    pieces: Counter[str] | None = None
    found: int = 0  # blocks or events
    unfinished: str = ""  # what is still to come; "" of a finished job
    differences: tuple[str, ...] = ()


def audit(store: Store, output: str) -> Recount:
    """Reads everything the job has written, once. Memory: one shard of the survey at a time."""
    books = Books(store, output)
    survey = books.survey()
    if survey is None:
        if books.record():
            return Recount(kind=kind_of(books.record()), unfinished="its inputs are not all opened yet")
        return Recount(differences=(f"there is no job in {output}",))
    kind = kind_of(books.record())
    units = books.all_units(survey)
    sealed, seal_faults = _read_seals(books)
    manifest = finished_manifest(store, output, survey)
    part_faults = list(_check_parts(books, kind, units, sealed, is_finished=manifest is not None))
    counted = Recount(
        kind=kind,
        inputs=survey.assets,
        units=len(units),
        parts=len(sealed["part"].unique()),
        late_parts=_count_parts(books) - len(sealed["part"].unique()),
        differences=(*seal_faults, *_check_survey(books, survey, units), *part_faults),
    )
    if manifest is None:
        left = len(units) - len(set(units["unit_id"].to_pylist()) & set(sealed["unit_id"].to_pylist()))
        return replace(counted, unfinished=f"no _SUCCESS yet, {left:,} of {len(units):,} units still to be counted")
    if part_faults or seal_faults:
        return _with(counted, [f"the tables were not compared with parts that cannot be trusted; {NEW_OUTPUT}"])
    return _check_tables(books, survey, sealed, manifest, counted)


def _read_seals(books: Books) -> tuple[pa.Table, list[str]]:
    """(part, unit_id) of what counts, and the seals that cannot be read."""
    try:
        return books.sealed(books.newest_epoch() or 0), []
    except (OSError, pa.ArrowException) as error:
        return books.sealed(0), [f"a seal cannot be read: {error}"]


def _check_survey(books: Books, survey: FrozenSurvey, units: pa.Table) -> Iterator[str]:
    """Whether the shards hold what the survey's mark says."""
    assets = pages = 0
    ids: list[str] = []
    for shard in range(survey.shards):
        table = books.survey_assets(survey, shard)
        assets += len(table)
        pages += pc.sum(table["pages"]).as_py() or 0
        ids += table["asset_id"].to_pylist()
    yield from _unequal("inputs in the survey", assets, survey.assets)
    yield from _unequal("pages in the survey", pages, survey.pages)
    yield from _unequal("units in the survey", len(units), survey.units)
    yield from _twice("inputs of the survey", ids)
    yield from _twice("units of the survey", units["unit_id"].to_pylist())


def _check_parts(books: Books, kind: Kind, units: pa.Table, sealed: pa.Table, *, is_finished: bool) -> Iterator[str]:
    """Whether each unit has exactly its pieces in a part that can be read (Parquet's checksums are verified)."""
    wanted = {unit["unit_id"]: unit for unit in units.select(["unit_id", "asset_id", "first", "last"]).to_pylist()}
    counted = sealed["unit_id"].to_pylist()
    if is_finished:
        yield from _some("units have no rows", wanted.keys() - set(counted))
    # A retry drops the units of an input that has another version by now: only the survey before it knows them.
    known = {unit_id for survey in books.surveys() for unit_id in _unit_ids(books, survey)}
    yield from _some("units have rows, but are in no survey", set(counted) - known)
    of_part: dict[str, list[str]] = {}
    for part, unit_id in zip(sealed["part"].to_pylist(), counted, strict=True):
        of_part.setdefault(part, []).append(unit_id)
    for part, unit_ids in sorted(of_part.items()):
        try:
            rows = books.read_part(part)
        except (OSError, pa.ArrowException) as error:
            yield f"part {part} cannot be read: {error}; {NEW_OUTPUT}"
            continue
        if not rows.schema.equals(kind.parts):
            yield f"part {part} has another schema"
            continue
        found: dict[str, list[tuple[str, int]]] = {}
        for row in rows.select(["unit_id", kind.asset_id, kind.piece_no]).to_pylist():
            found.setdefault(row["unit_id"], []).append((row[kind.asset_id], row[kind.piece_no]))
        for unit in (wanted[unit_id] for unit_id in unit_ids if unit_id in wanted):
            pieces = [(unit["asset_id"], number) for number in range(unit["first"], unit["last"] + 1)]
            if found.get(unit["unit_id"]) != pieces:
                yield f"part {part}: unit {unit['unit_id']} holds other {kind.pieces} than the survey gave it"


def _unit_ids(books: Books, survey: FrozenSurvey) -> Iterator[str]:
    for shard in range(survey.shards):
        yield from books.survey_units(survey, shard)["unit_id"].to_pylist()


def _check_tables(
    books: Books, survey: FrozenSurvey, sealed: pa.Table, manifest: Manifest, counted: Recount
) -> Recount:
    """Every file of the manifest, shard by shard, against the survey, the parts and each other."""
    kind = counted.kind
    files = {file.file: file for file in manifest.tables}
    faults = list(_check_files(books, kind, files.keys()))
    statuses: dict[str, Counter[str]] = {kind.assets: Counter(), kind.pieces: Counter()}
    errors: dict[str, Counter[str]] = {kind.assets: Counter(), kind.pieces: Counter()}
    rows, tokens = Counter[str](), Counter[str]()
    ids: dict[str, list[str]] = {name: [] for name in kind.schemas}
    for shard in range(survey.shards):
        tables = {}
        for name, schema in kind.schemas.items():
            tables[name], found = _read_table(books, files, f"{name}/{name}-{shard:05d}.parquet", schema)
            faults += found
            ids[name] += tables[name][kind.ids[name]].to_pylist()
            rows[name] += len(tables[name])
        for name in statuses:
            statuses[name].update(tables[name]["status"].to_pylist())
            errors[name].update(filter(None, tables[name]["error_code"].to_pylist()))
        for column in ("tokens_in", "tokens_out"):
            tokens[column] += pc.sum(tables[kind.pieces][column]).as_py() or 0
        faults += _check_shard(books, kind, survey, shard, sealed, tables)
    for name, values in ids.items():
        faults += _twice(f"rows of {name}", values)
    faults += _unequal("inputs with a row", rows[kind.assets], survey.assets)
    for name, counts in ((kind.assets, manifest.assets), (kind.pieces, manifest.pieces)):
        faults += _unequal(f"{name} in the manifest", counts, _counts(statuses[name], errors[name]))
    faults += _unequal(f"{kind.found} in the manifest", manifest.found, rows[kind.found])
    for column in ("tokens_in", "tokens_out"):
        faults += _unequal(f"{column} in the manifest", getattr(manifest, column), tokens[column])
    recounted = replace(counted, assets=statuses[kind.assets], pieces=statuses[kind.pieces], found=rows[kind.found])
    return _with(recounted, faults)


def _check_files(books: Books, kind: Kind, listed: Iterable[str]) -> Iterator[str]:
    """Readers take every file of a table's folder: there must be no other than the manifest's."""
    there = {
        asset.uri.removeprefix(join(books.output, ""))
        for name in kind.schemas
        for asset in books.store.list(join(books.output, name))
    }
    yield from _some("files of tables are not in the manifest, delete them", there - set(listed))
    yield from _some(f"files of the manifest are gone, {AGAIN}", set(listed) - there)


def _read_table(books: Books, files: dict[str, TableFile], file: str, schema: pa.Schema) -> tuple[pa.Table, list[str]]:
    """The table in `file`, empty when it cannot be had, and what is wrong with the file."""
    if file not in files:
        return schema.empty_table(), [f"{file} is not in the manifest"]
    try:
        data = books.store.read(join(books.output, file))
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        return schema.empty_table(), [f"{file} cannot be read: {error}; {AGAIN}"]
    faults = list(_unequal(f"bytes of {file}", len(data), files[file].num_bytes))
    faults += _unequal(f"sha256 of {file} ({AGAIN})", hashlib.sha256(data).hexdigest(), files[file].sha256)
    faults += _unequal(f"rows of {file}", len(table), files[file].rows)
    if not table.schema.equals(schema):
        return schema.empty_table(), [*faults, f"{file} has another schema than the one documented"]
    return table, faults


def _check_shard(
    books: Books, kind: Kind, survey: FrozenSurvey, shard: int, sealed: pa.Table, tables: dict[str, pa.Table]
) -> Iterator[str]:
    """One row for each input, pieces that add up, and all tables as the parts have them."""
    assets, units = books.survey_assets(survey, shard), books.survey_units(survey, shard)
    told, pieces, found = (tables[name] for name in (kind.assets, kind.pieces, kind.found))
    yield from _unequal(
        f"inputs of shard {shard} and their rows", told[kind.asset_id].to_pylist(), assets["asset_id"].to_pylist()
    )
    yield from _check_sums(kind, told, pieces)
    places = set(pieces[kind.found_in].to_pylist())
    yield from _some(f"places of {kind.found} are in no {kind.pieces}", set(found[kind.found_in].to_pylist()) - places)
    mine = sealed.filter(pc.is_in(sealed["unit_id"], value_set=units["unit_id"].combine_chunks()))
    rows = shard_pieces(assets, units, read_units(books, mine, kind), kind)
    for name, from_parts in kind.tables(assets, rows).items():
        if not tables[name].equals(from_parts):
            yield f"the {name} of shard {shard} are not those of the parts"


def _check_sums(kind: Kind, told: pa.Table, pieces: pa.Table) -> Iterator[str]:
    """Whether each input counts the pieces that are there, by their status."""
    of_asset: dict[str, Counter[str]] = {}
    for asset_id, status in zip(pieces[kind.asset_id].to_pylist(), pieces["status"].to_pylist(), strict=True):
        of_asset.setdefault(asset_id, Counter())[status] += 1
    prefix = f"{kind.pieces}_"
    columns = [name for name in told.schema.names if name.startswith(prefix)]
    for row in told.select([kind.asset_id, *columns]).to_pylist():
        found = of_asset.pop(row[kind.asset_id], Counter())
        says = Counter({name.removeprefix(prefix): row[name] for name in columns if row[name]})
        total = says.pop("total", 0)
        if found != says or total != found.total():
            yield (
                f"{kind.asset_id} {row[kind.asset_id]} says {total} {kind.pieces} {dict(says)}, "
                f"the {kind.pieces} are {dict(found)}"
            )
    yield from _some(f"inputs have {kind.pieces} but no row", of_asset)


def _count_parts(books: Books) -> int:
    return sum(1 for asset in books.store.list(join(books.output, "_job", "parts")) if asset.uri.endswith(".parquet"))


def _counts(by_status: Counter[str], by_error: Counter[str]) -> Counts:
    return Counts(dict(sorted(by_status.items())), dict(sorted(by_error.items())))


def _with(counted: Recount, faults: Sequence[str]) -> Recount:
    return replace(counted, differences=(*counted.differences, *faults))


def _unequal(what: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{what}: {_short(found)}, expected {_short(expected)}"


def _twice(what: str, ids: Sequence[str]) -> Iterator[str]:
    unique, counts = np.unique(np.array(ids, dtype=object), return_counts=True)
    yield from _some(f"{what} are there twice", unique[counts > 1].tolist())


def _some(what: str, ids: Iterable[str]) -> Iterator[str]:
    found = sorted(ids)
    if found:
        more = ", ..." if len(found) > MAX_EXAMPLES else ""
        yield f"{len(found):,} {what}: {', '.join(found[:MAX_EXAMPLES])}{more}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
