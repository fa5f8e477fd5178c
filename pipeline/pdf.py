"""PDF documents through PDFium: opened, measured, rendered at the size the model wants, text layer with boxes.

PDFium is not safe for threads, and hostile files crash it: use it in one thread of a process that may die.
"""

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO, Self

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from numpy.typing import NDArray
from PIL import Image

from pipeline.pixels import WHOLE_PAGE, PixelBudget, cut_page, make_page, overview_size
from pipeline.records import BadInput, Box, ErrorCode, Page, Stage, Word

# The format ends at 14 400 units a side (200 inches). Long strips go beyond it in practice; 100 000 units are 35 m, of
# which not one letter would be legible in the pixels a page gets.
MAX_SIDE_POINTS = 100_000.0
_MIN_SIDE_POINTS = 0.01
_MAX_CHARACTERS = 200_000  # of a text layer; more is no page that people read
_HYPHEN = 0x02  # what PDFium makes of a hyphen at the end of a line
_RENDER_FLAGS = pdfium_c.FPDF_ANNOT | pdfium_c.FPDF_REVERSE_BYTE_ORDER  # RGB, annotations drawn


class PdfFile:
    """An open PDF, its forms ready to be drawn. A context manager.

    Raises BadInput (stage open) when it cannot be opened. Whatever `file` raises while PDFium reads from it, here or
    later, comes out as it is.
    """

    def __init__(self, file: BinaryIO, passwords: Sequence[str] = ()) -> None:
        self._file = file
        self._read_error: OSError | BadInput | None = None
        self._access = pdfium_c.FPDF_FILEACCESS()
        self._access.m_FileLen = file.seek(0, 2)
        self._access.m_GetBlock = type(self._access.m_GetBlock)(self._read_block)
        self._pdf = pdfium.PdfDocument(self._load(passwords))
        self.encrypted: bool = pdfium_c.FPDF_GetSecurityHandlerRevision(self._pdf) != -1
        form_type = self._pdf.get_formtype()
        self.has_forms: bool = form_type != pdfium_c.FORMTYPE_NONE
        self.has_xfa: bool = form_type in (pdfium_c.FORMTYPE_XFA_FULL, pdfium_c.FORMTYPE_XFA_FOREGROUND)
        if self.has_forms:
            self._prepare_forms()
        if len(self._pdf) < 1:
            self.close()
            raise BadInput(Stage.OPEN, ErrorCode.NO_PAGES, "the PDF has no pages")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pdf.close()

    def __len__(self) -> int:
        return len(self._pdf)

    def metadata(self, key: str) -> str:
        """The document's "Title", "Author", "Producer" or "Creator", or ""."""
        return _text(partial(pdfium_c.FPDF_GetMetaText, self._pdf, key.encode()))

    def page_sizes(self) -> tuple[tuple[float, float], ...]:
        """(width, height) of each page upright, in points; (0, 0) where a page has no usable size.

        PDFium does not tell the UserUnit: sizes count user units, of which one is a point in nearly every file.
        """
        size = pdfium_c.FS_SIZEF()
        sizes = []
        for index in range(len(self._pdf)):
            found = pdfium_c.FPDF_GetPageSizeByIndexF(self._pdf, index, size)
            usable = found and not _size_problem(size.width, size.height)
            sizes.append((size.width, size.height) if usable else (0.0, 0.0))
        self._raise_read_error()
        return tuple(sizes)

    def read_page(self, page_no: int, budget: PixelBudget) -> Page:
        """Page `page_no`, 1-based. Raises BadInput (stage render) when this page cannot be read."""
        started = time.perf_counter()
        try:
            page = self._pdf.get_page(page_no - 1)
        except pdfium.PdfiumError as error:
            self._raise_read_error()
            message = f"page {page_no} of {len(self)} cannot be loaded"
            raise BadInput(Stage.RENDER, ErrorCode.PAGE_LOAD_FAILED, message) from error
        with closing(page):
            width, height = page.get_size()
            if problem := _size_problem(width, height):
                raise BadInput(Stage.RENDER, problem, f"page {page_no} measures {width:g} x {height:g} points")
            tile_boxes = _tile_boxes(page, budget)
            flags = [("has_forms", _has_widgets(page)), ("has_xfa", self.has_xfa)]
            result = make_page(
                [_render_tile(page, box, budget) for box in tile_boxes],
                tile_boxes,
                page_no=page_no,
                label=_text(partial(pdfium_c.FPDF_GetPageLabel, self._pdf, page_no - 1)),
                size=(width, height),
                rotation=page.get_rotation(),
                words=_words(page),
                flags=[flag for flag, is_set in flags if is_set],
                started=started,
            )
        self._raise_read_error()
        return result

    def _load(self, passwords: Sequence[str]) -> pdfium_c.FPDF_DOCUMENT:
        for password in (None, *passwords):
            raw = pdfium_c.FPDF_LoadCustomDocument(self._access, None if password is None else password.encode())
            self._raise_read_error()
            if raw:
                return raw
            problem = pdfium_c.FPDF_GetLastError()
            if problem != pdfium_c.FPDF_ERR_PASSWORD:
                break
        if problem == pdfium_c.FPDF_ERR_PASSWORD and passwords:
            raise BadInput(Stage.OPEN, ErrorCode.WRONG_PASSWORD, f"none of the {len(passwords)} passwords opens it")
        if problem == pdfium_c.FPDF_ERR_PASSWORD:
            raise BadInput(Stage.OPEN, ErrorCode.ENCRYPTED, "a password is needed and none was given")
        if problem == pdfium_c.FPDF_ERR_SECURITY:
            raise BadInput(Stage.OPEN, ErrorCode.ENCRYPTED, "encrypted by a scheme that PDFium does not know")
        raise BadInput(Stage.OPEN, ErrorCode.CORRUPT, "not a readable PDF")

    def _prepare_forms(self) -> None:
        """So that pages loaded from now on draw their forms. pypdfium2's own helper warns of every XFA form."""
        config = pdfium_c.FPDF_FORMFILLINFO(version=2)
        raw = pdfium_c.FPDFDOC_InitFormFillEnvironment(self._pdf, config)
        if raw:  # a broken form is not drawn; the page behind it still is
            self._pdf.formenv = pdfium.PdfFormEnv(raw, config)

    def _read_block(self, _parameter: object, position: int, buffer: Any, size: int) -> int:
        """PDFium's callback. No exception can pass through C, so it is kept for `_raise_read_error`."""
        try:
            self._file.seek(position)
            data = self._file.read(size)
        except (OSError, BadInput) as error:
            self._read_error = error
            return 0
        ctypes.memmove(buffer, data, len(data))
        return int(len(data) == size)

    def _raise_read_error(self) -> None:
        if self._read_error is not None:
            raise self._read_error


