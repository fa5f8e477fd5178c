"""Sample documents with exact truth: PDFs for training, evaluation, tests and the demo."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pypdfium2
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from jobs.sample_layout import LEADING, Color, DrawnPage, Finish, PageBuilder, plain_style, random_style
from jobs.sample_text import TextSource
from jobs.sample_truth import Glyph, SamplePage


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How hard the pages of one rung of the ladder are. Lengths in points."""

    name: str
    sizes: tuple[tuple[int, int], ...]  # (width, height) of pages, multiples of 64: whole visual tokens when rendered
    font_sizes: tuple[float, float]
    lines: tuple[int, int]  # of a paragraph
    blocks: tuple[int, int]  # of a page (of each column, where there are two), as far as they fit
    last_line: tuple[float, float] = (0.15, 1.0)  # share of the measure that the last line of a paragraph fills
    headings: float = 0.0  # chances of a block to be a section header, a list, a table
    lists: float = 0.0
    tables: float = 0.0
    titles: float = 0.0  # shares of pages with a title, two columns, a page number, ...
    two_columns: float = 0.0
    page_numbers: float = 0.0
    skewed: float = 0.2
    aged: float = 0.3
    blank: float = 0.02
    max_skew_degrees: float = 2.0
    is_plain: bool = False  # one typeface, black on white, straight


PIXELS_PER_POINT = 2.0  # 144 dpi: of the smallest type about three letters stand in a visual token's width
PLAIN_MARGIN = 8.0
# Where reading starts: one typeface in one size. The demo's documents look like the last of them.
PLAIN_LADDER = (
    Difficulty("plain_lines", ((256, 64), (256, 128)), (16, 16), (2, 4), (1, 1), aged=0.15, is_plain=True),
    Difficulty("plain_paragraphs", ((256, 128), (320, 192)), (16, 16), (1, 4), (1, 3), aged=0.15, is_plain=True),
    Difficulty(
        "plain_cards",
        ((320, 320),),
        (16, 16),
        (1, 4),
        (2, 5),
        headings=0.25,
        lists=0.25,
        tables=0.15,
        titles=0.5,
        two_columns=0.1,
        page_numbers=0.5,
        aged=0.15,
        is_plain=True,
    ),
)
CARD_SIZE = PLAIN_LADDER[-1].sizes[0]

LADDER = (
    Difficulty("word", ((256, 64),), (12, 24), (1, 1), (1, 1), (0.1, 0.5)),
    Difficulty("line", ((256, 64), (384, 64)), (10, 24), (1, 1), (1, 1), (0.2, 1.0)),
    Difficulty("lines", ((256, 64), (256, 128), (384, 64), (384, 128)), (10, 22), (2, 4), (1, 1)),
    Difficulty("paragraphs", ((256, 192), (384, 128), (384, 192), (448, 192)), (10, 20), (1, 4), (1, 4)),
    Difficulty(
        "headings_and_lists",
        ((384, 192), (384, 256), (448, 256)),
        (10, 18),
        (1, 3),
        (2, 8),
        headings=0.3,
        lists=0.4,
        titles=0.5,
        page_numbers=0.2,
    ),
    Difficulty(
        "tables",
        ((384, 192), (384, 256), (448, 256)),
        (10, 18),
        (1, 3),
        (1, 6),
        headings=0.15,
        lists=0.15,
        tables=0.5,
        titles=0.3,
        page_numbers=0.2,
    ),
    Difficulty(
        "columns",
        ((448, 256), (512, 320), (640, 320)),
        (10, 16),
        (1, 4),
        (1, 6),
        headings=0.2,
        lists=0.2,
        tables=0.1,
        titles=0.4,
        two_columns=0.9,
        page_numbers=0.2,
    ),
    Difficulty(
        "half_page",
        ((448, 640), (512, 512), (640, 448)),
        (10, 20),
        (1, 6),
        (2, 14),
        headings=0.2,
        lists=0.2,
        tables=0.15,
        titles=0.5,
        two_columns=0.3,
        page_numbers=0.4,
    ),
    Difficulty(
        "full_page",
        ((704, 1024), (768, 1024), (640, 960)),
        (9, 24),
        (1, 8),
        (4, 30),
        headings=0.2,
        lists=0.15,
        tables=0.12,
        titles=0.5,
        two_columns=0.35,
        page_numbers=0.5,
    ),
)

