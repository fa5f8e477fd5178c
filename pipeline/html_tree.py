"""A forgiving tree of a model's HTML: html.parser reads the tags, we nest them; whatever is missing or crossed."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

from pipeline.elements import clean_text


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


HEADINGS = _names("h1 h2 h3 h4 h5 h6")
CELLS = _names("td th")
BLOCKS = HEADINGS | _names(
    "address article aside blockquote center dd details div dl dt fieldset figcaption figure footer form header hr img "
    "li main nav ol p pre section summary table ul"
)

_LISTS = _names("ul ol")
_MAX_DEPTH = 64  # of open tags; a looping answer may nest thousands
_VOID = _names("area base br col embed hr img input link meta source wbr")
_HIDDEN = _names("head script style title")
_IN_TABLE = CELLS | _names("caption col colgroup tbody tfoot thead tr")
_INLINE = _names(
    "a abbr b big button cite code del em font i ins kbd label mark math q s samp select small span strike strong sub "
    "sup svg textarea tt u var"
)
_KNOWN = _VOID | _HIDDEN | _IN_TABLE | BLOCKS | _INLINE | _names("html body")

_COMMENT = re.compile(r"<!--(?:(?!<!--|-->).)*-->|<!--[^<>\n]*\Z|<!--", re.DOTALL)  # whole, cut off, never ending
_CUT_TAG = re.compile(r"<(?:[/!]?([A-Za-z][A-Za-z0-9]*)([^<>]*)|[/!]-?)?\Z")
_BOX_ATTRIBUTE = re.compile(r"""(data-bbox\s*=\s*)["']?([^"'<>A-Za-z]*)["']?""")
_SPACE = re.compile(r"[ \t\n\r\f]+")


@dataclass(slots=True)
class Node:
    """An element of HTML with its attributes; children are elements and strings in reading order."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["Node | str"] = field(default_factory=list)


def read_tree(text: str) -> tuple[Node, bool]:
    """The tree of an answer below a root that stands for the body, and whether there was any tag; never raises."""
    builder = _TreeBuilder()
    builder.feed(_whole_tags(text))
    builder.close()
    return builder.root, builder.has_tags


def find(node: Node, tags: Collection[str]) -> Iterator[Node]:
    """Descendants with one of the tags, looking neither into them nor into tables inside of `node`."""
    for child in node.children:
        if isinstance(child, str):
            continue
        if child.tag in tags:
            yield child
        elif child.tag != "table":
            yield from find(child, tags)


def take_apart(node: Node, tags: Collection[str]) -> tuple[Node, list[Node]]:
    """A copy of `node` without the descendants that have one of the tags, and those."""
    rest: list[Node | str] = []
    taken: list[Node] = []
    for child in node.children:
        if isinstance(child, str):
            rest.append(child)
        elif child.tag in tags:
            taken.append(child)
        else:
            inner, more = take_apart(child, tags)
            rest.append(inner)
            taken += more
    return Node(node.tag, node.attributes, rest), taken


def visible_text(node: Node) -> str:
    """The text as one would see it: white space collapsed, a line for each line break and inner block, none blank."""
    lines = (_SPACE.sub(" ", line).strip() for line in "".join(_pieces(node)).split("\0"))
    return clean_text("\n".join(line for line in lines if line))


def verbatim_text(node: Node) -> str:
    """The text with its white space, as in `<pre>`."""
    pieces = (
        child if isinstance(child, str) else "\n" if child.tag == "br" else verbatim_text(child)
        for child in node.children
    )
    return clean_text("".join(pieces))


def _pieces(node: Node) -> Iterator[str]:
    """The strings below a node in order, with NUL where a line ends."""
    for child in node.children:
        if isinstance(child, str):
            yield child.replace("\0", "")
        elif child.tag == "input":
            yield child.attributes.get("value", "")
        elif child.tag in CELLS:
            yield from (" ", *_pieces(child), " ")
        elif child.tag == "br" or child.tag in BLOCKS or child.tag in _IN_TABLE:
            yield from ("\0", *_pieces(child), "\0")
        elif child.tag not in _HIDDEN:
            yield from _pieces(child)


