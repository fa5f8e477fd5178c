"""The fonts of sample pages: PDF's own, reportlab's Vera, and DejaVu and Liberation where the system has them."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import pypdfium2
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

_PRINTABLE = "".join(map(chr, range(32, 127)))
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/Library/Fonts")
_STANDARD = (  # PDFium brings these, no file needed
    ("Helvetica", "Helvetica-Bold", "Helvetica-Oblique"),
    ("Times-Roman", "Times-Bold", "Times-Italic"),
    ("Courier", "Courier-Bold", "Courier-Oblique"),
)
_FILES = (  # Vera comes with reportlab
    ("Vera", "VeraBd", "VeraIt"),
    ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    ("DejaVuSansCondensed", "DejaVuSansCondensed-Bold", "DejaVuSansCondensed-Oblique"),
    ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    ("LiberationMono-Regular", "LiberationMono-Bold", "LiberationMono-Italic"),
    ("LiberationSans-Regular", "LiberationSans-Bold", "LiberationSans-Italic"),
    ("LiberationSansNarrow-Regular", "LiberationSansNarrow-Bold", "LiberationSansNarrow-Italic"),
    ("LiberationSerif-Regular", "LiberationSerif-Bold", "LiberationSerif-Italic"),
)


@dataclass(frozen=True, slots=True)
class Face:
    """One font, measured. All lengths in units of the font size, upwards from the baseline; lists by ASCII code."""

    name: str
    advances: tuple[float, ...]
    lefts: tuple[float, ...]  # ink of each glyph, from its origin
    bottoms: tuple[float, ...]
    rights: tuple[float, ...]
    tops: tuple[float, ...]

    def width(self, text: str) -> float:
        """The advance of printable ASCII text."""
        return sum(map(self.advances.__getitem__, text.encode("ascii")))

    def ink(self, text: str) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of the ink of non-empty text without spaces at its ends."""
        codes = text.encode("ascii")
        end = self.width(text) - self.advances[codes[-1]] + self.rights[codes[-1]]
        bottom, top = min(map(self.bottoms.__getitem__, codes)), max(map(self.tops.__getitem__, codes))
        return self.lefts[codes[0]], bottom, end, top


@dataclass(frozen=True, slots=True)
class Family:
    regular: Face
    bold: Face
    italic: Face


@cache
def font_families() -> tuple[Family, ...]:
    """Every family this machine has, registered with reportlab and measured, once for each process."""
    files = {path.stem: path for folder in _FOLDERS for path in sorted(Path(folder).expanduser().rglob("*.ttf"))}
    found = [names for names in _FILES if names[0].startswith("Vera") or all(name in files for name in names)]
    for names in found:
        for name in names:
            pdfmetrics.registerFont(TTFont(name, str(files.get(name, f"{name}.ttf"))))
    return tuple(Family(*map(_measured, names)) for names in (*_STANDARD, *found))


def _measured(name: str) -> Face:
    """Asks PDFium, which will render the pages, where it puts every character of "HxH" (x for each) and its ink.

    Widths from font files or reportlab's tables would not do: PDFium's own bold Helvetica has a wider "@" than theirs.
    """
    size = 100.0
    buffer = BytesIO()
    canvas = Canvas(buffer, pagesize=(5 * size, 2 * size * (len(_PRINTABLE) + 1)))
    canvas.setFont(name, size)
    for row, char in enumerate(_PRINTABLE):
        canvas.drawString(0, 2 * size * (len(_PRINTABLE) - row), f"H{char}H")
    canvas.save()
    with pypdfium2.PdfDocument(buffer.getvalue()) as document:
        text = document[0].get_textpage()
        assert text.get_text_range().split("\r\n") == [f"H{char}H" for char in _PRINTABLE], name
        boxes = [text.get_charbox(index) for index in range(text.count_chars())]
    advances, inks = [0.0] * 128, [(0.0, 0.0, 0.0, 0.0)] * 128
    letter = 5 * _PRINTABLE.index("H")  # five characters a line: three and a line end
    letter_advance = boxes[letter + 1][0] - boxes[letter][0]
    for row, char in enumerate(_PRINTABLE):
        before, (left, bottom, right, top), after = boxes[5 * row : 5 * row + 3]
        baseline = 2 * size * (len(_PRINTABLE) - row)
        advances[ord(char)] = (after[0] - before[0] - letter_advance) / size
        ink = (left - letter_advance, bottom - baseline, right - letter_advance, top - baseline)
        inks[ord(char)] = tuple(value / size for value in ink)
    lefts, bottoms, rights, tops = zip(*inks, strict=True)
    return Face(name, tuple(advances), lefts, bottoms, rights, tops)