# Filled with letters from edge to edge: what the vision tower is shown most of when it learns to tell letters apart.
DENSE_LADDER = (
    Difficulty("plain_dense", ((320, 320), (256, 192)), (16, 16), (8, 14), (8, 8), (0.7, 1), blank=0, is_plain=True),
    Difficulty("dense", ((320, 320), (384, 192), (256, 320)), (9, 24), (8, 14), (8, 8), (0.7, 1), blank=0),
)

# What the demonstration checkpoint is trained on and measured by, easiest first.
READABLE = (*PLAIN_LADDER, *LADDER[2:7])


def make_page(
    rng: np.random.Generator, difficulty: Difficulty, *, held_out: bool, size: tuple[int, int] | None = None
) -> DrawnPage:
    """A random page; of the given (width, height), or of one of the difficulty's sizes."""
    draw = random.Random(int(rng.integers(1 << 62)))  # many small draws: three times as fast as numpy's
    width, height = size or draw.choice(difficulty.sizes)
    margin = PLAIN_MARGIN if difficulty.is_plain else draw.uniform(3, max(4.0, 0.07 * min(width, height)))
    largest = min(difficulty.font_sizes[1], (height - 2 * margin) / (difficulty.lines[0] * LEADING))
    font_size = draw.uniform(min(difficulty.font_sizes[0], largest), largest)
    style = plain_style(font_size) if difficulty.is_plain else random_style(draw, font_size)
    # Words alone would be learned by heart: half of the plain pages have invented words and random strings too.
    text = TextSource(draw, held_out=held_out, is_plain=difficulty.is_plain and draw.random() < 0.5)
    builder = PageBuilder(draw, text, style, width=width, height=height, margin=margin)
    skew_degrees = 0.0
    if draw.random() >= difficulty.blank:
        _fill(builder, draw, difficulty)
        if not difficulty.is_plain and draw.random() < difficulty.skewed:  # never so far that ink leaves the page
            room = math.degrees(math.atan(0.6 * margin / (0.5 * max(width, height))))
            skew_degrees = draw.uniform(-1, 1) * min(room, difficulty.max_skew_degrees)
    if difficulty.is_plain:
        return builder.finished(Finish(is_aged=draw.random() < difficulty.aged))
    return builder.finished(Finish(_ink(draw), _paper(draw), skew_degrees, is_aged=draw.random() < difficulty.aged))


def _fill(builder: PageBuilder, draw: random.Random, difficulty: Difficulty) -> None:
    if draw.random() < difficulty.page_numbers:
        builder.reserve_page_number()
    has_title = draw.random() < difficulty.titles and builder.title()
    columns = 2 if draw.random() < difficulty.two_columns else 1
    if columns == 1 and not has_title and not difficulty.is_plain and draw.random() < 0.7:
        builder.loosen()
    builder.start_columns(columns)
    for _ in range(columns):
        for wanted in range(draw.randint(*difficulty.blocks), 0, -1):
            if not _add_block(builder, draw, difficulty, is_last=wanted == 1):
                break
        builder.next_column()
    builder.page_number(draw.randint(1, 400))


def _add_block(builder: PageBuilder, draw: random.Random, difficulty: Difficulty, *, is_last: bool) -> bool:
    chance = draw.random()
    is_done = False
    if chance < difficulty.headings:
        is_done = not is_last and builder.section_header()
    elif chance < difficulty.headings + difficulty.lists:
        is_done = builder.item_list(draw.randint(2, 5))
    elif chance < difficulty.headings + difficulty.lists + difficulty.tables:
        is_done = builder.table()
    return is_done or builder.paragraph(draw.randint(*difficulty.lines), difficulty.last_line)


