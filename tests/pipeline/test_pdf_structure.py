"""PDFs whose structure says other than their pages: page trees, boxes, units, layers, attachments, forms."""

import io
import re
from collections.abc import Sequence

import pikepdf
import pytest

from pipeline.documents import DocumentInfo, DocumentOptions, inspect, read_pages
from pipeline.records import BadInput, Page
from tests.pipeline.document_files import PdfPage, ink_box, largest_difference, pdf_bytes, pdf_of, text

OPTIONS = DocumentOptions(max_tokens=256)
FONT = "<</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>"
RESOURCES = "/Resources <</Font <</F1 3 0 R>>>>"


def read(data: bytes, options: DocumentOptions = OPTIONS) -> tuple[DocumentInfo, list[Page]]:
    info = inspect(io.BytesIO(data), options)
    pages = list(read_pages(io.BytesIO(data), range(1, len(info.page_sizes) + 1), options))
    assert all(isinstance(page, Page) for page in pages), pages
    return info, [page for page in pages if isinstance(page, Page)]


def words(pages: Sequence[Page]) -> list[str]:
    return [" ".join(word.text for word in page.facts.words) for page in pages]


def tree(root: str, *nodes: str, page: str = "/Type /Page /MediaBox [0 0 612 792]") -> bytes:
    """Objects: 1 catalog, 2 `root`, 3 font, pages 4, 6, 8, 10 that say one, two, three, four, then `nodes` from 12."""
    objects = ["<</Type /Catalog /Pages 2 0 R>>", root, FONT]
    for number, word in enumerate(("one", "two", "three", "four")):
        content = text(word, 72, 700)
        objects += [f"<<{page} {RESOURCES} /Contents {5 + 2 * number} 0 R>>"]
        objects += [f"<</Length {len(content)}>>\nstream\n{content}\nendstream"]
    return pdf_of([*objects, *nodes])


ALL = "4 0 R 6 0 R 8 0 R 10 0 R"
TREES = {
    "count too small": tree(f"<</Type /Pages /Kids [{ALL}] /Count 2>>"),
    "count too large": tree(f"<</Type /Pages /Kids [{ALL}] /Count 9>>"),
    "no count": tree(f"<</Type /Pages /Kids [{ALL}]>>"),
    "count negative": tree(f"<</Type /Pages /Kids [{ALL}] /Count -4>>"),
    "count a word": tree(f"<</Type /Pages /Kids [{ALL}] /Count /Four>>"),
    "null kids": tree("<</Type /Pages /Kids [null 4 0 R null 6 0 R 99 0 R 8 0 R 10 0 R null] /Count 8>>"),
    "null kids and the right count": tree("<</Type /Pages /Kids [4 0 R null 6 0 R 8 0 R 10 0 R] /Count 4>>"),
    "kids that are no pages": tree("<</Type /Pages /Kids [3 0 R 4 0 R 5 0 R 6 0 R (x) 8 0 R 7 10 0 R] /Count 8>>"),
    "a kid twice": tree(f"<</Type /Pages /Kids [4 0 R {ALL}] /Count 5>>"),
    "a cycle to the root": tree("<</Type /Pages /Kids [4 0 R 6 0 R 2 0 R 8 0 R 10 0 R] /Count 5>>"),
    "a cycle between nodes": tree(
        "<</Type /Pages /Kids [12 0 R 8 0 R 10 0 R] /Count 4>>", "<</Type /Pages /Kids [4 0 R 2 0 R 6 0 R] /Count 2>>"
    ),
    "nested counts too small": tree(
        "<</Type /Pages /Kids [12 0 R 13 0 R] /Count 4>>",
        "<</Type /Pages /Kids [4 0 R 6 0 R] /Count 1>>",
        "<</Type /Pages /Kids [8 0 R 10 0 R] /Count 1>>",
    ),
    "nested counts too large": tree(
        "<</Type /Pages /Kids [12 0 R 13 0 R] /Count 4>>",
        "<</Type /Pages /Kids [4 0 R 6 0 R] /Count 7>>",
        "<</Type /Pages /Kids [8 0 R 10 0 R] /Count 2>>",
    ),
    "an empty node": tree(f"<</Type /Pages /Kids [12 0 R {ALL}] /Count 4>>", "<</Type /Pages /Count 0>>"),
    "kids not in an array": tree("<</Type /Pages /Kids 12 0 R /Count 4>>", f"<</Type /Pages /Kids [{ALL}] /Count 4>>"),
    "a page written into the tree": tree(
        f"<</Type /Pages /Kids [<</Type /Page /MediaBox [0 0 612 792] {RESOURCES} /Contents 5 0 R>> "
        "6 0 R 8 0 R 10 0 R] /Count 4>>"
    ),
    "six hundred levels": tree(
        "<</Type /Pages /Kids [12 0 R] /Count 4>>",
        *(f"<</Type /Pages /Kids [{13 + level} 0 R] /Count 4>>" for level in range(600)),
        f"<</Type /Pages /Kids [{ALL}] /Count 4>>",
    ),
    "a tree that leads nowhere": tree("<</Type /Pages /Kids [] /Count 4>>"),
    "a page for a tree": tree("").replace(b"/Pages 2 0 R", b"/Pages 4 0 R"),
    "pages that call themselves otherwise": tree(
        f"<</Type /Pages /Kids [{ALL}] /Count 4>>", page="/Type /Pge /MediaBox [0 0 612 792]"
    ),
    "pages that call themselves nodes": tree(
        f"<</Type /Pages /Kids [{ALL}] /Count 4>>", page="/Type /Pages /MediaBox [0 0 612 792]"
    ),
    "pages with kids": tree(
        f"<</Type /Pages /Kids [{ALL}] /Count 4>>", page="/Type /Page /Kids [] /MediaBox [0 0 612 792]"
    ),
    "an object that is null": tree(f"<</Type /Pages /Kids [12 0 R {ALL}] /Count 5>>", "null"),
}


