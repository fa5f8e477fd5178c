"""The real pages of a PDF: its page tree walked once more through QPDF, each node and page once.

PDFium believes the tree's own count and takes whatever stands in it for a page. A page whose object is damaged keeps
its place; what was never in the file has none.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pikepdf

_INHERITED = ("/Resources", "/MediaBox", "/CropBox", "/Rotate")
_MAX_DEPTH = 500  # of a page tree that PDFium still walks safely
_REBUILT = "reconstruct"  # in what QPDF warns of a file whose table of objects is wrong or missing
_LOST_KID = re.compile(r"object (\d+) (\d+): Pages tree includes non-dictionary object")
_TOKEN = re.compile(rb"<<|>>|[\[\]]|(\d+) (\d+) R|[^\s\[\]<>]+")

Id = tuple[int, int]  # number and generation of an object


@dataclass(frozen=True, slots=True)
class Leaf:
    """A page, or the place of one that cannot be read."""

    page: Any  # its dictionary; None where it is lost
    above: dict[str, Any] = field(default_factory=dict)  # what it has from the nodes above it
    damage: str = ""  # why it cannot be read


@dataclass(slots=True)
class Tree:
    """What a walk found."""

    leaves: list[Leaf] = field(default_factory=list)
    is_broken: bool = False  # it counts wrong or holds what is no page
    is_rebuilt: bool = False  # QPDF found the objects by searching the file for them


@dataclass(frozen=True, slots=True)
class _Missing:
    """A place in the tree that leads to nothing."""

    ref: Id | None  # None where no object is named


def walk(pdf: pikepdf.Pdf) -> Tree:
    """Every page once, in order. What is visited twice, is no page, or does not count what is below it is a fault."""
    root = pdf.Root.get("/Pages")
    found = _Walk(pdf)
    if isinstance(root, pikepdf.Dictionary) and "/Kids" in root:
        found.walk(root)
    warnings = [str(warning) for warning in pdf.get_warnings()]
    tree = Tree(is_broken=found.is_broken, is_rebuilt=any(_REBUILT in warning for warning in warnings))
    tree.leaves = list(_leaves(pdf, found, warnings))
    if tree.is_rebuilt:  # QPDF has already taken out of the tree what it did not find
        named = [match for warning in warnings if (match := _LOST_KID.search(warning))]
        lost = [ref for match in named if pdf.get_object(ref := (int(match[1]), int(match[2]))) is None]
        tree.is_broken |= bool(named)
        if lost or any("(object " in warning for warning in warnings):
            tree.leaves = [_with_content(leaf) for leaf in tree.leaves]
        tree.leaves += [Leaf(None, damage=_lost(ref)) for ref in lost]
    if all(leaf.page is None for leaf in tree.leaves):  # it leads nowhere: whatever calls itself a page is one
        pages = [thing for thing in pdf.objects if _is_dictionary(thing) and thing.get("/Type") == pikepdf.Name.Page]
        tree.is_broken, tree.leaves = True, [*map(Leaf, pages)] or tree.leaves
    return tree


class _Walk:
    """The walk itself: leaves and places without one, in order."""

    def __init__(self, pdf: pikepdf.Pdf) -> None:
        self._pdf = pdf
        self.found: list[Leaf | _Missing] = []
        self.seen: set[Id] = set()
        self.is_broken = False
        self._pages = 0

    def walk(self, root: Any) -> None:
        counts: list[tuple[Any, int]] = []  # of each node open: what it says, and the pages before it
        todo: list[tuple[Any, dict[str, Any], int] | None] = [(root, {}, 0)]  # None: a node ends
        while todo:
            item = todo.pop()
            if item is None:
                said, before = counts.pop()
                self.is_broken |= said != self._pages - before
                continue
            node, above, depth = item
            if not self._is_new(node):
                continue
            if _is_leaf(node):
                self._add(node, above)
                continue
            kids = node.Kids
            self.is_broken |= depth > _MAX_DEPTH or not isinstance(kids, pikepdf.Array)
            counts.append((node.get("/Count"), self._pages))
            below = above | {key: node[key] for key in _INHERITED if key in node}
            todo.append(None)
            todo.extend((kid, below, depth + 1) for kid in reversed(list(_kids(kids))))

    def _is_new(self, node: Any) -> bool:
        if isinstance(node, _Missing):
            self.found.append(node)
        is_new = _is_dictionary(node) and not (node.is_indirect and node.objgen in self.seen)
        self.is_broken |= not is_new
        if is_new and node.is_indirect:
            self.seen.add(node.objgen)
        return is_new

    def _add(self, page: Any, above: dict[str, Any]) -> None:
        kind = page.get("/Type")
        if not is_page(page):
            self.is_broken = True
            return
        # PDFium wants a page to say so, to be an object of its own and to have no kids.
        self.is_broken |= kind not in (None, pikepdf.Name.Page) or not page.is_indirect or "/Kids" in page
        self.found.append(Leaf(page if page.is_indirect else self._pdf.make_indirect(page), above))
        self._pages += 1


def is_page(page: Any) -> bool:
    """Whether a dictionary is a page, whatever it calls itself."""
    kind = page.get("/Type")
    return kind == pikepdf.Name.Page or "/Contents" in page or (kind != pikepdf.Name.Pages and "/MediaBox" in page)


def _is_leaf(node: Any) -> bool:
    kids = node.get("/Kids")
    has_kids = _is_dictionary(kids) or (isinstance(kids, pikepdf.Array) and len(kids) > 0)
    return not has_kids and (kids is None or is_page(node))


def _kids(kids: Any) -> Iterator[Any]:
    """Dictionaries, and `_Missing` for all else."""
    if _is_dictionary(kids):
        yield kids
    if not isinstance(kids, pikepdf.Array):
        return
    values = [kids[index] for index in range(len(kids))]
    refs: Sequence[Id | None] = () if all(map(_is_dictionary, values)) else _refs(kids)
    for index, value in enumerate(values):
        yield value if _is_dictionary(value) else _Missing(refs[index] if len(refs) == len(values) else None)


def _refs(array: Any) -> list[Id | None]:
    """The objects that an array names, None for what stands in it itself: of what is null pikepdf says no more."""
    refs: list[Id | None] = []
    depth = 0
    for token in _TOKEN.finditer(array.unparse()):
        if token[0] in (b">>", b"]"):
            depth -= 1
            continue
        if depth == 1:
            refs.append((int(token[1]), int(token[2])) if token[1] else None)
        depth += token[0] in (b"<<", b"[")
    return refs


def _leaves(pdf: pikepdf.Pdf, found: _Walk, warnings: Sequence[str]) -> Iterator[Leaf]:
    """The pages, those that are damaged and those of another generation than the tree says in their places."""
    others: dict[int, Any] | None = None
    for leaf in found.found:
        if isinstance(leaf, Leaf):
            yield leaf
        elif leaf.ref is not None:
            if _is_damaged(leaf.ref, warnings):
                yield Leaf(None, damage=_lost(leaf.ref))
                continue
            if others is None:
                things = [thing for thing in pdf.objects if _is_dictionary(thing) and thing.objgen not in found.seen]
                others = {thing.objgen[0]: thing for thing in things}
            other = others.get(leaf.ref[0])
            if other is not None and is_page(other):
                yield Leaf(other)


def _is_damaged(ref: Id, warnings: Sequence[str]) -> bool:
    """Whether QPDF met the object and could not make it out: of what is not in the file it says nothing."""
    name = f"object {ref[0]} {ref[1]}"
    return any(f"({name}," in warning or f"{name} not found" in warning for warning in warnings)


def _lost(ref: Id) -> str:
    return f"its object {ref[0]} is damaged or cut off"


def _with_content(leaf: Leaf) -> Leaf:
    """Of a file of which parts are missing: a page without content looks like one whose content is lost."""
    if leaf.page is None or "/Contents" in leaf.page:
        return leaf
    return Leaf(leaf.page, leaf.above, "what stands on it is not in what is left of the file")


def flattened(pdf: pikepdf.Pdf, tree: Tree) -> bytes:
    """The file with its pages in a flat tree, each with what it had from the nodes above it. Not encrypted."""
    root = pdf.make_indirect(pikepdf.Dictionary(Type=pikepdf.Name.Pages, Kids=pikepdf.Array(), Count=len(tree.leaves)))
    pages = []
    for leaf in tree.leaves:
        page = pdf.make_indirect(pikepdf.Dictionary()) if leaf.page is None else leaf.page
        for key, value in leaf.above.items():
            if key not in page:
                page[key] = value
        if "/Kids" in page:
            del page["/Kids"]
        page.Type, page.Parent = pikepdf.Name.Page, root
        pages.append(page)
    root.Kids = pikepdf.Array(pages)
    pdf.Root.Pages = root
    file = io.BytesIO()
    pdf.save(file, compress_streams=False, stream_decode_level=pikepdf.StreamDecodeLevel.none, encryption=False)
    return file.getvalue()


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, pikepdf.Dictionary)
