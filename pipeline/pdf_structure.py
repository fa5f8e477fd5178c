"""What stands in a PDF beside what PDFium tells, through QPDF (pikepdf): its real pages, their units, hidden layers.

Where the page tree is broken, the table of objects is not the file's, or names of layers do not say what is hidden,
`mended` is the same file without that fault.
"""

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pikepdf

from pipeline.pdf_layers import at, groups_off, hidden_names, name_hidden, settle_usages
from pipeline.pdf_tree import Leaf, flattened, walk
from pipeline.records import BadInput, Box

_MAX_USER_UNIT = 75_000.0  # what Acrobat takes
_END = b"\n%%EOF\n"
_NOT_READ = (pikepdf.PdfError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError)


class _Recorder(io.RawIOBase):
    """`file` for QPDF, which goes on where reading fails: what was raised is kept."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | BadInput | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0, /) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._file.read(len(buffer))
        except (OSError, BadInput) as error:
            self.error = error
            raise
        buffer[: len(data)] = data
        return len(data)


@dataclass(frozen=True, slots=True)
class PageEntry:
    """A page as its dictionary says."""

    user_unit: float = 1.0  # points of one unit of its boxes
    lost_crop: Box | None = None  # the MediaBox (left, bottom, right, top), where the CropBox lies outside of it
    damage: str = ""  # why the page cannot be read


@dataclass(frozen=True, slots=True)
class PdfStructure:
    """`pages` is empty where QPDF cannot open the file."""

    pages: tuple[PageEntry, ...] = ()
    is_broken: bool = False  # the page tree counts wrong or holds what is no page
    is_rebuilt: bool = False  # its objects were searched for: their table is wrong, or cut off
    is_encrypted: bool = False
    needs_rendering: bool = False  # a dynamic XFA form: pages show nothing but a notice
    pinned_files: int = 0  # that are attached to places on pages
    hidden_layers: frozenset[str] = frozenset()  # names of the optional content that is off when the file is opened
    mended: bytes | None = None  # where something was wrong, a whole file without that fault


def read_structure(file: BinaryIO, passwords: Sequence[str], *, is_cut: bool = False) -> PdfStructure:
    """Raises what `file` raises when it cannot be read from; a file that QPDF cannot make sense of says nothing.

    A file that PDFium does not open `is_cut` off: with an end, QPDF takes its last object for a whole one.
    """
    if is_cut:
        file.seek(0)
        file = io.BytesIO(file.read() + _END)
    logging.getLogger("pikepdf").setLevel(logging.CRITICAL)  # it warns of all that it mends
    recorder = _Recorder(file)
    structure = PdfStructure()
    for password in ("", *passwords):
        file.seek(0)
        try:
            with pikepdf.open(
                cast(BinaryIO, recorder),
                password=password,
                suppress_warnings=True,
                inherit_page_attributes=False,
                access_mode=pikepdf.AccessMode.stream,
            ) as pdf:
                structure = _structure(pdf)
                break
        except pikepdf.PasswordError:
            continue
        except (OSError, BadInput, *_NOT_READ):
            break
    if recorder.error is not None:
        raise recorder.error
    return structure


def _structure(pdf: pikepdf.Pdf) -> PdfStructure:
    tree = walk(pdf)
    off = groups_off(pdf.Root.get("/OCProperties"))
    is_changed = settle_usages(pdf, off)
    is_changed |= bool(off) and name_hidden(pdf, off)
    needs_mending = tree.is_broken or tree.is_rebuilt or is_changed
    return PdfStructure(
        tuple(map(_entry, tree.leaves)),
        tree.is_broken,
        tree.is_rebuilt,
        pdf.is_encrypted,
        needs_rendering=at(pdf.Root, "/NeedsRendering") is True,
        pinned_files=sum(_pinned_files(leaf.page) for leaf in tree.leaves),
        hidden_layers=hidden_names(pdf, off),
        mended=flattened(pdf, tree) if tree.leaves and needs_mending else None,
    )


def _entry(leaf: Leaf) -> PageEntry:
    if leaf.damage:
        return PageEntry(damage=leaf.damage)
    unit = _number(leaf.page.get("/UserUnit", 1))
    media, crop = (_box(leaf.page.get(key, leaf.above.get(key))) for key in ("/MediaBox", "/CropBox"))
    lost = False
    if media and crop:
        lost = min(media[2], crop[2]) <= max(media[0], crop[0]) or min(media[3], crop[3]) <= max(media[1], crop[1])
    return PageEntry(unit if 0 < unit <= _MAX_USER_UNIT else 1.0, media if lost else None)


def _pinned_files(page: Any) -> int:
    annotations = at(page, "/Annots")
    if not isinstance(annotations, pikepdf.Array):
        return 0
    return sum(at(annotation, "/Subtype") == pikepdf.Name.FileAttachment for annotation in annotations)


def _number(value: Any) -> float:
    """0 for what is none."""
    try:
        number = float(value)
    except _NOT_READ:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _box(value: Any) -> Box | None:
    """(left, bottom, right, top) with its corners in order; None where it is none or empty."""
    if not isinstance(value, pikepdf.Array) or len(value) != 4:
        return None
    x0, y0, x1, y1 = (_number(value[index]) for index in range(4))
    box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return box if box[0] < box[2] and box[1] < box[3] else None