@pytest.mark.parametrize("case", TREES)
def test_every_real_page_of_a_broken_tree_is_read_once_and_in_order(case: str) -> None:
    info, pages = read(TREES[case])
    assert words(pages) == ["one", "two", "three", "four"]
    assert info.page_tree_broken
    assert all("page_tree_broken" in page.facts.flags for page in pages)


@pytest.mark.parametrize(
    "data",
    [
        tree(f"<</Type /Pages /Kids [{ALL}] /Count 4>>"),
        tree(f"<</Type /Pages /Kids [{ALL}] /Count 4>>", page="/MediaBox [0 0 612 792]"),
        tree(f"<</Kids [{ALL}] /Count 4 /MediaBox [0 0 612 792]>>", page="/Type /Page"),
        tree(
            "<</Type /Pages /Kids [12 0 R 8 0 R 13 0 R] /Count 4>>",
            "<</Type /Pages /Kids [4 0 R 6 0 R] /Count 2>>",
            "<</Type /Pages /Kids [10 0 R] /Count 1>>",
        ),
    ],
    ids=["flat", "pages without a type", "nodes without a type", "nested"],
)
def test_a_sound_tree_is_not_called_broken(data: bytes) -> None:
    info, pages = read(data)
    assert words(pages) == ["one", "two", "three", "four"]
    assert not info.page_tree_broken


SOUND = tree(f"<</Type /Pages /Kids [{ALL}] /Count 4>>")


def told(data: bytes) -> list[str]:
    """The words of each page, or the code of what keeps it from being read."""
    info = inspect(io.BytesIO(data), OPTIONS)
    results = list(read_pages(io.BytesIO(data), range(1, len(info.page_sizes) + 1), OPTIONS))
    return [words([result])[0] if isinstance(result, Page) else result[1].code for result in results]


def damaged(how: str) -> bytes:
    """The file with the page that says "three" made unreadable, nothing moved."""
    start = SOUND.index(b"8 0 obj")
    end = SOUND.index(b"endobj", start)
    first, last, filling = {
        "zeros": (start, end + 6, b"\0"),
        "its head": (start, start + 7, b"\0"),
        "its dictionary": (start + 8, end, b" "),
        "its end": (start + 40, end + 6, b"\0"),
        "other text": (start + 8, end, b"@"),
    }[how]
    return SOUND[:first] + filling * (last - first) + SOUND[last:]


