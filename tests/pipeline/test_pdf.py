"""PDF pages: where the ink is in the pixels is where the text layer says, whatever boxes and rotations a page has."""

import io
import itertools

import numpy as np
import pypdfium2
import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from pipeline.boxes import tile_to_page
from pipeline.pdf import MAX_SIDE_POINTS, PdfFile
from pipeline.pixels import PixelBudget
from pipeline.records import BadInput, ErrorCode, Page
from tests.pipeline.document_files import FailingFile, PdfPage, ink_box, largest_difference, pdf_bytes, text

BUDGET = PixelBudget(min_tokens=256, max_tokens=1024, multiple=32, tile_aspect=4.0)


def read(data: bytes, page_no: int = 1, *, passwords: tuple[str, ...] = (), budget: PixelBudget = BUDGET) -> Page:
    with PdfFile(io.BytesIO(data), passwords) as pdf:
        return pdf.read_page(page_no, budget)


def failure_of(data: bytes, *passwords: str) -> ErrorCode:
    with pytest.raises(BadInput) as caught:
        read(data, passwords=passwords)
    return caught.value.failure.code


def encrypted_pdf(user_password: str) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, encrypt=StandardEncryption(user_password, ownerPassword="owner", strength=128))
    canvas.drawString(100, 100, "secret")
    canvas.save()
    return buffer.getvalue()


MEDIA_BOX = "/MediaBox [0 0 500 700]"
BOXES = {
    "no crop": MEDIA_BOX,
    "shifted crop": f"{MEDIA_BOX} /CropBox [40 60 480 640]",
    "media box off the origin": "/MediaBox [-100 -50 400 650]",
    "crop beyond the media box": f"{MEDIA_BOX} /CropBox [-200 30 450 900]",
    "inverted media box": "/MediaBox [500 700 0 0]",
    "user unit": f"{MEDIA_BOX} /UserUnit 2.5",
}


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("boxes", BOXES)
def test_word_boxes_lie_on_the_ink_for_every_rotation_and_crop(boxes: str, rotation: int) -> None:
    places = {"red": ("Redword", 80, 590), "green": ("Greenword", 250, 330), "blue": ("Blueword", 90, 110)}
    content = "".join(text(word, x, y, colour=colour) for colour, (word, x, y) in places.items())
    page = read(pdf_bytes([PdfPage(f"{BOXES[boxes]} /Rotate {rotation}", content)]))
    found = {word.text: word.box for word in page.facts.words}
    assert set(found) == {"Redword", "Greenword", "Blueword"}
    for colour, (word, _, _) in places.items():
        assert largest_difference(found[word], ink_box(page.tiles[0], colour)) < 0.006
    assert page.facts.rotation == rotation % 360
    assert page.tiles[0].shape[0] % 32 == page.tiles[0].shape[1] % 32 == 0


def test_a_rotated_page_is_displayed_clockwise() -> None:
    at_the_top_left = PdfPage(f"{MEDIA_BOX} /Rotate 90", text("Top", 20, 660, colour="red"))
    left, top, right, bottom = read(pdf_bytes([at_the_top_left])).facts.words[0].box
    assert right > 0.9, "what was at the top left is at the top right of the page turned clockwise"
    assert bottom < 0.2
    assert (right - left) * 700 < (bottom - top) * 500, "and the word now runs downwards"


@pytest.mark.parametrize(("rotation", "crop"), itertools.product([0, 90, 180, 270], ["", "/CropBox [20 100 280 2900]"]))
def test_boxes_found_in_tiles_come_back_to_the_words_of_the_page(rotation: int, crop: str) -> None:
    places = {"red": ("Redword", 60, 2700), "green": ("Greenword", 90, 1430), "blue": ("Blueword", 40, 300)}
    content = "".join(text(word, x, y, colour=colour) for colour, (word, x, y) in places.items())
    page = read(pdf_bytes([PdfPage(f"/MediaBox [0 0 300 3000] {crop} /Rotate {rotation}", content)]))
    assert len(page.tiles) == len(page.facts.tile_boxes) == 3
    turned = {0: (), 180: ("upside_down",)}.get(rotation, ("sideways",))
    assert page.facts.flags == (*turned, "tiled")
    found = {word.text: word.box for word in page.facts.words}
    for colour, (word, _, _) in places.items():
        in_tiles = []
        for tile, tile_box in zip(page.tiles, page.facts.tile_boxes, strict=True):
            if has_colour(tile, colour):
                in_tiles.append(tile_to_page(ink_box(tile, colour), tile_box))
        assert len(in_tiles) == 1, "a word stays whole"
        assert largest_difference(found[word], in_tiles[0]) < 0.006


