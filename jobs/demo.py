"""Shows the main job at work: writes sample documents, parses them with the embedded model, prints what came out.

python -m jobs.demo FOLDER
"""

import argparse
import shutil
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
from rapidfuzz.distance import Levenshtein

from jobs import parse_documents
from jobs.options import CommandParser
from jobs.samples import write_demo_documents

SEED = 7
COLUMNS = {
    "documents": ["filename", "status", "error_code", "pages_total", "pages_ok", "pages_blank", "tokens_out"],
    "pages": ["page_no", "status", "rendered_width", "rendered_height", "tokens_in", "tokens_out", "mean_logprob"],
    "blocks": ["page_no", "order", "type", "level", "text"],
}


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where sample documents and tables go; emptied first")
    folder = parser.parse_args().folder
    if folder.exists() and not (folder / "documents").is_dir():
        parser.error(f"{folder} exists and was not made by this command: give another folder")
    shutil.rmtree(folder, ignore_errors=True)
    source, output = folder / "documents", folder / "tables"
    source.mkdir(parents=True)
    truths = dict(write_demo_documents(source, SEED))
    print(f"{len(truths)} sample documents in {source}\n")
    options = ["--max-new-tokens", "512", "--max-failure-rate", "0.5"]
    code = parse_documents.main([str(source), str(output), *options], own_files=False)
    if not (output / "_SUCCESS").exists():  # it was stopped, or could not be run, and has said so
        return code
    show_tables(output)
    show_pages(output, truths)
    print(f"\nThe tables lie in {output}: documents/*.parquet, pages/*.parquet, blocks/*.parquet, _job.json")
    return code


def show_tables(output: Path) -> None:
    for table, columns in COLUMNS.items():
        frame = pq.read_table(output / table, columns=columns).to_pandas()
        print(f"\n{table} ({len(frame)} rows), some columns:")
        print(frame.head(8).to_string(index=False, max_colwidth=48))


def show_pages(output: Path, truths: dict[str, list[str]]) -> None:
    """Page by page what was read beside the truth, and the character error rate of all of them."""
    names = pq.read_table(output / "documents", columns=["doc_id", "filename"]).to_pydict()
    filenames = dict(zip(names["doc_id"], names["filename"], strict=True))
    pages = pq.read_table(output / "pages", columns=["doc_id", "page_no", "status", "markdown"]).to_pylist()
    errors = characters = 0
    for page in pages:
        truth = truths[filenames[page["doc_id"]]][page["page_no"] - 1]
        distance = Levenshtein.distance(truth, page["markdown"])
        errors, characters = errors + distance, characters + len(truth)
        rate = f"{distance / len(truth):.1%} of the characters wrong" if truth else f"{distance} characters invented"
        print(f"\n--- {filenames[page['doc_id']]} page {page['page_no']}: {page['status']}, {rate}")
        if truth:
            print(side_by_side("read", page["markdown"], "truth", truth))
    print(f"\nAll pages: {errors / characters:.1%} of {characters} characters wrong")


def side_by_side(left_title: str, left: str, right_title: str, right: str, *, width: int = 56, lines: int = 8) -> str:
    """The first lines of two texts in two columns."""
    columns = [
        [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, width) or [""]][:lines]
        for text in (left, right)
    ]
    height = max(len(column) for column in columns)
    rows = [
        (left_title, right_title),
        *zip(*(column + [""] * (height - len(column)) for column in columns), strict=True),
    ]
    return "\n".join(f"{first:{width}} | {second}" for first, second in rows)


if __name__ == "__main__":
    sys.exit(main())
