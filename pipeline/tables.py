"""How rows look in Arrow and Parquet: schemas with a description for each column, and the tables made of them.

Nothing is null but the box of a block that has none; what does not apply is "", 0 or false. Text that can be long is
`large_string`, because the offsets of `string` end at 2 GiB.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.elements import clean_text
from pipeline.records import Block, DocumentStatus, ErrorCode, Failure, PageRow, Stage
from pipeline.schema import column as _column
from pipeline.schema import list_of as _list
from pipeline.schema import struct as _struct

_ROW_GROUP_BYTES = 64 * 2**20

_STRING, _TEXT, _FLAG = pa.string(), pa.large_string(), pa.bool_()
_INT16, _INT32, _INT64, _FLOAT, _DOUBLE = pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()

_BOX = _struct(("l", _FLOAT), ("t", _FLOAT), ("r", _FLOAT), ("b", _FLOAT))
_SPAN = _struct(("page", _INT32), ("start", _INT64), ("end", _INT64))
_PDF_INFO = _struct(
    ("author", _STRING),
    ("producer", _STRING),
    ("creator", _STRING),
    ("encrypted", _FLAG),
    ("has_forms", _FLAG),
    ("has_xfa", _FLAG),
    ("attachments", _INT32),
    ("page_tree_broken", _FLAG),
    ("needs_rendering", _FLAG),
)
SOURCE_COLUMNS = [
    _column("source_uri", _STRING, "where the input lies"),
    _column("source_etag", _STRING, "the store's version token of what was read"),
    _column("source_size", _INT64, "bytes"),
    _column("media_type", _STRING, 'found by content, not by extension; "" if not known'),
    _column("filename", _STRING, "last part of the uri"),
]
ERROR_COLUMNS = [
    _column("error_stage", _STRING, 'where it went wrong: list, read, open, render or infer; "" if nothing did'),
    _column("error_code", _STRING, 'why, as a stable word like encrypted or output_truncated; "" if nothing did'),
    _column("error_message", _STRING, "the same in words to act on"),
    _column("retryable", _FLAG, "whether trying again may help"),
    _column("attempts", _INT32, "how often it was tried before it was given up; 0 if nothing went wrong"),
]
# Of the input, in every other table: its columns of the same names, so that a question needs no join.
PLACE_COLUMNS = [
    _column("filename", _STRING, "last part of the input's uri"),
    _column("source_uri", _STRING, "where the input lies"),
]
_DOC_ID = _column("doc_id", _STRING, "hash of the input's uri and version: the same in every run")
_PAGE_NO = _column("page_no", _INT32, "1-based number of the page in the source file, never renumbered")
_PAGE_ID = _column("page_id", _STRING, "doc_id#page_no")

DOCUMENTS = pa.schema(
    [
        _DOC_ID,
        *SOURCE_COLUMNS,
        _column("status", _STRING, "ok, partial (some page failed or was cut off) or failed"),
        *ERROR_COLUMNS,
        _column("pages_total", _INT32, "pages of the input; the next five add up to it"),
        _column("pages_ok", _INT32, "pages read to their end"),
        _column("pages_blank", _INT32, "pages with nothing on them"),
        _column("pages_truncated", _INT32, "pages whose answer reached max_new_tokens"),
        _column("pages_failed", _INT32, "pages that could not be read"),
        _column("pages_skipped", _INT32, "pages outside of the ranges asked for"),
        _column("title", _STRING, 'title of the input, or ""'),
        _column("markdown", _TEXT, "its pages joined by blank lines"),
        _column("page_spans", _list(_SPAN), "where each page stands in markdown: characters, end exclusive"),
        _column("pdf_info", _PDF_INFO, "what a PDF says about itself"),
        _column("tokens_in", _INT64, "prompt tokens of all pages, image tokens included"),
        _column("tokens_out", _INT64, "generated tokens of all pages"),
        _column("user", pa.map_(_STRING, _STRING), "the other columns of the input manifest"),
    ]
)
PAGES = pa.schema(
    [
        _DOC_ID,
        _PAGE_NO,
        _PAGE_ID,
        _column("page_label", _STRING, 'page number as printed, by the PDF\'s page labels; "" without'),
        _column("status", _STRING, "ok, blank, truncated, failed or skipped"),
        *ERROR_COLUMNS,
        _column(
            "flags", _list(_STRING), "peculiarities, like box_repaired, missing_fonts, file_damaged or empty_output"
        ),
        _column("width_pt", _DOUBLE, "width of the upright page in points; an image's pixels count as points"),
        _column("height_pt", _DOUBLE, "its height"),
        _column("rotation", _INT16, "degrees clockwise that made it upright"),
        _column("rendered_width", _INT32, "pixels the model saw, all tiles together"),
        _column("rendered_height", _INT32, "pixels the model saw, all tiles together"),
        _column("tiles", _INT16, "pictures the page was cut into"),
        _column("markdown", _TEXT, "the page as Markdown"),
        _column("html", _TEXT, 'the answer as HTML, boxes in thousandths of its tile; "" for other prompts'),
        _column("text_layer", _TEXT, "the text in the file itself, in the file's order"),
        _column("ink_ratio", _FLOAT, "share of pixels that differ from the paper"),
        _column("edge_density", _FLOAT, "share of neighbouring pixels that differ"),
        _column(
            "finish_reason",
            _STRING,
            'stop, length (cut off), repetition (a loop was cut off) or "" (the model was not asked)',
        ),
        _column("mean_logprob", _FLOAT, "mean natural log probability of the generated tokens"),
        _column("min_logprob", _FLOAT, "the least of them"),
        _column("tokens_in", _INT32, "prompt tokens, image tokens included"),
        _column("tokens_out", _INT32, "generated tokens"),
        _column("steps", _INT32, "forward passes that gave it tokens: fewer than tokens where drafts were right"),
        _column("drafted_tokens", _INT32, "tokens proposed from the text layer"),
        _column("accepted_tokens", _INT32, "of these, the ones the model wrote itself"),
        _column("resumes", _INT32, "how often an answer was taken up again behind a loop, with another sampling"),
        _column("decode_ms", _FLOAT, "milliseconds to render it"),
        _column("queue_ms", _FLOAT, "milliseconds its tiles waited for the model, added up"),
        _column("infer_ms", _FLOAT, "milliseconds its tiles were worked on, added up"),
        _column("reasoning", _TEXT, 'what a thinking model wrote before its answer; otherwise ""'),
        _column("raw_output", _TEXT, 'what the model wrote, if the job keeps it; otherwise ""'),
    ]
)
_BLOCK_FIELDS = [
    _column("order", _INT32, "place in reading order, from 0"),
    _column(
        "type",
        _STRING,
        "title, section_header, paragraph, list_item, table, picture, chart, formula, code, caption, footnote, "
        "page_header, page_footer, page_number, form or other",
    ),
    _column("level", _INT16, "heading level or depth in lists; 0 where it has no meaning"),
    _column("text", _TEXT, "plain text; of tables a line for each row, cells separated by tabs; of formulas LaTeX"),
    _column("html", _TEXT, 'tables as HTML; otherwise ""'),
    _column("bbox", _BOX, "left, top, right, bottom as fractions of the upright page", nullable=True),
    _column("bbox_source", _STRING, "model, text_layer or none"),
    _column("char_start", _INT64, "where its source begins in the page's markdown, in characters"),
    _column("char_end", _INT64, "where it ends, exclusive"),
]
BLOCKS = pa.schema([_column("block_id", _STRING, "doc_id#page_no#order"), _DOC_ID, _PAGE_NO, _PAGE_ID, *_BLOCK_FIELDS])
_OF_PAGE = ("doc_id", "page_no", "page_id")
PARTS = pa.schema(
    [
        _column("unit_id", _STRING, "the unit of work the page belongs to"),
        *PAGES,
        _column("blocks", _list(pa.struct(_BLOCK_FIELDS)), "its blocks in reading order"),
    ]
)


@dataclass(frozen=True, slots=True)
class PageSpan:
    """Where a page stands in the Markdown of its document: characters, `end` exclusive."""

    page: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PdfInfo:
    """What a PDF says about itself; empty for other inputs."""

    author: str = ""
    producer: str = ""
    creator: str = ""
    encrypted: bool = False
    has_forms: bool = False
    has_xfa: bool = False
    attachments: int = 0  # files inside of it
    page_tree_broken: bool = False
    needs_rendering: bool = False  # a dynamic XFA form


@dataclass(frozen=True, slots=True)
class Source:
    """The input that a document or a video is."""

    uri: str
    etag: str
    size: int
    media_type: str

    @classmethod
    def of(cls, asset: dict[str, Any]) -> "Source":
        """Of a row of ASSETS."""
        return cls(asset["uri"], asset["etag"], asset["size"], asset["media_type"])


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """One row of the documents table."""

    doc_id: str
    source: Source
    status: DocumentStatus
    failure: Failure | None
    pages_total: int
    pages_ok: int
    pages_blank: int
    pages_truncated: int
    pages_failed: int
    pages_skipped: int
    title: str
    markdown: str
    page_spans: tuple[PageSpan, ...]
    pdf_info: PdfInfo
    tokens_in: int
    tokens_out: int
    user: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        parts = self.pages_ok + self.pages_blank + self.pages_truncated + self.pages_failed + self.pages_skipped
        assert parts == self.pages_total, f"{self.doc_id}: {parts} pages have rows, not {self.pages_total}"


def document_markdown(pages: Sequence[tuple[int, str]]) -> tuple[str, tuple[PageSpan, ...]]:
    """Pages given as (page_no, markdown), joined by blank lines, and where each stands; empty ones take no room."""
    markdown: list[str] = []
    spans: list[PageSpan] = []
    end = 0
    for page_no, text in pages:
        separator = "\n\n" if text and end else ""
        start = end + len(separator)
        end = start + len(text)
        markdown += (separator, text)
        spans.append(PageSpan(page_no, start, end))
    return "".join(markdown), tuple(spans)


def documents_table(rows: Iterable[DocumentRow]) -> pa.Table:
    """The rows in the shape of DOCUMENTS."""
    return pa.Table.from_pylist([_document_columns(row) for row in rows], schema=DOCUMENTS)


def parts_table(rows: Iterable[tuple[str, PageRow]]) -> pa.Table:
    """(unit_id, row) pairs in the shape of PARTS."""
    return pa.Table.from_pylist([{"unit_id": unit_id} | _page_columns(row) for unit_id, row in rows], schema=PARTS)


def pages_table(parts: pa.Table) -> pa.Table:
    """The rows of a PARTS table in the shape of PAGES, in their order."""
    return parts.select(PAGES.names).cast(PAGES)


def blocks_table(parts: pa.Table) -> pa.Table:
    """The blocks of a PARTS table in the shape of BLOCKS, in the order of their pages and then in reading order."""
    tables = [_blocks_of(batch) for batch in parts.select([*_OF_PAGE, "blocks"]).to_batches()]
    return pa.concat_tables(tables) if tables else BLOCKS.empty_table()


def placed_schema(schema: pa.Schema) -> pa.Schema:
    """With PLACE_COLUMNS behind the others."""
    return pa.schema([*schema, *PLACE_COLUMNS])


def placed(table: pa.Table, asset_id: str, inputs: pa.Table) -> pa.Table:
    """The table with the PLACE_COLUMNS of `inputs`, the rows of its inputs; `asset_id`: the column that both have."""
    where = pc.index_in(table[asset_id], value_set=inputs[asset_id].combine_chunks())
    for field in PLACE_COLUMNS:
        table = table.append_column(field, inputs[field.name].take(where))
    return table


def to_parquet(table: pa.Table) -> bytes:
    """A Parquet file in memory: zstd, checksums, statistics and page indexes, row groups of about 64 MiB."""
    rows = max(1, min(len(table), len(table) * _ROW_GROUP_BYTES // max(table.nbytes, 1)))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", write_page_checksum=True, write_page_index=True, row_group_size=rows
    )
    return sink.getvalue().to_pybytes()


def _blocks_of(batch: pa.RecordBatch) -> pa.Table:
    blocks = batch.column("blocks")
    parents = pc.list_parent_indices(blocks)
    flat = pc.list_flatten(blocks)
    columns = {name: batch.column(name).take(parents) for name in _OF_PAGE}
    columns |= {field.name: flat.field(field.name) for field in _BLOCK_FIELDS}
    order = columns["order"].cast(_STRING)
    columns["block_id"] = pc.binary_join_element_wise(columns["page_id"], order, "#")
    return pa.Table.from_arrays([columns[name] for name in BLOCKS.names], schema=BLOCKS)


def _document_columns(row: DocumentRow) -> dict[str, Any]:
    info = row.pdf_info
    return {
        "doc_id": row.doc_id,
        **source_columns(row.source),
        "status": row.status.value,
        **failure_columns(row.failure),
        "pages_total": row.pages_total,
        "pages_ok": row.pages_ok,
        "pages_blank": row.pages_blank,
        "pages_truncated": row.pages_truncated,
        "pages_failed": row.pages_failed,
        "pages_skipped": row.pages_skipped,
        "title": clean_text(row.title),
        "markdown": row.markdown,
        "page_spans": [{"page": span.page, "start": span.start, "end": span.end} for span in row.page_spans],
        "pdf_info": {
            "author": clean_text(info.author),
            "producer": clean_text(info.producer),
            "creator": clean_text(info.creator),
            "encrypted": info.encrypted,
            "has_forms": info.has_forms,
            "has_xfa": info.has_xfa,
            "attachments": info.attachments,
            "page_tree_broken": info.page_tree_broken,
            "needs_rendering": info.needs_rendering,
        },
        "tokens_in": row.tokens_in,
        "tokens_out": row.tokens_out,
        "user": list(row.user),
    }


def _page_columns(row: PageRow) -> dict[str, Any]:
    return {
        "doc_id": row.doc_id,
        "page_no": row.page_no,
        "page_id": f"{row.doc_id}#{row.page_no}",
        "page_label": row.page_label,
        "status": row.status.value,
        **failure_columns(row.failure),
        "flags": list(row.flags),
        "width_pt": row.width_pt,
        "height_pt": row.height_pt,
        "rotation": row.rotation,
        "rendered_width": row.rendered_width,
        "rendered_height": row.rendered_height,
        "tiles": row.tiles,
        "markdown": row.markdown,
        "html": row.html,
        "text_layer": row.text_layer,
        "ink_ratio": row.ink_ratio,
        "edge_density": row.edge_density,
        "finish_reason": row.finish_reason,
        "mean_logprob": row.mean_logprob,
        "min_logprob": row.min_logprob,
        "tokens_in": row.tokens_in,
        "tokens_out": row.tokens_out,
        "steps": row.steps,
        "drafted_tokens": row.drafted_tokens,
        "accepted_tokens": row.accepted_tokens,
        "resumes": row.resumes,
        "decode_ms": row.decode_ms,
        "queue_ms": row.queue_ms,
        "infer_ms": row.infer_ms,
        "reasoning": row.reasoning,
        "raw_output": row.raw_output,
        "blocks": [_block_columns(block) for block in row.blocks],
    }


def _block_columns(block: Block) -> dict[str, Any]:
    return {
        "order": block.order,
        "type": block.type,
        "level": block.level,
        "text": block.text,
        "html": block.html,
        "bbox": dict(zip("ltrb", block.box, strict=True)) if block.box else None,
        "bbox_source": block.box_source,
        "char_start": block.char_start,
        "char_end": block.char_end,
    }


def source_columns(source: Source) -> dict[str, Any]:
    return {
        "source_uri": source.uri,
        "source_etag": source.etag,
        "source_size": source.size,
        "media_type": source.media_type,
        "filename": source.uri.rsplit("/", 1)[-1],
    }


def failure_columns(failure: Failure | None) -> dict[str, Any]:
    if failure is None:
        return {"error_stage": "", "error_code": "", "error_message": "", "retryable": False, "attempts": 0}
    return {
        "error_stage": failure.stage.value,
        "error_code": failure.code.value,
        "error_message": clean_text(failure.message),
        "retryable": failure.code.retryable,
        "attempts": failure.attempts,
    }


def failure_of(row: dict[str, Any]) -> Failure:
    """What `failure_columns` wrote, of a row that has a failure."""
    return Failure(Stage(row["error_stage"]), ErrorCode(row["error_code"]), row["error_message"], row["attempts"])


def outcome_of(asset: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[DocumentStatus, Failure | None]:
    """The status of a document or a video, and the first thing that went wrong in it: failed pages or windows before
    those cut off or not to be read. It has failed where none is left but skipped ones."""
    if asset["error_code"]:
        return DocumentStatus.FAILED, failure_of(asset)
    troubled = [row for status in ("failed", "truncated", "unparseable") for row in rows if row["status"] == status]
    if not troubled:
        return DocumentStatus.OK, None
    all_failed = all(row["status"] in ("failed", "skipped") for row in rows)
    return DocumentStatus.FAILED if all_failed else DocumentStatus.PARTIAL, failure_of(troubled[0])
