"""Documents, PDF or image, told apart by their content: what opening one tells, and its pages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.images import MAX_PIXELS, ImageFile
from pipeline.media_types import PDF, sniff
from pipeline.pdf import PdfFile
from pipeline.pixels import PixelBudget
from pipeline.records import BadInput, ErrorCode, Failure, Page, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentOptions:
    """How documents are read. Raises ValueError for what makes no sense."""

    min_tokens: int = 256  # visual tokens a page gets at least; one is pixel_multiple x pixel_multiple pixels
    max_tokens: int = 2048  # and at most; a PDF page, having no pixels of its own, gets as many as fit
    pixel_multiple: int = 32
    tile_aspect: float = 4.0  # pages longer than this times their short side are cut into tiles, each with that budget
    max_pages: int = 20_000  # of one document
    max_image_pixels: int = MAX_PIXELS  # of an image file, by its header
    passwords: tuple[str, ...] = ()  # tried in this order where a PDF does not open without
    pages: str = ""  # page ranges such as "1-3,7,10-"; "" is all

    def __post_init__(self) -> None:
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"1 <= min_tokens <= max_tokens does not hold: {self.min_tokens}, {self.max_tokens}")
        if self.pixel_multiple < 1:
            raise ValueError(f"pixel_multiple must be at least 1, not {self.pixel_multiple}")
        if not self.tile_aspect >= 2:
            raise ValueError(f"tile_aspect must be at least 2, not {self.tile_aspect}")
        if self.max_pages < 1:
            raise ValueError(f"max_pages must be at least 1, not {self.max_pages}")
        if self.max_image_pixels < 1:
            raise ValueError(f"max_image_pixels must be at least 1, not {self.max_image_pixels}")
        selected_pages(self.pages, 1)

    @property
    def largest_image(self) -> int:
        """Visual tokens of a page, or of a tile of one, at most."""
        return self.max_tokens

    @property
    def plan(self) -> str:
        """In words, for --plan."""
        return f"pages of {self.min_tokens:,} to {self.max_tokens:,} visual tokens"

    @property
    def bytes_per_token(self) -> int:
        """Of the pixels that a visual token is made of."""
        return 3 * self.pixel_multiple**2

    @property
    def budget(self) -> PixelBudget:
        return PixelBudget(
            min_tokens=self.min_tokens,
            max_tokens=self.max_tokens,
            multiple=self.pixel_multiple,
            tile_aspect=self.tile_aspect,
        )


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """What opening a document tells, cheaply. The rest after the sizes is a PDF's."""

    media_type: str  # by content
    page_sizes: tuple[tuple[float, float], ...]  # (width, height) of each page upright, in points, of images in pixels;
    # (0, 0) where a page has no usable size
    page_tokens: tuple[int, ...]  # visual tokens each page will cost; 0 where a page has no usable size
    title: str = ""
    author: str = ""
    producer: str = ""
    creator: str = ""
    encrypted: bool = False
    has_forms: bool = False
    has_xfa: bool = False
    attachments: int = 0  # files inside the PDF, as in a portfolio
    page_tree_broken: bool = False  # it was mended
    needs_rendering: bool = False  # a dynamic XFA form


def inspect(file: BinaryIO, options: DocumentOptions) -> DocumentInfo:
    """Opens a document. `file` can be sought in; of a PDF only what is needed is read.

    Raises BadInput when it cannot be opened, is of no known type or has too many pages.
    """
    media_type = sniff(file)
    with _open(file, media_type, options) as document:
        if len(document) > options.max_pages:
            message = f"{len(document)} pages, more than max_pages {options.max_pages}"
            raise BadInput(Stage.OPEN, ErrorCode.TOO_MANY_PAGES, message)
        sizes = document.page_sizes()
        tokens = tuple(
            options.budget.page_tokens(*size, scalable=media_type == PDF) if min(size) > 0 else 0 for size in sizes
        )
        if isinstance(document, ImageFile):
            return DocumentInfo(media_type, sizes, tokens)
        return DocumentInfo(
            media_type,
            sizes,
            tokens,
            title=document.metadata("Title"),
            author=document.metadata("Author"),
            producer=document.metadata("Producer"),
            creator=document.metadata("Creator"),
            encrypted=document.encrypted,
            has_forms=document.has_forms,
            has_xfa=document.has_xfa,
            attachments=document.attachments,
            page_tree_broken=document.structure.is_broken,
            needs_rendering=document.structure.needs_rendering,
        )


def read_pages(
    file: BinaryIO, page_nos: Sequence[int], options: DocumentOptions
) -> Iterator[Page | tuple[int, Failure]]:
    """One item for each of `page_nos` (1-based), in order: the page, or its number and why it cannot be read.

    Raises BadInput when the document cannot be opened, and whatever `file` raises when it cannot be read from.
    """
    with _open(file, sniff(file), options) as document:
        for page_no in page_nos:
            yield _read_page(document, page_no, options.budget)


def _read_page(document: PdfFile | ImageFile, page_no: int, budget: PixelBudget) -> Page | tuple[int, Failure]:
    try:
        return document.read_page(page_no, budget)
    except BadInput as error:
        if error.failure.stage is not Stage.RENDER:  # the file could not be read from: no fault of this page
            raise
        return page_no, error.failure


@contextmanager
def _open(file: BinaryIO, media_type: str, options: DocumentOptions) -> Iterator[PdfFile | ImageFile]:
    if media_type == PDF:
        with PdfFile(file, options.passwords) as pdf:
            yield pdf
    else:
        yield ImageFile(file, media_type, max_pixels=options.max_image_pixels)


def selected_pages(pages: str, count: int) -> tuple[int, ...]:
    """The pages of a document of `count` that ranges such as "1-3,7,10-" name, ascending, each once; "" names all.

    Raises ValueError for anything else than ranges of numbers from 1.
    """
    if not pages.strip():
        return tuple(range(1, count + 1))
    chosen: set[int] = set()
    for part in pages.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        numbers = [word for word in (first, last) if word]
        if not numbers or not all(word.isascii() and word.isdigit() for word in numbers):
            raise ValueError(f"pages must be ranges such as 1-3,7,10- and not {pages!r}")
        start = int(first) if first else 1
        end = start if not dash else int(last) if last else max(start, count)
        if not 1 <= start <= end:
            raise ValueError(f"pages {pages!r}: {part.strip()!r} is no range of pages from 1")
        chosen.update(range(start, min(end, count) + 1))
    return tuple(sorted(chosen))
