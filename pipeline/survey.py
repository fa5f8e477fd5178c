"""Pass 1: every input is opened once and cheaply, and cut into units. What it finds is frozen, and is also the plan."""

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import ActorPoolStrategy

from pipeline.documents import DocumentInfo, DocumentOptions, selected_pages
from pipeline.native import inspect_asset, log_unforeseen
from pipeline.records import Asset, BadInput, Failure, Unit
from pipeline.resources import Resources
from pipeline.rows import MAX_ROW_BYTES, unit_to_row
from pipeline.sandbox import Sandbox
from pipeline.store import StoreOptions
from pipeline.streaming import Stream, collect, stream
from pipeline.video_windows import VideoOptions
from pipeline.videos import VideoInfo

MAX_UNIT_PAGES = 16
MAX_SHARD_PAGES = 20_000
ASSETS_PER_BLOCK = 16
ROWS_AT_ONCE = 10_000

_TEXT = pa.string()
ASSETS = pa.schema(
    [
        pa.field("order", pa.int64(), False),  # place in the listing: what every table is sorted by
        pa.field("asset_id", _TEXT, False),
        pa.field("uri", _TEXT, False),
        pa.field("size", pa.int64(), False),
        pa.field("etag", _TEXT, False),
        pa.field("user", pa.map_(_TEXT, _TEXT), False),
        pa.field("media_type", _TEXT, False),
        pa.field("pages", pa.int32(), False),
        pa.field("page_tokens", pa.list_(pa.int32()), False),  # visual tokens of each page, estimated from its size
        pa.field("info", _TEXT, False),  # of a video: what opening it told, as JSON; "" otherwise, as the next four
        pa.field("title", _TEXT, False),
        pa.field("author", _TEXT, False),
        pa.field("producer", _TEXT, False),
        pa.field("creator", _TEXT, False),
        pa.field("encrypted", pa.bool_(), False),
        pa.field("has_forms", pa.bool_(), False),
        pa.field("has_xfa", pa.bool_(), False),
        pa.field("attachments", pa.int32(), False),
        pa.field("page_tree_broken", pa.bool_(), False),
        pa.field("needs_rendering", pa.bool_(), False),
        pa.field("error_stage", _TEXT, False),  # "" when it could be opened, as the next two
        pa.field("error_code", _TEXT, False),
        pa.field("error_message", _TEXT, False),
        pa.field("attempts", pa.int32(), False),  # to open it, when it could not be; 0 when it could
    ]
)
UNITS = pa.schema(
    [
        pa.field("unit_id", _TEXT, False),
        pa.field("asset_id", _TEXT, False),
        pa.field("uri", _TEXT, False),
        pa.field("size", pa.int64(), False),
        pa.field("etag", _TEXT, False),
        pa.field("first", pa.int32(), False),
        pa.field("last", pa.int32(), False),
        pa.field("tokens", pa.int64(), False),
        pa.field("tries", pa.int32(), False),
    ]
)


def listing_table(listed: Iterable[Asset | tuple[Asset, Failure]]) -> pa.Table:
    """The inputs in the shape of ASSETS, in the order of the listing; an object listed twice counts once.

    The rows lie in a file that has no name any more and is mapped into memory, so that millions of them take nothing
    that the machine could not have back.
    """
    rows = (
        asset_row(order, *(entry if isinstance(entry, tuple) else (entry, None))) for order, entry in enumerate(listed)
    )
    seen = array("Q")  # of each id so much that two that agree are hardly ever different ones
    with NamedTemporaryFile(prefix="listing") as file:
        with pa.ipc.new_stream(file, ASSETS) as written:
            while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
                written.write_table(pa.Table.from_pylist(chunk, schema=ASSETS))
                seen.extend(int(row["asset_id"][:16], base=16) for row in chunk)
        file.flush()
        table = pa.ipc.open_stream(pa.memory_map(file.name)).read_all()
    return table if len(np.unique(seen)) == len(table) else _first_of_each(table)


def _first_of_each(table: pa.Table) -> pa.Table:
    """Without the rows whose asset came before."""
    first = table.select(["asset_id", "order"]).group_by("asset_id").aggregate([("order", "min")])["order_min"]
    kept = table.filter(pc.is_in(table["order"], value_set=first.combine_chunks()))
    return kept.set_column(0, ASSETS.field("order"), pa.array(range(len(kept)), pa.int64()))


def open_assets(
    listing: pa.Table,
    store: StoreOptions,
    options: DocumentOptions | VideoOptions,
    *,
    seconds: float,
    resources: Resources,
) -> Stream[pa.Table]:
    """The rows of `listing` completed, in blocks as they come; what could not even be listed comes first."""
    is_listed = pc.equal(listing["error_code"], "")
    yield listing.filter(pc.invert(is_listed))
    if not pc.any(is_listed).as_py():
        return
    opened = listing if pc.all(is_listed).as_py() else listing.filter(is_listed)  # a filter copies
    surveyed = stream(opened, rows_per_block=ASSETS_PER_BLOCK).map_batches(
        Surveyor,
        fn_constructor_args=[store, options, resources.child_memory_bytes, seconds],
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.decoders),
        num_cpus=1,
        memory=resources.decoder_memory_bytes,
    )
    yield from collect(surveyed)