@pytest.mark.parametrize("how", ["zeros", "its head", "its dictionary", "its end", "other text"])
def test_a_page_whose_object_is_damaged_is_a_failed_page_in_its_place(how: str) -> None:
    assert told(damaged(how)) == ["one", "two", "page_load_failed", "four"]


@pytest.mark.parametrize("case", ["null kids and the right count", "pages that call themselves otherwise", "no count"])
@pytest.mark.parametrize("table", ["no table", "a wrong place of the table"])
def test_a_broken_tree_in_a_file_without_its_table_is_read_too(case: str, table: str) -> None:
    data = TREES[case]
    data = data[: data.rindex(b"xref\n0")] if table == "no table" else re.sub(rb"(startxref\n)\d+", rb"\g<1>12", data)
    _, pages = read(data)
    assert words(pages) == ["one", "two", "three", "four"]
    assert all("file_damaged" in page.facts.flags for page in pages)
    assert "file_damaged" not in read(TREES[case])[1][0].facts.flags


@pytest.mark.parametrize(
    ("place", "left"),
    [
        (b"trailer", ["one", "two", "three", "four"]),
        (b"10 0 obj", ["one", "two", "three", "page_load_failed"]),
        (b"9 0 obj", ["one", "two", "page_load_failed", "page_load_failed"]),
        (b"6 0 obj", ["one", "page_load_failed", "page_load_failed", "page_load_failed"]),
    ],
)
def test_of_a_file_that_is_cut_off_every_page_is_read_or_failed(place: bytes, left: list[str]) -> None:
    """What is left is what MuPDF reads as well; PDFium opens none of these."""
    assert told(SOUND[: SOUND.index(place)]) == left


def test_a_file_cut_off_before_its_first_page_is_corrupt_and_says_what_may_help() -> None:
    with pytest.raises(BadInput, match="qpdf") as caught:
        read(SOUND[: SOUND.index(b"4 0 obj")])
    assert caught.value.failure.code == "corrupt"


def test_a_page_at_a_wrong_place_of_the_table_is_found() -> None:
    place = SOUND.index(b"8 0 obj")
    for wrong in (place + 3, 99999, SOUND.index(b"3 0 obj")):
        data = SOUND.replace(b"%010d 00000 n" % place, b"%010d 00000 n" % wrong)
        assert told(data) == ["one", "two", "three", "four"]


def test_pages_of_a_mended_tree_keep_what_they_had_from_above() -> None:
    root = f"<</Type /Pages /Kids [{ALL} null] /Count 7 /MediaBox [0 0 300 200] /Rotate 90>>"
    info, pages = read(tree(root, page="/Type /Page"))
    assert info.page_sizes == ((200.0, 300.0),) * 4
    assert [page.facts.rotation for page in pages] == [90] * 4


