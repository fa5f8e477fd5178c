"""The truth of a sample page: its blocks in reading order, and what a model should answer about them."""

import html
from dataclasses import dataclass

from pipeline.records import Box


@dataclass(frozen=True, slots=True)
class Glyph:
    """A printed character and the middle of its box, in pixels from the top left."""

    character: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """A block of a page; `box` is tight around its ink."""

    type: str  # title, section_header, paragraph, list_item, table, page_number
    text: str  # words joined by single spaces; of tables rows joined by line feeds and cells by tabs
    box: Box
    level: int = 0  # 1 for title, 2 for section_header
    marker: str = ""  # of list items: "-", or "1." and so on
    cells: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class SamplePage:
    """The truth of a page; its size is in points."""

    width: int
    height: int
    blocks: tuple[SampleBlock, ...]  # in reading order

    def markdown(self) -> str:
        """What the model should answer to "qwenvl markdown"; "" for a blank page. Page numbers are left out."""
        blocks = [block for block in self.blocks if block.type != "page_number"]
        parts: list[str] = []
        for before, block in zip([None, *blocks], blocks, strict=False):
            if before is not None:
                parts.append("\n" if _same_list(before, block) else "\n\n")
            parts.append(_block_markdown(block))
        return "".join(parts)

    def html(self) -> str:
        """What the model should answer to "qwenvl html", boxes in thousandths; "" for a blank page."""
        if not self.blocks:
            return ""
        lines = ["```html", "<html><body>"]
        before: SampleBlock | None = None
        for block in self.blocks:
            if before is not None and before.marker and not _same_list(before, block):
                lines.append(f"</{_list_tag(before)}>")
            if block.marker and not (before is not None and _same_list(before, block)):
                lines.append(f"<{_list_tag(block)}>")
            lines.append(_block_html(block))
            before = block
        if before is not None and before.marker:
            lines.append(f"</{_list_tag(before)}>")
        return "\n".join([*lines, "</body></html>", "```"])


def _same_list(before: SampleBlock, block: SampleBlock) -> bool:
    if block.marker == "1." or not before.marker:
        return False
    return (before.marker == "-") == (block.marker == "-") and bool(block.marker)


def _list_tag(block: SampleBlock) -> str:
    return "ul" if block.marker == "-" else "ol"


def _block_markdown(block: SampleBlock) -> str:
    if block.type == "table":
        rows = [f"| {' | '.join(row)} |" for row in block.cells]
        return "\n".join([rows[0], f"|{' --- |' * len(block.cells[0])}", *rows[1:]])
    prefix = f"{'#' * block.level} " if block.level else f"{block.marker} " if block.marker else ""
    return prefix + block.text


def _block_html(block: SampleBlock) -> str:
    box = f'data-bbox="{" ".join(str(round(1000 * value)) for value in block.box)}"'
    if block.type == "table":
        rows = ["".join(f"<td>{html.escape(cell, quote=False)}</td>" for cell in row) for row in block.cells]
        return f"<table {box}>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    text = html.escape(block.text, quote=False)
    if block.type == "page_number":
        return f'<div class="page_number" {box}>{text}</div>'
    tag = f"h{block.level}" if block.level else "li" if block.marker else "p"
    return f"<{tag} {box}>{text}</{tag}>"