def has_colour(pixels_HWC: np.ndarray, colour: str) -> bool:
    try:
        ink_box(pixels_HWC, colour)
    except IndexError:
        return False
    return True


@pytest.mark.parametrize(
    ("rotation", "size"), [(0, (500, 700)), (90, (700, 500)), (180, (500, 700)), (270, (700, 500))]
)
def test_sizes_are_those_of_the_page_as_displayed(rotation: int, size: tuple[float, float]) -> None:
    data = pdf_bytes([PdfPage(f"/MediaBox [0 0 900 800] /CropBox [100 50 600 750] /Rotate {rotation}")])
    with PdfFile(io.BytesIO(data)) as pdf:
        assert pdf.page_sizes() == (size,)
        page = pdf.read_page(1, BUDGET)
    assert (page.facts.width_pt, page.facts.height_pt) == size
    rows, columns, _ = page.tiles[0].shape
    assert (page.facts.rendered_width, page.facts.rendered_height) == (columns, rows)
    assert (columns > rows) == (size[0] > size[1])


def test_the_text_layer_keeps_the_order_of_the_file_and_splits_at_white_space() -> None:
    content = text("second line", 50, 500) + text("first   line", 50, 600)
    words = [word.text for word in read(pdf_bytes([PdfPage(content=content)])).facts.words]
    assert words == ["second", "line", "first", "line"]


def test_a_word_hyphenated_at_the_end_of_a_line_is_two_words_with_a_box_each() -> None:
    content = "BT /F1 12 Tf 14 TL 100 600 Td (a long para-) Tj T* (graph of text) Tj ET"
    words = read(pdf_bytes([PdfPage(content=content)])).facts.words
    assert [word.text for word in words] == ["a", "long", "para-", "graph", "of", "text"]
    assert words[2].box[3] < words[3].box[1], "the first part ends above the second"


def test_words_outside_the_crop_box_are_not_on_the_page() -> None:
    content = text("inside", 200, 400) + text("outside", 200, 750)
    page = read(pdf_bytes([PdfPage("/MediaBox [0 0 612 792] /CropBox [100 100 500 700]", content)]))
    assert [word.text for word in page.facts.words] == ["inside"]


def test_rendering_fills_the_pixels_with_the_whole_page() -> None:
    content = "1 0 0 rg 0 0 500 700 re f"
    page = read(pdf_bytes([PdfPage(MEDIA_BOX, content)]))
    red, green, blue = (int(value) for value in np.median(page.tiles[0].reshape(-1, 3), axis=0))
    assert (red, green, blue) == (255, 0, 0), "RGB, not BGR"
    edge_HC = page.tiles[0][:, [0, -1]].reshape(-1, 3)
    assert (edge_HC == (255, 0, 0)).all(), "to the last row and column"


def test_the_picture_equals_pdfiums_own_at_the_same_scale() -> None:
    content = "".join(text(f"Line number {i} of some text", 60, 700 - 30 * i) for i in range(20))
    data = pdf_bytes([PdfPage("/MediaBox [0 0 640 800]", content)])
    page = read(data, budget=PixelBudget(min_tokens=1, max_tokens=2000, multiple=32, tile_aspect=4.0))
    height, width, _ = page.tiles[0].shape
    assert (height, width) == (1600, 1280), "this page fits its budget exactly"
    reference = pypdfium2.PdfDocument(data)[0].render(scale=2).to_numpy()
    assert np.abs(page.tiles[0].astype(int) - reference[..., :3][..., ::-1].astype(int)).max() == 0


