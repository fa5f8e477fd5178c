"""Sizes keep to the budget whatever the shape, cuts miss the text, blank paper is told from the faintest content."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipeline.pixels import OVERVIEW_SIDE, PixelBudget, cut_page, measure_ink, overview_size

BUDGET = PixelBudget(min_tokens=256, max_tokens=2048, multiple=32, tile_aspect=4.0)
SIDES = st.floats(0.01, 100_000)


@given(width=SIDES, height=SIDES, scalable=st.booleans(), min_tokens=st.integers(1, 300), more=st.integers(0, 3000))
def test_every_shape_gets_whole_tokens_and_not_too_many(
    width: float, height: float, scalable: bool, min_tokens: int, more: int
) -> None:
    budget = PixelBudget(min_tokens=min_tokens, max_tokens=min_tokens + more, multiple=32, tile_aspect=4.0)
    rows, columns = budget.dimensions(width, height, scalable=scalable)
    assert rows % 32 == columns % 32 == 0
    assert min(rows, columns) >= 32
    aspect = min(200, max(width, height) / min(width, height))
    # A side is never under one token: the thinnest shapes cost one token for each step along them, or the minimum
    # rounded up to whole tokens both ways.
    grown = (min_tokens * aspect) ** 0.5 + 1
    assert rows * columns // 1024 <= max(budget.max_tokens, grown * (grown / aspect + 1), 200)
    overview_width, overview_height = overview_size(width, height)
    assert overview_width * overview_height <= 9 * 2**20


def test_a_page_without_pixels_of_its_own_gets_what_fits_and_an_image_keeps_its_size() -> None:
    assert BUDGET.dimensions(180, 300, scalable=True) == BUDGET.dimensions(1800, 3000, scalable=True)
    rows, columns = BUDGET.dimensions(612, 792, scalable=True)
    assert 0.95 * 2048 <= rows * columns // 1024 <= 2048
    assert abs((rows / columns) / (792 / 612) - 1) < 0.03
    assert BUDGET.dimensions(640, 800, scalable=False) == (800, 640)
    assert BUDGET.dimensions(20, 20, scalable=False) == (512, 512)


def test_long_pages_are_tiled_and_the_estimate_counts_every_tile() -> None:
    assert [BUDGET.tile_count(100, height) for height in (100, 400, 401, 1600, 1601)] == [1, 1, 2, 4, 5]
    assert BUDGET.tile_count(14295, 234) == BUDGET.tile_count(1, 100_000) == 16
    assert BUDGET.page_tokens(100, 1500, scalable=True) == 4 * BUDGET.page_tokens(100, 375, scalable=True)
    assert BUDGET.page_tokens(1200, 100, scalable=True) == 3 * BUDGET.page_tokens(400, 100, scalable=True)


@pytest.mark.parametrize("turned", [False, True], ids=["tall", "wide"])
def test_cuts_fall_between_lines_of_text_and_cover_the_page(turned: bool) -> None:
    rng = np.random.default_rng(0)
    page_HW = np.full((8 * OVERVIEW_SIDE, OVERVIEW_SIDE), 255, dtype=np.uint8)
    is_text_H = np.zeros(len(page_HW), dtype=bool)
    row = 5
    while row < len(page_HW) - 20:  # lines of 9 to 13 rows with 3 to 6 rows between them
        line, gap = int(rng.integers(9, 14)), int(rng.integers(3, 7))
        page_HW[row : row + line, 20:-20] = rng.integers(0, 2, (line, OVERVIEW_SIDE - 40)) * 255
        is_text_H[row : row + line] = True
        row += line + gap
    boxes = cut_page(page_HW.T if turned else page_HW, 4)
    spans = [(box[0], box[2]) if turned else (box[1], box[3]) for box in boxes]
    assert [start for start, _ in spans] == [0.0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == 1.0
    assert all((box[1], box[3]) == (0.0, 1.0) if turned else (box[0], box[2]) == (0.0, 1.0) for box in boxes)
    for start, _ in spans[1:]:
        cut = round(start * len(page_HW))
        assert not is_text_H[cut - 1 : cut + 1].any()
        assert abs(start * 4 - round(start * 4)) <= 0.1


WIDTH, HEIGHT = 1216, 1696


def paper(level: float | NDArray[np.float64], noise: float, seed: int = 0) -> Image.Image:
    grain_HW = np.random.default_rng(seed).normal(0, noise, (HEIGHT, WIDTH))
    return Image.fromarray(np.clip(level + grain_HW, 0, 255).astype(np.uint8))


def gradient(low: float) -> NDArray[np.float64]:
    return np.linspace(255, low, WIDTH)[None, :] + np.zeros((HEIGHT, 1))


def with_text(words: str, *, size: int, ink: int = 0, level: float = 255, noise: float = 0) -> Image.Image:
    image = paper(level, noise)
    ImageDraw.Draw(image).text((500, 800), words, fill=ink, font=ImageFont.load_default(size))
    return image


def show_through(contrast: float) -> Image.Image:
    back = Image.new("L", (WIDTH, HEIGHT), 255)
    for line in range(40):
        words = "the other side of the leaf shines through the paper"
        ImageDraw.Draw(back).text((100, 80 + 38 * line), words, fill=0, font=ImageFont.load_default(30))
    blurred = np.asarray(back.transpose(Image.Transpose.FLIP_LEFT_RIGHT).filter(ImageFilter.GaussianBlur(2)))
    return paper(240 - (255 - blurred.astype(float)) * contrast, 3)


def scribble() -> Image.Image:
    image = paper(235, 3)
    points = [(300 + 8 * i, 800 + 20 * (i * 37 % 5)) for i in range(40)]
    ImageDraw.Draw(image).line(points, fill=190, width=2)
    return image


def ruled(ink: int) -> Image.Image:
    image = paper(255, 0)
    ImageDraw.Draw(image).line((100, 900, 1100, 900), fill=ink)
    return image


def is_blank(image: Image.Image) -> bool:
    return measure_ink([np.asarray(image.convert("RGB"))]).is_blank


@pytest.mark.parametrize(
    "image",
    [
        paper(255, 0),
        paper(250, 2),
        paper(225, 4),
        paper(128, 6),
        paper(0, 0),
        paper(gradient(150), 2),
        show_through(0.03),
    ],
    ids=["white", "near white", "grey grain", "dark grain", "black", "gradient", "a breath of show-through"],
)
def test_smooth_paper_of_any_colour_is_blank(image: Image.Image) -> None:
    assert is_blank(image)


@pytest.mark.parametrize(
    "image",
    [
        with_text("to", size=16),
        with_text("page 7", size=16, ink=90, level=220, noise=3),
        with_text("to be", size=18, ink=165, level=235),
        with_text("light on dark", size=20, ink=255, level=20),
        scribble(),
        ruled(0),
        ruled(200),
        show_through(0.12),
    ],
    ids=[
        "one small word",
        "grey word",
        "pale word",
        "light on dark",
        "pencil",
        "hairline",
        "pale hairline",
        "show-through",
    ],
)
def test_the_faintest_content_is_not_blank(image: Image.Image) -> None:
    assert not is_blank(image)


def test_one_written_tile_makes_the_page_not_blank() -> None:
    tiles = [np.asarray(image.convert("RGB")) for image in (paper(255, 0), with_text("to", size=16), paper(255, 0))]
    assert not measure_ink(tiles).is_blank
    assert measure_ink(tiles[::2]).is_blank


def test_ink_and_edges_of_a_known_picture() -> None:
    bars_HWC = np.full((1000, 800, 3), 250, dtype=np.uint8)
    for top in range(100, 900, 40):
        bars_HWC[top : top + 10, 100:500] = 10
    ink = measure_ink([bars_HWC])
    assert ink.ink_ratio == pytest.approx(20 * 10 * 400 / 800_000, rel=0.05)
    assert ink.edge_density == pytest.approx(20 * 2 * (10 + 400) / (2 * 800_000 - 1800), rel=0.001)
    assert measure_ink([255 - bars_HWC]) == ink, "light on dark counts as dark on light"
