"""QwenVL HTML -> elements in reading order.

The format is that of the Qwen2.5-VL report (section 2.2.1) and of the Qwen3-VL document parsing cookbook: boxes as
`data-bbox="x1 y1 x2 y2"` in thousandths on h1-h6, p, li, table, img and on div, whose class says what it is.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from pipeline.boxes import read_thousandths
from pipeline.elements import Element, clean_text, code, escape_markdown, formula, heading, picture, table
from pipeline.grids import Cell, Grid
from pipeline.html_tree import BLOCKS, CELLS, HEADINGS, Node, find, read_tree, take_apart, verbatim_text, visible_text
from pipeline.records import Box

_TAG_TYPES = {
    **dict.fromkeys(HEADINGS, "section_header"),
    **dict.fromkeys(("p", "blockquote", "dt", "dd"), "paragraph"),
    **dict.fromkeys(("img", "figure"), "picture"),
    **dict.fromkeys(("figcaption", "caption"), "caption"),
    "h1": "title",
    "li": "list_item",
    "table": "table",
    "pre": "code",
    "header": "page_header",
    "footer": "page_footer",
}
_CLASSED_TAGS = frozenset({"aside", "article", "div", "figure", "footer", "header", "p", "section", "span"})
_CLASS_TYPES = {  # looked up whole ("page number"), then by the first word ("image" of "image caption")
    **dict.fromkeys(("image", "figure", "picture", "photo", "logo", "seal", "stamp", "signature"), "picture"),
    **dict.fromkeys(("music", "chemical"), "picture"),  # "music sheet", "chemical formula": what is drawn, in notation
    **dict.fromkeys(("caption", "figure caption", "table caption", "chart caption"), "caption"),
    **dict.fromkeys(("formula", "equation"), "formula"),
    **dict.fromkeys(("text", "paragraph"), "paragraph"),
    **dict.fromkeys(("header", "page header", "doc header"), "page_header"),
    **dict.fromkeys(("footer", "page footer", "doc footer"), "page_footer"),
    **dict.fromkeys(("page number", "page num"), "page_number"),
    "list item": "list_item",
    "title": "title",
    "table": "table",
    "chart": "chart",
    "footnote": "footnote",
    "code": "code",
    "form": "form",
}
_WITH_IMAGES = frozenset({"chart", "formula", "picture", "table"})  # a box on an image in them is theirs
_APART = frozenset({"ul", "ol", "table", "pre", "img", "figure"})  # a text block's, yet elements on their own

_ORDERED_MARKER = re.compile(r"(\d{1,3}[.)])\s+")
_BULLET = re.compile(r"[-*•●▪■◦‣·–]\s+")


def parse_html(text: str) -> tuple[Element, ...] | None:
    """The elements of an answer in reading order, boxes in fractions of the tile; never raises.

    None when `text` is not blank and has not one HTML tag in it.
    """
    root, has_tags = read_tree(text)
    return tuple(_flow(root, 0)) if has_tags or not text.strip() else None


def _flow(node: Node, level: int) -> Iterator[Element]:
    """The elements of a container; `level` counts the lists around them. Loose text becomes paragraphs."""
    level += node.tag in ("ul", "ol")
    number = first = _number(node.attributes.get("start", ""))
    runs = [(is_block, list(run)) for is_block, run in groupby(node.children, _is_block)]
    box = {} if any(is_block for is_block, _ in runs) else node.attributes  # else it encloses more than the loose text
    for is_block, run in runs:
        if not is_block:
            yield from _leaf("paragraph", Node("p", box, run), level, "")
            continue
        for child in run:
            assert isinstance(child, Node)
            starts_list = child.tag == "li" and number == first and level == 1
            for element in _elements(child, level, f"{number}." if node.tag == "ol" else "-"):
                yield replace(element, starts_list=starts_list or element.starts_list)
                starts_list = False
            number += child.tag == "li"


def _elements(node: Node, level: int, marker: str) -> Iterator[Element]:
    """The elements of a block: itself if it is a leaf, then what stands in it on its own; those of a container."""
    kind = _type_of(node)
    if kind is None:
        yield from _flow(node, level)
        return
    if node.tag not in ("table", "li") and _boxed_blocks(node) > 1:  # it was never closed, or wraps what was read
        if kind == "picture":
            yield from _leaf(kind, Node(node.tag, node.attributes), level, marker)
            node, _ = take_apart(node, {"img"})
        yield from _flow(node, level)
        return
    if kind in ("table", "chart"):
        yield from _tables(kind, node)
        return
    apart = {"figcaption", "table"} if kind == "picture" else set() if kind in ("formula", "code") else _APART
    own, parts = take_apart(node, apart)
    yield from _leaf(kind, own, level, marker)
    for part in parts:
        yield from _flow(part, level) if part.tag in ("ul", "ol") else _elements(part, level, marker)


def _tables(kind: str, node: Node) -> Iterator[Element]:
    """A table, or a wrapper with tables (or bare cells) in it; what stands in no cell comes first, as a caption."""
    box, repaired = _box_of(node, with_images=True)
    around, cells = take_apart(node, CELLS)
    words = visible_text(around)
    if not cells:
        element = picture(words, kind) if kind == "chart" else table(((Cell(words),),) if words else ())
        yield replace(element, box=box, box_repaired=repaired)
        return
    if words:
        yield Element("caption", escape_markdown(words), words)
    for found in [node] if node.tag == "table" else _inner_tables(node):
        own_box, own_repaired = _box_of(found, with_images=False)
        placed = (box, repaired) if own_box is None else (own_box, own_repaired)
        yield replace(table(_grid(found), kind), box=placed[0], box_repaired=placed[1])


def _inner_tables(node: Node) -> Iterator[Node]:
    """The tables of a wrapper; cells that stand in none make one of their own."""
    _, parts = take_apart(node, CELLS | {"tr", "table"})
    for is_table, run in groupby(parts, lambda part: part.tag == "table"):
        found = list(run)
        yield from found if is_table else [Node("table", children=[*found])]


def _leaf(kind: str, node: Node, level: int, marker: str) -> Iterator[Element]:
    """The element of a leaf, if there is anything to read or to see."""
    element = _unplaced(kind, node, level, marker)
    if element:
        box, repaired = _box_of(node, with_images=kind in _WITH_IMAGES)
        yield replace(element, box=box, box_repaired=repaired)


def _unplaced(kind: str, node: Node, level: int, marker: str) -> Element | None:
    if kind == "code":
        return code(verbatim_text(node))
    text = visible_text(node)
    if kind == "picture":
        images = find(Node("div", children=[node]), ("img",)) if node.tag == "img" else find(node, ("img",))
        return picture(text or clean_text(" ".join(image.attributes.get("alt", "") for image in images)))
    if kind == "formula":
        return formula(text)
    if not text:
        return None
    if kind in ("title", "section_header"):
        line = text.replace("\n", " ")
        return heading(int(node.tag[1]) if node.tag in HEADINGS else 1, escape_markdown(line), line)
    if kind == "list_item":
        return _list_item(text, max(level, 1), marker)
    return Element(kind, escape_markdown(text), text)


def _list_item(text: str, level: int, marker: str) -> Element:
    """An item of a list; a marker that the model wrote into the text wins over the list's own."""
    written = _ORDERED_MARKER.match(text)
    bullet = written or _BULLET.match(text)
    marker = written[1] if written else marker
    text = text[bullet.end() :] if bullet else text
    indent = "    " * (level - 1)
    lines = escape_markdown(text).replace("\n", f"\n{indent}{' ' * (len(marker) + 1)}")
    return Element("list_item", f"{indent}{marker} {lines}", text, level)


