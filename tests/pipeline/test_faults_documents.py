"""The documents after public reports that once went wrong: what is right of each, on the files where they are at hand.

Where they are not, files of the same faults are made in test_media_types, test_pdf_structure and test_image_colors.
"""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from pipeline.documents import DocumentInfo, DocumentOptions, inspect, read_pages
from pipeline.records import BadInput, Page

FAULTS = Path(__file__).parents[2].parent / "shared" / "data" / "faults" / "documents"
OPTIONS = DocumentOptions(max_tokens=512)

pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason="the files are not at hand")


def read(name: str) -> tuple[DocumentInfo, list[Page]]:
    data = (FAULTS / name).read_bytes()
    return read_bytes(gzip.decompress(data) if name.endswith(".gz") else data)


def read_bytes(data: bytes) -> tuple[DocumentInfo, list[Page]]:
    info = inspect(io.BytesIO(data), OPTIONS)
    pages = list(read_pages(io.BytesIO(data), range(1, len(info.page_sizes) + 1), OPTIONS))
    assert all(isinstance(page, Page) for page in pages), pages
    return info, [page for page in pages if isinstance(page, Page)]


def words(page: Page) -> str:
    return " ".join(word.text for word in page.facts.words)


@pytest.mark.parametrize(
    ("name", "what"), [("three.zip", "zip archive"), ("three.tar", "tar archive"), ("miniswhite16.tif.gz", "gzip")]
)
def test_an_archive_is_no_pdf(name: str, what: str) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        read_bytes((FAULTS / name).read_bytes())
    assert caught.value.failure.code == "unsupported_type"


@pytest.mark.parametrize("name", ["grey12.tif", "data12_in16.png", "miniswhite16.tif.gz"])
def test_deep_grey_is_black_on_white(name: str) -> None:
    _, (page,) = read(name)
    assert not page.facts.is_blank
    assert np.median(page.tiles[0]) > 220
    assert page.tiles[0].min() < 40


def test_a_thumbnail_is_no_page() -> None:
    info, _ = read("thumbs.tif")
    assert info.page_sizes == ((1600, 2000), (1600, 2000))


def test_a_fax_is_shown_with_square_pixels() -> None:
    info, pages = read("fax_204x98.tif")
    assert len(pages) == 2
    assert info.page_sizes[0] == pytest.approx((1728, 1100 * 204 / 98))


def test_white_text_on_nothing_is_seen() -> None:
    _, (page,) = read("white_text.png")
    assert not page.facts.is_blank


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kids_null.pdf", ["First page 111", "Second page 222", "Third page 333"]),
        ("count_too_small.pdf", ["First page 111", "Second page 222", "Third page 333", "Fourth page 444"]),
    ],
)
def test_every_real_page_is_read_once(name: str, told: list[str]) -> None:
    info, pages = read(name)
    assert [words(page) for page in pages] == told
    assert info.page_tree_broken


def test_a_page_of_a_layer_that_is_off_is_blank() -> None:
    _, (page,) = read("layer_off_only.pdf")
    assert (page.facts.is_blank, page.facts.flags, words(page)) == (True, (), "")


def test_a_portfolio_tells_how_many_files_it_holds() -> None:
    info, pages = read("portfolio.pdf")
    assert (info.attachments, len(pages), pages[0].facts.flags) == (2, 1, ("attachments",))
    assert words(pages[0]).startswith("Open this portfolio")


def test_units_of_an_inch_are_points() -> None:
    info, _ = read("user_unit_72.pdf")
    assert info.page_sizes == ((612, 792),)
