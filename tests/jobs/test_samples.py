"""Sample pages say the truth: against PDFium's text extraction, the rendered ink, and an HTML parser."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pypdfium2
import pytest

from jobs.sample_layout import DrawnPage
from jobs.sample_text import is_held_out, vocabulary
from jobs.samples import (
    DENSE_LADDER,
    LADDER,
    PIXELS_PER_POINT,
    PLAIN_LADDER,
    Difficulty,
    age,
    make_page,
    render,
    render_batch,
    write_demo_documents,
    write_pdf,
)

CLEAN = {rung.name: replace(rung, blank=0, skewed=0, aged=0) for rung in LADDER}
IDS = [rung.name for rung in LADDER]


def drawn_pages(difficulty: Difficulty, count: int, *, seed: int, held_out: bool = False) -> list[DrawnPage]:
    rng = np.random.default_rng(seed)
    return [make_page(rng, difficulty, held_out=held_out) for _ in range(count)]


def ink_mask(drawn: DrawnPage, pixels: np.ndarray) -> np.ndarray:
    paper = np.array(drawn.finish.paper) * 255
    return np.abs(pixels - paper).max(-1) > 50


def box_pixels(drawn: DrawnPage, index: int) -> np.ndarray:
    width, height = PIXELS_PER_POINT * drawn.page.width, PIXELS_PER_POINT * drawn.page.height
    return np.array(drawn.page.blocks[index].box) * (width, height, width, height)


def words_of_blocks(drawn: DrawnPage) -> list[str]:
    markers = [block.marker if block.marker != "-" else "" for block in drawn.page.blocks]
    blocks = zip(markers, drawn.page.blocks, strict=True)
    return " ".join(f"{marker} {block.text}" for marker, block in blocks).split()


@pytest.mark.parametrize("name", IDS)
def test_the_text_layer_has_exactly_the_words_of_the_truth_in_order(name: str) -> None:
    pages = drawn_pages(replace(CLEAN[name], two_columns=0), 20, seed=1)
    document = pypdfium2.PdfDocument(write_pdf(pages))
    for drawn, page in zip(pages, document, strict=True):
        assert page.get_textpage().get_text_range().split() == words_of_blocks(drawn)


@pytest.mark.parametrize("name", IDS)
def test_boxes_are_tight_around_the_rendered_ink_of_their_block(name: str) -> None:
    pages = drawn_pages(CLEAN[name], 20, seed=2)
    for drawn, pixels in zip(pages, render(write_pdf(pages)), strict=True):
        ink = ink_mask(drawn, pixels)
        assert pixels.shape == (PIXELS_PER_POINT * drawn.page.height, PIXELS_PER_POINT * drawn.page.width, 3)
        for index in range(len(drawn.page.blocks)):
            box = box_pixels(drawn, index)
            left, top, right, bottom = np.array([*np.floor(box[:2] - 2), *np.ceil(box[2:] + 2)], int).clip(0)
            rows, columns = np.nonzero(ink[top:bottom, left:right])
            seen = left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1
            assert np.abs(seen - box).max() <= 2, drawn.page.blocks[index]


@pytest.mark.parametrize("name", IDS)
def test_no_ink_lies_outside_the_boxes_or_leaves_a_skewed_page(name: str) -> None:
    pages = drawn_pages(replace(CLEAN[name], skewed=1), 20, seed=3)
    for drawn, pixels in zip(pages, render(write_pdf(pages)), strict=True):
        assert drawn.finish.skew_degrees != 0
        ink = ink_mask(drawn, pixels)
        for index in range(len(drawn.page.blocks)):
            left, top, right, bottom = box_pixels(drawn, index)
            assert ink[int(top) : int(bottom) + 1, int(left) : int(right) + 1].any()
            ink[max(0, int(top) - 1) : int(bottom) + 2, max(0, int(left) - 1) : int(right) + 2] = False
        assert not ink.any()
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert np.abs(border - pixels[0, 0].astype(float)).max() < 3


def test_training_pages_have_no_held_out_word_and_evaluation_pages_no_other() -> None:
    held_out, known = set(vocabulary(True)), set(vocabulary(False))
    assert held_out.isdisjoint(known)
    assert 0.08 < len(held_out) / len(held_out | known) < 0.12
    texts = {}
    for is_evaluation in (False, True):
        pages = [p for rung in LADDER for p in drawn_pages(rung, 20, seed=4, held_out=is_evaluation)]
        texts[is_evaluation] = " ".join(drawn.page.markdown() for drawn in pages)
    runs = re.findall(r"[A-Za-z]{2,}", texts[False])
    assert len(runs) > 3000
    assert not [run for run in runs if is_held_out(run)]
    plain_words = [word for word in re.findall(r"(?<= )[A-Za-z]{7,}(?= )", texts[True]) if not word.isupper()]
    assert len(plain_words) > 500
    shares = [word.lower() in held_out or is_held_out(word) for word in plain_words]
    assert np.mean(shares) > 0.9  # the rest are random strings
    assert not known.intersection(word.lower() for word in plain_words)


def test_words_come_again_on_training_pages_as_often_as_on_held_out_ones() -> None:
    shares = {}
    for is_evaluation in (False, True):
        pages = drawn_pages(CLEAN["full_page"], 60, seed=14, held_out=is_evaluation)
        repeated = []
        for drawn in pages:
            words = re.findall(r"[a-z]{4,}", drawn.page.markdown().lower())
            counts = Counter(words)
            repeated += [counts[word] > 1 for word in words]
        shares[is_evaluation] = np.mean(repeated)
    assert shares[True] > 0.3
    assert shares[False] > 0.9 * shares[True]


def test_every_printable_character_occurs_and_no_other() -> None:
    text = "".join(drawn.page.markdown() for drawn in drawn_pages(CLEAN["full_page"], 40, seed=5))
    assert set(text) == {"\n", *map(chr, range(32, 127))}


def test_the_same_seed_gives_the_same_pages_and_pixels() -> None:
    first, again, other = (
        render_batch(np.random.default_rng(seed), LADDER[4], 8, held_out=False) for seed in (6, 6, 7)
    )
    assert [page for page, _ in first] == [page for page, _ in again]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert [page for page, _ in first] != [page for page, _ in other]


def test_a_batch_of_one_size_has_pages_of_that_size() -> None:
    batch = render_batch(np.random.default_rng(8), LADDER[2], 12, held_out=False, size=(256, 128))
    assert {pixels.shape for _, pixels in batch} == {(256, 512, 3)}
    for rung in (*PLAIN_LADDER, *LADDER, *DENSE_LADDER):
        for size in rung.sizes:
            assert not np.any(np.array(size) * PIXELS_PER_POINT % 32), (rung.name, size)


def test_blank_pages_have_an_empty_truth_and_no_ink() -> None:
    batch = render_batch(np.random.default_rng(9), replace(LADDER[3], blank=1.0), 20, held_out=False)
    for page, pixels in batch:
        assert page.markdown() == page.html() == ""
        assert pixels.min() > 90


def test_markdown_and_html_are_two_views_of_the_same_blocks() -> None:
    class Blocks(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str, list[int], str]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if box := dict(attrs).get("data-bbox"):
                self.found.append((tag, [int(value) for value in box.split()], ""))

        def handle_data(self, data: str) -> None:
            if self.found and data.strip() and data.strip() != "```":
                tag, box, text = self.found.pop()
                self.found.append((tag, box, f"{text} {data}".strip()))

    for drawn in drawn_pages(CLEAN["half_page"], 30, seed=10):
        blocks, parser = drawn.page.blocks, Blocks()
        parser.feed(drawn.page.html())
        assert [text.split() for _, _, text in parser.found] == [block.text.split() for block in blocks]
        for (_, box, _), block in zip(parser.found, blocks, strict=True):
            assert np.abs(np.array(box) - 1000 * np.array(block.box)).max() <= 0.5
        markdown = re.sub(r"(?m)^(#{1,2} |- |\d+\. |\|( --- \|)+$)", "", drawn.page.markdown())
        cells = re.sub(r"(?m)^\| (.*) \|$", lambda row: row[1].replace(" | ", " "), markdown)
        assert cells.split() == " ".join(block.text for block in blocks if block.type != "page_number").split()


def test_markdown_of_a_page_with_everything_reads_as_written() -> None:
    difficulty = replace(CLEAN["full_page"], headings=0.25, lists=0.25, tables=0.25, titles=1, page_numbers=1)
    page = drawn_pages(difficulty, 1, seed=11)[0].page
    parts = page.markdown().split("\n\n")
    assert parts[0] == f"# {page.blocks[0].text}"
    assert page.blocks[-1].type == "page_number"
    tables = [block.cells for block in page.blocks if block.type == "table"]
    written = [part.splitlines() for part in parts if part.startswith("| ")]
    assert [[tuple(row.strip("| ").split(" | ")) for row in rows if "---" not in row] for rows in written] == [
        list(cells) for cells in tables
    ]


def test_aging_is_mild_and_leaves_ink_darker_than_paper() -> None:
    rng = np.random.default_rng(12)
    pages = drawn_pages(CLEAN["paragraphs"], 20, seed=12)
    for drawn, pixels in zip(pages, render(write_pdf(pages)), strict=True):
        ink = ink_mask(drawn, pixels)
        aged = age(rng, pixels)
        assert aged.shape == pixels.shape
        assert aged.dtype == np.uint8
        assert not np.array_equal(aged, pixels)
        assert aged[~ink].mean() - aged[ink].mean() > 50


def test_demo_documents_open_and_say_their_truth_and_the_broken_one_does_not_open(tmp_path: Path) -> None:
    truths = dict(write_demo_documents(tmp_path / "a", 1))
    assert write_demo_documents(tmp_path / "b", 1) == list(truths.items())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(truths)
    for name, pages in truths.items():
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        if name == "broken.pdf":
            assert pages == []
            with pytest.raises(pypdfium2.PdfiumError):
                pypdfium2.PdfDocument(content)
            continue
        document = pypdfium2.PdfDocument(content)
        assert len(document) == len(pages)
        for page, truth in zip(document, pages, strict=True):
            text = page.get_textpage().get_text_range()
            assert len(truth.split()) <= 120
            if name == "scan.pdf":
                assert text == ""
            else:
                assert set(re.findall(r"[A-Za-z]{3,}", truth)) <= set(re.findall(r"[A-Za-z]{3,}", text))
    everything = "\n".join(truth for pages in truths.values() for truth in pages)
    assert all(mark in everything for mark in ("# ", "## ", "| --- |", "- "))
    assert "" in truths["notes.pdf"]