def _text(fill: Callable[[Any, int], int]) -> str:
    """The text a PDFium function fills a buffer of so many bytes with. Files hold broken UTF-16: that is replaced."""
    size = fill(None, 0)
    buffer = ctypes.create_string_buffer(size)
    fill(buffer, size)
    return buffer.raw.decode("utf-16-le", "replace").replace("\0", "").strip()


def _size_problem(width: float, height: float) -> ErrorCode | None:
    if not min(width, height) >= _MIN_SIDE_POINTS:  # not a number counts as no size
        return ErrorCode.ZERO_SIZE_PAGE
    return ErrorCode.PAGE_TOO_LARGE if max(width, height) > MAX_SIDE_POINTS else None


def _tile_boxes(page: pdfium.PdfPage, budget: PixelBudget) -> tuple[Box, ...]:
    tiles = budget.tile_count(*page.get_size())
    if tiles == 1:
        return (WHOLE_PAGE,)
    width, height = overview_size(*page.get_size())
    overview = Image.fromarray(_render(page, WHOLE_PAGE, width, height)).convert("L")
    return cut_page(np.asarray(overview), tiles)


def _render_tile(page: pdfium.PdfPage, box: Box, budget: PixelBudget) -> NDArray[np.uint8]:
    page_width, page_height = page.get_size()
    height, width = budget.dimensions(page_width * (box[2] - box[0]), page_height * (box[3] - box[1]), scalable=True)
    return _render(page, box, width, height)


