"""Boxes keep inside 0-1, in order, and come back to where they were on the page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import from_thousandths, read_thousandths, tile_to_page
from pipeline.records import Box

fractions = st.floats(0, 1)
boxes = st.builds(lambda x, y, u, v: (min(x, u), min(y, v), max(x, u), max(y, v)), *[fractions] * 4)


@pytest.mark.parametrize(
    ("corners", "box", "repaired"),
    [
        ((100, 200, 300, 400), (0.1, 0.2, 0.3, 0.4), False),
        ((0, 0, 1000, 1000), (0, 0, 1, 1), False),
        ((300, 200, 100, 400), (0.1, 0.2, 0.3, 0.4), True),
        ((100, 400, 300, 200), (0.1, 0.2, 0.3, 0.4), True),
        ((-5, 200, 300, 1700), (0, 0.2, 0.3, 1), True),
        ((1200, 0, 1100, 10), (1, 0, 1, 0.01), True),
    ],
)
def test_boxes_off_the_grid_or_inside_out_are_repaired_and_say_so(
    corners: tuple[int, int, int, int], box: Box, repaired: bool
) -> None:
    assert from_thousandths(*corners) == (pytest.approx(box), repaired)


@given(st.tuples(*[st.floats(allow_nan=False)] * 4))
def test_any_four_numbers_give_a_box_within_the_page(corners: tuple[float, float, float, float]) -> None:
    (left, top, right, bottom), _ = from_thousandths(*corners)
    assert 0 <= left <= right <= 1
    assert 0 <= top <= bottom <= 1


@pytest.mark.parametrize(
    "text", ["12 30 980 75", "12,30,980,75", " (12, 30, 980, 75)", "[12, 30, 980, 75]", "12.0 30 980 75"]
)
def test_a_box_is_read_however_it_is_punctuated(text: str) -> None:
    assert read_thousandths(text) == ((0.012, 0.03, 0.98, 0.075), False)


@pytest.mark.parametrize("text", ["", "12 30 980", "1 2 3 4 5 6 7 8", "x1 y1 x2", "none"])
def test_what_is_no_box_is_none(text: str) -> None:
    assert read_thousandths(text) == (None, False)


def test_a_number_too_long_for_a_float_is_clamped() -> None:
    assert read_thousandths(f"0 0 {'9' * 5000} 5") == ((0, 0, 1, 0.005), True)


@given(boxes, boxes)
def test_a_box_on_a_tile_lies_in_the_tile_and_comes_back(box: Box, tile: Box) -> None:
    left, top, right, bottom = tile_to_page(box, tile)
    slack = 1e-12
    assert tile[0] - slack <= left <= right + slack <= tile[2] + 2 * slack <= 1 + 2 * slack
    assert tile[1] - slack <= top <= bottom + slack <= tile[3] + 2 * slack <= 1 + 2 * slack
    width, height = tile[2] - tile[0], tile[3] - tile[1]
    if min(width, height) > 1e-3:
        back = (
            (left - tile[0]) / width,
            (top - tile[1]) / height,
            (right - tile[0]) / width,
            (bottom - tile[1]) / height,
        )
        assert back == pytest.approx(box, abs=1e-9)


@given(boxes)
def test_a_page_that_is_its_own_tile_keeps_its_boxes_exactly(box: Box) -> None:
    assert tile_to_page(box, (0, 0, 1, 1)) == box


def test_the_edges_of_a_tile_are_the_tiles_own_without_rounding() -> None:
    tile = (0.1, 0.7, 0.3, 1.0)
    assert tile_to_page((0, 0, 1, 1), tile) == tile
