"""The survey: every input once, units that cover the wanted pages and stay bounded, shards that keep the order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import DocumentOptions, selected_pages
from pipeline.records import Asset, ErrorCode, Failure, Stage
from pipeline.rows import MAX_ROW_BYTES
from pipeline.store import Store, StoreOptions
from pipeline.survey import (
    ASSETS,
    MAX_SHARD_PAGES,
    MAX_UNIT_PAGES,
    Surveyor,
    count_pages,
    cut_shards,
    cut_units,
    listing_table,
)
from tests.decoding import in_fresh_process
from tests.memory import resident
from tests.pipeline.document_files import PdfPage, pdf_bytes, text

BYTES_PER_TOKEN = 3072


def assets_with(page_tokens: list[list[int]]):
    table = listing_table(Asset(f"/in/{number}.pdf", 1, "v1") for number in range(len(page_tokens)))
    rows = [
        row | {"page_tokens": tokens, "pages": len(tokens)}
        for row, tokens in zip(table.to_pylist(), page_tokens, strict=True)
    ]
    return type(table).from_pylist(rows, schema=ASSETS)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from([300, 20_000]).flatmap(lambda most: st.lists(st.integers(0, most), max_size=60)), max_size=4
    ),
    st.sampled_from(["", "1", "2-5,9", "1-3,7,20-", "50-"]),
)
def test_units_cover_the_wanted_pages_once_and_stay_bounded(page_tokens, pages):
    assets = assets_with(page_tokens)
    units = cut_units(assets, pages, bytes_per_token=BYTES_PER_TOKEN)
    covered: dict[str, list[int]] = {asset_id: [] for asset_id in assets["asset_id"].to_pylist()}
    tokens_of = dict(zip(covered, page_tokens, strict=True))
    for unit in units.to_pylist():
        run = range(unit["first"], unit["last"] + 1)
        covered[unit["asset_id"]] += run
        assert unit["tokens"] == sum(tokens_of[unit["asset_id"]][page_no - 1] for page_no in run)
        assert len(run) <= MAX_UNIT_PAGES
        assert len(run) == 1 or unit["tokens"] * BYTES_PER_TOKEN <= MAX_ROW_BYTES
    wanted = {asset_id: list(selected_pages(pages, len(tokens))) for asset_id, tokens in tokens_of.items()}
    assert covered == wanted
    assert count_pages(units) == sum(map(len, wanted.values()))
    assert len(set(units["unit_id"].to_pylist())) == len(units)


@pytest.mark.parametrize(("tokens", "runs"), [(2048, [(1, 5), (6, 10), (11, 12)]), (100, [(1, 12)])])
def test_a_unit_holds_as_many_pages_as_fit_a_row(tokens, runs):
    units = cut_units(assets_with([[tokens] * 12]), "", bytes_per_token=BYTES_PER_TOKEN)
    assert list(zip(units["first"].to_pylist(), units["last"].to_pylist(), strict=True)) == runs


def test_a_unit_holds_few_pages_however_small_they_are():
    units = cut_units(assets_with([[0] * (2 * MAX_UNIT_PAGES + 1)]), "", bytes_per_token=BYTES_PER_TOKEN)
    assert units["last"].to_pylist() == [MAX_UNIT_PAGES, 2 * MAX_UNIT_PAGES, 2 * MAX_UNIT_PAGES + 1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([0, 1, 40, MAX_SHARD_PAGES // 2, MAX_SHARD_PAGES, 3 * MAX_SHARD_PAGES]), max_size=12))
def test_shards_keep_every_asset_in_order_and_stay_bounded(pages):
    table = listing_table(Asset(f"/in/{number}.pdf", 1, "v1") for number in range(len(pages)))
    counted = type(table).from_pylist(
        [row | {"pages": count} for row, count in zip(table.to_pylist(), pages, strict=True)], schema=ASSETS
    )
    shuffled = counted.take(np.random.default_rng(0).permutation(len(counted)))
    shards = list(cut_shards(shuffled))
    assert [order for shard in shards for order in shard["order"].to_pylist()] == list(range(len(pages)))
    for shard in shards:
        assert len(shard) == 1 or sum(max(1, count) for count in shard["pages"].to_pylist()) <= MAX_SHARD_PAGES


def test_an_object_named_twice_is_one_input():
    asset = Asset("/in/a.pdf", 1, "v1")
    missing = Asset("/in/b.pdf", 0, "")
    failure = Failure(Stage.LIST, ErrorCode.NOT_FOUND, "gone")
    table = listing_table([asset, (missing, failure), asset])
    assert table["uri"].to_pylist() == ["/in/a.pdf", "/in/b.pdf"]
    assert table["error_code"].to_pylist() == ["", "not_found"]


def memory_of_a_listing(count: int) -> tuple[int, int]:
    """Bytes of this process that no file holds, and of the table."""
    assets = (Asset(f"s3://bucket/{number // 1000:04}/{number:09}.pdf", 1, "e" * 32) for number in range(count))
    table = listing_table(assets)
    return resident("RssAnon"), table.nbytes


def test_a_listing_lies_in_a_file_and_not_in_memory():
    few, few_bytes = in_fresh_process(memory_of_a_listing, 20_000)
    many, many_bytes = in_fresh_process(memory_of_a_listing, 150_000)
    assert many_bytes - few_bytes > 20 * 2**20
    assert many - few < 0.75 * (many_bytes - few_bytes), f"{few} and {many} bytes"  # the allocator keeps some, too


def survey_folder(folder: Path) -> list[dict[str, Any]]:
    surveyor = Surveyor(StoreOptions(), DocumentOptions(max_tokens=1024), memory_bytes=2**30, seconds=60.0)
    return surveyor(listing_table(Store().list(str(folder)))).to_pylist()


def test_five_thousand_pages_open_in_bounded_memory_and_are_spread_over_many_units(tmp_path):
    contents = [text(f"page {page_no}", 100, 600) for page_no in range(1, 5001)]
    (tmp_path / "long.pdf").write_bytes(pdf_bytes([PdfPage(content=content) for content in contents]))
    listed = listing_table([Store().stat(str(tmp_path / "long.pdf"))])
    options = DocumentOptions(min_tokens=64, max_tokens=256)
    assets = Surveyor(StoreOptions(), options, memory_bytes=256 * 2**20, seconds=120.0)(listed)
    assert assets["error_code"].to_pylist() == [""]
    units = cut_units(assets, "", bytes_per_token=BYTES_PER_TOKEN)
    assert len(units) == -(-5000 // MAX_UNIT_PAGES)
    assert count_pages(units) == 5000


def test_copies_of_a_file_are_inputs_of_their_own(tmp_path):
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(pdf_bytes([PdfPage(content=text("the same", 100, 600))]))
    listed = listing_table(Store().list(str(tmp_path)))
    assert len(set(listed["asset_id"].to_pylist())) == 2


def test_opening_an_asset_tells_its_pages_or_why_not(tmp_path):
    (tmp_path / "1.pdf").write_bytes(pdf_bytes([PdfPage(content=text("hello", 100, 700))] * 3))
    (tmp_path / "2.pdf").write_bytes(b"%PDF-1.7\nthis is not one")
    (tmp_path / "3.pdf").write_bytes(b"")
    rows = survey_folder(tmp_path)
    assert [row["pages"] for row in rows] == [3, 0, 0]
    assert [row["error_code"] for row in rows] == ["", "corrupt", "empty_file"]
    assert len(rows[0]["page_tokens"]) == 3
    assert all(900 < tokens <= 1024 for tokens in rows[0]["page_tokens"])


def test_a_title_that_is_no_text_does_not_stop_the_survey(tmp_path):
    """Half of a surrogate pair cannot stand in an Arrow string."""
    data = pdf_bytes([PdfPage()], more_objects=["<</Title <FEFFD8000041>>>"])
    (tmp_path / "odd.pdf").write_bytes(data.replace(b"/Root 1 0 R", b"/Root 1 0 R /Info 6 0 R"))
    (row,) = survey_folder(tmp_path)
    assert (row["pages"], row["error_code"]) == (1, "")
    assert row["title"].endswith("A")
