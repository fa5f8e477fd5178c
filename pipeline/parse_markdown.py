"""QwenVL Markdown -> elements in reading order.

Markdown as models write it, with what Qwen3-VL adds to it (document parsing cookbook): tables in LaTeX, and comments
that say where figures and tables lie, `<!-- Table (x1, y1, x2, y2) -->` in thousandths. A block is read by the first
reader that knows its beginning; all else is a list item or a paragraph.
"""

import html
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from pipeline.boxes import read_thousandths
from pipeline.elements import Element, clean_text, code, formula, heading, picture, placeholder, table
from pipeline.grids import Cell
from pipeline.parse_html import parse_html
from pipeline.parse_latex import plain_latex, read_tabular
from pipeline.records import Box

_LOCATED = {  # what a location comment calls it -> type of the element
    **dict.fromkeys(("image", "figure", "picture", "photo", "logo", "seal", "stamp", "signature"), "picture"),
    **dict.fromkeys(("chart", "graph", "plot"), "chart"),
    **dict.fromkeys(("formula", "equation"), "formula"),
    "table": "table",
    "code": "code",
}
_LOCATES = {  # type of a location -> types of the element behind it that it may belong to
    "picture": ("picture",),
    "chart": ("picture", "table"),
    "table": ("table",),
    "formula": ("formula",),
    "code": ("code",),
}
_MATH = {"equation", "align", "gather", "multline", "eqnarray", "displaymath", "math", "alignat", "flalign"}
_TABULARS = {"tabular", "tabularx", "tabulary", "longtable", "tblr"}
_WRAPPERS = {"table", "figure", "center", "flushleft", "flushright", "minipage", "document", "threeparttable"}

_BLANK_LINES = re.compile(r"(?:[ \t]*\n)+")
_BLANK_LINE = re.compile(r"\n[ \t]*(?:\n|\Z)")
_COMMENT = re.compile(r"[ \t]*<!--((?:(?!<!--).)*?)-->", re.DOTALL)
_CUT_COMMENT = re.compile(r"[ \t]*<!(?:-|--([^\n]*))?\Z")
_LOCATION = re.compile(r"\s*([A-Za-z][A-Za-z _-]{0,40}?)\s*(?:\(([^()]*)\)|\([^()]*)?\s*")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\n`]*)(?:\n|\Z)")
_DISPLAY = re.compile(r"[ \t]*(\$\$|\\\[)")
_LATEX = re.compile(
    r"[ \t]*\\(begin|end|caption|label|centering|includegraphics|title|(?:sub){0,2}section)(?![A-Za-z])\*?"
)
_BRACED = re.compile(r"(?:\[[^\]\n]*\])?\{((?:[^{}\n]|\{[^{}\n]*\})*)\}?")
_OPTIONS = re.compile(r"(?:\[[A-Za-z!]{0,8}\])?(?:\{[\d.]*\\?[a-z]+\})?")  # [h!], {0.5\textwidth}
_HTML_TABLE = re.compile(r"[ \t]*(?:</?(?:html|body|div|center|figure)\b[^<>]*>\s*)*<table\b", re.IGNORECASE)
_TABLE_TAG = re.compile(r"<(/?)table\b[^<>]*>?(?:\s*</(?:div|center|figure|body|html)\s*>)*", re.IGNORECASE)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+([^\n]*)")
_PICTURE = re.compile(r"[ \t]*!\[([^\]\n]*)\]\([^)\n]*\)[ \t]*(?=\n|\Z)")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*(?=\n|\Z)")
_DELIMITERS = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-*:?[ \t]*)*")
_ITEM = re.compile(r"([ \t]*)([-*+•●▪◦]|(\d{1,9})[.)])[ \t]+(?=\S)")
_QUOTE = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)

_PROTECTED = re.compile(r"(\$[^$\n]+\$|\\\(.*?\\\)|`[^`\n]+`)")
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\s]*\)")
_STRONG = re.compile(r"(\*\*|~~)(?=\S)(.+?)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])")
_INLINE_TAG = re.compile(r"</?(?:b|i|u|s|em|strong|sub|sup|span|del|ins|mark|font|small|center|div|p)\b[^<>]*>", re.I)
_BREAK = re.compile(r"<br\s*/?>\n?", re.IGNORECASE)
_ESCAPED = re.compile(r"\\([*_#|`~<>$&.!+-])")


