"""The documents, pages and blocks of a shard, from its assets and the rows of its pages."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.records import PageStatus
from pipeline.tables import (
    DocumentRow,
    PdfInfo,
    Source,
    blocks_table,
    document_markdown,
    documents_table,
    outcome_of,
    pages_table,
)

_PAGE_COLUMNS = ("doc_id", "page_no", "status", "error_stage", "error_code", "error_message", "attempts", "markdown")


def document_tables(assets: pa.Table, pages: pa.Table) -> dict[str, pa.Table]:
    """The tables by name. `assets`: ASSETS rows in order; `pages`: PARTS rows, every page of them once, in order."""
    return {
        "documents": documents_table(document_rows(assets, pages)),
        "pages": pages_table(pages),
        "blocks": blocks_table(pages),
    }


def document_rows(assets: pa.Table, pages: pa.Table) -> Iterable[DocumentRow]:
    """One row for each asset, in order; `pages` as `shard_pieces` made them."""
    start = 0
    columns = pages.select([*_PAGE_COLUMNS, "tokens_in", "tokens_out"])
    for asset in assets.to_pylist():
        of_asset = columns.slice(start, asset["pages"]).to_pylist()
        start += asset["pages"]
        assert all(page["doc_id"] == asset["asset_id"] for page in of_asset)
        yield _document_row(asset, of_asset)


def _document_row(asset: dict[str, Any], pages: Sequence[dict[str, Any]]) -> DocumentRow:
    count = {status: sum(page["status"] == status for page in pages) for status in PageStatus}
    status, failure = outcome_of(asset, pages)
    markdown, spans = document_markdown([(page["page_no"], page["markdown"]) for page in pages])
    return DocumentRow(
        doc_id=asset["asset_id"],
        source=Source.of(asset),
        status=status,
        failure=failure,
        pages_total=len(pages),
        pages_ok=count[PageStatus.OK],
        pages_blank=count[PageStatus.BLANK],
        pages_truncated=count[PageStatus.TRUNCATED],
        pages_failed=count[PageStatus.FAILED],
        pages_skipped=count[PageStatus.SKIPPED],
        title=asset["title"],
        markdown=markdown,
        page_spans=spans,
        pdf_info=PdfInfo(
            author=asset["author"],
            producer=asset["producer"],
            creator=asset["creator"],
            encrypted=asset["encrypted"],
            has_forms=asset["has_forms"],
            has_xfa=asset["has_xfa"],
            attachments=asset["attachments"],
            page_tree_broken=asset["page_tree_broken"],
            needs_rendering=asset["needs_rendering"],
        ),
        tokens_in=sum(page["tokens_in"] for page in pages),
        tokens_out=sum(page["tokens_out"] for page in pages),
        user=tuple(asset["user"]),
    )
