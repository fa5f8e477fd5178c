"""Closing: the tables hold every input and every page exactly once, in order, and nothing that was not sealed."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.books import Books, FrozenSurvey
from pipeline.close import close_shard, close_shards, shard_pieces
from pipeline.kinds import DOCUMENT_KIND
from pipeline.parse_pages import failed_page, parse_page
from pipeline.records import Asset, ErrorCode, Failure, PageRow, Stage
from pipeline.store import Store, StoreOptions, join
from pipeline.survey import ASSETS, cut_units, listing_table
from pipeline.tables import BLOCKS, DOCUMENTS, PAGES, parts_table, to_parquet
from tests.fakes import completion
from tests.pipeline.test_replica import drafted
from tests.pipeline.test_rows import facts

CRASH = Failure(Stage.RENDER, ErrorCode.RENDER_CRASH, "crashed")
CORRUPT = Failure(Stage.OPEN, ErrorCode.CORRUPT, "not a PDF")


def asset(name: str) -> Asset:
    return Asset(f"/in/{name}.pdf", 10, "v1", (("tag", name),))


def assets_table(pages: dict[str, int]) -> pa.Table:
    """`pages` by name; of an asset with -1 pages it is known that it is corrupt."""
    listing = listing_table((asset(name), CORRUPT) if count < 0 else asset(name) for name, count in pages.items())
    rows = [
        row | {"pages": max(0, count), "page_tokens": [4000] * max(0, count)}
        for row, count in zip(listing.to_pylist(), pages.values(), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=ASSETS)


def page(name: str, page_no: int) -> PageRow:
    """Page 2 of "b" crashed, all of "c" did, the rest was read."""
    doc_id = asset(name).asset_id
    if (name, page_no) == ("b", 2) or name == "c":
        return failed_page(doc_id, page_no, CRASH)
    answer = completion(drafted("key", f"# {name} {page_no}\n\nText."))
    return parse_page(doc_id, facts(page_no, 1), [answer], "markdown", keep_raw=False)


def frozen_job(output: str, pages: dict[str, int], wanted: str = "") -> tuple[Books, FrozenSurvey]:
    """Books with a survey and all its units in parts of two, which overlap: most units were written twice."""
    books = Books(Store(), output)
    epoch = books.claim_epoch()
    assets = assets_table(pages)
    units = cut_units(assets, wanted, bytes_per_token=3072)
    survey = books.freeze_survey(epoch, [(assets, units)])
    names = {asset(name).asset_id: name for name in pages}
    rows = [
        (unit["unit_id"], page(names[unit["asset_id"]], page_no))
        for unit in units.to_pylist()
        for page_no in range(unit["first"], unit["last"] + 1)
    ]
    unit_ids = units["unit_id"].to_pylist()
    for first in range(len(unit_ids)):
        mine = unit_ids[first : first + 2]
        part = parts_table([row for row in rows if row[0] in mine])
        books.store.put(books.part_uri(epoch, mine), to_parquet(part))
    return books, survey


def closed_tables(output: str, pages: dict[str, int], wanted: str = "") -> dict[str, pa.Table]:
    books, survey = frozen_job(output, pages, wanted)
    closed = close_shard(books, survey, 0, books.sealed(books.claim_epoch()), DOCUMENT_KIND)
    tables = {file.file.split("/")[0]: pq.read_table(join(output, file.file)) for file in closed.tables}
    assert closed.assets.by_status == Counter(tables["documents"]["status"].to_pylist())
    assert closed.pieces.by_status == Counter(tables["pages"]["status"].to_pylist())
    assert closed.found == len(tables["blocks"])
    return tables


PAGES_OF = {"d": 3, "broken": -1, "b": 5, "empty": 0, "a": 7, "c": 2}


@pytest.fixture
def tables(tmp_path) -> dict[str, pa.Table]:
    return closed_tables(str(tmp_path / "out"), PAGES_OF)


def test_the_tables_have_their_schemas_from_the_first_row(tables):
    assert tables["documents"].schema.equals(DOCUMENTS)
    for name, schema in (("pages", PAGES), ("blocks", BLOCKS)):
        assert tables[name].schema.names == [*schema.names, "filename", "source_uri"]
        assert tables[name].select(schema.names).schema.equals(schema)
        assert tables[name].schema.equals(DOCUMENT_KIND.schemas[name])


def test_every_row_says_where_its_input_lies(tables):
    places = dict(zip(*(tables["documents"][name].to_pylist() for name in ("doc_id", "source_uri")), strict=True))
    for name in ("pages", "blocks"):
        for row in tables[name].select(["doc_id", "filename", "source_uri"]).to_pylist():
            assert row["source_uri"] == places[row["doc_id"]]
            assert row["source_uri"].endswith(f"/{row['filename']}")
        assert len(tables[name])


def test_every_input_and_every_page_is_there_once_in_the_order_of_the_listing(tables):
    assert tables["documents"]["doc_id"].to_pylist() == [asset(name).asset_id for name in PAGES_OF]
    expected = [
        f"{asset(name).asset_id}#{page_no}" for name, count in PAGES_OF.items() for page_no in range(1, count + 1)
    ]
    assert tables["pages"]["page_id"].to_pylist() == expected


def test_blocks_stand_in_the_order_of_their_pages(tables):
    blocks = tables["blocks"].select(["page_id", "order", "text"]).to_pylist()
    read = [
        (name, page_no) for name in "dba" for page_no in range(1, PAGES_OF[name] + 1) if (name, page_no) != ("b", 2)
    ]
    assert blocks == [
        {"page_id": f"{asset(name).asset_id}#{page_no}", "order": order, "text": text}
        for name, page_no in read
        for order, text in enumerate([f"{name} {page_no}", "Text."])
    ]


def test_a_document_says_what_became_of_it(tables):
    rows = dict(zip(PAGES_OF, tables["documents"].to_pylist(), strict=True))
    assert {name: (row["status"], row["error_code"]) for name, row in rows.items()} == {
        "d": ("ok", ""),
        "broken": ("failed", "corrupt"),
        "b": ("partial", "render_crash"),
        "empty": ("ok", ""),
        "a": ("ok", ""),
        "c": ("failed", "render_crash"),
    }
    assert (rows["b"]["pages_total"], rows["b"]["pages_ok"], rows["b"]["pages_failed"]) == (5, 4, 1)
    assert rows["d"]["markdown"] == "\n\n".join(f"# d {number}\n\nText." for number in (1, 2, 3))
    assert dict(rows["d"]["user"]) == {"tag": "d"}
    assert rows["d"]["filename"] == "d.pdf"


def test_pages_nobody_asked_for_are_rows_too(tmp_path):
    tables = closed_tables(str(tmp_path / "out"), PAGES_OF, wanted="2-3")
    pages = tables["pages"].select(["page_id", "status"]).to_pylist()
    assert len(pages) == sum(max(0, count) for count in PAGES_OF.values())
    assert {row["status"] for row in pages if row["page_id"].endswith(("#2", "#3"))} == {"ok", "failed"}
    assert {row["status"] for row in pages if not row["page_id"].endswith(("#2", "#3"))} == {"skipped"}
    documents = dict(zip(PAGES_OF, tables["documents"].to_pylist(), strict=True))
    assert (documents["a"]["status"], documents["a"]["pages_skipped"]) == ("ok", 5)
    assert (documents["c"]["status"], documents["c"]["pages_skipped"]) == ("failed", 1)


def test_closing_again_writes_the_same_bytes(tmp_path):
    books, survey = frozen_job(str(tmp_path / "out"), PAGES_OF)
    sealed = books.sealed(books.claim_epoch())
    assert close_shard(books, survey, 0, sealed, DOCUMENT_KIND) == close_shard(books, survey, 0, sealed, DOCUMENT_KIND)


@pytest.mark.parametrize("fault", ["missing", "twice", "unknown"])
def test_a_page_missing_or_there_twice_is_never_closed_over(tmp_path, fault):
    assets = assets_table({"a": 3})
    units = cut_units(assets, "", bytes_per_token=3072)
    rows = [(units["unit_id"][0].as_py(), page("a", page_no)) for page_no in (1, 2, 3)]
    broken = {"missing": rows[:2], "twice": [*rows, rows[1]], "unknown": [*rows[:2], ("x", page("other", 3))]}
    with pytest.raises(AssertionError):
        shard_pieces(assets, units, parts_table(broken[fault]), DOCUMENT_KIND)
    assert len(shard_pieces(assets, units, parts_table(rows), DOCUMENT_KIND)) == 3


def test_a_shard_in_which_nothing_can_be_read_closes_beside_others(tmp_path, ray_address):
    """Its units are none: the list of what to take of the sealed ones is empty, which has no type of its own."""
    output = str(tmp_path / "out")
    books = Books(Store(), output)
    epoch = books.claim_epoch()
    shards = [assets_table({"broken": -1, "worse": -1}), assets_table({"a": 2}), assets_table({"last": -1})]
    survey = books.freeze_survey(epoch, [(assets, cut_units(assets, "", bytes_per_token=3072)) for assets in shards])
    units = books.all_units(survey).to_pylist()
    rows = [(unit["unit_id"], page("a", number)) for unit in units for number in (1, 2)]
    books.store.put(books.part_uri(epoch, [units[0]["unit_id"]]), to_parquet(parts_table(rows)))
    sealed = books.sealed(books.claim_epoch())
    closed = {
        shard.tables[0].file: shard for shard in close_shards(StoreOptions(), output, survey, sealed, DOCUMENT_KIND)
    }
    assert [closed[file].assets.by_status for file in sorted(closed)] == [{"failed": 2}, {"ok": 1}, {"failed": 1}]
    assert len(pq.read_table(join(output, "pages"))) == 2


@pytest.mark.parametrize(("pages", "wanted"), [({"broken": -1}, ""), ({"a": 3}, "100-"), ({"empty": 0}, "")])
def test_a_job_in_which_nothing_is_read_has_its_rows(tmp_path, pages, wanted):
    tables = closed_tables(str(tmp_path / "out"), pages, wanted)
    assert len(tables["documents"]) == 1
    assert set(tables["pages"]["status"].to_pylist()) <= {"skipped"}
