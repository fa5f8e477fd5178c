"""Lays out a sample page block by block in random words: where each line stands, and the exact truth. Draws nothing."""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from jobs.sample_fonts import Face, Family, font_families
from jobs.sample_text import TextSource
from jobs.sample_truth import SampleBlock, SamplePage
from pipeline.records import Box

Color = tuple[float, float, float]  # red, green, blue, each 0 to 1
Line = tuple[list[str], float]  # the words of a line and its width in points

LEADING = 1.25  # room a line needs, in font sizes
_ASCENT, _DESCENT = 0.97, 0.28  # room kept above and below a baseline, in font sizes
_NOWHERE = (0.0, 0.0, 0.0, 0.0)  # the box of a block until its page is finished


@dataclass(frozen=True, slots=True)
class Run:
    """Text on one baseline: points from the page's left and top; `word_space` widens every space (justified text)."""

    x: float
    y: float
    text: str
    font: str
    size: float
    word_space: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled rectangle or ellipse (rules of tables, bullets), in points from the page's left and top."""

    box: Box
    is_round: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """How a page looks apart from its layout. `skew_degrees` turns the ink about the centre, counterclockwise."""

    ink: Color = (0.0, 0.0, 0.0)
    paper: Color = (1.0, 1.0, 1.0)
    skew_degrees: float = 0.0
    is_aged: bool = False  # to be given the noise and blur of a scan after rendering


