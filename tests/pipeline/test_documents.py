"""Documents are known by their content, described cheaply, and read page by page without one spoiling another."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from pipeline.documents import DocumentInfo, DocumentOptions, inspect, read_pages, selected_pages
from pipeline.records import BadInput, ErrorCode, Failure, Page, Stage
from pipeline.sandbox import Sandbox
from tests.memory import resident
from tests.pipeline.document_files import SAMPLES, FailingFile, PdfPage, pdf_bytes, read_sample, text

OPTIONS = DocumentOptions(min_tokens=64, max_tokens=512)


def image_bytes(pillow_format: str, size: tuple[int, int] = (300, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "navy").save(buffer, pillow_format)
    return buffer.getvalue()


def docx_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "<w:document/>")
    return buffer.getvalue()


def open_failure(data: bytes, options: DocumentOptions = OPTIONS) -> Failure:
    with pytest.raises(BadInput) as inspected:
        inspect(io.BytesIO(data), options)
    return inspected.value.failure


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (pdf_bytes([PdfPage()]), "application/pdf"),
        (b"\r\n junk of a mail header \r\n" * 20 + pdf_bytes([PdfPage()]), "application/pdf"),
        *((image_bytes(kind.upper()), f"image/{kind}") for kind in ("png", "jpeg", "webp", "bmp", "gif", "tiff")),
    ],
)
def test_the_type_is_what_the_bytes_say(data: bytes, media_type: str) -> None:
    assert inspect(io.BytesIO(data), OPTIONS).media_type == media_type
    assert isinstance(next(read_pages(io.BytesIO(data), [1], OPTIONS)), Page)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ErrorCode.EMPTY_FILE),
        (docx_bytes(), ErrorCode.UNSUPPORTED_TYPE),
        (b"BM is how this text begins, and it is no bitmap", ErrorCode.UNSUPPORTED_TYPE),
        (b"x" * 2000 + b"%PDF-1.4", ErrorCode.UNSUPPORTED_TYPE),
        (b"%PDF-1.4", ErrorCode.CORRUPT),
        (b"\x89PNG\r\n\x1a\n and no more", ErrorCode.CORRUPT),
    ],
)
def test_what_cannot_be_opened_has_a_code(data: bytes, code: ErrorCode) -> None:
    failure = open_failure(data)
    assert (failure.stage, failure.code) == (Stage.OPEN, code)
    with pytest.raises(BadInput, match=code):
        next(read_pages(io.BytesIO(data), [1], OPTIONS))


def test_opening_a_pdf_tells_sizes_metadata_and_tokens() -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(300, 400))
    canvas.setTitle("Über alles Papier")
    canvas.setAuthor("A. Author")
    canvas.setCreator("by hand")
    canvas.drawString(10, 10, "x")
    canvas.showPage()
    canvas.setPageSize((100, 1200))
    canvas.drawString(10, 10, "x")
    canvas.showPage()
    canvas.save()
    info = inspect(buffer, OPTIONS)
    assert info.page_sizes == ((300, 400), (100, 1200))
    assert (info.title, info.author, info.creator) == ("Über alles Papier", "A. Author", "by hand")
    assert "ReportLab" in info.producer
    assert (info.encrypted, info.has_forms, info.has_xfa) == (False, False, False)
    pages = [page for page in read_pages(buffer, [1, 2], OPTIONS) if isinstance(page, Page)]
    tokens = [sum(tile.shape[0] * tile.shape[1] // 1024 for tile in page.tiles) for page in pages]
    assert tokens[0] == info.page_tokens[0]
    assert len(pages[1].tiles) == 3
    assert tokens[1] == pytest.approx(info.page_tokens[1], rel=0.1), "cuts move a little from the even division"


def test_an_xfa_form_is_told() -> None:
    xfa = "/AcroForm <</Fields [] /XFA [(template) 6 0 R]>>"
    stream = "<</Length 20>>\nstream\n<template></template>\nendstream"
    data = pdf_bytes([PdfPage(content=text("Please wait", 50, 50))], catalog=xfa, more_objects=[stream])
    info = inspect(io.BytesIO(data), OPTIONS)
    assert (info.has_forms, info.has_xfa) == (True, True)
    page = next(read_pages(io.BytesIO(data), [1], OPTIONS))
    assert isinstance(page, Page)
    assert page.facts.flags == ("has_xfa",)


def test_an_image_is_a_document_of_its_pixels() -> None:
    info = inspect(io.BytesIO(image_bytes("PNG", (640, 320))), OPTIONS)
    assert info == DocumentInfo("image/png", ((640, 320),), (20 * 10,))


def test_too_many_pages_are_refused() -> None:
    data = pdf_bytes([PdfPage()] * 6)
    assert inspect(io.BytesIO(data), DocumentOptions(max_pages=6)).page_tokens
    assert open_failure(data, DocumentOptions(max_pages=5)).code == ErrorCode.TOO_MANY_PAGES


def test_pages_come_in_the_order_asked_for_and_failures_in_their_place() -> None:
    content = [text(f"page{i}", 50, 400) for i in (1, 2, 3, 4)]
    boxes = ["/MediaBox [0 0 612 792]"] * 4
    boxes[1] = "/MediaBox [0 0 612 3000000000]"
    data = pdf_bytes([PdfPage(box, body) for box, body in zip(boxes, content, strict=True)])
    items = list(read_pages(io.BytesIO(data), [4, 2, 9, 1], OPTIONS))
    numbers = [item.facts.page_no if isinstance(item, Page) else item[0] for item in items]
    assert numbers == [4, 2, 9, 1]
    codes = ["ok" if isinstance(item, Page) else item[1].code for item in items]
    assert codes == ["ok", ErrorCode.PAGE_TOO_LARGE, ErrorCode.PAGE_LOAD_FAILED, "ok"]
    assert inspect(io.BytesIO(data), OPTIONS).page_tokens[1] == 0


@pytest.mark.parametrize("kind", ["pdf", "tiff"])
def test_a_store_that_stops_answering_fails_the_reading_and_not_a_page(kind: str) -> None:
    pages = [PdfPage(content=text(word, 50, 400)) for word in ("one", "two")]
    file = FailingFile(pdf_bytes(pages) if kind == "pdf" else tiff_of_two_frames(), 10**6)
    items = read_pages(file, [1, 2], OPTIONS)
    assert isinstance(next(items), Page)
    file.reads = 0
    with pytest.raises(BadInput, match="slow down"):
        next(items)


def tiff_of_two_frames() -> bytes:
    buffer = io.BytesIO()
    frame = Image.new("RGB", (300, 200), "navy")
    frame.save(buffer, "TIFF", save_all=True, append_images=[frame])
    return buffer.getvalue()


def test_reading_is_repeatable_to_the_byte() -> None:
    data = pdf_bytes(
        [PdfPage("/MediaBox [0 0 300 2000]", "".join(text("some words", 20, y) for y in range(0, 2000, 40)))]
    )
    first, second = (next(read_pages(io.BytesIO(data), [1], OPTIONS)) for _ in range(2))
    assert isinstance(first, Page)
    assert isinstance(second, Page)
    assert all(np.array_equal(a, b) for a, b in zip(first.tiles, second.tiles, strict=True))
    assert (first.facts.words, first.facts.tile_boxes) == (second.facts.words, second.facts.tile_boxes)


@pytest.mark.parametrize(
    ("pages", "chosen"),
    [
        ("", (1, 2, 3, 4, 5, 6, 7, 8)),
        ("3", (3,)),
        ("1-3,7,5-", (1, 2, 3, 5, 6, 7, 8)),
        ("-2, 4 - 5", (1, 2, 4, 5)),
        ("2,2,1-2", (1, 2)),
        ("7-100", (7, 8)),
        ("9,20-", ()),
    ],
)
def test_page_ranges_choose_pages(pages: str, chosen: tuple[int, ...]) -> None:
    assert selected_pages(pages, 8) == chosen


@pytest.mark.parametrize("pages", ["0", "3-2", "a", "1-2-3", "-", ",", "1,,2", "1.5", "²"])
def test_page_ranges_that_make_no_sense_are_refused_with_the_value(pages: str) -> None:
    with pytest.raises(ValueError, match="pages"):
        selected_pages(pages, 8)
    with pytest.raises(ValueError, match="pages"):
        DocumentOptions(pages=pages)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"min_tokens": 0},
        {"min_tokens": 10, "max_tokens": 9},
        {"pixel_multiple": 0},
        {"tile_aspect": 1.0},
        {"tile_aspect": float("nan")},
        {"max_pages": 0},
        {"max_image_pixels": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(nonsense: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(reversed(nonsense))):
        DocumentOptions(**nonsense)  # type: ignore[arg-type]


# The sample documents, as their MANIFEST describes them: pages, or why they do not open.
SAMPLE_PAGES = {
    "01_rotate90_textlayer.pdf": 1,
    "02_two_column_paper.pdf": 1,
    "03_table_paper.pdf": 1,
    "04_math_landscape.pdf": 1,
    "05_handwritten_scan.pdf": 1,
    "06_blank_scan.pdf": 1,
    "07_tiny_page.pdf": 1,
    "08_headers_footers.pdf": 1,
    "09_extreme_aspect.pdf": 2,
    "10_scan_sideways.pdf": 1,
    "11_arabic_rtl.pdf": 1,
    "12_encrypted_user_pw_1234.pdf": ErrorCode.ENCRYPTED,
    "13_multiframe.tif": 2,
    "14_g4_two_column.pdf": 1,
    "15_invalid_header_only.pdf": ErrorCode.CORRUPT,
    "16_zero_bytes.pdf": ErrorCode.EMPTY_FILE,
    "17_page_height_2e31.pdf": 1,
    "18_encrypted_aes256_r6.pdf": ErrorCode.ENCRYPTED,
    "19_acroform.pdf": 1,
    "20_scan_magazine.tif": 1,
    "21_korean_two_column.pdf": 4,
    "22_table_page.pdf": 1,
    "23_rotated_table.pdf": 1,
    "24_office.docx": ErrorCode.UNSUPPORTED_TYPE,
    "25_missing_cjk_font.pdf": 1,
}
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample documents are not here")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(Sandbox(memory_bytes=2 << 30)) as sandbox:
        yield sandbox


@needs_samples
@pytest.mark.parametrize("name", SAMPLE_PAGES)
def test_every_sample_is_read_or_refused_as_its_manifest_says(name: str, sandbox: Sandbox) -> None:
    expected = SAMPLE_PAGES[name]
    if isinstance(expected, ErrorCode):
        with pytest.raises(BadInput, match=expected):
            sandbox.run(read_sample, name, DocumentOptions(), seconds=60)
        return
    info, pages = sandbox.run(read_sample, name, DocumentOptions(), seconds=60)
    assert len(info.page_sizes) == len(pages) == expected
    for page_no, page in enumerate(pages, start=1):
        if isinstance(page, Page):
            assert page.facts.page_no == page_no
            tokens = [tile.shape[0] * tile.shape[1] // 1024 for tile in page.tiles]
            assert all(256 <= count <= 2048 for count in tokens)
            assert sum(tokens) == pytest.approx(info.page_tokens[page_no - 1], rel=0.02)
            assert page.facts.is_blank == (name[:2] in ("06", "25"))
        else:
            assert (name[:2], page[1].code) == ("17", ErrorCode.PAGE_TOO_LARGE)
    assert sandbox.run(resident, "VmHWM", seconds=9) < 2 << 30


def one_page(name: str, page_no: int = 1, **options: object) -> Page:
    page = read_sample(name, DocumentOptions(**options))[1][page_no - 1]  # type: ignore[arg-type]
    assert isinstance(page, Page)
    return page


@needs_samples
def test_encrypted_samples_open_with_their_password() -> None:
    words = one_page("12_encrypted_user_pw_1234.pdf", passwords=("x", "1234")).facts.words
    assert words[0].text == "DocLayNet:"
    words = one_page("18_encrypted_aes256_r6.pdf", passwords=("asdfzxcv",)).facts.words
    assert [word.text for word in words][:2] == ["pdf", "encryption"]
    with pytest.raises(BadInput, match=ErrorCode.WRONG_PASSWORD):
        one_page("12_encrypted_user_pw_1234.pdf", passwords=("asdfzxcv",))


@needs_samples
def test_the_extreme_sample_is_tiled_with_its_text_layer_on_all_the_page() -> None:
    page = one_page("09_extreme_aspect.pdf", 2)
    assert len(page.tiles) == 16
    assert all(tile.shape[1] >= 600 for tile in page.tiles), "not 22 pixels wide"
    assert sum(len(word.text) for word in page.facts.words) > 600
    heights = [word.box[1] for word in page.facts.words]
    assert min(heights) < 0.02 < 0.98 < max(heights)


@needs_samples
def test_the_values_of_the_sample_form_are_visible() -> None:
    page = one_page("19_acroform.pdf")
    height, width, _ = page.tiles[0].shape
    without = pypdfium2.PdfDocument(SAMPLES / "19_acroform.pdf")[0].render(scale=2, may_draw_forms=False).to_pil()
    without_HW = np.asarray(without.convert("L").resize((width, height)))
    only_with_forms_HW = (page.tiles[0].min(axis=-1) < 100) & (without_HW > 200)
    assert only_with_forms_HW.sum() > 200
    assert "has_forms" in page.facts.flags


@needs_samples
def test_a_sample_whose_font_is_missing_is_flagged_and_not_taken_for_empty() -> None:
    facts = one_page("25_missing_cjk_font.pdf").facts
    assert facts.is_blank
    assert "missing_fonts" in facts.flags
    assert "".join(word.text for word in facts.words) == "あいうえお"
