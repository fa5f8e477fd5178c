"""What the user named becomes assets: a file, a folder, a prefix, a pattern, or a manifest that lists them.

Types are found by content, so everything in a folder is listed whatever its extension, except hidden names (a file or
folder beginning with ".") and the books of a job that was written there: `_SUCCESS`, `_job`, `_job.json`, `_temporary`.
"""

import csv
import io
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import Asset, BadInput, ErrorCode, Failure, Stage, printable
from pipeline.store import Store, absolute, join

Entry = Asset | tuple[Asset, Failure]
_ManifestRow = tuple[str, dict[str, str]]  # uri, the other columns

_BOOKS = frozenset({"_SUCCESS", "_job", "_job.json", "_temporary"})
_STATS_AT_ONCE = 32
_STATS_PER_BATCH = 256


def list_inputs(store: Store, source: str) -> Iterator[Entry]:
    """Every input that `source` names: an Asset, or an Asset with the Failure that keeps it from being read.

    `source` is the first of these that exists:
    - an object: a manifest if its name ends in .txt, .csv, .jsonl or .parquet, otherwise the one input;
    - a folder, in a bucket `s3://bucket/folder`, with everything below it;
    - a pattern: `*` and `?` and `[...]` within a name, `**` for any number of folders.

    A .txt manifest has a uri on each line (blank ones and those beginning with # are skipped), the others have a column
    `uri` and carry their other columns through as strings. Relative uris are relative to the manifest. Each is looked
    up; what cannot be found becomes a failure. Folders and patterns are streamed, a manifest's uris held in memory.

    Raises ValueError, while iterating, when nothing is named or it cannot be listed, and before the first entry of a
    manifest when it has no `uri` column or names something twice.
    """
    try:
        if not source.endswith("/") and store.exists(source):
            entries = _manifest(store, source) if _is_manifest(source) else iter([_entry(store, store.stat(source))])
        else:
            entries = (_entry(store, asset) for asset in _folder_or_pattern(store, source))
        empty = True
        for entry in entries:
            empty = False
            yield entry
    except (BadInput, OSError) as error:
        raise ValueError(f"{source} cannot be listed: {error}") from error
    if empty:
        raise _no_inputs(source)


class NoInputs(ValueError):  # noqa: N818 - a night without anything new is no error
    """There is nothing to read. `is_routine`: it may be so on any night, where a list or a bucket is filled by others;
    otherwise it is more likely a slip of the pen."""

    def __init__(self, message: str, *, is_routine: bool) -> None:
        super().__init__(message)
        self.is_routine = is_routine


def _no_inputs(source: str) -> NoInputs:
    if _is_manifest(source):
        return NoInputs(f"{source} names no input: there is no line in it, or none below its header", is_routine=True)
    if set(source) & set("*?["):
        return NoInputs(f"nothing matches {source}", is_routine=False)
    if source.startswith("s3://"):
        message = f"there is no object below {source.rstrip('/')}/ (keys that merely begin so: {source}*)"
        return NoInputs(message, is_routine=True)
    if os.path.isdir(source):
        return NoInputs(f"{source} is a folder without a file in it (hidden ones do not count)", is_routine=False)
    return NoInputs(f"{source}: no such file or folder", is_routine=False)


def _entry(store: Store, asset: Asset) -> Entry:
    """The asset of a listing, with what is wrong with it when that can be seen from here."""
    named = printable(asset.uri)
    if named != asset.uri:
        message = "its name is not valid UTF-8 and cannot stand in a table; rename it"
        return Asset(named, 0, "", asset.user), Failure(Stage.LIST, ErrorCode.UNSUPPORTED_TYPE, message)
    if asset.etag:
        return asset
    if _is_closed_folder(asset):
        return replace(asset, uri=asset.uri.rstrip("/")), _why_not_listed(store, asset.uri)
    try:
        return replace(store.stat(asset.uri), user=asset.user)  # it has come, or can be reached, in the meantime
    except BadInput as bad:
        if bad.failure.code is not ErrorCode.NOT_FOUND:
            return asset, bad.failure
    message = "is a link to nothing, or no file: a pipe, a socket, a device"
    return asset, Failure(Stage.LIST, ErrorCode.NOT_FOUND, message)


def _why_not_listed(store: Store, folder: str) -> Failure:
    """Of a folder below the one that was named: the others are read nevertheless."""
    code, reason = ErrorCode.ACCESS_DENIED, "it may not be entered"
    try:
        next(store.list(folder, max_depth=1), None)
    except BadInput as bad:
        code, reason = bad.failure.code, bad.failure.message
    return Failure(Stage.LIST, code, f"this folder could not be listed, {reason}: nothing in it was read")


def _is_closed_folder(asset: Asset) -> bool:
    return not asset.etag and asset.uri.endswith("/")


