"""Rows in Arrow and Parquet: nothing drifts, nothing is lost, everybody can read it."""

from dataclasses import fields, replace
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parse_pages import failed_page, skipped_page
from pipeline.records import Block, DocumentStatus, ErrorCode, Failure, PageRow, PageStatus, Stage
from pipeline.tables import (
    BLOCKS,
    DOCUMENTS,
    PAGES,
    PARTS,
    DocumentRow,
    PageSpan,
    PdfInfo,
    Source,
    blocks_table,
    document_markdown,
    documents_table,
    pages_table,
    parts_table,
    to_parquet,
)

BLOCK = Block(
    order=0,
    type="table",
    level=0,
    text="a\tb",
    html="<table></table>",
    box=(0.125, 0.25, 0.5, 0.75),
    box_source="model",
    char_start=0,
    char_end=4,
)
PAGE = PageRow(
    doc_id="d1",
    page_no=1,
    page_label="i",
    status=PageStatus.TRUNCATED,
    failure=Failure(Stage.INFER, ErrorCode.OUTPUT_TRUNCATED, "cut off"),
    flags=("box_repaired", "missing_fonts"),
    width_pt=595.28,
    height_pt=2.0**31,
    rotation=270,
    rendered_width=640,
    rendered_height=832,
    tiles=2,
    markdown="# Ü \U0001f600",
    html="<p>",
    text_layer="words",
    ink_ratio=0.125,
    edge_density=0.25,
    finish_reason="length",
    mean_logprob=-0.5,
    min_logprob=-4.0,
    tokens_in=1000,
    tokens_out=4096,
    steps=1500,
    drafted_tokens=4000,
    accepted_tokens=2596,
    resumes=1,
    decode_ms=30.5,
    queue_ms=1.5,
    infer_ms=2000.0,
    reasoning="because",
    raw_output="raw",
    blocks=(BLOCK, replace(BLOCK, order=1, type="paragraph", level=2, box=None, box_source="none", html="")),
)
DOCUMENT = DocumentRow(
    doc_id="d1",
    source=Source("s3://bucket/a b.pdf", "tag", 2**40, "application/pdf"),
    status=DocumentStatus.PARTIAL,
    failure=None,
    pages_total=15,
    pages_ok=1,
    pages_blank=2,
    pages_truncated=3,
    pages_failed=4,
    pages_skipped=5,
    title="Title",
    markdown="one\n\ntwo",
    page_spans=(PageSpan(1, 0, 3), PageSpan(2, 5, 8)),
    pdf_info=PdfInfo(author="me", producer="p", creator="c", encrypted=True, has_forms=False, has_xfa=True),
    tokens_in=2**33,
    tokens_out=7,
    user=(("case", "17"), ("tag", "")),
)
SOURCE_COLUMNS = ["source_uri", "source_etag", "source_size", "media_type", "filename"]
FAILURE_COLUMNS = ["error_stage", "error_code", "error_message", "retryable", "attempts"]


def columns_of(row_type: type) -> list[str]:
    """The columns a dataclass stands for: a source or failure is five of them, a box is called bbox."""
    several = {"source": SOURCE_COLUMNS, "failure": FAILURE_COLUMNS}
    columns: list[str] = []
    for name in (field.name for field in fields(row_type)):
        columns += several.get(name, [name.replace("box", "bbox")])
    return columns


def test_dataclasses_and_schemas_have_the_same_columns_in_the_same_order() -> None:
    assert DOCUMENTS.names == columns_of(DocumentRow)
    of_page = columns_of(PageRow)
    assert [name for name in PAGES.names if name != "page_id"] == [name for name in of_page if name != "blocks"]
    assert PARTS.names == ["unit_id", *PAGES.names, "blocks"]
    assert BLOCKS.names == ["block_id", "doc_id", "page_no", "page_id", *columns_of(Block)]
    assert [field.name for field in PARTS.field("blocks").type.value_type] == columns_of(Block)
    assert [field.name for field in DOCUMENTS.field("pdf_info").type] == columns_of(PdfInfo)
    assert [field.name for field in DOCUMENTS.field("page_spans").type.value_type] == columns_of(PageSpan)


