"""The text layer of a PDF page through PDFium: words with boxes, without hidden layers, and which way they stand."""

import ctypes
import math
from collections import Counter
from collections.abc import Collection
from contextlib import closing

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from pipeline.records import Box, Word

_MAX_CHARACTERS = 200_000  # of a text layer; more is no page that people read
_HYPHEN = 0x02  # what PDFium makes of a hyphen at the end of a line
_MAX_FORM_DEPTH = 8  # forms within forms that are looked into
_TURN_MIN_CHARACTERS = 10  # fewer say nothing about a page
_WHITE = 250  # of 255, in every channel: not seen on paper


def words_of(page: pdfium.PdfPage) -> tuple[Word, ...]:
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


def turn_of(page: pdfium.PdfPage) -> str:
    """How most of the text stands to a reader of the upright page: "" as it should, or "upside_down", "sideways"."""
    quarters: Counter[int] = Counter()
    with closing(page.get_textpage()) as textpage:
        for index in range(min(textpage.count_chars(), _MAX_CHARACTERS)):
            if not _clean(pdfium_c.FPDFText_GetUnicode(textpage, index)):
                continue
            angle = math.degrees(pdfium_c.FPDFText_GetCharAngle(textpage, index)) + page.get_rotation()  # clockwise
            quarter = round(angle / 90) if math.isfinite(angle) else 0
            quarters[quarter % 4 if abs(angle - 90 * quarter) < 20 else -1] += 1
    characters = quarters.total()
    if characters < _TURN_MIN_CHARACTERS:
        return ""
    if quarters[2] > characters / 2:
        return "upside_down"
    return "sideways" if max(quarters[1], quarters[3]) > characters / 2 else ""


def remove_hidden(page: pdfium.PdfPage, layers: Collection[str]) -> None:
    """Takes off the loaded page what belongs to optional content of those names: it is not drawn, but would be told."""
    if not layers:
        return
    for thing in _objects(page):
        if _is_in(thing, layers):
            if pdfium_c.FPDFPage_RemoveObject(page, thing):
                pdfium_c.FPDFPageObj_Destroy(thing)
        elif pdfium_c.FPDFPageObj_GetType(thing) == pdfium_c.FPDF_PAGEOBJ_FORM:
            _remove_in_form(thing, layers, _MAX_FORM_DEPTH)


def _remove_in_form(form: pdfium_c.FPDF_PAGEOBJECT, layers: Collection[str], depth: int) -> None:
    things = [pdfium_c.FPDFFormObj_GetObject(form, index) for index in range(pdfium_c.FPDFFormObj_CountObjects(form))]
    for thing in things:
        if _is_in(thing, layers):
            if pdfium_c.FPDFFormObj_RemoveObject(form, thing):
                pdfium_c.FPDFPageObj_Destroy(thing)
        elif depth > 0 and pdfium_c.FPDFPageObj_GetType(thing) == pdfium_c.FPDF_PAGEOBJ_FORM:
            _remove_in_form(thing, layers, depth - 1)


def _is_in(thing: pdfium_c.FPDF_PAGEOBJECT, layers: Collection[str]) -> bool:
    for number in range(pdfium_c.FPDFPageObj_CountMarks(thing)):
        mark = pdfium_c.FPDFPageObj_GetMark(thing, number)
        if _mark_text(mark, None) == "OC" and _mark_text(mark, b"Name") in layers:
            return True
    return False


def _mark_text(mark: pdfium_c.FPDF_PAGEOBJECTMARK, key: bytes | None) -> str:
    """The name of a mark, or the text of a key of it, as far as 256 characters."""
    size = ctypes.c_ulong()
    buffer = (ctypes.c_ushort * 256)()
    if key is None:
        found = pdfium_c.FPDFPageObjMark_GetName(mark, buffer, ctypes.sizeof(buffer), size)
    else:
        found = pdfium_c.FPDFPageObjMark_GetParamStringValue(mark, key, buffer, ctypes.sizeof(buffer), size)
    known = found and size.value <= ctypes.sizeof(buffer)
    return bytes(buffer)[: size.value].decode("utf-16-le", "replace").rstrip("\0") if known else ""


def lacks_fonts(page: pdfium.PdfPage) -> bool:
    """Whether some text that should be seen is in a font the file does not bring. Costs a look at every object."""
    return any(_lacks_font(thing, _MAX_FORM_DEPTH) for thing in _objects(page))


def _lacks_font(thing: pdfium_c.FPDF_PAGEOBJECT, depth: int) -> bool:
    kind = pdfium_c.FPDFPageObj_GetType(thing)
    if kind == pdfium_c.FPDF_PAGEOBJ_FORM and depth > 0:
        inside = range(pdfium_c.FPDFFormObj_CountObjects(thing))
        return any(_lacks_font(pdfium_c.FPDFFormObj_GetObject(thing, index), depth - 1) for index in inside)
    if kind != pdfium_c.FPDF_PAGEOBJ_TEXT or not _is_seen(thing):
        return False
    font = pdfium_c.FPDFTextObj_GetFont(thing)
    return not font or pdfium_c.FPDFFont_GetIsEmbedded(font) != 1


def _is_seen(thing: pdfium_c.FPDF_PAGEOBJECT) -> bool:
    """Whether a text is drawn in a colour that shows on paper; text behind a scan is not drawn at all."""
    mode = pdfium_c.FPDFTextObj_GetTextRenderMode(thing)
    if mode in (pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE, pdfium_c.FPDF_TEXTRENDERMODE_CLIP):
        return False
    red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
    if not pdfium_c.FPDFPageObj_GetFillColor(thing, red, green, blue, alpha):
        return True
    return alpha.value > 0 and min(red.value, green.value, blue.value) < _WHITE


def _objects(page: pdfium.PdfPage) -> list[pdfium_c.FPDF_PAGEOBJECT]:
    return [pdfium_c.FPDFPage_GetObject(page, index) for index in range(pdfium_c.FPDFPage_CountObjects(page))]
