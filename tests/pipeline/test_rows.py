"""What travels between the stages comes out as it went in, with the pixels beside the pickle and not inside it."""

import numpy as np
import pytest

from model.request import Prompt, Sampling
from pipeline.records import ErrorCode, Failure, PageFacts, Stage, Unit
from pipeline.rows import DecodedPiece, DecodedUnit, unit_from_row, unit_to_row

UNIT = Unit("asset", "/in/a.pdf", 10, "v1", 3, 6, 500)


def facts(page_no: int, tiles: int) -> PageFacts:
    boxes = tuple((0.0, tile / tiles, 1.0, (tile + 1) / tiles) for tile in range(tiles))
    return PageFacts(page_no, "", 612, 792, 0, 64, 64, boxes, (), 0.1, 0.1, False, (), 1.0)


def prompt(key: str, rows: int, columns: int) -> Prompt:
    rng = np.random.default_rng(rows * columns)
    return Prompt(
        key=key,
        token_ids_T=np.arange(5, dtype=np.int32),
        positions_3T=np.zeros((3, 5), np.int32),
        next_position=5,
        patches_PC=rng.integers(0, 256, (rows * columns, 768), dtype=np.uint8),
        grids_G3=np.array([[1, rows, columns]], np.int32),
        sampling=Sampling(),
    )


@pytest.mark.parametrize("shapes", [[], [(2, 4)], [(2, 4), (6, 8), (2, 2)]])
def test_a_decoded_unit_comes_out_as_it_went_in(shapes):
    prompts = [prompt(f"asset#3/{number}", *shape) for number, shape in enumerate(shapes)]
    pages = (DecodedPiece(facts(3, 1), ()), DecodedPiece(facts(4, max(1, len(prompts))), tuple(prompts)))
    failures = ((5, Failure(Stage.RENDER, ErrorCode.RENDER_CRASH, "crashed")),)
    row = DecodedUnit(UNIT, pages, failures).to_row()
    assert row["patches"].dtype == np.uint8
    assert row["patches"].ndim == 2
    assert row["patches"].nbytes == sum(rows * columns * 768 for rows, columns in shapes)
    assert len(row["rest"]) < 10_000
    back = DecodedUnit.from_row(row)
    assert (back.unit, back.failures) == (UNIT, failures)
    assert [page.facts for page in back.pieces] == [page.facts for page in pages]
    for before, after in zip(prompts, back.pieces[1].prompts, strict=True):
        np.testing.assert_array_equal(after.patches_PC, before.patches_PC)
        np.testing.assert_array_equal(after.grids_G3, before.grids_G3)
        assert after.key == before.key


def test_a_unit_comes_out_as_it_went_in():
    assert unit_from_row(unit_to_row(UNIT)) == UNIT
    assert unit_to_row(UNIT)["unit_id"] == UNIT.unit_id
