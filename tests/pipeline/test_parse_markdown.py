"""Markdown as Qwen3-VL writes it, and every way it breaks."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.elements import Element
from pipeline.parse_markdown import parse_markdown, plain_markdown

BOX = (0.1, 0.2, 0.3, 0.4)
TABULAR = r"\begin{tabular}{ll} a & b \\ 1 & 2 \\ \end{tabular}"
PIPES = "| a | b |\n| --- | --- |\n| 1 | 2 |"


def outline(text: str) -> list[tuple[str, str]]:
    return [(element.type, element.text) for element in parse_markdown(text)]


def only(text: str) -> Element:
    (element,) = parse_markdown(text)
    return element


@pytest.mark.parametrize(
    ("source", "kind", "text", "level"),
    [
        ("# A **title** #", "title", "A title", 1),
        ("### 3.1 Part", "section_header", "3.1 Part", 3),
        (r"\section*{Method}", "section_header", "Method", 2),
        (r"\subsection{3.3 \textit{Steps}}", "section_header", "3.3 Steps", 3),
        ("two\nlines", "paragraph", "two\nlines", 0),
        ("> quoted\n> twice", "paragraph", "quoted\ntwice", 0),
        ("#hashtag is text", "paragraph", "#hashtag is text", 0),
        ("- item", "list_item", "item", 1),
        ("• item", "list_item", "item", 1),
        ("12) item\n    goes on", "list_item", "item\ngoes on", 1),
        ("```python\nif x:\n    y\n```", "code", "if x:\n    y", 0),
        ("~~~\na\n\nb\n~~~", "code", "a\n\nb", 0),
        ("$$\nE = mc^2\n$$", "formula", "E = mc^2", 0),
        ("$$E = mc^2$$", "formula", "E = mc^2", 0),
        (r"\[ x \]", "formula", "x", 0),
        (r"$d(x,y) = \sqrt{x}$", "formula", r"d(x,y) = \sqrt{x}", 0),
        ("\\begin{equation}\ny = 1\n\\end{equation}", "formula", "y = 1", 0),
        (r"\begin{align*} a &= b \end{align*}", "formula", r"\begin{align*} a &= b \end{align*}", 0),
        ("![A cat](cat.png)", "picture", "A cat", 0),
        ("\\begin{center}\n\\includegraphics[width=1cm]{image.png}\n\\end{center}", "picture", "", 0),
        ("<!-- Image -->", "picture", "", 0),
        (r"\caption{Of \textbf{cats}}", "caption", "Of cats", 0),
        (PIPES, "table", "a\tb\n1\t2", 0),
        ("a | b\n--- | ---\n1 | 2", "table", "a\tb\n1\t2", 0),
        ("| a | b |\n| 1 | 2 |", "table", "a\tb\n1\t2", 0),
        (TABULAR, "table", "a\tb\n1\t2", 0),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>", "table", "a\tb\n1\t2", 0),
        ("<div><table>\n<tr><td>a</td></tr>\n\n</table></div>", "table", "a", 0),
    ],
)
def test_each_kind_of_block_is_read(source: str, kind: str, text: str, level: int) -> None:
    element = only(source)
    assert (element.type, element.text, element.level, element.box) == (kind, text, level, None)


@pytest.mark.parametrize("source", [PIPES, TABULAR, "<table><tr><td>a<td>b<tr><td>1<td>2</table>"])
def test_every_form_of_a_table_gives_the_same_pipes_and_html(source: str) -> None:
    element = only(source)
    assert element.markdown == PIPES
    cells = re.findall(r"<t[dh]>(.*?)</t[dh]>", element.html)
    assert cells == ["a", "b", "1", "2"]


def test_a_table_with_spans_is_html_in_markdown() -> None:
    element = only(r"\begin{tabular}{ll} \multicolumn{2}{c}{a} \\ 1 & 2 \end{tabular}")
    assert element.markdown == '<table><tr><td colspan="2">a</td></tr><tr><td>1</td><td>2</td></tr></table>'


def test_lists_keep_their_levels_markers_and_blank_lines() -> None:
    elements = parse_markdown("Of:\n1. one\n   - in\n     - deeper\n   - in\n2. two\n\n1. new\n\ntext\n\n    - top")
    assert [(element.text, element.level, element.starts_list) for element in elements] == [
        ("Of:", 0, False),
        ("one", 1, False),
        ("in", 2, False),
        ("deeper", 3, False),
        ("in", 2, False),
        ("two", 1, False),
        ("new", 1, True),
        ("text", 0, False),
        ("top", 1, False),
    ]


def test_a_year_that_begins_a_line_of_a_paragraph_is_no_list() -> None:
    assert outline("It was in\n1984. We left.") == [("paragraph", "It was in\n1984. We left.")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # a figure is only located, and what follows is text of the page
        ("<!-- Image (100, 200, 300, 400) -->\n\nFrom us", [("picture", "", BOX), ("paragraph", "From us", None)]),
        ("<!-- Image (100, 200, 300, 400) -->\n![A cat](x)", [("picture", "A cat", BOX)]),
        ("<!-- Chart(100,200,300,400)-->", [("chart", "", BOX)]),
        ("<!-- Chart (100, 200, 300, 400) -->\n" + PIPES, [("chart", "a\tb\n1\t2", BOX)]),
        ("<!-- Signature (100, 200, 300, 400) -->", [("picture", "", BOX)]),
        ("<!-- Table (100, 200, 300, 400) -->\n" + TABULAR, [("table", "a\tb\n1\t2", BOX)]),
        (
            "<!-- table (100, 200, 300, 400) -->" + TABULAR + " behind",
            [("table", "a\tb\n1\t2", BOX), ("paragraph", "behind", None)],
        ),
        (
            "<!-- Table (100, 200, 300, 400) -->\n**Table 1**\n\n" + PIPES,
            [("paragraph", "Table 1", None), ("table", "a\tb\n1\t2", BOX)],
        ),
        (
            "<!-- Table (100, 200, 300, 400) -->\n<!-- Image (1, 2, 3, 4) -->",
            [("table", "", BOX), ("picture", "", (0.001, 0.002, 0.003, 0.004))],
        ),
        ("<!-- Handwritten (100, 200, 300, 400) -->\nDear all", [("paragraph", "Dear all", BOX)]),
        ("<!-- Image (100, 200, 300) -->", [("picture", "", None)]),
        ("text\n<!-- Image (100, 200, 300, 4", [("paragraph", "text", None), ("picture", "", None)]),
        ("text\n<!-- Im", [("paragraph", "text", None)]),
        ("<!-- Page 3 -->\ntext", [("other", "", None), ("paragraph", "text", None)]),
    ],
)
def test_a_location_goes_to_the_element_it_speaks_of(source: str, expected: list[tuple[str, str, object]]) -> None:
    assert [(element.type, element.text, element.box) for element in parse_markdown(source)] == expected


def test_a_location_off_the_grid_is_repaired_and_says_so() -> None:
    element = only("<!-- Image (300, 200, 100, 1400) -->")
    assert (element.box, element.box_repaired) == ((0.1, 0.2, 0.3, 1.0), True)


@pytest.mark.parametrize(
    ("cut", "kind", "text", "markdown"),
    [
        ("```python\nx = 1", "code", "x = 1", "```python\nx = 1\n```"),
        ("$$\nE = mc", "formula", "E = mc", "$$E = mc$$"),
        (r"\begin{tabular}{ll} a & b \\ 1 &", "table", "a\tb\n1\t", "| a | b |\n| --- | --- |\n| 1 |  |"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td", "table", "a\tb", "| a | b |\n| --- | --- |"),
        ("| a | b |\n| --", "table", "a\tb", "| a | b |\n| --- | --- |"),
        ("| a | b |\n|---|---|\n| 1", "table", "a\tb\n1", "| a | b |\n|---|---|\n| 1"),
    ],
)
def test_what_was_cut_off_is_closed(cut: str, kind: str, text: str, markdown: str) -> None:
    element = only(cut)
    assert (element.type, element.text, element.markdown) == (kind, text, markdown)


@pytest.mark.parametrize("opening", ["$$", "\\[", r"\begin{tabular}{l} a", "<table><tr><td>a", "<!-- odd"])
def test_what_is_never_closed_does_not_swallow_the_rest_of_the_page(opening: str) -> None:
    *_, last = parse_markdown(f"{opening}\n\n# After")
    assert (last.type, last.text) == ("title", "After")


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("**a** and *b* and ~~c~~", "a and b and c"),
        ("5*3*2 and snake_case_name and __init__", "5*3*2 and snake_case_name and __init__"),
        ("[link](http://x) `a*b*c` $a*b*c$", "link a*b*c $a*b*c$"),
        (r"\* \# \$5 AT&amp;T \(x\)", r"* # $5 AT&T \(x\)"),
        ("H<sub>2</sub>O<br>next <tag> 3 < 4", "H2O\nnext <tag> 3 < 4"),
    ],
)
def test_plain_text_loses_markup_and_nothing_else(source: str, plain: str) -> None:
    assert plain_markdown(source) == plain


SOUP = ["# ", "## ", "- ", "  - ", "1. ", "3. ", "> ", "| ", "|", " | a |", "\n| --- |\n", "$$", "\\[", "\\]", "```\n"]
SOUP += ["```python\n", "\\begin{tabular}{ll}", "\\end{tabular}", "\\\\", " & ", "\\hline", "\\begin{table}[h]", "<br>"]
SOUP += [
    "\\end{table}",
    "\\caption{",
    "}",
    "{",
    "\\textbf{",
    "\\begin{equation}",
    "\\end{equation}",
    "\\section{",
    "<table>",
]
SOUP += [
    "<tr>",
    "<td>",
    "</td>",
    "</tr>",
    "</table>",
    "<!-- Image (1,2,3,4) -->",
    "<!-- Table (1,2,3,4) -->",
    "**",
    "*",
    "`",
]
SOUP += ["$", "\n", "\n\n", "\n", "\n\n", "![", "](x)", "[", "---", "\\multicolumn{2}{c}{", "\\multirow{2}{*}{", "\\&"]


@pytest.mark.parametrize("seed", range(4))
def test_every_word_of_any_markup_soup_comes_out_exactly_once(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(1500):
        words = [f"w{index}x" for index in range(draw.randrange(1, 6))]
        pieces = words + draw.choices(SOUP, k=draw.randrange(1, 14))
        draw.shuffle(pieces)
        soup = "".join(pieces)
        elements = parse_markdown(soup)
        for found in (
            " ".join(element.text for element in elements),
            "\n".join(element.markdown for element in elements),
        ):
            assert sorted(re.findall(r"w\d+x", found)) == sorted(words), soup


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*SOUP, "<!--", "-->", "<!-- Image (", "\t", "    "]) | st.text(max_size=5)).map("".join)
)
def test_nothing_makes_the_parser_raise(soup: str) -> None:
    for element in parse_markdown(soup):
        assert element.markdown
        assert element.markdown.strip("\n") == element.markdown
