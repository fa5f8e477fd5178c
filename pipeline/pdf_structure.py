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
_HIDDEN = "hidden by PageReel"  # the name of a layer that had none of its own
_MAX_DEPTH = 500  # of a page tree that PDFium still walks safely
_NOT_READ = (pikepdf.PdfError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError)

_Id = tuple[int, int]  # number and generation of an object


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
    off = _groups_off(pdf.Root.get("/OCProperties"))
    is_changed = bool(off) and _name_hidden(pdf, off)
    entries = tuple(_entry(page, above) for page, above in zip(tree.pages, tree.inherited, strict=True))
    return PdfStructure(
        entries,
        tree.is_broken,
        needs_rendering=_at(pdf.Root, "/NeedsRendering") is True,
        hidden_layers=frozenset(
            str(group.get("/Name", "")) for group in pdf.Root.OCProperties.OCGs if group.objgen in off
        )
        if off
        else frozenset(),
        mended=_mended(pdf, tree) if tree.pages and (tree.is_broken or is_changed) else None,
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


def _groups_off(properties: Any) -> set[_Id]:
    """The layers (optional content groups) that are off when the file is opened."""
    if not _is_dictionary(properties) or not isinstance(properties.get("/OCGs"), pikepdf.Array):
        return set()
    config = properties.get("/D")
    config = config if _is_dictionary(config) else pikepdf.Dictionary()
    on, off = (_ids(config.get(key)) for key in ("/ON", "/OFF"))
    if config.get("/BaseState") == pikepdf.Name.OFF:
        off |= _ids(properties.OCGs) - on
    for usage in config.get("/AS", ()):
        if usage.get("/Event") == pikepdf.Name.View:
            groups = [group for group in usage.get("/OCGs", ()) if _is_dictionary(group)]
            off |= {g.objgen for g in groups if _at(g, "/Usage", "/View", "/ViewState") == pikepdf.Name.OFF}
    return off & _ids(properties.OCGs)


def _name_hidden(pdf: pikepdf.Pdf, off: set[_Id]) -> bool:
    """Changes the file so that what is hidden is known by the name of its layer alone; whether it had to.

    PDFium tells names only. A layer with the name of one that is on gets another, a membership that hides becomes a
    layer that is off, and a form that is hidden as a whole becomes empty.
    """
    properties, changed = pdf.Root.OCProperties, False
    shown = {str(group.get("/Name", "")) for group in properties.OCGs if group.objgen not in off}
    for thing in pdf.objects:
        if isinstance(thing, pikepdf.Stream):
            layer = thing.get("/OC")
            if thing.get("/Subtype") == pikepdf.Name.Form and (_hides(layer, off) or _is_off(layer, off)):
                thing.write(b"")
                changed = True
        elif _is_off(thing, off):
            if str(thing.get("/Name", "")) in shown:
                thing.Name, changed = pikepdf.String(_HIDDEN), True
        elif _hides(thing, off):
            thing.Type, thing.Name, changed = pikepdf.Name.OCG, pikepdf.String(_HIDDEN), True
            properties.OCGs.append(thing)
            config = properties.get("/D", pikepdf.Dictionary())
            config.OFF = pikepdf.Array([*config.get("/OFF", ()), thing])
            properties.D = config
            off.add(thing.objgen)
    return changed


def _is_off(layer: Any, off: set[_Id]) -> bool:
    return _is_dictionary(layer) and layer.is_indirect and layer.objgen in off


def _hides(membership: Any, off: set[_Id]) -> bool:
    """Whether a membership of layers hides what it is put on; one with an expression is left to PDFium."""
    if _at(membership, "/Type") != pikepdf.Name.OCMD or "/VE" in membership:
        return False
    groups = membership.get("/OCGs")
    ids = _ids(groups if isinstance(groups, pikepdf.Array) else [groups])
    are_off = [group in off for group in ids]
    policy = str(membership.get("/P", "/AnyOn"))
    shows = {"/AllOn": not any(are_off), "/AnyOff": any(are_off), "/AllOff": all(are_off)}
    return bool(are_off) and not shows.get(policy, not all(are_off))


def _at(value: Any, *keys: str) -> Any:
    """What stands in dictionaries within dictionaries; None where one is missing."""
    for key in keys:
        value = value.get(key) if _is_dictionary(value) else None
    return value


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, pikepdf.Dictionary)


def _ids(groups: Any) -> set[_Id]:
    return {group.objgen for group in groups or () if _is_dictionary(group)}


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