def test_an_encrypted_file_with_a_broken_tree_is_mended_and_stays_called_encrypted() -> None:
    file = io.BytesIO()
    with pikepdf.open(io.BytesIO(TREES["count too small"])) as pdf:
        pdf.save(file, encryption=pikepdf.Encryption(user="opens", owner="own", R=6))
    data = file.getvalue().replace(b"/Count 4", b"/Count 2")
    info, pages = read(data, DocumentOptions(max_tokens=256, passwords=("wrong", "opens")))
    assert (len(pages), info.encrypted) == (4, True)


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        ("/MediaBox [0 0 612 792] /UserUnit 72", (612 * 72, 792 * 72)),
        ("/MediaBox [0 0 8.5 11] /UserUnit 72", (612, 792)),
        ("/MediaBox [0 0 612 792] /UserUnit 1.5", (918, 1188)),
        ("/MediaBox [0 0 612 792] /UserUnit 0.1", (61.2, 79.2)),
        ("/MediaBox [0 0 612 792] /UserUnit 2 /Rotate 90", (1584, 1224)),
        ("/MediaBox [0 0 612 792] /UserUnit 0", (612, 792)),
        ("/MediaBox [0 0 612 792] /UserUnit -3", (612, 792)),
        ("/MediaBox [0 0 612 792] /UserUnit 1000000000", (612, 792)),
        ("/MediaBox [0 0 612 792] /UserUnit (x)", (612, 792)),
        ("/MediaBox [0 0 612 792] /CropBox [700 0 900 100]", (612, 792)),
        ("/MediaBox [0 0 612 792] /CropBox [512 692 900 900]", (100, 100)),
        ("/MediaBox [0 0 612 792] /CropBox [500 600 100 200]", (400, 400)),
        ("/MediaBox [612 792 0 0]", (612, 792)),
        ("/MediaBox [0 0 612 792] /CropBox [0 0 0 0]", (612, 792)),
        ("/MediaBox [0 0 612 792] /CropBox [612 0 700 792]", (612, 792)),
        ("/MediaBox [100 100 400 500] /CropBox [-200 -200 90 90] /Rotate 270", (400, 300)),
    ],
)
def test_a_page_measures_what_its_boxes_and_units_say(boxes: str, size: tuple[float, float]) -> None:
    info, pages = read(pdf_bytes([PdfPage(boxes, text("Word", 200, 300))]))
    assert info.page_sizes[0] == pytest.approx(size, rel=1e-5)
    assert (pages[0].facts.width_pt, pages[0].facts.height_pt) == pytest.approx(size, rel=1e-5)


def test_boxes_of_words_lie_on_the_ink_where_the_crop_box_lies_beside_the_page() -> None:
    content = text("Redword", 150, 300, size=40, colour="red")
    _, (page,) = read(pdf_bytes([PdfPage("/MediaBox [100 100 400 500] /CropBox [900 900 990 990]", content)]))
    assert largest_difference(page.facts.words[0].box, ink_box(page.tiles[0], "red")) < 0.05


def layered(config: str, content: str, *, membership: str = "null") -> bytes:
    """A page whose layers /oc1 and /oc2 are the objects 6, "Draft", and 7, "Final"; /oc3 is `membership`."""
    entries = (
        "/MediaBox [0 0 612 792] /Resources <</Font <</F1 3 0 R>> /Properties <</oc1 6 0 R /oc2 7 0 R /oc3 8 0 R>>>>"
    )
    catalog = f"/OCProperties <</OCGs [6 0 R 7 0 R] /D <<{config}>>>>"
    more = [
        "<</Type /OCG /Name (Draft) /Usage <</View <</ViewState /OFF>>>>>>",
        "<</Type /OCG /Name (Final)>>",
        membership,
    ]
    data = pdf_bytes([PdfPage(entries, content)], catalog=catalog, more_objects=more)
    own = b"/Resources <</Font <</F1 3 0 R>>>>"
    return data.replace(own + b" /Contents", b" " * len(own) + b" /Contents", 1)


BOTH = (
    f"/OC /oc1 BDC {text('Hidden draft', 72, 600)} EMC /OC /oc2 BDC {text('Final words', 72, 500)} EMC "
    f"{text('Always', 72, 400)}"
)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("/OFF [6 0 R]", "Final words Always"),
        ("/OFF [7 0 R]", "Hidden draft Always"),
        ("/OFF [6 0 R 7 0 R]", "Always"),
        ("/BaseState /OFF", "Always"),
        ("/BaseState /OFF /ON [7 0 R]", "Final words Always"),
        ("/AS [<</Event /View /Category [/View] /OCGs [6 0 R]>>]", "Final words Always"),
        ("", "Hidden draft Final words Always"),
    ],
)
def test_text_of_a_layer_that_is_off_is_not_told(config: str, told: str) -> None:
    assert words(read(layered(config, BOTH))[1]) == [told]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("/OCGs [6 0 R 7 0 R]", "Member"),
        ("/OCGs 6 0 R", ""),
        ("/OCGs [6 0 R 7 0 R] /P /AllOn", ""),
        ("/OCGs [7 0 R] /P /AllOn", "Member"),
        ("/OCGs [7 0 R] /P /AnyOff", ""),
        ("/OCGs [6 0 R] /P /AllOff", "Member"),
        ("/OCGs []", "Member"),
    ],
)
def test_text_that_a_membership_of_layers_hides_is_not_told(policy: str, told: str) -> None:
    content = f"/OC /oc3 BDC {text('Member', 72, 600)} EMC"
    _, (page,) = read(layered("/OFF [6 0 R]", content, membership=f"<</Type /OCMD {policy}>>"))
    assert words([page]) == [told]
    assert page.facts.is_blank == (told == "")