def test_annotations_and_the_values_of_forms_are_drawn() -> None:
    square = "<</Type /Annot /Subtype /Square /Rect [100 100 300 200] /C [1 0 0] /IC [1 0 0] /F 4 /AP <</N 8 0 R>>>>"
    drawn = "1 0 0 rg 0 0 200 100 re f"
    appearance = f"<</Subtype /Form /BBox [0 0 200 100] /Length {len(drawn)}>>\nstream\n{drawn}\nendstream"
    field = (
        "<</Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (WWWWWW) /F 4 /Rect [100 500 400 560] "
        "/DA (/F1 30 Tf 0 0 1 rg) /MK <<>>>>"
    )
    form = "/AcroForm <</Fields [7 0 R] /NeedAppearances true /DR <</Font <</F1 3 0 R>>>> /DA (/F1 30 Tf 0 g)>>"
    page_with = PdfPage("/MediaBox [0 0 612 792] /Annots [6 0 R 7 0 R]")
    page = read(pdf_bytes([page_with], catalog=form, more_objects=[square, field, appearance]))
    assert largest_difference(ink_box(page.tiles[0], "red"), (100 / 612, 592 / 792, 300 / 612, 692 / 792)) < 0.006
    left, top, right, bottom = ink_box(page.tiles[0], "blue")
    assert 100 / 612 < left < right < 400 / 612
    assert 232 / 792 < top < bottom < 292 / 792
    assert page.facts.flags == ("has_forms",)


def test_a_page_that_renders_blank_but_has_text_is_flagged() -> None:
    invisible = "BT 3 Tr /F1 20 Tf 100 400 Td (nothing to see) Tj ET"
    facts = read(pdf_bytes([PdfPage(content=invisible)])).facts
    assert facts.is_blank
    assert facts.flags == (), "no font would show it"
    empty = read(pdf_bytes([PdfPage()])).facts
    assert empty.is_blank
    assert empty.flags == ()


def test_page_labels_are_those_printed() -> None:
    labels = "/PageLabels <</Nums [0 <</S /r>> 2 <</S /D /P (A-) /St 7>>]>>"
    data = pdf_bytes([PdfPage(content=text(str(i), 50, 50)) for i in range(4)], catalog=labels)
    assert [read(data, page_no).facts.label for page_no in (1, 2, 3, 4)] == ["i", "ii", "A-7", "A-8"]


def test_broken_utf16_in_metadata_and_labels_is_replaced() -> None:
    labels = "/PageLabels <</Nums [0 <</P <FEFF0041DC000042> >>]>>"
    data = pdf_bytes([PdfPage()], catalog=labels, more_objects=["<</Title <FEFF0041D8000042> >>"])
    data = data.replace(b"/Root 1 0 R", b"/Root 1 0 R /Info 6 0 R")
    with PdfFile(io.BytesIO(data)) as pdf:
        assert pdf.metadata("Title") == "A\ufffdB"
        assert pdf.metadata("Author") == ""
        assert pdf.read_page(1, BUDGET).facts.label == "A\ufffdB"


def test_a_page_whose_object_is_damaged_keeps_its_place_and_the_others_say_so() -> None:
    data = pdf_bytes([PdfPage(content=text(f"page{i}", 50, 400)) for i in (1, 2, 3)])
    data = data.replace(b"6 0 obj\n<</Type /Page ", b"6 0 obj\n(/Type) /Page  ")
    with PdfFile(io.BytesIO(data)) as pdf:
        assert len(pdf) == 3
        with pytest.raises(BadInput, match="object 6 is damaged") as caught:
            pdf.read_page(2, BUDGET)
        assert caught.value.failure.code == "page_load_failed"
        pages = [pdf.read_page(page_no, BUDGET).facts for page_no in (1, 3)]
        assert [word.text for page in pages for word in page.words] == ["page1", "page3"]
        assert [page.flags for page in pages] == [("page_tree_broken",)] * 2


