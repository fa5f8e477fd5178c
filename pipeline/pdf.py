"""PDF documents through PDFium: opened, measured, rendered at the size the model wants.

PDFium is not safe for threads, and hostile files crash it: use it in one thread of a process that may die.
"""

import ctypes
import io
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

from pipeline.pdf_structure import PageEntry, PdfStructure, read_structure
from pipeline.pdf_text import lacks_fonts, remove_hidden, turn_of, words_of
from pipeline.pixels import WHOLE_PAGE, PixelBudget, cut_page, make_page, overview_size
from pipeline.records import BadInput, Box, ErrorCode, Page, Stage

# The format ends at 14 400 units a side (200 inches). Long strips go beyond it in practice; 100 000 units are 35 m, of
# which not one letter would be legible in the pixels a page gets.
MAX_SIDE_POINTS = 100_000.0
_MIN_SIDE_POINTS = 0.01
_CORRUPT = (
    "not a readable PDF: damaged, or cut off; what is left of its pages may come back by "
    "`qpdf IN.pdf OUT.pdf` or `mutool clean IN.pdf OUT.pdf`"
)
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
        self._pdf, self.structure = self._open(passwords)
        self.encrypted: bool = self.structure.is_encrypted or pdfium_c.FPDF_GetSecurityHandlerRevision(self._pdf) != -1
        self._is_damaged = self.structure.is_rebuilt or not pdfium_c.FPDF_DocumentHasValidCrossReferenceTable(self._pdf)
        self._named_files = max(0, pdfium_c.FPDFDoc_GetAttachmentCount(self._pdf))
        self.attachments: int = self._named_files + self.structure.pinned_files
        form_type = self._pdf.get_formtype()
        self.has_forms: bool = form_type != pdfium_c.FORMTYPE_NONE
        self.has_xfa: bool = form_type in (pdfium_c.FORMTYPE_XFA_FULL, pdfium_c.FORMTYPE_XFA_FOREGROUND)
        if self.has_forms:
            self._prepare_forms()
        if len(self._pdf) < 1:
            self.close()
            files = f" of its own but {self.attachments} attached files" if self.attachments else ""
            raise BadInput(Stage.OPEN, ErrorCode.NO_PAGES, f"the PDF has no pages{files}")
        self._restore_lost_crops()

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

        A side is too long by its units, not by its points: a UserUnit changes no pixel.
        """
        size = pdfium_c.FS_SIZEF()
        sizes = []
        for index in range(len(self._pdf)):
            found = pdfium_c.FPDF_GetPageSizeByIndexF(self._pdf, index, size)
            usable = found and not _size_problem(size.width, size.height)
            entry = self._entry(index)
            unit = entry.user_unit
            sizes.append((size.width * unit, size.height * unit) if usable and not entry.damage else (0.0, 0.0))
        self._raise_read_error()
        return tuple(sizes)

    def read_page(self, page_no: int, budget: PixelBudget) -> Page:
        """Page `page_no`, 1-based. Raises BadInput (stage render) when this page cannot be read."""
        started = time.perf_counter()
        entry = self._entry(page_no - 1)
        if entry.damage:
            message = f"page {page_no} of {len(self)}: {entry.damage}"
            raise BadInput(Stage.RENDER, ErrorCode.PAGE_LOAD_FAILED, message)
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
            unit = entry.user_unit
            tile_boxes = _tile_boxes(page, budget)
            tiles = [_render_tile(page, box, budget) for box in tile_boxes]
            remove_hidden(page, self.structure.hidden_layers)
            words = words_of(page)
            result = make_page(
                tiles,
                tile_boxes,
                page_no=page_no,
                label=_text(partial(pdfium_c.FPDF_GetPageLabel, self._pdf, page_no - 1)),
                size=(width * unit, height * unit),
                rotation=page.get_rotation(),
                words=words,
                flags=self._flags(page, turn_of(page) if words else ""),
                lacks_fonts=lambda: bool(words) and lacks_fonts(page),
                started=started,
            )
        self._raise_read_error()
        return result

    def _flags(self, page: pdfium.PdfPage, turn: str) -> list[str]:
        annotations = _annotation_kinds(page)
        flags = [
            ("has_forms", pdfium_c.FPDF_ANNOT_WIDGET in annotations),
            ("has_xfa", self.has_xfa),
            ("needs_rendering", self.structure.needs_rendering),
            ("attachments", self._named_files > 0 or pdfium_c.FPDF_ANNOT_FILEATTACHMENT in annotations),
            ("page_tree_broken", self.structure.is_broken),
            ("file_damaged", self._is_damaged),
            (turn, bool(turn)),
        ]
        return [flag for flag, is_set in flags if is_set]

    def _entry(self, index: int) -> PageEntry:
        """What the structure says of a page; nothing where it could not be read."""
        pages = self.structure.pages
        return pages[index] if index < len(pages) else PageEntry()

    def _restore_lost_crops(self) -> None:
        """A CropBox beside the MediaBox leaves nothing of the page: all of it is shown, as other viewers do."""
        for index, entry in enumerate(self.structure.pages[: len(self._pdf)]):
            if entry.lost_crop is not None:
                page = pdfium_c.FPDF_LoadPage(self._pdf, index)
                if page:
                    pdfium_c.FPDFPage_SetCropBox(page, *entry.lost_crop)
                    pdfium_c.FPDF_ClosePage(page)

    def _open(self, passwords: Sequence[str]) -> tuple[pdfium.PdfDocument, PdfStructure]:
        """By PDFium what QPDF mended, where it had to: that is no longer encrypted."""
        problem, pdf = None, None
        try:
            pdf = pdfium.PdfDocument(self._load(passwords))
        except BadInput as error:
            if error.failure.code is not ErrorCode.CORRUPT:
                raise
            problem = error
        structure = read_structure(self._file, passwords, is_cut=problem is not None)
        if structure.mended is not None:
            if pdf is not None:
                pdf.close()
            self._file = io.BytesIO(structure.mended)
            self._access.m_FileLen = len(structure.mended)
            pdf = pdfium.PdfDocument(self._load(()))
        if pdf is None:
            assert problem is not None
            raise problem
        return pdf, structure

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
        raise BadInput(Stage.OPEN, ErrorCode.CORRUPT, _CORRUPT)

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


def _annotation_kinds(page: pdfium.PdfPage) -> set[int]:
    kinds = set()
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
        kinds.add(pdfium_c.FPDFAnnot_GetSubtype(annotation))
        pdfium_c.FPDFPage_CloseAnnot(annotation)
    return kinds
