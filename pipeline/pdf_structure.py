"""What stands in a PDF beside what PDFium tells, through QPDF (pikepdf): its real pages, their units, hidden layers.

PDFium believes the page tree's own count and takes whatever stands in it for a page. The tree is walked here once more,
each node and page once; where it is broken, `mended` writes a file with the same pages in a flat tree.
"""

import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pikepdf

from pipeline.records import BadInput, Box

_INHERITED = ("/Resources", "/MediaBox", "/CropBox", "/Rotate")
_MAX_USER_UNIT = 75_000.0  # what Acrobat takes
_MAX_DEPTH = 500  # of a page tree that PDFium still walks safely
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


@dataclass(frozen=True, slots=True)
class PdfStructure:
    """`pages` is empty where QPDF cannot open the file."""

    pages: tuple[PageEntry, ...] = ()
    is_broken: bool = False  # the page tree counts wrong or holds what is no page
    needs_rendering: bool = False  # a dynamic XFA form: pages show nothing but a notice
    hidden_layers: frozenset[str] = frozenset()  # names of the optional content that is off when the file is opened
    mended: bytes | None = None  # where the tree is broken, a whole file without that fault


@dataclass(slots=True)
class _Tree:
    """What a walk through the page tree found."""

    pages: list[pikepdf.Object] = field(default_factory=list)
    inherited: list[dict[str, Any]] = field(default_factory=list)  # of each page, from the nodes above it
    is_broken: bool = False


def read_structure(file: BinaryIO, passwords: Sequence[str]) -> PdfStructure:
    """Raises what `file` raises when it cannot be read from; a file that QPDF cannot make sense of says nothing."""
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
    tree = _walk(pdf)
    entries = tuple(_entry(page, above) for page, above in zip(tree.pages, tree.inherited, strict=True))
    return PdfStructure(
        entries,
        tree.is_broken,
        needs_rendering=_at(pdf.Root, "/NeedsRendering") is True,
        hidden_layers=frozenset(_hidden_layers(pdf.Root.get("/OCProperties"))),
        mended=_mended(pdf, tree) if tree.is_broken and tree.pages else None,
    )


def _walk(pdf: pikepdf.Pdf) -> _Tree:
    """Every page once, in order. What is visited twice, is no page, or does not count what is below it is a fault."""
    tree, seen = _Tree(), set[tuple[int, int]]()
    counts: list[tuple[Any, int]] = []  # of each node open: what it says, and the pages before it
    todo: list[tuple[Any, dict[str, Any], int] | None] = [(pdf.Root.get("/Pages"), {}, 0)]  # None: a node ends
    while todo:
        item = todo.pop()
        if item is None:
            said, before = counts.pop()
            tree.is_broken |= said != len(tree.pages) - before
            continue
        node, above, depth = item
        if not isinstance(node, pikepdf.Dictionary) or (node.is_indirect and node.objgen in seen):
            tree.is_broken = True
            continue
        if node.is_indirect:
            seen.add(node.objgen)
        kids = node.get("/Kids")
        if kids is None:
            _add_page(pdf, tree, node, above)
            continue
        tree.is_broken |= depth > _MAX_DEPTH or not isinstance(kids, pikepdf.Array)
        counts.append((node.get("/Count"), len(tree.pages)))
        below = above | {key: node[key] for key in _INHERITED if key in node}
        todo.append(None)
        todo.extend((kid, below, depth + 1) for kid in reversed(list(_kids(kids))))
    if not tree.pages:  # the tree leads nowhere: whatever calls itself a page is one
        tree.is_broken = True
        for page in pdf.objects:
            if isinstance(page, pikepdf.Dictionary) and page.get("/Type") == pikepdf.Name.Page:
                _add_page(pdf, tree, page, {})
    return tree


def _kids(kids: Any) -> Iterator[Any]:
    if isinstance(kids, pikepdf.Array):
        for index in range(len(kids)):
            yield kids[index]
    elif isinstance(kids, pikepdf.Dictionary):
        yield kids


def _add_page(pdf: pikepdf.Pdf, tree: _Tree, page: Any, above: dict[str, Any]) -> None:
    kind = page.get("/Type")
    if kind != pikepdf.Name.Page and (kind == pikepdf.Name.Pages or not ("/Contents" in page or "/MediaBox" in page)):
        tree.is_broken = True
        return
    if not page.is_indirect:
        tree.is_broken = True
        page = pdf.make_indirect(page)
    tree.pages.append(page)
    tree.inherited.append(above)


def _entry(page: Any, above: dict[str, Any]) -> PageEntry:
    unit = _number(page.get("/UserUnit", 1))
    media, crop = (_box(page.get(key, above.get(key))) for key in ("/MediaBox", "/CropBox"))
    lost = False
    if media and crop:
        lost = min(media[2], crop[2]) <= max(media[0], crop[0]) or min(media[3], crop[3]) <= max(media[1], crop[1])
    return PageEntry(unit if 0 < unit <= _MAX_USER_UNIT else 1.0, media if lost else None)


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


def _hidden_layers(properties: Any) -> Iterator[str]:
    """Names of the groups that are off when the file is opened, except those that a group that is on has, too."""
    if not isinstance(properties, pikepdf.Dictionary) or not isinstance(properties.get("/OCGs"), pikepdf.Array):
        return
    config = properties.get("/D")
    config = config if isinstance(config, pikepdf.Dictionary) else pikepdf.Dictionary()
    on, off = (_ids(config.get(key)) for key in ("/ON", "/OFF"))
    if config.get("/BaseState") == pikepdf.Name.OFF:
        off |= _ids(properties.OCGs) - on
    for usage in config.get("/AS", ()):
        if usage.get("/Event") == pikepdf.Name.View:
            groups = [group for group in usage.get("/OCGs", ()) if _is_dictionary(group)]
            off |= {g.objgen for g in groups if _at(g, "/Usage", "/View", "/ViewState") == pikepdf.Name.OFF}
    named = [(str(group.get("/Name", "")), group.objgen in off) for group in properties.OCGs if _is_dictionary(group)]
    shown = {name for name, is_off in named if not is_off}
    yield from (name for name, is_off in named if is_off and name not in shown)


def _at(value: Any, *keys: str) -> Any:
    """What stands in dictionaries within dictionaries; None where one is missing."""
    for key in keys:
        value = value.get(key) if _is_dictionary(value) else None
    return value


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, pikepdf.Dictionary)


def _ids(groups: Any) -> set[tuple[int, int]]:
    return {group.objgen for group in groups if _is_dictionary(group)} if isinstance(groups, pikepdf.Array) else set()


def _mended(pdf: pikepdf.Pdf, tree: _Tree) -> bytes:
    """The file with its pages in a flat tree, each with what it had from the nodes above it."""
    root = pdf.make_indirect(pikepdf.Dictionary(Type=pikepdf.Name.Pages, Kids=pikepdf.Array(), Count=len(tree.pages)))
    for page, above in zip(tree.pages, tree.inherited, strict=True):
        for key, value in above.items():
            if key not in page:
                page[key] = value
        page.Type, page.Parent = pikepdf.Name.Page, root
    root.Kids = pikepdf.Array(tree.pages)
    pdf.Root.Pages = root
    file = io.BytesIO()
    pdf.save(file, compress_streams=False, stream_decode_level=pikepdf.StreamDecodeLevel.none, encryption=False)
    return file.getvalue()
