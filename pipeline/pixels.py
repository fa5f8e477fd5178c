"""How many pixels a page gets, where a long one is cut, whether anything is on it. Knows no file format.

Letters in array names: H rows, W columns, C channels, R rows along the long side of a page.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from model.preprocessing import MAX_ASPECT, resize_dimensions
from pipeline.records import Box, Page, PageFacts, Word

WHOLE_PAGE: Box = (0.0, 0.0, 1.0, 1.0)
OVERVIEW_SIDE = 256  # pixels of the short side of the overview in which cuts are looked for
_MAX_TILES = 16  # of one page; a longer one is rendered coarser
_CUT_REACH = 0.1  # how far a cut may move from the even division, as a share of a tile
_CUT_BAND = 9  # rows of the overview that should be empty around a cut

_MEASURE_SIDE = 1000  # pixels of the long side at which ink is measured
_PAPER_BLOCK = 25  # the colour of the paper is the median of blocks of this many pixels, smoothed over neighbours
_PAPER_STRIDE = 5  # every fifth pixel each way is enough for that median
_EDGE_STEP = 40  # of 255, between neighbouring pixels
_INK_STEP = 16  # of 255, from the paper
# Measured: a blank leaf with fibres and faint show-through has 1.9e-5 edges, 1.1e-4 ink and steps up to 77; one printed
# digit of 10 pt on A4 has 3.3e-5 edges and steps over 150; show-through at 8 % contrast has 4e-4 ink, a pale hairline
# 7e-4; the sparsest real page of the samples has 8e-3 edges.
_BLANK_MAX_EDGES = 2.5e-5
_BLANK_MAX_INK = 2.5e-4
_BLANK_MAX_STEP = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBudget:
    """What a page, or each tile of a long one, may cost. One visual token is `multiple` x `multiple` pixels."""

    min_tokens: int
    max_tokens: int
    multiple: int
    tile_aspect: float  # pages longer than this times their short side are cut into tiles

    def dimensions(self, width: float, height: float, *, scalable: bool) -> tuple[int, int]:
        """(height, width) in pixels, both multiples of `multiple`, for something of that shape.

        An image keeps its own pixels where the budget allows it; a `scalable` page has none and is rendered as large as
        the budget allows. Beyond an aspect of 200, where the resize rule ends, the long side is squeezed.
        """
        max_pixels = self.max_tokens * self.multiple**2
        scale = math.sqrt(max_pixels / (width * height)) if scalable else 1.0
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        return resize_dimensions(
            min(rows, MAX_ASPECT * columns),
            min(columns, MAX_ASPECT * rows),
            multiple=self.multiple,
            min_pixels=(1 if scalable else self.min_tokens) * self.multiple**2,
            max_pixels=max_pixels,
        )

    def tile_count(self, width: float, height: float) -> int:
        """How many tiles a page of that shape is cut into; 1 for ordinary pages."""
        aspect = max(width, height) / min(width, height)
        return 1 if aspect <= self.tile_aspect else min(_MAX_TILES, math.ceil(aspect / self.tile_aspect))

    def page_tokens(self, width: float, height: float, *, scalable: bool) -> int:
        """Visual tokens a page will cost: exact for one tile, within the reach of the cuts for several."""
        tiles = self.tile_count(width, height)
        tile_width, tile_height = (width / tiles, height) if width > height else (width, height / tiles)
        rows, columns = self.dimensions(tile_width, tile_height, scalable=scalable)
        return tiles * (rows // self.multiple) * (columns // self.multiple)


def overview_size(width: float, height: float) -> tuple[int, int]:
    """(width, height) in pixels of the picture of a long page in which `cut_page` looks for gaps."""
    short = min(width, height)
    longest = OVERVIEW_SIDE * _MAX_TILES * 8
    return (
        min(longest, max(1, round(OVERVIEW_SIDE * width / short))),
        min(longest, max(1, round(OVERVIEW_SIDE * height / short))),
    )


def cut_page(overview_HW: NDArray[np.uint8], tiles: int) -> tuple[Box, ...]:
    """The boxes of `tiles` tiles, top to bottom or left to right, that together cover the page without overlap.

    `overview_HW` is the page in grey. It is cut across its long side where least is printed near the even division, so
    that lines of text stay whole.
    """
    height, width = overview_HW.shape
    lines_RW = overview_HW if height >= width else overview_HW.T
    rows = len(lines_RW)
    ink_R = np.abs(np.diff(lines_RW.astype(np.int16), axis=1)).sum(axis=1)
    busy_R = np.convolve(ink_R, np.hanning(_CUT_BAND + 2), mode="same")
    cuts = [0.0]
    for tile in range(1, tiles):
        even = rows * tile / tiles
        reach = rows / tiles * _CUT_REACH
        near = np.arange(math.ceil(even - reach), math.floor(even + reach) + 1)
        best = near[np.lexsort((np.abs(near - even), busy_R[near]))[0]]
        cuts.append(float(best) / rows)
    cuts.append(1.0)
    spans = list(pairwise(cuts))
    if height >= width:
        return tuple((0.0, start, 1.0, end) for start, end in spans)
    return tuple((start, 0.0, end, 1.0) for start, end in spans)


def make_page(
    tiles: Sequence[NDArray[np.uint8]],
    tile_boxes: tuple[Box, ...],
    *,
    page_no: int,
    label: str,
    size: tuple[float, float],
    rotation: int,
    words: tuple[Word, ...],
    flags: Sequence[str],
    lacks_fonts: Callable[[], bool] = lambda: False,
    started: float,
) -> Page:
    """A rendered page with all that is to be said about it.

    `size` is (width, height) upright, in points or, for images, pixels; `started` is the `time.perf_counter()` at which
    decoding began; `lacks_fonts` is asked of a page that came out blank.
    """
    ink = measure_ink(tiles)
    more = [("missing_fonts", ink.is_blank and lacks_fonts()), ("tiled", len(tiles) > 1)]
    heights, widths = [tile.shape[0] for tile in tiles], [tile.shape[1] for tile in tiles]
    stacked = size[1] >= size[0]
    facts = PageFacts(
        page_no=page_no,
        label=label,
        width_pt=size[0],
        height_pt=size[1],
        rotation=rotation,
        rendered_width=max(widths) if stacked else sum(widths),
        rendered_height=sum(heights) if stacked else max(heights),
        tile_boxes=tile_boxes,
        words=words,
        ink_ratio=ink.ink_ratio,
        edge_density=ink.edge_density,
        is_blank=ink.is_blank,
        flags=(*flags, *(flag for flag, is_set in more if is_set)),
        decode_ms=(time.perf_counter() - started) * 1000,
    )
    return Page(facts, tuple(tiles))


@dataclass(frozen=True, slots=True)
class Ink:
    """What stands on a page, measured at 1000 pixels on the long side of each tile, whatever it was rendered at."""

    ink_ratio: float  # share of pixels more than 16 of 255 darker or lighter than the paper around them
    edge_density: float  # share of neighbouring pixels that differ by more than 40 of 255
    is_blank: bool  # no edges, no strong step and almost no contrast: smooth paper, whatever its colour


def measure_ink(tiles: Sequence[NDArray[np.uint8]]) -> Ink:
    """Measures a page given as uint8 RGB tiles [H, W, 3]."""
    pixels = neighbours = ink = edges = strongest = 0
    for tile_HWC in tiles:
        grey = Image.fromarray(tile_HWC).convert("L")
        scale = _MEASURE_SIDE / max(grey.size)
        size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
        grey_HW = np.asarray(grey.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        ink += int(np.count_nonzero(np.abs(grey_HW - _paper(grey_HW)) > _INK_STEP))
        pixels += grey_HW.size
        for axis in (0, 1):
            steps_HW = np.abs(np.diff(grey_HW, axis=axis))
            edges += int(np.count_nonzero(steps_HW > _EDGE_STEP))
            neighbours += steps_HW.size
            strongest = max(strongest, int(steps_HW.max(initial=0)))
    ink_ratio, edge_density = ink / pixels, edges / neighbours
    smooth = edge_density <= _BLANK_MAX_EDGES and strongest <= _BLANK_MAX_STEP
    return Ink(ink_ratio, edge_density, is_blank=smooth and ink_ratio <= _BLANK_MAX_INK)


def _paper(grey_HW: NDArray[np.int16]) -> NDArray[np.int16]:
    """The colour of the paper at every pixel: most pixels of a block are paper, and paper changes slowly."""
    height, width = grey_HW.shape
    sample_HW = grey_HW[::_PAPER_STRIDE, ::_PAPER_STRIDE]
    side = _PAPER_BLOCK // _PAPER_STRIDE
    rows, columns = -(-height // _PAPER_BLOCK), -(-width // _PAPER_BLOCK)
    padding = ((0, rows * side - sample_HW.shape[0]), (0, columns * side - sample_HW.shape[1]))
    blocks = np.pad(sample_HW, padding, mode="edge").reshape(rows, side, columns, side)
    medians = np.median(blocks.transpose(0, 2, 1, 3).reshape(rows, columns, -1), axis=-1).astype(np.uint8)
    smoothed = Image.fromarray(medians).filter(ImageFilter.MedianFilter(5))
    paper = smoothed.resize((columns * _PAPER_BLOCK, rows * _PAPER_BLOCK), Image.Resampling.BICUBIC)
    return np.asarray(paper)[:height, :width].astype(np.int16)
