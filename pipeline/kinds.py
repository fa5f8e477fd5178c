"""What sets documents and videos apart once they are rows: their tables, and how an answer becomes a row of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from model.request import Completion
from pipeline.close_documents import document_tables
from pipeline.close_videos import video_tables
from pipeline.event_tables import CHAPTERS, EVENTS
from pipeline.parse_pages import failed_page, parse_page, skipped_page
from pipeline.parse_windows import failed_window, parse_window
from pipeline.prompts import PagePrompt, VideoPrompt
from pipeline.records import Failure, PageFacts, PageRow, WindowFacts, WindowRow
from pipeline.tables import BLOCKS, DOCUMENTS, PAGES, PARTS, parts_table, placed, placed_schema
from pipeline.video_tables import VIDEOS, WINDOW_PARTS, WINDOWS, window_parts_table

PieceRow = PageRow | WindowRow
Prompt = PagePrompt | VideoPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The tables of one kind of media, and what its rows are made by."""

    assets: str  # the table with a row for each input
    pieces: str  # the table with a row for each piece
    found: str  # the table of what was found in them
    asset_id: str  # the columns that name a piece
    piece_no: str
    found_in: str  # the column of what was found that says where, a column of pieces
    schemas: Mapping[str, pa.Schema]  # of all its tables
    ids: Mapping[str, str]  # the column of each table that names its rows
    parts: pa.Schema  # the rows of pieces as the reading pass writes them
    parts_table: Callable[[Iterable[tuple[str, PieceRow]]], pa.Table]
    parse: Callable[[str, PageFacts | WindowFacts, Sequence[Completion], Prompt, bool], PieceRow]
    failed: Callable[[str, int, Failure], PieceRow]
    skipped: Callable[[str, int], PieceRow]
    bare_tables: Callable[[pa.Table, pa.Table], dict[str, pa.Table]]  # of `tables`, without where inputs lie

    def tables(self, assets: pa.Table, parts: pa.Table) -> dict[str, pa.Table]:
        """By name, of ASSETS rows of a shard and the parts of their pieces, each once, both in order."""
        bare = self.bare_tables(assets, parts)
        inputs = bare.pop(self.assets)
        return {self.assets: inputs} | {name: placed(table, self.asset_id, inputs) for name, table in bare.items()}


def _parse_page(
    doc_id: str, facts: PageFacts | WindowFacts, completions: Sequence[Completion], prompt: Prompt, keep_raw: bool
) -> PieceRow:
    assert isinstance(facts, PageFacts)
    assert isinstance(prompt, PagePrompt)
    return parse_page(doc_id, facts, completions, prompt.output, keep_raw=keep_raw)


def _parse_window(
    video_id: str, facts: PageFacts | WindowFacts, completions: Sequence[Completion], prompt: Prompt, keep_raw: bool
) -> PieceRow:
    assert isinstance(facts, WindowFacts)
    assert isinstance(prompt, VideoPrompt)
    return parse_window(video_id, facts, completions, prompt, keep_raw=keep_raw)


def _page_parts(rows: Iterable[tuple[str, PieceRow]]) -> pa.Table:
    return parts_table((unit_id, row) for unit_id, row in rows if isinstance(row, PageRow))


def _window_parts(rows: Iterable[tuple[str, PieceRow]]) -> pa.Table:
    return window_parts_table((unit_id, row) for unit_id, row in rows if isinstance(row, WindowRow))


def _no_window_is_skipped(video_id: str, window_no: int) -> PieceRow:
    raise AssertionError(f"window {window_no} of {video_id} is in no unit")


DOCUMENT_KIND = Kind(
    assets="documents",
    pieces="pages",
    found="blocks",
    asset_id="doc_id",
    piece_no="page_no",
    found_in="page_id",
    schemas={"documents": DOCUMENTS, "pages": placed_schema(PAGES), "blocks": placed_schema(BLOCKS)},
    ids={"documents": "doc_id", "pages": "page_id", "blocks": "block_id"},
    parts=PARTS,
    parts_table=_page_parts,
    parse=_parse_page,
    failed=failed_page,
    skipped=skipped_page,
    bare_tables=document_tables,
)
VIDEO_KIND = Kind(
    assets="videos",
    pieces="windows",
    found="events",
    asset_id="video_id",
    piece_no="window_no",
    found_in="video_id",
    schemas={"videos": VIDEOS}
    | {
        name: placed_schema(schema)
        for name, schema in (("windows", WINDOWS), ("events", EVENTS), ("chapters", CHAPTERS))
    },
    ids={"videos": "video_id", "windows": "window_id", "events": "event_id", "chapters": "chapter_id"},
    parts=WINDOW_PARTS,
    parts_table=_window_parts,
    parse=_parse_window,
    failed=failed_window,
    skipped=_no_window_is_skipped,
    bare_tables=video_tables,
)


def kind_of(record: Mapping[str, str]) -> Kind:
    """The kind of media of the job whose books have this record."""
    return VIDEO_KIND if "window_seconds" in record else DOCUMENT_KIND