@pytest.mark.parametrize("schema", [DOCUMENTS, PAGES, BLOCKS, PARTS])
def test_every_column_is_described_typed_and_never_null_but_boxes(schema: pa.Schema) -> None:
    for field in schema:
        assert field.metadata[b"description"].decode().strip(), field.name
        assert not pa.types.is_null(field.type)
        assert field.nullable == (field.name == "bbox")


def test_a_page_comes_back_from_its_part_value_for_value() -> None:
    parts = parts_table([("u1", PAGE), ("u1", failed_page("d1", 2, Failure(Stage.READ, ErrorCode.THROTTLED, "slow")))])
    parts.validate(full=True)
    assert parts.schema == PARTS
    first, second = pages_table(pq.read_table(pa.BufferReader(to_parquet(parts)))).to_pylist()
    for name, value in first.items():
        if name not in ("page_id", "status", *FAILURE_COLUMNS):
            assert value == (list(PAGE.flags) if name == "flags" else getattr(PAGE, name)), name
    assert (first["page_id"], first["status"], second["page_id"], second["status"]) == (
        "d1#1",
        "truncated",
        "d1#2",
        "failed",
    )
    assert [first[name] for name in FAILURE_COLUMNS] == ["infer", "output_truncated", "cut off", False, 1]
    assert [second[name] for name in FAILURE_COLUMNS] == ["read", "throttled", "slow", True, 1]


def test_blocks_follow_their_pages_with_ids_and_boxes() -> None:
    pages = [PAGE, skipped_page("d1", 2), replace(PAGE, doc_id="d2", page_no=7, blocks=PAGE.blocks[:1])]
    parts = parts_table([("u1", page) for page in pages])
    blocks = blocks_table(parts)
    blocks.validate(full=True)
    assert blocks.schema == BLOCKS
    assert blocks["block_id"].to_pylist() == ["d1#1#0", "d1#1#1", "d2#7#0"]
    assert blocks["page_no"].to_pylist() == [1, 1, 7]
    first, second, _ = blocks.to_pylist()
    assert first["bbox"] == {"l": 0.125, "t": 0.25, "r": 0.5, "b": 0.75}
    assert (second["bbox"], second["bbox_source"], second["level"], second["html"]) == (None, "none", 2, "")
    # the same from slices, from several chunks and from a file, as closing has them
    halves = pa.concat_tables([parts.slice(0, 1), parts.slice(1)])
    assert blocks_table(pq.read_table(pa.BufferReader(to_parquet(parts)))).equals(blocks)
    assert blocks_table(halves).to_pylist() == blocks.to_pylist()
    assert blocks_table(parts.slice(2)).to_pylist() == blocks.to_pylist()[2:]


def test_no_rows_make_tables_of_the_same_schemas() -> None:
    parts = parts_table([])
    assert (len(parts), parts.schema) == (0, PARTS)
    assert pages_table(parts).schema == PAGES
    assert blocks_table(parts).schema == BLOCKS
    assert documents_table([]).schema == DOCUMENTS


def test_a_document_comes_back_value_for_value() -> None:
    table = documents_table([DOCUMENT, replace(DOCUMENT, doc_id="d2", page_spans=(), user=(), pdf_info=PdfInfo())])
    table.validate(full=True)
    row, other = pq.read_table(pa.BufferReader(to_parquet(table))).to_pylist()
    assert row["page_spans"] == [{"page": 1, "start": 0, "end": 3}, {"page": 2, "start": 5, "end": 8}]
    assert row["pdf_info"]["has_xfa"] is True
    assert row["user"] == [("case", "17"), ("tag", "")]
    source = ["s3://bucket/a b.pdf", "tag", 2**40, "application/pdf", "a b.pdf"]
    assert [row[name] for name in SOURCE_COLUMNS] == source
    assert (row["tokens_in"], row["status"]) == (2**33, "partial")
    assert [row[name] for name in FAILURE_COLUMNS] == ["", "", "", False, 0]
    assert (other["page_spans"], other["user"], other["pdf_info"]["author"]) == ([], [], "")