def _grid(node: Node) -> Grid:
    """The cells of a table row by row; cells outside of any row make a row of their own."""
    rows: list[tuple[Cell, ...]] = []
    naked: list[Node] = []
    for found in [*find(node, ("tr", "td", "th")), Node("tr")]:
        if found.tag in CELLS:
            naked.append(found)
            continue
        rows += [tuple(_cell(cell) for cell in cells) for cells in (naked, list(find(found, CELLS))) if cells]
        naked = []
    return tuple(rows)


def _cell(node: Node) -> Cell:
    rowspan, colspan = (max(_number(node.attributes.get(name, "")), 1) for name in ("rowspan", "colspan"))
    return Cell(visible_text(node), node.tag == "th", rowspan, colspan)


def _type_of(node: Node) -> str | None:
    """What a block is, by its class and then by its tag; None for containers."""
    words = " ".join(re.sub(r"[-_.]", " ", node.attributes.get("class", "").lower()).split())
    if node.tag in _CLASSED_TAGS and words:
        by_class = _CLASS_TYPES.get(words) or _CLASS_TYPES.get(words.split(" ")[0])
        if by_class:
            return by_class
    return _TAG_TYPES.get(node.tag)


def _is_block(node: Node | str) -> bool:
    if isinstance(node, str):
        return False
    is_placed = "data-bbox" in node.attributes or node.tag in BLOCKS or _type_of(node) is not None
    return is_placed or any(_is_block(child) for child in node.children)


def _boxed_blocks(node: Node) -> int:
    """How many blocks with boxes stand in it, besides those that are elements on their own anyway."""
    inner = [child for child in node.children if isinstance(child, Node) and child.tag not in _APART]
    return sum((child.tag in BLOCKS and "data-bbox" in child.attributes) + _boxed_blocks(child) for child in inner)


def _box_of(node: Node, *, with_images: bool) -> tuple[Box | None, bool]:
    """The box of a node and whether it had to be repaired; else, if asked, that of the first image or table in it."""
    box, repaired = read_thousandths(node.attributes.get("data-bbox", ""))
    for inner in find(node, ("img", "table")) if box is None and with_images else ():
        if box is None:
            box, repaired = read_thousandths(inner.attributes.get("data-bbox", ""))
    return box, repaired


def _number(text: str) -> int:
    """A small positive number of an attribute; 1 when it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 1