def _ink(draw: random.Random) -> Color:
    """Black to dark grey, now and then dark blue."""
    grey = draw.uniform(0, 0.3)
    return (grey, grey, draw.uniform(0.3, 0.5)) if draw.random() < 0.1 else (grey, grey, grey)


def _paper(draw: random.Random) -> Color:
    """White, light grey or yellowish."""
    chance, grey = draw.random(), draw.uniform(0.8, 1.0)
    if chance < 0.5:
        return 1.0, 1.0, 1.0
    return (grey, grey, grey) if chance < 0.8 else (grey, 0.98 * grey, 0.92 * grey)


def render_batch(
    rng: np.random.Generator, difficulty: Difficulty, count: int, *, held_out: bool, size: tuple[int, int] | None = None
) -> list[tuple[SamplePage, NDArray[np.uint8]]]:
    """Pages with their pixels, uint8 RGB [height, width, 3]; all of one (width, height) where `size` is given."""
    rendered = render_with_glyphs(rng, difficulty, count, held_out=held_out, size=size)
    return [(page, pixels) for page, pixels, _ in rendered]


def render_with_glyphs(
    rng: np.random.Generator, difficulty: Difficulty, count: int, *, held_out: bool, size: tuple[int, int] | None = None
) -> list[tuple[SamplePage, NDArray[np.uint8], list[Glyph]]]:
    """`render_batch`, and where every character of a page was printed."""
    drawn = [make_page(rng, difficulty, held_out=held_out, size=size) for _ in range(count)]
    pdf = write_pdf(drawn)
    rendered = zip(drawn, render(pdf), glyphs(pdf), strict=True)
    return [(page.page, age(rng, pixels) if page.finish.is_aged else pixels, found) for page, pixels, found in rendered]


def write_pdf(pages: Sequence[DrawnPage]) -> bytes:
    """One PDF with a real text layer; fonts are embedded once, so many pages at a time cost least."""
    buffer = BytesIO()
    canvas = Canvas(buffer, pageCompression=0, invariant=1)
    for drawn in pages:
        _draw(canvas, drawn)
    canvas.save()
    return buffer.getvalue()


def _draw(canvas: Canvas, drawn: DrawnPage) -> None:
    width, height, finish = drawn.page.width, drawn.page.height, drawn.finish
    canvas.setPageSize((width, height))
    canvas.setFillColorRGB(*finish.paper)
    canvas.rect(0, 0, width, height, stroke=0, fill=1)
    canvas.setFillColorRGB(*finish.ink)
    if finish.skew_degrees:
        canvas.translate(width / 2, height / 2)
        canvas.rotate(finish.skew_degrees)
        canvas.translate(-width / 2, -height / 2)
    for shape in drawn.shapes:
        left, top, right, bottom = shape.box
        if shape.is_round:
            canvas.ellipse(left, height - bottom, right, height - top, stroke=0, fill=1)
        else:
            canvas.rect(left, height - bottom, right - left, bottom - top, stroke=0, fill=1)
    text = canvas.beginText()
    for run in drawn.runs:
        text.setFont(run.font, run.size)
        text.setWordSpace(run.word_space)
        text.setTextOrigin(run.x, height - run.y)
        text.textOut(run.text)
    canvas.drawText(text)
    canvas.showPage()