@dataclass(frozen=True, slots=True)
class _Location:
    """Where something lies; `kind` is the type of an element, or "" when the model called it something else."""

    kind: str
    box: Box | None
    repaired: bool


_Item = Element | _Location
_Read = tuple[list[_Item], int]  # what was read, and where to read on


def parse_markdown(text: str) -> tuple[Element, ...]:
    """The elements of an answer in reading order, boxes in fractions of the tile; never raises."""
    items: list[_Item] = []
    indents: list[int] = []  # of the list items that are open
    at = 0
    while at < len(text):
        blank = _BLANK_LINES.match(text, at)
        start = blank.end() if blank else at
        is_apart = bool(blank and blank[0].count("\n") > 1)  # the first line feed ends the line before
        read, at = _read_block(text, start) or (None, start)
        if read is None:
            item = _ITEM.match(text, start)
            if item:
                at = _paragraph_end(text, item.end(), in_item=True)
                read = [_list_item(item, text[item.end() : at], indents, starts_list=is_apart and bool(indents))]
            else:
                at = _paragraph_end(text, start, in_item=False)
                read = _paragraph(text[start:at].strip())
                indents.clear()
        elif read:
            indents.clear()
        items += read
    return tuple(_placed(items))


def plain_markdown(text: str) -> str:
    """Markdown text without its inline markup; formulas stay as they are written."""
    text = _STRONG.sub(r"\2", _LINK.sub(r"\1", text))
    parts = _PROTECTED.split(text)
    parts[1::2] = [part.strip("`") for part in parts[1::2]]
    parts[::2] = [_plain(part) for part in parts[::2]]
    return clean_text("".join(parts)).strip()  # once more: an accent may have come to stand behind its letter


def _plain(text: str) -> str:
    text = _INLINE_TAG.sub("", _BREAK.sub("\n", _EMPHASIS.sub(r"\1", text)))
    return html.unescape(_ESCAPED.sub(r"\1", text))


def _paragraph(source: str) -> list[_Item]:
    if not source:
        return []
    if source.count("$") == 2 and source[0] == source[-1] == "$":
        return [element for element in (formula(source),) if element]
    if source.count("<!--") > source.count("-->"):
        source = source.replace("<!--", "\\<!--")  # a comment that never ends would hide the pages behind it
    return [Element("paragraph", source, plain_markdown(_QUOTE.sub("", source)))]


def _list_item(item: re.Match[str], body: str, indents: list[int], *, starts_list: bool) -> Element:
    """The item that `item` begins; its level follows from the indents of those before it, which it joins."""
    column = len(item[1].expandtabs(4))
    while indents and column < indents[-1]:
        indents.pop()
    if not indents or column > indents[-1] + 1:
        indents.append(column)
    indent = item[1] if len(indents) > 1 else ""
    marker = item[2] if item[3] or item[2] in "-*+" else "-"
    text = plain_markdown("\n".join(line.strip() for line in body.strip().split("\n")))
    source = f"{indent}{marker} {body.strip()}"
    return Element("list_item", source, text, len(indents), starts_list=starts_list)


def _paragraph_end(text: str, at: int, *, in_item: bool) -> int:
    """Where the paragraph ends that goes on at `at`: before a blank line or a line that begins something else."""
    while (line_end := text.find("\n", at)) >= 0:
        at = line_end + 1
        item = _ITEM.match(text, at)
        begins_item = item and (in_item or item[3] in (None, "1"))  # as in CommonMark: "in\n1984. It was" is no list
        if begins_item or _BLANK_LINES.match(text, at) or _read_block(text, at):
            return line_end
    return len(text)


