"""The sink: one row for each page of a unit, and a part that is there whole, once, and never changes."""

from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.books import Books
from pipeline.kinds import DOCUMENT_KIND
from pipeline.prompts import page_prompt
from pipeline.records import ErrorCode, Failure, Stage, Unit
from pipeline.rows import AnsweredPiece, AnsweredUnit, Receipt, ReplicaLoad
from pipeline.sink import PartWriter, SinkOptions, piece_rows
from pipeline.store import Store, StoreOptions
from tests.fakes import completion
from tests.pipeline.test_replica import drafted
from tests.pipeline.test_rows import facts

CRASH = Failure(Stage.RENDER, ErrorCode.RENDER_CRASH, "crashed")
REJECTED = Failure(Stage.INFER, ErrorCode.INFER_REJECTED, "too long")


def options(output: str = "out") -> SinkOptions:
    return SinkOptions(
        store=StoreOptions(), output=output, epoch=0, kind=DOCUMENT_KIND, prompt=page_prompt("markdown"), keep_raw=False
    )


def answered_unit(number: int = 1) -> AnsweredUnit:
    """Pages 3 to 6: two tiles read, blank, one tile of two refused, crashed."""
    unit = Unit(f"asset{number}", f"/in/{number}.pdf", 10, "v1", 3, 6, 500)
    top, bottom = (completion(drafted(f"key/{text}", text)) for text in ("# Top", "bottom"))
    pages = (
        AnsweredPiece(facts(3, 2), (top, bottom)),
        AnsweredPiece(replace(facts(4, 1), is_blank=True), ()),
        AnsweredPiece(facts(5, 2), (top, REJECTED)),
    )
    return AnsweredUnit(unit, pages, ((6, CRASH),), ReplicaLoad("r", 10, 0.5, 2.0))


def test_every_page_of_a_unit_has_one_row_in_order():
    rows = piece_rows(answered_unit(), options())
    assert [(row.page_no, row.status) for row in rows] == [(3, "ok"), (4, "blank"), (5, "failed"), (6, "failed")]
    assert rows[0].markdown == "# Top\n\nbottom"
    assert [row.failure for row in rows] == [None, None, REJECTED, CRASH]
    assert {row.doc_id for row in rows} == {"asset1"}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_page_lost_on_the_way_is_a_broken_invariant(lost):
    whole = answered_unit()
    with pytest.raises(AssertionError, match="pieces"):
        piece_rows(replace(whole, pieces=whole.pieces[:lost] + whole.pieces[lost + 1 :]), options())


def test_a_batch_becomes_one_part_and_its_receipt(tmp_path):
    output = str(tmp_path / "out")
    units = [answered_unit(1), answered_unit(2)]
    batch = pa.Table.from_pylist([unit.to_row() for unit in units])
    (receipt,) = (Receipt.from_row(row) for row in PartWriter(options(output))(batch).to_pylist())
    assert (len(receipt.asset_ids), receipt.pieces, receipt.found) == (2, 8, 4)
    assert receipt.failed == ("infer_rejected", "render_crash") * 2
    assert receipt.tokens_out == 2 * len("# Topbottom")
    books = Books(Store(), output)
    books.claim_epoch()
    sealed = books.sealed(books.claim_epoch())
    assert sorted(sealed["unit_id"].to_pylist()) == sorted(unit.unit.unit_id for unit in units)
    part = books.read_part(sealed["part"][0].as_py())
    assert part["page_id"].to_pylist() == [f"asset{number}#{page}" for number in (1, 2) for page in (3, 4, 5, 6)]


def test_a_part_written_twice_stays_as_it_was_first(tmp_path):
    output = str(tmp_path / "out")
    unit = answered_unit()
    PartWriter(options(output))(pa.Table.from_pylist([unit.to_row()]))
    part = Books(Store(), output).part_uri(0, [unit.unit.unit_id])
    before = Store().stat(part)
    again = replace(
        unit, pieces=(replace(unit.pieces[0], facts=replace(facts(3, 2), decode_ms=99.0)), *unit.pieces[1:])
    )
    PartWriter(options(output))(pa.Table.from_pylist([again.to_row()]))
    assert Store().stat(part) == before