class Surveyor:
    """The CPU actor of this pass: opens the assets of a batch, each in a child process that may die."""

    def __init__(
        self, store: StoreOptions, options: DocumentOptions | VideoOptions, memory_bytes: int, seconds: float
    ) -> None:
        self._store = store
        self._options = options
        self._seconds = seconds
        self._sandbox = Sandbox(memory_bytes=memory_bytes)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """ASSETS rows as `listing_table` made them, completed."""
        return pa.Table.from_pylist([self._inspect(row) for row in batch.to_pylist()], schema=ASSETS)

    def _inspect(self, row: dict[str, Any]) -> dict[str, Any]:
        asset = Asset(row["uri"], row["size"], row["etag"], tuple(row["user"]))
        try:
            info = self._sandbox.run(inspect_asset, asset, self._store, self._options, seconds=self._seconds)
        except BadInput as error:
            log_unforeseen(error, asset.uri)
            return asset_row(row["order"], asset, error.failure)
        return asset_row(row["order"], asset, None) | _info_columns(info)


def cut_units(assets: pa.Table, pages: str, *, bytes_per_token: int) -> pa.Table:
    """The units of some assets: runs of wanted pages, bounded in pages and in the bytes of their patches."""
    max_tokens = MAX_ROW_BYTES // bytes_per_token
    columns = ("asset_id", "uri", "size", "etag", "page_tokens")
    units = [
        Unit(row["asset_id"], row["uri"], row["size"], row["etag"], first, last, tokens)
        for row in assets.select(columns).to_pylist()
        for first, last, tokens in _runs(row["page_tokens"], pages, max_tokens)
    ]
    return pa.Table.from_pylist([unit_to_row(unit) for unit in units], schema=UNITS)


def count_pages(units: pa.Table) -> int:
    """The pages of the units, rows of UNITS."""
    return (pc.sum(pc.subtract(units["last"], units["first"])).as_py() or 0) + len(units)


def cut_shards(assets: pa.Table) -> Iterator[pa.Table]:
    """The assets in order, in runs of at most MAX_SHARD_PAGES pages, those with more alone. A shard becomes one file of
    each table."""
    assets = assets.sort_by("order")
    start, weight = 0, 0
    for index, pages in enumerate(assets["pages"].to_pylist()):
        cost = max(1, pages)  # an input without pages is a row, too
        if index > start and weight + cost > MAX_SHARD_PAGES:
            yield assets.slice(start, index - start)
            start, weight = index, 0
        weight += cost
    if start < len(assets):
        yield assets.slice(start)


def _runs(page_tokens: list[int], pages: str, max_tokens: int) -> Iterator[tuple[int, int, int]]:
    """(first, last, tokens) of runs of consecutive wanted pages."""
    run: list[int] = []
    tokens = 0
    for page_no in selected_pages(pages, len(page_tokens)):
        cost = page_tokens[page_no - 1]
        fits = len(run) < MAX_UNIT_PAGES and tokens + cost <= max_tokens
        if run and (run[-1] != page_no - 1 or not fits):
            yield run[0], run[-1], tokens
            run, tokens = [], 0
        run.append(page_no)
        tokens += cost
    if run:
        yield run[0], run[-1], tokens


def asset_row(order: int, asset: Asset, failure: Failure | None) -> dict[str, Any]:
    return {
        "order": order,
        "asset_id": asset.asset_id,
        "uri": asset.uri,
        "size": asset.size,
        "etag": asset.etag,
        "user": list(asset.user),
        "media_type": "",
        "pages": 0,
        "page_tokens": [],
        "info": "",
        "title": "",
        "author": "",
        "producer": "",
        "creator": "",
        "encrypted": False,
        "has_forms": False,
        "has_xfa": False,
        "attachments": 0,
        "page_tree_broken": False,
        "needs_rendering": False,
        **asset_failure(failure),
    }


def asset_failure(failure: Failure | None) -> dict[str, Any]:
    """The columns of a row of ASSETS that say why an input could not be opened."""
    return {
        "error_stage": failure.stage.value if failure else "",
        "error_code": failure.code.value if failure else "",
        "error_message": failure.message if failure else "",
        "attempts": failure.attempts if failure else 0,
    }


def _info_columns(info: DocumentInfo | VideoInfo) -> dict[str, Any]:
    if isinstance(info, VideoInfo):
        facts = asdict(info)
        tokens = facts.pop("piece_tokens")
        columns = {"media_type": facts.pop("media_type"), "pages": len(tokens), "page_tokens": list(tokens)}
        return columns | {"info": json.dumps(facts)}
    return {
        "media_type": info.media_type,
        "pages": len(info.page_tokens),
        "page_tokens": list(info.page_tokens),
        "title": info.title,
        "author": info.author,
        "producer": info.producer,
        "creator": info.creator,
        "encrypted": info.encrypted,
        "has_forms": info.has_forms,
        "has_xfa": info.has_xfa,
        "attachments": info.attachments,
        "page_tree_broken": info.page_tree_broken,
        "needs_rendering": info.needs_rendering,
    }
