"""QwenVL HTML as the model writes it, and every way it breaks."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.elements import Element
from pipeline.parse_html import parse_html

BOX = (0.1, 0.2, 0.3, 0.4)
AT = 'data-bbox="100 200 300 400"'


def parsed(text: str) -> tuple[Element, ...]:
    elements = parse_html(text)
    assert elements is not None
    return elements


def outline(text: str) -> list[tuple[str, str]]:
    return [(element.type, element.text) for element in parsed(text)]


# The examples are those of the Qwen2.5-VL report (section 2.2.1), filled in.
@pytest.mark.parametrize(
    ("html", "kind", "text", "markdown"),
    [
        (f"<h1 {AT}>A title</h1>", "title", "A title", "# A title"),
        (f"<h3 {AT}>Part</h3>", "section_header", "Part", "### Part"),
        (f"<p {AT}> content </p>", "paragraph", "content", "content"),
        (f"<ul><li {AT}>item</li></ul>", "list_item", "item", "- item"),
        (f"<ol start='7'><li {AT}>item</li></ol>", "list_item", "item", "7. item"),
        (f"<img {AT}>", "picture", "", "<!-- image -->"),
        (f'<div class="image" {AT}></div>', "picture", "", "<!-- image -->"),
        (
            f'<div class="image caption" {AT}> <img {AT} /><p> a cat\nsits </p></div>',
            "picture",
            "a cat sits",
            "![a cat sits]()",
        ),
        (f'<div class="image ocr" {AT}> <img {AT} /><p> EXIT </p></div>', "picture", "EXIT", "![EXIT]()"),
        (f'<div class="formula" {AT}> <img {AT} /> <div> E=mc^2 </div></div>', "formula", "E=mc^2", "$$E=mc^2$$"),
        (f'<div class="formula.handwritten" {AT}>\\[ x_1 \\]</div>', "formula", "x_1", "$$x_1$$"),
        (
            f'<style>table1 {{}}</style><table {AT} class="table1"><tr><th>a</th><th>b</th></tr>'
            "<tr><td>1</td><td>2</td></tr></table>",
            "table",
            "a\tb\n1\t2",
            "| a | b |\n| --- | --- |\n| 1 | 2 |",
        ),
        (f'<div class="table" {AT}><table><tr><td>1</td></tr></table></div>', "table", "1", "| 1 |\n| --- |"),
        (
            f'<div class="chart" {AT}> <img {AT} /><table><tr><td>1</td></tr></table></div>',
            "chart",
            "1",
            "| 1 |\n| --- |",
        ),
        (f'<div class="chart" {AT}></div>', "chart", "", "<!-- chart -->"),
        (
            f'<div class="music sheet" format="abc notation" {AT}><img {AT}/><div>X:1 C2</div></div>',
            "picture",
            "X:1 C2",
            "![X:1 C2]()",
        ),
        (
            f'<div class="chemical formula" format="smile" {AT}><img {AT}/><div>C=O</div></div>',
            "picture",
            "C=O",
            "![C=O]()",
        ),
        (f'<div class="text" {AT}>words</div>', "paragraph", "words", "words"),
        (f'<div class="page_number" {AT}>12</div>', "page_number", "12", "12"),
        (f'<div class="header" {AT}>Journal</div>', "page_header", "Journal", "Journal"),
        (f"<footer {AT}><p>End</p></footer>", "page_footer", "End", "End"),
        (f"<figcaption {AT}>Figure 1</figcaption>", "caption", "Figure 1", "Figure 1"),
        (f"<pre {AT}>if x:\n    y</pre>", "code", "if x:\n    y", "```\nif x:\n    y\n```"),
    ],
)
def test_each_kind_of_block_is_read_with_its_box(html: str, kind: str, text: str, markdown: str) -> None:
    (element,) = parsed(f"<html><body>\n{html}\n</body></html>")
    assert (element.type, element.text, element.markdown) == (kind, text, markdown)
    assert (element.box, element.box_repaired) == (BOX, False)


@pytest.mark.parametrize(
    "attribute",
    [
        "data-bbox='100 200 300 400'",
        "data-bbox=100,200,300,400",
        'data-bbox="[100, 200, 300, 400]"',
        'DATA-BBOX = "100 200 300 400"',
        'class="x" data-bbox="100 200 300 400',  # the closing quote is missing
    ],
)
def test_the_box_is_found_however_the_attribute_is_written(attribute: str) -> None:
    first, second = parsed(f"<p {attribute}>one</p><p>two</p>")
    assert (first.text, first.box, second.text, second.box) == ("one", BOX, "two", None)


def test_entities_and_inline_tags_become_text_that_markdown_shows_as_it_is() -> None:
    (element,) = parsed("<p>AT&amp;T &lt;b&gt; caf&eacute; <b>bold</b> H<sub>2</sub>O 3 &lt; 4<br>next</p>")
    assert element.text == "AT&T <b> café bold H2O 3 < 4\nnext"
    assert element.markdown == "AT&T \\<b> café bold H2O 3 < 4\nnext"


@pytest.mark.parametrize("text", ["<john@example.org>", "if a <b2 and c> d", "</unknown>"])
def test_what_only_looks_like_a_tag_stays_in_the_text(text: str) -> None:
    assert outline(f"<p>see {text} there</p>") == [("paragraph", f"see {text} there")]


def test_lists_nest_and_number_their_items() -> None:
    elements = parsed("<ol><li>one<ul><li>in<br>ner</li></ul></li><li>two</li></ol><ul><li>• other</li></ul>")
    assert [(element.markdown, element.level) for element in elements] == [
        ("1. one", 1),
        ("    - in\n      ner", 2),
        ("2. two", 1),
        ("- other", 1),
    ]
    assert [element.starts_list for element in elements] == [True, False, False, True]


def test_a_number_written_into_an_item_is_its_marker() -> None:
    (element,) = parsed("<ul><li>3) third</li></ul>")
    assert (element.markdown, element.text) == ("3) third", "third")


def test_spans_keep_a_table_in_html() -> None:
    (element,) = parsed('<table><tr><th rowspan="2">a</th><td colspan=2>b|&lt;c&gt;</td></tr><tr><td>d<td>e</table>')
    expected = (
        '<table><tr><th rowspan="2">a</th><td colspan="2">b|&lt;c&gt;</td></tr><tr><td>d</td><td>e</td></tr></table>'
    )
    assert element.markdown == element.html == expected
    assert element.text == "a\tb|<c>\nd\te"


def test_pipes_and_line_breaks_in_cells_do_not_break_a_pipe_table() -> None:
    (element,) = parsed("<table><tr><td>a|b</td><td>c<br>d</td></tr><tr><td>e</td></tr></table>")
    assert element.markdown == "| a\\|b | c<br>d |\n| --- | --- |\n| e |  |"


def test_a_table_in_a_cell_becomes_the_text_of_the_cell() -> None:
    nested = "<table><tr><td>" * 100 + "total 7" + "</td></tr></table>" * 100
    assert outline(nested) == [("table", "total 7")]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (f"<p {AT}>one<p {AT}>two", [("paragraph", "one"), ("paragraph", "two")]),
        (f"<h2 {AT}>one<p {AT}>two</h2>", [("section_header", "one"), ("paragraph", "two")]),
        (
            f"<ul><li {AT}>one<li {AT}>two</ol><p>three",
            [("list_item", "one"), ("list_item", "two"), ("paragraph", "three")],
        ),
        (f"<ul><li {AT}>one</li><p {AT}>two</p>", [("list_item", "one"), ("paragraph", "two")]),
        (f"<ul><li {AT}>one<p {AT}>two</p>", [("list_item", "one"), ("paragraph", "two")]),
        ("<table><tr><td>a</td></tr><h2>b</h2><p>c</p>", [("table", "a"), ("section_header", "b"), ("paragraph", "c")]),
        ("<b><p>one</b></p></div><p>two</p>", [("paragraph", "one"), ("paragraph", "two")]),
        (
            f'<div class="image" {AT}><p {AT}>one</p><p {AT}>two</p>',  # never closed
            [("picture", ""), ("paragraph", "one"), ("paragraph", "two")],
        ),
        (f"<style>td {{}}<p {AT}>one</p>", [("paragraph", "one")]),
        (
            "<!-- note <p>one</p><!-- whole --><p>two</p>",
            [("paragraph", "note"), ("paragraph", "one"), ("paragraph", "two")],
        ),
        ("<![CDATA[x]]><!DOCTYPE html><![if x]><p>one</p>", [("paragraph", "one")]),
        ('<div class="table"><p>Table 1</p><tr><td>a</td></tr></div>', [("caption", "Table 1"), ("table", "a")]),
        ("Here it is:\n<p>one</p> done", [("paragraph", "Here it is:"), ("paragraph", "one"), ("paragraph", "done")]),
    ],
)
def test_wrong_nesting_neither_loses_nor_swallows_text(html: str, expected: list[tuple[str, str]]) -> None:
    assert outline(html) == expected


@pytest.mark.parametrize(
    "tail", ["<", "</", "</p", "<p", "<p data-bbox", '<p data-bbox="100 2', "<!-", "<!-- Ima", "<tab"]
)
def test_the_tag_an_answer_was_cut_off_in_is_dropped(tail: str) -> None:
    assert outline(f"<p>whole</p>{tail}") == [("paragraph", "whole")]


def test_an_answer_without_a_tag_is_not_html_and_an_empty_one_is_empty() -> None:
    assert parse_html("just 3 < 4 words") is None
    assert parse_html(" \n") == ()
    assert parse_html("<html><body></body></html>") == ()


def test_a_looping_answer_of_thousands_of_open_tags_keeps_its_text() -> None:
    assert outline("<div>" * 5000 + "end")[-1] == ("paragraph", "end")
    items = parsed("<ul><li>x" * 1000)
    assert "".join(element.text for element in items).count("x") == 1000


SOUP = [
    f"<{name}{at}>"
    for at in ("", f" {AT}")
    for name in ("p", "div", "ul", "ol", "li", "table", "tr", "td", "th", "h1", "img")
]
SOUP += [
    f"<{name}>" for name in ("h2", "b", "br", "pre", "figure", "figcaption", "caption", "header", "tbody", "dl", "form")
]
SOUP += [
    f'<div class="{name}" {AT}>' for name in ("image", "image caption", "formula", "table", "chart", "text", "title")
]
SOUP += [
    f"</{name}>" for name in ("p", "div", "ul", "li", "table", "tr", "td", "h1", "b", "pre", "figure", "header", "html")
]


@pytest.mark.parametrize("seed", range(4))
def test_every_word_of_any_tag_soup_comes_out_exactly_once(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(1500):
        words = [f"w{index}x" for index in range(draw.randrange(1, 6))]
        pieces = words + draw.choices(SOUP, k=draw.randrange(1, 14))
        draw.shuffle(pieces)
        soup = " ".join(pieces)
        elements = parse_html(soup)
        assert elements is not None, soup
        for found in (
            " ".join(element.text for element in elements),
            "\n".join(element.markdown for element in elements),
        ):
            assert sorted(re.findall(r"w\d+x", found)) == sorted(words), soup


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(SOUP) | st.text(max_size=5) | st.sampled_from(['"', "'", "<!", "<![", "&#", "]]>", "--"])
    ).map("".join)
)
def test_nothing_makes_the_parser_raise(soup: str) -> None:
    for element in parse_html(soup) or ():
        assert element.markdown
        assert element.markdown.strip("\n") == element.markdown