@pytest.mark.parametrize(
    ("membership", "told"),
    [
        ("/VE [/Not 6 0 R]", "Member"),
        ("/VE [/Not 7 0 R]", ""),
        ("/VE [/And 6 0 R 7 0 R]", ""),
        ("/VE [/Or 6 0 R 7 0 R]", "Member"),
        ("/VE [/And [/Not 6 0 R] 7 0 R]", "Member"),
        ("/VE [/Not [/Or 6 0 R 7 0 R]]", ""),
        ("/VE [/Not 6 0 R] /OCGs 6 0 R", "Member"),
    ],
)
@pytest.mark.parametrize("is_inline", [False, True])
def test_text_that_an_expression_of_layers_hides_is_not_told(membership: str, told: str, is_inline: bool) -> None:
    whole = f"<</Type /OCMD {membership}>>"
    data = layered("/OFF [6 0 R]", f"/OC /oc3 BDC {text('Member', 72, 600)} EMC", membership=whole)
    if is_inline:
        data = data.replace(b"/oc3 8 0 R", b"/oc3 " + whole.encode())
    _, (page,) = read(data)
    assert words([page]) == [told]
    assert page.facts.is_blank == (told == "")


@pytest.mark.parametrize(
    ("config", "state", "is_hidden"),
    [
        ("", "OFF", False),
        ("/AS [<</Event /View /Category [/View] /OCGs [6 0 R]>>]", "OFF", True),
        ("/AS [<</Event /Print /Category [/Print] /OCGs [6 0 R]>>]", "OFF", False),
        ("/OFF [6 0 R]", "ON", True),
        ("/OFF [6 0 R] /AS [<</Event /View /Category [/View] /OCGs [6 0 R]>>]", "ON", False),
    ],
)
def test_the_usage_of_a_layer_counts_only_where_it_is_applied(config: str, state: str, is_hidden: bool) -> None:
    data = layered(config, f"/OC /oc1 BDC {text('Draft', 72, 600)} EMC")
    _, (page,) = read(data.replace(b"/ViewState /OFF", f"/ViewState /{state}".ljust(15).encode()))
    assert (page.facts.is_blank, words([page])) == (is_hidden, ["" if is_hidden else "Draft"])


@pytest.mark.parametrize("name", ["<FEFF00C400E4>", "(\\344)", "()", f"({'long ' * 60})"])
def test_a_layer_that_is_off_may_have_any_name(name: str) -> None:
    data = layered("/OFF [6 0 R]", BOTH).replace(b"(Draft)", name.encode())
    assert words(read(data)[1]) == ["Final words Always"]


def test_of_two_layers_of_one_name_the_one_that_is_off_is_not_told() -> None:
    assert words(read(layered("/OFF [6 0 R]", BOTH).replace(b"(Draft)", b"(Final)"))[1]) == ["Final words Always"]


def test_a_form_in_a_layer_that_is_off_is_not_told() -> None:
    data = layered("/OFF [6 0 R]", f"/Fm Do {text('Always', 72, 400)}")
    with pikepdf.open(io.BytesIO(data)) as pdf:
        page = pdf.pages[0]
        form = pikepdf.Stream(pdf, text("Hidden", 72, 600).encode(), Type=pikepdf.Name.XObject)
        form.Subtype, form.BBox, form.OC = pikepdf.Name.Form, [0, 0, 612, 792], page.Resources.Properties.oc1
        form.Resources = pikepdf.Dictionary(Font=page.Resources.Font)
        page.Resources.XObject = pikepdf.Dictionary(Fm=form)
        file = io.BytesIO()
        pdf.save(file)
    assert words(read(file.getvalue())[1]) == ["Always"]


