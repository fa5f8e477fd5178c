"""Box arithmetic: thousandths as the model writes them -> fractions of the tile -> fractions of the page."""

import re

from pipeline.records import Box

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def from_thousandths(x1: float, y1: float, x2: float, y2: float) -> tuple[Box, bool]:
    """Two corners on Qwen3-VL's 0-1000 grid as a box of fractions, and whether it had to be repaired.

    Repairing means clamping to the grid and swapping the edges of a box that is inside out.
    """
    clamped = [min(max(value, 0.0), 1000.0) for value in (x1, y1, x2, y2)]
    left, right = sorted((clamped[0], clamped[2]))
    top, bottom = sorted((clamped[1], clamped[3]))
    ordered = (left, top, right, bottom)
    return (left / 1000, top / 1000, right / 1000, bottom / 1000), ordered != (x1, y1, x2, y2)


def read_thousandths(text: str) -> tuple[Box | None, bool]:
    """The box written in `text` ("12 30 980 75", "(12, 30, 980, 75)"), or None without exactly four numbers in it."""
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return from_thousandths(*numbers) if len(numbers) == 4 else (None, False)


def tile_to_page(box: Box, tile_box: Box) -> Box:
    """A box in fractions of a tile as fractions of the page; `tile_box` is where the tile lies on the page."""
    left, top, right, bottom = tile_box

    def across(x: float) -> float:  # written so that 0 and 1 give the tile's own edges without rounding
        return left * (1 - x) + right * x

    def down(y: float) -> float:
        return top * (1 - y) + bottom * y

    return across(box[0]), down(box[1]), across(box[2]), down(box[3])