def _placed(items: list[_Item]) -> Iterator[Element]:
    """The elements with the boxes of the comments before them; what was located only gets a place of its own."""
    ahead = deque(items)
    while ahead:
        item = ahead.popleft()
        if isinstance(item, Element):
            yield item
            continue
        target = _target(item, list(islice(ahead, 2)))
        if target is not None:
            found = ahead[target]
            assert isinstance(found, Element)
            kind = item.kind or found.type
            ahead[target] = replace(found, type=kind, box=item.box, box_repaired=item.repaired)
        elif item.kind:
            yield replace(placeholder(item.kind), box=item.box, box_repaired=item.repaired)


def _target(location: _Location, ahead: list[_Item]) -> int | None:
    """Which of the next two items a location belongs to. A table's caption may stand between the two."""
    for index, item in enumerate(ahead):
        if isinstance(item, _Location):
            return None
        if not location.kind or item.type in _LOCATES[location.kind]:
            return index
        if location.kind != "table" or item.type not in ("paragraph", "caption"):
            return None
    return None


def _read_block(text: str, at: int) -> _Read | None:
    """What the first reader finds that knows the beginning at `at`; None for paragraphs and list items."""
    for reader in _READERS:
        read = reader(text, at)
        if read:
            return read
    return None


def _read_comment(text: str, at: int) -> _Read | None:
    comment = _COMMENT.match(text, at) or _CUT_COMMENT.match(text, at)
    if comment is None:
        return None
    location = _LOCATION.fullmatch(comment[1] or "")
    kind = _LOCATED.get(location[1].lower(), "") if location else ""
    if location and (kind or location[2]):
        return [_Location(kind, *read_thousandths(location[2] or ""))], comment.end()
    if not comment[0].endswith("-->"):
        return [], comment.end()
    return [Element("other", comment[0].strip(), "")], comment.end()


def _read_fence(text: str, at: int) -> _Read | None:
    fence = _FENCE.match(text, at)
    if fence is None:
        return None
    closing = re.compile(rf"^[ \t]*{fence[1]}{fence[1][0]}*[ \t]*$", re.MULTILINE).search(text, fence.end())
    inner = text[fence.end() : closing.start() if closing else len(text)]
    info = fence[2].strip()
    element = code(inner, info) if inner.strip() else code(info)  # cut off, or an unclosed line of code
    return [element] if element else [], closing.end() if closing else len(text)


def _read_display(text: str, at: int) -> _Read | None:
    """`$$ ... $$` or `\\[ ... \\]`; unclosed only where the answer breaks off."""
    opening = _DISPLAY.match(text, at)
    if opening is None:
        return None
    blank = _BLANK_LINE.search(text, opening.end())
    limit = blank.start() if blank else len(text)
    closing = text.find("$$" if opening[1] == "$$" else "\\]", opening.end(), limit)
    if closing < 0 and text[limit:].strip():
        return None
    element = formula(text[opening.end() : closing if closing >= 0 else limit])
    return [element] if element else [], closing + 2 if closing >= 0 else len(text)


def _read_latex(text: str, at: int) -> _Read | None:
    command = _LATEX.match(text, at)
    argument = _BRACED.match(text, command.end()) if command else None
    if command is None or (argument is None and command[1] != "centering"):
        return None
    end = argument.end() if argument else command.end()
    inner = argument[1] if argument else ""
    if command[1] == "begin":
        return _read_environment(text, command.start(), end, inner)
    if command[1] == "end":
        return ([], end) if inner.rstrip("*") in _MATH | _TABULARS | _WRAPPERS else None
    words = plain_latex(inner)
    if command[1] in ("label", "centering") or not words:
        return [], end
    if command[1] == "includegraphics":
        return [picture()], end
    if command[1] == "caption":
        return [Element("caption", words, words)], end
    level = 1 if command[1] == "title" else 2 + command[1].count("sub")
    return [heading(level, words.replace("\n", " "), words.replace("\n", " "))], end


