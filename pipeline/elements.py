"""What a parser finds on a page, and how it reads in the page's Markdown."""

import re
import unicodedata
from dataclasses import dataclass

from pipeline.grids import Grid, escape_tags, grid_html, grid_markdown, grid_text
from pipeline.records import Box

_LINE_START = re.compile(r"^(#{1,6}\s|```|~~~)", re.MULTILINE)
_SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z0-9_]+\|>\Z")
_MATH = re.compile(r"\$\$(.*)\$\$|\\\[(.*)\\\]|\\\((.*)\\\)|\$([^$]*)\$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Element:
    """A piece of one tile in reading order; its fields mean what those of `records.Block` mean."""

    type: str
    markdown: str  # never empty, no line feed at either end
    text: str
    level: int = 0
    html: str = ""
    box: Box | None = None  # fractions of the tile
    box_repaired: bool = False
    starts_list: bool = False  # a list item that does not belong to the list right before it


def clean_text(text: str) -> str:
    """NFC, line feeds only, without NUL; surrogate pairs are joined and lone surrogates become U+FFFD."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    lines = whole.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", lines)


def without_special_tokens(text: str) -> str:
    """An answer without the tokens that end it and the space around it."""
    text = text.strip()
    while token := _SPECIAL_TOKEN.search(text):
        text = text[: token.start()].rstrip()
    return text


def escape_markdown(text: str) -> str:
    """Plain text as Markdown: only what would swallow or hide text is escaped (tags, fences, headings)."""
    return _LINE_START.sub(r"\\\1", escape_tags(text))


def heading(level: int, markdown: str, text: str) -> Element:
    """A heading of level 1 (the page's title) to 6; `markdown` is one line without its number signs."""
    return Element("title" if level == 1 else "section_header", f"{'#' * level} {markdown}", text, level)


def picture(text: str = "", type: str = "picture") -> Element:
    """A picture or chart with the words said of it: `![words]()`, or a comment when there are none."""
    words = " ".join(text.split())
    label = re.sub(r"([\[\]\\])", r"\\\1", words)
    return Element(type, f"![{label}]()", words) if words else placeholder(type)


def placeholder(type: str) -> Element:
    """Something that is on the page and was not read. Docling's convention for pictures: `<!-- image -->`."""
    return Element(type, f"<!-- {'image' if type == 'picture' else type} -->", "")


def table(grid: Grid, type: str = "table") -> Element:
    """A table, or a chart read as one."""
    if not any(grid):
        return placeholder(type)
    return Element(type, grid_markdown(grid), grid_text(grid), html=grid_html(grid))


def formula(latex: str) -> Element | None:
    """A displayed formula; its text is the LaTeX without delimiters. None when there is none."""
    delimited = _MATH.fullmatch(latex.strip())
    if delimited:
        latex = delimited[delimited.lastindex or 0]
    latex = re.sub(r"\s*\n\s*", "\n", latex.replace("$$", " ").strip())  # a blank line would end the formula
    if not latex:
        return None
    edge = "\n" if "\n" in latex else ""
    return Element("formula", f"$${edge}{latex}{edge}$$", latex)


def code(text: str, language: str = "") -> Element | None:
    """A code block, its fence longer than any inside. None when there is no code."""
    text = text.strip("\n").rstrip()
    if not text.strip():
        return None
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return Element("code", f"{fence}{language}\n{text}\n{fence}", text)