def test_pages_without_a_usable_size_fail_alone_and_large_ones_render_in_bounded_pixels() -> None:
    pages = [
        PdfPage("/MediaBox [0 0 200 200] /CropBox [500 500 600 600]", text("Beside", 50, 100)),
        PdfPage(f"/MediaBox [0 0 500 {2 * MAX_SIDE_POINTS}]"),
        PdfPage("/MediaBox [0 0 8400 8400]", text("Large", 3000, 4000, size=1000)),
        PdfPage("/MediaBox [0 0 2 14000]"),
        PdfPage("/MediaBox [0 0 0.5 0.5]"),
    ]
    with PdfFile(io.BytesIO(pdf_bytes(pages))) as pdf:
        assert pdf.page_sizes() == ((200.0, 200.0), (0.0, 0.0), (8400.0, 8400.0), (2.0, 14000.0), (0.5, 0.5))
        with pytest.raises(BadInput) as caught:
            pdf.read_page(2, BUDGET)
        assert caught.value.failure.code == ErrorCode.PAGE_TOO_LARGE
        assert pdf.read_page(1, BUDGET).facts.words[0].text == "Beside", "a CropBox beside the page is ignored"
        assert pdf.read_page(3, BUDGET).tiles[0].shape == (1024, 1024, 3)
        strip = pdf.read_page(4, BUDGET)
        assert len(strip.tiles) == 16
        assert all(tile.shape[0] * tile.shape[1] <= 1024 * 1024 for tile in strip.tiles)
        assert pdf.read_page(5, BUDGET).facts.is_blank


def test_what_cannot_be_opened_says_why() -> None:
    no_pages = pdf_bytes([])
    assert failure_of(no_pages) == ErrorCode.NO_PAGES
    assert failure_of(b"%PDF-1.4\nnothing of use") == ErrorCode.CORRUPT
    assert failure_of(no_pages) == ErrorCode.NO_PAGES, "not the error of the file before"


def test_a_file_that_is_cut_off_says_what_could_bring_its_pages_back() -> None:
    data = pdf_bytes([PdfPage(content=text("one", 50, 400))])
    with pytest.raises(BadInput, match="qpdf") as caught, PdfFile(io.BytesIO(data[: data.index(b"3 0 obj")])):
        pass
    assert caught.value.failure.code == ErrorCode.CORRUPT


def test_encrypted_documents_open_with_one_of_the_passwords_only() -> None:
    data = encrypted_pdf("opens")
    assert failure_of(data) == ErrorCode.ENCRYPTED
    assert failure_of(data, "wrong", "Opens") == ErrorCode.WRONG_PASSWORD
    assert read(data, passwords=("wrong", "opens")).facts.words[0].text == "secret"
    assert read(encrypted_pdf("")).facts.words[0].text == "secret", "an empty user password asks for nothing"
    with PdfFile(io.BytesIO(data), ["opens"]) as pdf:
        assert pdf.encrypted


def test_no_message_contains_a_password() -> None:
    with pytest.raises(BadInput) as caught:
        read(encrypted_pdf("opens"), passwords=("hunter2",))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.failure)


def test_a_store_that_stops_answering_is_not_taken_for_a_corrupt_file_or_page() -> None:
    data = pdf_bytes([PdfPage(content=text(f"page{i}", 50, 400)) for i in range(50)])
    counting = FailingFile(data, 10**6)
    read_all(counting)
    reads_in_all = 10**6 - counting.reads
    for reads in (0, 1, reads_in_all // 2, reads_in_all - 1):
        with pytest.raises(BadInput, match="slow down"):
            read_all(FailingFile(data, reads))


def read_all(file: io.BytesIO) -> None:
    thumbnail = PixelBudget(min_tokens=1, max_tokens=4, multiple=32, tile_aspect=4.0)
    with PdfFile(file) as pdf:
        for page_no in range(1, len(pdf) + 1):
            pdf.read_page(page_no, thumbnail)


def test_a_page_is_read_without_reading_the_whole_file() -> None:
    filler = "% " + "x" * 1_000_000
    data = pdf_bytes([PdfPage(content=text("one", 50, 50)), PdfPage(content=filler), PdfPage(content=filler)])
    file = io.BytesIO(data)
    asked = []
    read_on = file.read
    file.read = lambda size=-1: asked.append(size) or read_on(size)  # type: ignore[method-assign]
    with PdfFile(file) as pdf:
        pdf.page_sizes()
        assert pdf.read_page(1, BUDGET).facts.words[0].text == "one"
    assert sum(asked) < 20_000