def test_a_page_of_nothing_but_a_layer_that_is_off_is_blank_and_lacks_no_font() -> None:
    _, (page,) = read(layered("/OFF [6 0 R]", f"/OC /oc1 BDC {text('Hidden draft', 72, 600)} EMC"))
    assert (page.facts.is_blank, page.facts.flags, page.facts.words) == (True, (), ())


@pytest.mark.parametrize("invisible", ["1 1 1 rg", "3 Tr", "1 g"])
def test_text_that_nobody_should_see_lacks_no_font(invisible: str) -> None:
    _, (page,) = read(pdf_bytes([PdfPage(content=f"BT {invisible} /F1 20 Tf 100 400 Td (nothing to see) Tj ET")]))
    assert (page.facts.is_blank, page.facts.flags) == (True, ())


def test_attached_files_are_counted_and_the_page_is_read() -> None:
    file = io.BytesIO()
    with pikepdf.open(io.BytesIO(pdf_bytes([PdfPage(content=text("Cover", 72, 700))]))) as pdf:
        for name in ("one.pdf", "two.pdf", "three.xml"):
            pdf.attachments[name] = pikepdf.AttachedFileSpec(pdf, b"%PDF-1.7 inside", filename=name)
        pdf.save(file)
    info, pages = read(file.getvalue())
    assert (info.attachments, words(pages), pages[0].facts.flags) == (3, ["Cover"], ("attachments",))


def test_a_file_attached_to_a_place_on_a_page_is_flagged_on_that_page() -> None:
    pin = "/Annots [<</Type /Annot /Subtype /FileAttachment /Rect [10 10 20 20] /FS <</Type /Filespec /F (a)>>>>]"
    pages = [PdfPage(content=text("plain", 72, 700)), PdfPage(f"/MediaBox [0 0 612 792] {pin}", text("pin", 72, 700))]
    info, read_back = read(pdf_bytes(pages))
    assert info.attachments == 1
    assert ["attachments" in page.facts.flags for page in read_back] == [False, True]


def test_a_form_that_a_viewer_has_to_build_is_flagged() -> None:
    info, pages = read(pdf_bytes([PdfPage(content=text("Please wait", 72, 700))], catalog="/NeedsRendering true"))
    assert info.needs_rendering
    assert pages[0].facts.flags == ("needs_rendering",)


@pytest.mark.parametrize(
    ("rotate", "matrix", "flags"),
    [
        (0, "1 0 0 1 100 400", ()),
        (0, "-1 0 0 -1 500 400", ("upside_down",)),
        (0, "0 1 -1 0 300 100", ("sideways",)),
        (0, "0 -1 1 0 300 600", ("sideways",)),
        (90, "0 1 -1 0 300 100", ()),
        (270, "0 -1 1 0 300 600", ()),
        (180, "-1 0 0 -1 500 400", ()),
        (90, "0 -1 1 0 300 600", ("upside_down",)),
        (180, "1 0 0 1 100 400", ("upside_down",)),
        (0, "0.7 0.7 -0.7 0.7 200 300", ()),
    ],
)
def test_a_page_whose_text_does_not_stand_upright_to_a_reader_is_flagged(
    rotate: int, matrix: str, flags: tuple[str, ...]
) -> None:
    for mode in (0, 3):  # drawn, and not drawn as behind a scan
        content = f"BT {mode} Tr /F1 20 Tf {matrix} Tm (most of the text) Tj ET BT /F1 8 Tf 30 30 Td (small) Tj ET"
        scan = "0.5 g 40 40 300 300 re f "
        _, (page,) = read(pdf_bytes([PdfPage(f"/MediaBox [0 0 612 792] /Rotate {rotate}", scan + content)]))
        assert page.facts.flags == flags