def _folder_or_pattern(store: Store, source: str) -> Iterator[Asset]:
    empty = True
    for asset in _matching(store, source, ["**"]):
        empty = False
        yield asset
    if empty:  # only now is a "[" in a folder's name known not to be meant as such
        names = source.split("/")
        fixed = next((i for i, name in enumerate(names) if set(name) & set("*?[")), len(names))
        if fixed < len(names):
            folder = "/".join(names[:fixed]) or ("/" if fixed else ".")
            yield from _matching(store, folder, names[fixed:])


def _matching(store: Store, folder: str, patterns: list[str]) -> Iterator[Asset]:
    """The objects below a folder that are not hidden and whose path below it matches, name by name."""
    top = join(absolute(folder), "")
    max_depth = None if "**" in patterns else len(patterns)
    for asset in store.list(folder, max_depth, closed_folders=True):
        names = asset.uri.removeprefix(top).split("/")
        if any(name.startswith(".") or name in _BOOKS for name in names):
            continue
        if _leads_to(names[:-1], patterns) if _is_closed_folder(asset) else _matches(names, patterns):
            yield asset


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _leads_to(folders: list[str], patterns: list[str]) -> bool:
    """Whether something below these folders could match."""
    if not folders or not patterns or patterns[0] == "**":
        return bool(patterns)
    return fnmatchcase(folders[0], patterns[0]) and _leads_to(folders[1:], patterns[1:])


def _is_manifest(uri: str) -> bool:
    return uri.lower().endswith((".txt", ".csv", ".jsonl", ".parquet"))


def _manifest(store: Store, source: str) -> Iterator[Entry]:
    """Its entries, in its order. It is read twice, so that what is wrong with it is said before any is looked up."""
    manifest = store.stat(source)
    columns = _check_manifest(source, _manifest_rows(store, manifest))

    def look_up(row: _ManifestRow) -> Entry:
        uri, user = row
        asset = Asset(uri, 0, "", tuple((column, user.get(column, "")) for column in columns))
        if uri != printable(uri):
            return _entry(store, asset)
        try:
            return replace(store.stat(uri), user=asset.user)
        except BadInput as bad:
            return asset, bad.failure

    rows = _manifest_rows(store, manifest)
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        while batch := list(itertools.islice(rows, _STATS_PER_BATCH)):
            yield from pool.map(look_up, batch)


def _check_manifest(source: str, rows: Iterator[_ManifestRow]) -> tuple[str, ...]:
    """The names of all its columns but `uri`. Raises ValueError when something is named twice."""
    columns: dict[str, None] = {}  # as an ordered set
    doubles: dict[str, None] = {}
    seen: set[str] = set()
    for uri, user in rows:
        columns |= dict.fromkeys(user)
        if uri in seen:
            doubles[uri] = None
        seen.add(uri)
    if doubles:
        raise ValueError(f"{source} names {len(doubles)} inputs more than once: {', '.join(list(doubles)[:5])}")
    return tuple(columns)


def _manifest_rows(store: Store, manifest: Asset) -> Iterator[_ManifestRow]:
    folder = manifest.uri[: manifest.uri.rindex("/") + 1]
    number = 1
    try:
        with store.open(manifest) as file:
            for columns in _parsed(file, manifest.uri.rpartition(".")[2].lower()):
                yield _manifest_row(columns, folder)
                number += 1
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{manifest.uri}: entry {number}: {error}") from error


def _manifest_row(columns: dict[Any, Any], folder: str) -> _ManifestRow:
    if None in columns:  # csv's place for them
        raise ValueError(f"more values than columns: {columns[None]}")
    uri = columns.get("uri")
    if not isinstance(uri, str) or not uri:
        raise ValueError(f"no uri; its columns are {list(columns)}")
    return absolute(uri, folder), {name: _text(value) for name, value in columns.items() if name != "uri"}


def _text(value: Any) -> str:
    """A value of the user's own column as a string: "" for none, JSON for lists, structures and booleans."""
    if value is None:
        return ""
    return printable(json.dumps(value, default=str) if isinstance(value, (list, dict, bool)) else str(value))


def _parsed(file: BinaryIO, extension: str) -> Iterator[dict[str, Any]]:
    """The rows of a manifest, column by column, as its format has them."""
    if extension == "parquet":
        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
        return
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if extension == "csv" else None)
    if extension == "csv":
        yield from csv.DictReader(lines, strict=True)
    elif extension == "jsonl":
        for line in lines:
            if line.strip():
                columns = json.loads(line)
                if not isinstance(columns, dict):
                    raise ValueError(f"not an object but {line[:100]!r}")
                yield columns
    else:
        names = (line.strip() for line in lines)
        yield from ({"uri": name} for name in names if name and not name.startswith("#"))
