"""A table found on a page: rows of cells, and how they read as HTML, Markdown and plain text."""

import html
import re
from dataclasses import dataclass

_TAG_START = re.compile(r"<(?=[A-Za-z/!?])")


@dataclass(frozen=True, slots=True)
class Cell:
    """`text` may hold line feeds. A place covered by the span of another cell has no cell of its own."""

    text: str
    is_header: bool = False
    rowspan: int = 1
    colspan: int = 1


Grid = tuple[tuple[Cell, ...], ...]


def grid_text(grid: Grid) -> str:
    """One line for each row, cells separated by tabs."""
    return "\n".join("\t".join(" ".join(cell.text.split()) for cell in row) for row in grid)


def grid_html(grid: Grid) -> str:
    """A `<table>` with nothing in it but rows, cells and their spans."""
    rows = ("".join(_cell_html(cell) for cell in row) for row in grid)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def grid_markdown(grid: Grid) -> str:
    """A pipe table whose first row is the header; HTML when a cell spans several rows or columns."""
    if any(cell.rowspan > 1 or cell.colspan > 1 for row in grid for cell in row):
        return grid_html(grid)
    width = max(len(row) for row in grid)
    rows = [[_cell_markdown(cell) for cell in row] + [""] * (width - len(row)) for row in grid]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])


def escape_tags(text: str) -> str:
    """Plain text for Markdown: what a reader would take for an HTML tag or comment stays visible."""
    return _TAG_START.sub(r"\\<", text)


def _cell_html(cell: Cell) -> str:
    tag = "th" if cell.is_header else "td"
    rowspan = f' rowspan="{cell.rowspan}"' if cell.rowspan > 1 else ""
    colspan = f' colspan="{cell.colspan}"' if cell.colspan > 1 else ""
    text = html.escape(cell.text, quote=False).replace("\n", "<br>")
    return f"<{tag}{rowspan}{colspan}>{text}</{tag}>"


def _cell_markdown(cell: Cell) -> str:
    return escape_tags(cell.text).replace("|", "\\|").replace("\n", "<br>")