def _whole_tags(text: str) -> str:
    """`text` without comments, without the tag it was cut off in, and with the quotes around boxes mended."""
    text = _COMMENT.sub("", text)
    cut = _CUT_TAG.search(text)
    if cut and (cut[1] is None or _may_be_tag(cut[1].lower(), is_whole=bool(cut[2]))):
        text = text[: cut.start()]
    return _BOX_ATTRIBUTE.sub(r'\1"\2" ', text)


def _may_be_tag(name: str, *, is_whole: bool) -> bool:
    return name in _KNOWN or (not is_whole and any(tag.startswith(name) for tag in _KNOWN))


class _TreeBuilder(HTMLParser):
    """Nests tags. Those HTML does not know stay in the text: `<john@example.org>` stood on the page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("body")
        self.open = [self.root]
        self.has_tags = False
        self.unopened = 0  # tags beyond the greatest depth whose end is still to come

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _KNOWN:
            self.handle_data(self.get_starttag_text() or "")
            return
        self.has_tags = True
        if tag in ("html", "body"):
            return
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._end_implied(tag, has_box="data-bbox" in node.attributes)
        self.open[-1].children.append(node)
        if tag in _VOID:
            return
        if len(self.open) < _MAX_DEPTH:
            self.open.append(node)
        else:
            self.unopened += 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in _KNOWN:
            self.handle_data(f"</{tag}>")
            return
        self.has_tags = True
        if self.unopened:
            self.unopened -= 1
            return
        barriers = frozenset[str]() if tag == "table" else frozenset({"table"}) if tag in _IN_TABLE else CELLS
        same = _LISTS if tag in _LISTS else {tag}
        for index in range(len(self.open) - 1, 0, -1):
            if self.open[index].tag in same:
                del self.open[index:]
                return
            if self.open[index].tag in barriers:
                return

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def parse_html_declaration(self, i: int) -> int:
        """Skips `<!...>`: html.parser raises AssertionError at marked sections it does not know."""
        return self.parse_bogus_comment(i)

    def set_cdata_mode(self, elem: str, *, escapable: bool = False) -> None:
        """Does nothing: an unclosed `<style>` must not swallow the page."""

    def _end_implied(self, tag: str, *, has_box: bool) -> None:
        """Ends what the start of `tag` ends: by HTML's optional end tags, and by the ones a model forgets most."""
        self._end(_HIDDEN, frozenset())
        if tag in CELLS:
            self._end(CELLS | {"caption"}, frozenset({"tr", "table"}))
        elif tag == "tr":
            self._end(CELLS | {"tr", "caption"}, frozenset({"table"}))
        elif tag in _IN_TABLE:
            self._end(_IN_TABLE, frozenset({"table"}))
        elif tag in BLOCKS:
            self._end(_IN_TABLE | {"table"}, CELLS | {"caption"})
            if tag != "img":
                self._end(HEADINGS | {"p"}, CELLS | {"div", "li", "table"})
        if tag == "li":
            self._end(frozenset({"li"}), CELLS | _LISTS)
        elif has_box and tag in BLOCKS - _LISTS - {"img"} and self._is_in_written_item():
            self._end(_LISTS, CELLS)

    def _is_in_written_item(self) -> bool:
        """Whether the innermost open list item has text of its own: a block with a box is then not a part of it."""
        item = next((node for node in reversed(self.open) if node.tag == "li"), self.root)
        return item.tag == "li" and any(isinstance(child, str) and child.strip() for child in item.children)

    def _end(self, ended: frozenset[str], barriers: frozenset[str]) -> None:
        """Closes the outermost open tag of `ended` that no barrier shields, and all in it."""
        cut = len(self.open)
        for index in range(len(self.open) - 1, 0, -1):
            if self.open[index].tag in barriers:
                break
            if self.open[index].tag in ended:
                cut = index
        del self.open[cut:]