def _read_environment(text: str, start: int, inside: int, name: str) -> _Read | None:
    """The environment that begins at `start` and whose content begins at `inside`."""
    bare = name.rstrip("*")
    if bare in _WRAPPERS:
        options = _OPTIONS.match(text, inside)
        return [], options.end() if options else inside
    if bare not in _MATH | _TABULARS:
        return None
    end, closing = _environment_end(text, inside, name)
    if bare in _TABULARS:
        return [table(read_tabular(text[start:end]))], end
    element = formula(text[inside:closing] if bare in ("equation", "displaymath", "math") else text[start:end])
    return [element] if element else [], end


def _environment_end(text: str, inside: int, name: str) -> tuple[int, int]:
    """Where an environment ends, and where its `\\end` begins: the next blank line for one that is not closed."""
    depth = 1
    for mark in re.compile(rf"\\(begin|end)\{{{re.escape(name)}\}}").finditer(text, inside):
        depth += 1 if mark[1] == "begin" else -1
        if depth == 0:
            return mark.end(), mark.start()
    blank = _BLANK_LINE.search(text, inside)
    return (blank.start(), blank.start()) if blank else (len(text), len(text))


def _read_html_table(text: str, at: int) -> _Read | None:
    opening = _HTML_TABLE.match(text, at)
    if opening is None:
        return None
    depth = 0
    blank = _BLANK_LINE.search(text, at)
    end = blank.start() if blank else len(text)
    for tag in _TABLE_TAG.finditer(text, at):
        depth += -1 if tag[1] else 1
        if depth == 0:
            end = tag.end()
            break
    return list(parse_html(text[at:end]) or ()), end


def _read_heading(text: str, at: int) -> _Read | None:
    found = _HEADING.match(text, at)
    words = re.sub(r"(?:^|[ \t]+)#+$", "", found[2].strip()) if found else ""
    return ([heading(len(found[1]), words, plain_markdown(words))], found.end()) if found and words else None


def _read_pipe_table(text: str, at: int) -> _Read | None:
    """A pipe table; without its line of dashes when at least two lines begin and end with a pipe."""
    lines: list[str] = []
    end = at
    while end < len(text):
        line_end = text.find("\n", end)
        line_end = line_end if line_end >= 0 else len(text)
        line = text[end:line_end].strip()
        if "|" not in line or (len(lines) == 1 and not _goes_on(lines[0], line)):
            break
        lines.append(line)
        end = line_end + 1
    rows = [_pipe_cells(line) for line in lines if not _DELIMITERS.fullmatch(line)]
    if len(lines) < 2 or not rows:
        return None
    has_header = bool(_DELIMITERS.fullmatch(lines[1]))
    grid = tuple(
        tuple(Cell(plain_markdown(cell), has_header and index == 0) for cell in row)
        for index, row in enumerate(rows)
        if any(row) or len(row) > 1
    )
    element = table(grid)
    if has_header and len(rows[0]) == len(_pipe_cells(lines[1])):
        element = replace(element, markdown="\n".join(lines))
    return [element], end


def _goes_on(first: str, second: str) -> bool:
    """Whether two lines begin a table."""
    are_closed = all(len(line) > 1 and line[0] == line[-1] == "|" for line in (first, second))
    return are_closed or bool(_DELIMITERS.fullmatch(second))


def _pipe_cells(line: str) -> list[str]:
    inner = re.sub(r"(?<!\\)\|$", "", line.removeprefix("|"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", inner)]


def _read_picture(text: str, at: int) -> _Read | None:
    """`![words](address)` on its own line; a model invents the address."""
    found = _PICTURE.match(text, at)
    return ([picture(plain_markdown(found[1]))], found.end()) if found else None


def _read_rule(text: str, at: int) -> _Read | None:
    found = _RULE.match(text, at)
    return ([Element("other", "---", "")], found.end()) if found else None


_READERS: tuple[Callable[[str, int], _Read | None], ...] = (
    _read_comment,
    _read_fence,
    _read_display,
    _read_latex,
    _read_html_table,
    _read_heading,
    _read_pipe_table,
    _read_picture,
    _read_rule,
)