def write_scan(pages: Sequence[NDArray[np.uint8]]) -> bytes:
    """A PDF of one JPEG for each page, uint8 RGB [height, width, 3], and no text layer; as large as those rendered."""
    buffer = BytesIO()
    canvas = Canvas(buffer, invariant=1)
    for pixels in pages:
        height, width = pixels.shape[:2]
        jpeg = BytesIO()
        Image.fromarray(pixels).save(jpeg, "JPEG", quality=85)
        jpeg.seek(0)
        size = width / PIXELS_PER_POINT, height / PIXELS_PER_POINT
        canvas.setPageSize(size)
        canvas.drawImage(ImageReader(jpeg), 0, 0, *size)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def render(pdf: bytes) -> Iterator[NDArray[np.uint8]]:
    """Every page at `PIXELS_PER_POINT`, rendered as the pipeline does: uint8 RGB [height, width, 3]."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        for page in document:
            yield page.render(scale=PIXELS_PER_POINT, rev_byteorder=True).to_numpy().copy()
            page.close()
    finally:
        document.close()


def glyphs(pdf: bytes) -> Iterator[list[Glyph]]:
    """The characters of each page's text layer, spaces left out, as `render` has them."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        for page in document:
            height, text = page.get_height(), page.get_textpage()
            found = []
            for index, character in enumerate(text.get_text_range()):
                if not character.isspace():
                    left, bottom, right, top = text.get_charbox(index)
                    x, y = (left + right) / 2, height - (bottom + top) / 2
                    found.append(Glyph(character, PIXELS_PER_POINT * x, PIXELS_PER_POINT * y))
            yield found
            text.close()
            page.close()
    finally:
        document.close()


def age(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a mild scan does to uint8 RGB pixels [height, width, 3]: blur, faded ink, uneven light, noise."""
    blur, fade, shade, noise = rng.uniform((0.0, 0.0, -0.08, 1.0), (0.7, 0.15, 0.08, 8.0)).tolist()
    if blur > 0.25:
        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)))
    height, width = pixels.shape[:2]
    light = 1 - fade + np.linspace(-shade, shade, width, dtype=np.float32)
    grain = 120 * fade + noise * rng.standard_normal((height, width), dtype=np.float32)
    return np.clip(pixels * light[:, None] + grain[..., None], 0, 255).astype(np.uint8)


def write_demo_documents(folder: Path, seed: int) -> list[tuple[str, list[str]]]:
    """Writes the demo's files; returns each name with the Markdown of its pages (none for the broken file).

    Held-out words only, on cards that a small model reads in a second on a CPU; the same files for the same seed.
    """
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    newsletter = [_demo_card(draw, number, has_title=number == 1, columns=2) for number in (1, 2)]
    notes = [_demo_card(draw, 1, has_title=True), _demo_builder(draw).finished(Finish()), _demo_card(draw, 3)]
    report = [_demo_card(draw, number, has_title=number == 1, has_table=number == 2) for number in (1, 2, 3)]
    scanned = [_demo_card(draw, number, has_table=number == 1) for number in (1, 2)]
    scan = write_scan([age(rng, pixels) for pixels in render(write_pdf(scanned))])
    files = [
        ("broken.pdf", [], scan[:200]),
        ("newsletter.pdf", newsletter, write_pdf(newsletter)),
        ("notes.pdf", notes, write_pdf(notes)),
        ("report.pdf", report, write_pdf(report)),
        ("scan.pdf", scanned, scan),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, content in files:
        (folder / name).write_bytes(content)
    return [(name, [drawn.page.markdown() for drawn in pages]) for name, pages, _ in files]


def _demo_builder(draw: random.Random) -> PageBuilder:
    text = TextSource(draw, held_out=True, is_plain=True)
    width, height = CARD_SIZE
    style = plain_style(PLAIN_LADDER[-1].font_sizes[0])
    return PageBuilder(draw, text, style, width=width, height=height, margin=PLAIN_MARGIN)


def _demo_card(
    draw: random.Random, number: int, *, has_title: bool = False, has_table: bool = False, columns: int = 1
) -> DrawnPage:
    """A card of about 15 to 40 words: in each column a paragraph, a section, and a list or table as they fit."""
    builder = _demo_builder(draw)
    builder.reserve_page_number()
    if has_title:
        builder.title()
    builder.start_columns(columns)
    for _ in range(columns):
        builder.paragraph(2)
        builder.section_header()
        if has_table:
            builder.table()
        else:
            builder.item_list(2)
        builder.next_column()
    builder.page_number(number)
    return builder.finished(Finish())