@dataclass(frozen=True, slots=True)
class DrawnPage:
    """A page with all that is needed to draw it."""

    page: SamplePage
    runs: tuple[Run, ...]
    shapes: tuple[Shape, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Style:
    """The type of a page. Lengths in points."""

    family: Family
    body: Face
    size: float
    leading: float  # from baseline to baseline
    gap: float  # between blocks
    is_justified: bool


def random_style(draw: random.Random, size: float) -> Style:
    """Any family at this size; seven pages of ten in its regular face, the others all bold or all italic."""
    family = draw.choice(font_families())
    chance = draw.random()
    body = family.regular if chance < 0.7 else family.bold if chance < 0.85 else family.italic
    leading, gap = size * draw.uniform(1.15, 1.45), size * draw.uniform(0.4, 0.9)
    return Style(family, body, size, leading, gap, is_justified=draw.random() < 0.25)


def plain_style(size: float) -> Style:
    """Helvetica, regular, ragged, with a line's room between blocks."""
    family = font_families()[0]
    return Style(family, family.regular, size, leading=LEADING * size, gap=LEADING * size, is_justified=False)


class PageBuilder:
    """Puts block under block, column after column; each method that adds a block returns whether it fitted."""

    def __init__(
        self, draw: random.Random, text: TextSource, style: Style, *, width: int, height: int, margin: float
    ) -> None:
        self._draw = draw
        self._text = text
        self._style = style
        self._width, self._height, self._margin = width, height, margin
        self._blocks: list[tuple[SampleBlock, list[Box]]] = []  # the boxes of their ink in points, not yet skewed
        self._runs: list[Run] = []
        self._shapes: list[Shape] = []
        self._left, self._right = margin, width - margin
        self._top, self._bottom = margin, height - margin
        self._y = self._top
        self._next_columns: list[tuple[float, float]] = []
        self._number_baseline: float | None = None

    def reserve_page_number(self) -> None:
        """Keeps the foot of the page free, where the page is high enough; `page_number` writes it in the end."""
        if self._bottom - self._top > 5 * self._style.size:
            self._number_baseline = self._bottom - _DESCENT * self._style.size
            self._bottom -= 2.2 * self._style.size

    def loosen(self) -> None:
        """Moves the start down and to the right by chance: text need not begin at the margin."""
        rest = max(0.0, self._bottom - self._y - self._style.size * LEADING)
        self._y += self._draw.random() ** 2 * rest * 0.8
        self._left += self._draw.random() ** 2 * 0.25 * (self._right - self._left)

    def start_columns(self, count: int) -> None:
        """From here down the page has this many columns."""
        gutter = max(1.2 * self._style.size, 0.04 * self._width)
        width = (self._right - self._left - (count - 1) * gutter) / count
        lefts = [self._left + i * (width + gutter) for i in range(count)]
        self._next_columns = [(left, left + width) for left in lefts]
        self._top = self._y
        self._left, self._right = self._next_columns.pop(0)

    def next_column(self) -> bool:
        """Goes on at the top of the next column; returns whether there is one."""
        if not self._next_columns:
            return False
        self._left, self._right = self._next_columns.pop(0)
        self._y = self._top
        return True

    def title(self) -> bool:
        """A title of one or two lines, much larger than the text, in bold."""
        size = self._style.size * self._draw.uniform(1.5, 1.9)
        lines = 2 if self._draw.random() < 0.3 else 1
        return self._heading("title", 1, size, lines, is_centred=self._draw.random() < 0.4)

    def section_header(self) -> bool:
        """A heading of one line, a little larger than the text, in bold."""
        return self._heading("section_header", 2, self._style.size * self._draw.uniform(1.15, 1.35), 1)

    def _heading(self, kind: str, level: int, size: float, count: int, *, is_centred: bool = False) -> bool:
        if self._bottom - self._y < count * size * LEADING + 2 * self._style.leading:  # never the last of a column
            return False
        bold = self._style.family.bold
        lines = self._wrap(bold, size, self._right - self._left, count, (0.2, 0.8))
        boxes = self._set(lines, bold, size, 1.2 * size, self._left, is_centred=is_centred)
        self._blocks.append((SampleBlock(kind, _joined(lines), _NOWHERE, level=level), boxes))
        return True

    def paragraph(self, count: int, last_line: tuple[float, float] = (0.15, 1.0)) -> bool:
        """At most so many lines of text; the last fills a share between these two of the measure."""
        style = self._style
        count = min(count, self._fitting_lines())
        if count < 1:
            return False
        lines = self._wrap(style.body, style.size, self._right - self._left, count, last_line)
        boxes = self._set(lines, style.body, style.size, style.leading, self._left, is_justified=style.is_justified)
        self._blocks.append((SampleBlock("paragraph", _joined(lines), _NOWHERE), boxes))
        return True

    def item_list(self, items: int) -> bool:
        """At most so many items of one or two lines, with bullets or numbers. Two lists in a row would read as one."""
        draw, style = self._draw, self._style
        if self._blocks and self._blocks[-1][0].type == "list_item":
            return False
        is_numbered = draw.random() < 0.4
        indent = (2.2 if is_numbered else draw.uniform(1.1, 1.6)) * style.size
        bullet = draw.choice((_disc, _square, _dash))
        closeness = draw.uniform(0.0, 0.8) * style.gap
        for number in range(1, items + 1):
            count = min(1 if draw.random() < 0.7 else 2, self._fitting_lines())
            if count < 1:
                return number > 1
            if number > 1:
                self._y -= closeness
            baseline = self._y + _ASCENT * style.size
            if is_numbered:
                marker = f"{number}."
                ink = self._write(marker, style.body, style.size, self._left, baseline)
            else:
                marker = "-"
                shape = bullet(self._left, baseline, style.size)
                self._shapes.append(shape)
                ink = shape.box
            lines = self._wrap(style.body, style.size, self._right - self._left - indent, count, (0.2, 1.0))
            boxes = self._set(lines, style.body, style.size, style.leading, self._left + indent)
            self._blocks.append((SampleBlock("list_item", _joined(lines), _NOWHERE, marker=marker), [ink, *boxes]))
        return True

    def table(self) -> bool:
        """A ruled table of two to five columns and two to six rows, the first row bold."""
        draw, family = self._draw, self._style.family
        size = self._style.size * draw.uniform(0.85, 1.0)
        row_height = size * draw.uniform(1.5, 1.9)
        rows = min(draw.randint(2, 6), int((self._bottom - self._y) / row_height))
        columns = min(draw.randint(2, 5), int((self._right - self._left) / (6 * size)))
        if rows < 2 or columns < 2:
            return False
        width = (self._right - self._left) * draw.uniform(0.7, 1.0)
        shares = [draw.uniform(1, 1.6) for _ in range(columns)]
        edges = [self._left + width * sum(shares[:i]) / sum(shares) for i in range(columns + 1)]
        is_right_aligned = [i > 0 and draw.random() < 0.3 for i in range(columns)]
        top, padding = self._y, 0.35 * size
        cells: list[tuple[str, ...]] = []
        for row in range(rows):
            face = family.bold if row == 0 else family.regular
            baseline = top + (row + 0.5) * row_height + 0.33 * size
            texts = [self._cell(face, size, edges[i + 1] - edges[i] - 2 * padding) for i in range(columns)]
            for i, text in enumerate(texts):
                x = edges[i + 1] - padding - face.width(text) * size if is_right_aligned[i] else edges[i] + padding
                self._write(text, face, size, x, baseline)
            cells.append(tuple(texts))
        bottom = top + rows * row_height
        rules = list(_rules(edges, top, row_height, rows, is_full=draw.random() < 0.7))
        self._shapes += rules
        text = "\n".join("\t".join(row) for row in cells)
        block = SampleBlock("table", text, _NOWHERE, cells=tuple(cells))
        self._blocks.append((block, [rule.box for rule in rules]))
        self._y = bottom + self._style.gap
        return True

    def _cell(self, face: Face, size: float, width: float) -> str:
        text = self._fitting_token(self._text.short, face, width / size)
        while self._draw.random() < 0.35:
            longer = f"{text} {self._text.short()}"
            if face.width(longer) * size > width:
                break
            text = longer
        return text

    def page_number(self, number: int) -> None:
        """Writes the number at the foot, where room was kept for it; alone, after "Page" or before a total."""
        if self._number_baseline is None:
            return
        draw = self._draw
        text = draw.choice((str(number), str(number), f"Page {number}", f"{number} / {number + draw.randint(0, 99)}"))
        face, size = self._style.family.regular, 0.9 * self._style.size
        free = self._width - 2 * self._margin - face.width(text) * size
        x = self._margin + free * draw.choice((0.5, 0.5, 0.0, 1.0))
        ink = self._write(text, face, size, x, self._number_baseline)
        self._blocks.append((SampleBlock("page_number", text, _NOWHERE), [ink]))

    def finished(self, finish: Finish) -> DrawnPage:
        """The page as it stands, the boxes of its blocks turned with its ink."""
        turned = (replace(block, box=self._turned(boxes, finish.skew_degrees)) for block, boxes in self._blocks)
        page = SamplePage(self._width, self._height, tuple(turned))
        return DrawnPage(page, tuple(self._runs), tuple(self._shapes), finish)

    def _turned(self, boxes: list[Box], degrees: float) -> Box:
        """Around boxes given in points, after turning them about the page's centre: in shares of the page."""
        sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        middle_x, middle_y = self._width / 2, self._height / 2
        xs, ys = [], []
        for left, top, right, bottom in boxes:
            for x, y in ((left, top), (right, top), (left, bottom), (right, bottom)):
                xs.append(middle_x + (x - middle_x) * cosine + (y - middle_y) * sine)
                ys.append(middle_y + (y - middle_y) * cosine - (x - middle_x) * sine)
        left, right = max(0.0, min(xs) / self._width), min(1.0, max(xs) / self._width)
        return left, max(0.0, min(ys) / self._height), right, min(1.0, max(ys) / self._height)

    def _fitting_lines(self) -> int:
        """How many lines of text fit in what is left of the column."""
        rest = self._bottom - self._y - (_ASCENT + _DESCENT) * self._style.size
        return 0 if rest < -0.01 else 1 + int(max(0.0, rest) / self._style.leading)

    def _fitting_token(self, make: Callable[[], str], face: Face, width: float) -> str:
        for _ in range(20):
            token = make()
            if face.width(token) <= width:
                return token
        return str(self._draw.randrange(10))

    def _wrap(self, face: Face, size: float, width: float, count: int, last_line: tuple[float, float]) -> list[Line]:
        """Draws words until `count` lines are full, the last one to a random share of the width."""
        measure, space = width / size, face.advances[ord(" ")]
        lines: list[Line] = []
        token = self._fitting_token(self._text.first, face, measure)
        while len(lines) < count:
            limit = measure if len(lines) < count - 1 else measure * self._draw.uniform(*last_line)
            words, used = [token], face.width(token)
            token = self._fitting_token(self._text.next, face, measure)
            while (longer := used + space + face.width(token)) <= limit:
                words.append(token)
                used = longer
                token = self._fitting_token(self._text.next, face, measure)
            lines.append((words, used * size))
        return lines

    def _set(
        self,
        lines: list[Line],
        face: Face,
        size: float,
        leading: float,
        left: float,
        *,
        is_centred: bool = False,
        is_justified: bool = False,
    ) -> list[Box]:
        """Writes lines under each other from the current height on, and moves below them."""
        boxes = []
        baseline = self._y + _ASCENT * size
        measure = self._right - left
        for index, (words, width) in enumerate(lines):
            is_stretched = is_justified and index < len(lines) - 1 and len(words) > 1 and width > 0.6 * measure
            word_space = (measure - width) / (len(words) - 1) if is_stretched else 0.0
            x = left + ((measure - width) / 2 if is_centred else 0.0)
            boxes.append(self._write(" ".join(words), face, size, x, baseline + index * leading, word_space))
        self._y = baseline + (len(lines) - 1) * leading + _DESCENT * size + self._style.gap
        return boxes

    def _write(self, text: str, face: Face, size: float, x: float, y: float, word_space: float = 0.0) -> Box:
        """One run of text from x on, on the baseline y; returns the box of its ink."""
        self._runs.append(Run(x, y, text, face.name, size, word_space))
        left, bottom, right, top = face.ink(text)
        return x + left * size, y - top * size, x + right * size + word_space * text.count(" "), y - bottom * size


def _joined(lines: list[Line]) -> str:
    return " ".join(word for words, _ in lines for word in words)


def _disc(left: float, baseline: float, size: float) -> Shape:
    return Shape((left + 0.2 * size, baseline - 0.5 * size, left + 0.55 * size, baseline - 0.15 * size), is_round=True)


def _square(left: float, baseline: float, size: float) -> Shape:
    return Shape((left + 0.2 * size, baseline - 0.5 * size, left + 0.52 * size, baseline - 0.18 * size))


def _dash(left: float, baseline: float, size: float) -> Shape:
    return Shape((left + 0.1 * size, baseline - 0.36 * size, left + 0.65 * size, baseline - 0.26 * size))


def _rules(edges: list[float], top: float, row_height: float, rows: int, *, is_full: bool) -> Iterable[Shape]:
    """A full grid of rules one point thick, or horizontal ones above and below the first row and at the end."""
    left, right, bottom = edges[0] - 0.5, edges[-1] + 0.5, top + rows * row_height
    for row in range(rows + 1) if is_full else (0, 1, rows):
        y = top + row * row_height
        yield Shape((left, y - 0.5, right, y + 0.5))
    for x in edges if is_full else ():
        yield Shape((x - 0.5, top, x + 0.5, bottom))