def _render(page: pdfium.PdfPage, box: Box, width: int, height: int) -> NDArray[np.uint8]:
    """`box` of the upright page as uint8 RGB [height, width, 3] on white paper, stretched to exactly that size.

    Boxes that are not the whole page are met to half a pixel: PDFium draws forms at whole pixels only.
    """
    full_width, full_height = round(width / (box[2] - box[0])), round(height / (box[3] - box[1]))
    left, top = round(box[0] * full_width), round(box[1] * full_height)
    bitmap = pdfium.PdfBitmap.new_native(width, height, pdfium_c.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
    arguments = (bitmap, page, -left, -top, full_width, full_height, 0, _RENDER_FLAGS)
    pdfium_c.FPDF_RenderPageBitmap(*arguments)
    if page.formenv:
        pdfium_c.FPDF_FFLDraw(page.formenv, *arguments)
    return np.ascontiguousarray(bitmap.to_numpy())


def _has_widgets(page: pdfium.PdfPage) -> bool:
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
        kind = pdfium_c.FPDFAnnot_GetSubtype(annotation)
        pdfium_c.FPDFPage_CloseAnnot(annotation)
        if kind == pdfium_c.FPDF_ANNOT_WIDGET:
            return True
    return False


def _words(page: pdfium.PdfPage) -> tuple[Word, ...]:
    """The text layer, in the file's order: runs of characters between white space, as far as they lie on the page."""
    page_box = page.get_bbox()
    rotation = page.get_rotation()
    words = []
    with closing(page.get_textpage()) as textpage:
        for text, box in _runs(textpage):
            left, top, right, bottom = to_display(box, page_box, rotation)
            if right > 0 and bottom > 0 and left < 1 and top < 1:
                words.append(Word(text, (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0))))
    return tuple(words)


def _runs(textpage: pdfium.PdfTextPage) -> list[tuple[str, Box]]:
    """(text, (left, bottom, right, top) in user space) of each run; a hyphen at the end of a line ends its run."""
    sides = [ctypes.c_double() for _ in range(4)]
    runs: list[tuple[str, Box]] = []
    text, box = "", (math.inf, math.inf, -math.inf, -math.inf)
    for index in range(min(textpage.count_chars(), _MAX_CHARACTERS) + 1):
        code = pdfium_c.FPDFText_GetUnicode(textpage, index)  # 0 after the last
        character = "-" if code == _HYPHEN else _clean(code)
        if character and pdfium_c.FPDFText_GetCharBox(textpage, index, *sides):
            left, right, bottom, top = (side.value for side in sides)
            text += character
            box = (min(box[0], left), min(box[1], bottom), max(box[2], right), max(box[3], top))
        if text and (not character or code == _HYPHEN):
            runs.append((_join_surrogates(text), box))
            text, box = "", (math.inf, math.inf, -math.inf, -math.inf)
    return runs


def _clean(code: int) -> str:
    """The character, or "" for white space, control characters and what is none."""
    character = chr(code) if code <= 0x10FFFF else ""
    return "" if character.isspace() or code < 0x20 else character


def _join_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def to_display(box: Box, page_box: Box, rotation: int) -> Box:
    """A box (left, bottom, right, top) of PDF user space as a Box of the upright page as displayed.

    `page_box` is what is displayed (the CropBox within the MediaBox) in user space, `rotation` the page's /Rotate in
    degrees clockwise. Not clipped to the page.
    """
    left, bottom, right, top = page_box
    x0, x1 = ((x - left) / (right - left) for x in (box[0], box[2]))
    y0, y1 = ((y - bottom) / (top - bottom) for y in (box[1], box[3]))
    return {
        0: (x0, 1 - y1, x1, 1 - y0),
        90: (y0, x0, y1, x1),
        180: (1 - x1, y0, 1 - x0, y1),
        270: (1 - y1, 1 - x1, 1 - y0, 1 - x0),
    }[rotation]