def test_text_of_the_file_itself_cannot_break_a_table() -> None:
    failure = Failure(Stage.OPEN, ErrorCode.CORRUPT, "cannot open \udcff.pdf")
    odd = replace(DOCUMENT, title="\ud800Ti\0tle", pdf_info=PdfInfo(author="\udfff"), failure=failure)
    row = documents_table([odd]).to_pylist()[0]
    assert (row["title"], row["pdf_info"]["author"], row["error_message"]) == (
        "\ufffdTitle",
        "\ufffd",
        "cannot open \ufffd.pdf",
    )


def test_pages_that_do_not_add_up_are_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="16 pages have rows, not 15"):
        replace(DOCUMENT, pages_ok=2)


@given(st.lists(st.tuples(st.integers(1, 999), st.text(max_size=5))))
def test_spans_find_every_page_in_the_document(pages: list[tuple[int, str]]) -> None:
    markdown, spans = document_markdown(pages)
    assert [(span.page, markdown[span.start : span.end]) for span in spans] == pages
    assert markdown == "\n\n".join(text for _, text in pages if text)


def test_pandas_polars_and_duckdb_read_every_table(tmp_path: Path) -> None:
    parts = parts_table([("u1", PAGE), ("u1", skipped_page("d1", 2))])
    tables = {"documents": documents_table([DOCUMENT]), "pages": pages_table(parts), "blocks": blocks_table(parts)}
    for name, table in tables.items():
        file = tmp_path / f"{name}.parquet"
        file.write_bytes(to_parquet(table))
        assert list(pd.read_parquet(file).columns) == pl.read_parquet(file).columns == table.column_names
        assert len(pd.read_parquet(file)) == pl.read_parquet(file).height == len(table)
    pages, blocks, documents = (str(tmp_path / f"{name}.parquet") for name in ("pages", "blocks", "documents"))
    assert pd.read_parquet(pages)["markdown"].tolist() == ["# Ü \U0001f600", ""]
    assert pl.read_parquet(blocks)["bbox"].to_list() == [{"l": 0.125, "t": 0.25, "r": 0.5, "b": 0.75}, None]
    assert duckdb.sql(
        f"select status, error_code, count(*) from '{pages}' group by all order by status"
    ).fetchall() == [
        ("skipped", "", 1),
        ("truncated", "output_truncated", 1),
    ]
    boxes = f"select type, bbox.r from '{blocks}' where bbox is not null"
    assert duckdb.sql(boxes).fetchall() == [("table", 0.5)]
    case = f"select user['case'], pdf_info.author, page_spans[2].start from '{documents}'"
    assert duckdb.sql(case).fetchall() == [("17", "me", 5)]


def test_parquet_is_zstd_with_page_indexes_and_row_groups_by_size() -> None:
    heavy = replace(PAGE, markdown="x" * (3 * 2**20))
    table = pages_table(parts_table([("u1", replace(heavy, page_no=number)) for number in range(50)]))
    file = pq.ParquetFile(pa.BufferReader(to_parquet(table)))
    assert file.metadata.num_row_groups == 3  # 150 MiB in groups of 64
    column = file.metadata.row_group(0).column(PAGES.names.index("page_no"))
    assert column.compression == "ZSTD"
    assert column.has_offset_index
    assert column.has_column_index
    assert (column.statistics.min, column.statistics.max) == (0, 20)
    assert file.schema_arrow.field("markdown").metadata[b"description"] == b"the page as Markdown"


@pytest.mark.heavy
def test_more_than_two_gigabytes_of_text_are_one_table_and_come_back(tmp_path: Path) -> None:
    markdown = "0123456789abcdef" * 2**16  # a MiB
    rows = [("unit", replace(PAGE, page_no=number, markdown=markdown, blocks=())) for number in range(1, 2**11 + 51)]
    table = parts_table(rows).combine_chunks()
    assert table["markdown"].nbytes > 2**31
    (tmp_path / "part.parquet").write_bytes(to_parquet(table))
    del table
    lengths = duckdb.sql(f"select length(markdown), count(*) from '{tmp_path}/part.parquet' group by all").fetchall()
    assert lengths == [(2**20, 2**11 + 50)]


def test_the_same_rows_give_the_same_bytes() -> None:
    assert to_parquet(parts_table([("u1", PAGE)])) == to_parquet(parts_table([("u1", PAGE)]))
