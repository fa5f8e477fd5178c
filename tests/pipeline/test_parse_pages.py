"""Whole pages: answers to tiles in, a row with its blocks out, whatever the answers are."""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.samples import LADDER, Difficulty, make_page
from model.request import Completion, FinishReason
from pipeline.parse_pages import failed_page, parse_page, skipped_page, text_layer
from pipeline.prompts import Output
from pipeline.records import Box, ErrorCode, Failure, PageFacts, PageRow, PageStatus, Stage, Word

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
FACTS = PageFacts(
    page_no=3,
    label="iii",
    width_pt=612.0,
    height_pt=792.0,
    rotation=90,
    rendered_width=640,
    rendered_height=832,
    tile_boxes=(WHOLE,),
    words=(),
    ink_ratio=0.1,
    edge_density=0.05,
    is_blank=False,
    flags=("missing_fonts",),
    decode_ms=30.0,
)

MARKDOWN = """```markdown
# Übung & **mehr**

Ein Absatz mit $a_1$ und
einer zweiten Zeile.

- eins
  - eins.eins
- zwei

1. neu

<!-- Table (100, 200, 300, 400) -->
\\begin{tabular}{|l|l|}
\\hline
\\multicolumn{2}{|c|}{Kopf} \\\\ \\hline
a & b \\\\
\\end{tabular}

<!-- Image (500, 1200, 400, 700) -->

$$
E = mc^2
$$

| x | y |
|---|---|
| 1 | 2 |

```python
print("|")
```
```"""
HTML = """```html
<html><body>
<h1 data-bbox="100 50 900 90">Übung &amp; mehr</h1>
<div class="image caption" data-bbox='100 100 400 300'><img data-bbox='100 100 400 300'/><p>Eine Katze</p></div>
<p data-bbox="100 320 900 380">Ein Absatz<br>mit 3 &lt; 4</p>
<ol data-bbox="100 400 900 460"><li data-bbox="100 400 900 430">eins</li><li data-bbox="100 430 900 460">zwei</li></ol>
<table data-bbox="900 700 100 500"><tr><td rowspan="2">a</td><td>b</td></tr><tr><td>c|d</td></tr></table>
<div class="formula" data-bbox="100 720 900 760"><img data-bbox="100 720 900 760"/><div>$$E = mc^2$$</div></div>
</body></html>
```"""


def completion(text: str, finish_reason: FinishReason = "stop", token_ids: Sequence[int] = (1, 2, 3, 4)) -> Completion:
    return Completion(
        key="doc#3",
        text=text,
        token_ids=tuple(token_ids),
        prompt_tokens=100,
        finish_reason=finish_reason,
        mean_logprob=-0.5,
        min_logprob=-2.0,
        seconds_queued=0.5,
        seconds_running=2.0,
        preemptions=0,
    )


def row_of(text: str, output: Output) -> PageRow:
    return parse_page("doc", FACTS, [completion(text)], output, keep_raw=False)


def assert_sound(row: PageRow) -> None:
    """What holds for every row: spans tile the Markdown, boxes lie on the page, text is clean."""
    end = 0
    for order, block in enumerate(row.blocks):
        assert block.order == order
        assert row.markdown[end : block.char_start] == ("" if order == 0 else "\n\n") or (
            row.markdown[end : block.char_start] == "\n" and row.blocks[order - 1].type == block.type == "list_item"
        )
        assert block.char_start < block.char_end
        end = block.char_end
        assert (block.box is not None) == (block.box_source == "model")
        if block.box:
            left, top, right, bottom = block.box
            assert 0 <= left <= right <= 1
            assert 0 <= top <= bottom <= 1
        assert unicodedata.is_normalized("NFC", block.text)
    assert end == len(row.markdown)
    for text in (row.markdown, row.html, row.raw_output, row.text_layer, *(block.text for block in row.blocks)):
        assert "\0" not in text
        text.encode()  # no lone surrogate


def test_reasoning_has_its_own_column_and_is_not_parsed():
    answer = replace(completion("the answer"), reasoning="# is this a heading?")
    row = parse_page("doc", FACTS, [answer], "markdown", keep_raw=True)
    assert (row.reasoning, row.markdown, row.raw_output) == ("# is this a heading?", "the answer", "the answer")
    assert [block.type for block in row.blocks] == ["paragraph"]


def test_a_markdown_page_becomes_blocks_whose_spans_are_their_source() -> None:
    row = row_of(MARKDOWN, "markdown")
    assert_sound(row)
    assert [(block.type, block.level, row.markdown[block.char_start : block.char_end]) for block in row.blocks] == [
        ("title", 1, "# Übung & **mehr**"),
        ("paragraph", 0, "Ein Absatz mit $a_1$ und\neiner zweiten Zeile."),
        ("list_item", 1, "- eins"),
        ("list_item", 2, "  - eins.eins"),
        ("list_item", 1, "- zwei"),
        ("list_item", 1, "1. neu"),
        ("table", 0, '<table><tr><td colspan="2">Kopf</td></tr><tr><td>a</td><td>b</td></tr></table>'),
        ("picture", 0, "<!-- image -->"),
        ("formula", 0, "$$E = mc^2$$"),
        ("table", 0, "| x | y |\n|---|---|\n| 1 | 2 |"),
        ("code", 0, '```python\nprint("|")\n```'),
    ]
    assert {block.order: block.box for block in row.blocks if block.box} == {
        6: (0.1, 0.2, 0.3, 0.4),
        7: (0.4, 0.7, 0.5, 1.0),
    }
    assert (row.status, row.failure, row.finish_reason) == (PageStatus.OK, None, "stop")
    assert row.flags == ("missing_fonts", "box_repaired")


def test_an_html_page_becomes_the_same_kind_of_blocks_with_boxes() -> None:
    row = row_of(HTML, "html")
    assert_sound(row)
    assert [(block.type, row.markdown[block.char_start : block.char_end], block.box) for block in row.blocks] == [
        ("title", "# Übung & mehr", (0.1, 0.05, 0.9, 0.09)),
        ("picture", "![Eine Katze]()", (0.1, 0.1, 0.4, 0.3)),
        ("paragraph", "Ein Absatz\nmit 3 < 4", (0.1, 0.32, 0.9, 0.38)),
        ("list_item", "1. eins", (0.1, 0.4, 0.9, 0.43)),
        ("list_item", "2. zwei", (0.1, 0.43, 0.9, 0.46)),
        (
            "table",
            '<table><tr><td rowspan="2">a</td><td>b</td></tr><tr><td>c|d</td></tr></table>',
            (0.1, 0.5, 0.9, 0.7),
        ),
        ("formula", "$$E = mc^2$$", (0.1, 0.72, 0.9, 0.76)),
    ]
    assert row.html.startswith("<html>")
    assert row.html.endswith("</html>")
    assert row.flags == ("missing_fonts", "box_repaired")


def test_text_is_split_at_blank_lines_and_taken_as_it_is() -> None:
    row = row_of("# no heading\nline\n \n\n{'a': \"**b**\"}\n", "text")
    assert_sound(row)
    assert [(block.type, block.text) for block in row.blocks] == [
        ("paragraph", "# no heading\nline"),
        ("paragraph", "{'a': \"**b**\"}"),
    ]


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.name)
def test_sample_pages_come_back_exactly_from_what_a_perfect_model_would_answer(rung: Difficulty) -> None:
    rng = np.random.default_rng(7)
    for _ in range(5):
        page = make_page(rng, rung, held_out=False).page
        assert row_of(page.markdown(), "markdown").markdown == page.markdown()
        row = row_of(page.html(), "html")
        assert [(block.type, block.text) for block in row.blocks] == [(block.type, block.text) for block in page.blocks]
        for block, truth in zip(row.blocks, page.blocks, strict=True):
            assert block.box == pytest.approx(truth.box, abs=0.0005 + 1e-9)  # thousandths were rounded


def test_the_tiles_of_a_page_are_joined_in_order_with_boxes_on_the_page() -> None:
    facts = replace(FACTS, tile_boxes=((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)))
    answers = [completion(f'<p data-bbox="0 0 1000 500">tile {tile}</p>', token_ids=[1] * tile) for tile in (1, 2)]
    answers[1] = replace(answers[1], mean_logprob=-2.0, min_logprob=-9.0)
    row = parse_page("doc", facts, answers, "html", keep_raw=True)
    assert_sound(row)
    assert row.markdown == "tile 1\n\ntile 2"
    assert [block.box for block in row.blocks] == [(0.0, 0.0, 1.0, 0.25), (0.0, 0.5, 1.0, 0.75)]
    assert (row.tiles, row.tokens_in, row.tokens_out) == (2, 200, 3)
    assert (row.queue_ms, row.infer_ms) == (1000.0, 4000.0)
    assert row.mean_logprob == pytest.approx((-0.5 * 1 - 2.0 * 2) / 3)
    assert row.min_logprob == -9.0
    assert row.raw_output == "\n".join(answer.text for answer in answers)


def test_one_tile_cut_off_makes_the_page_truncated_and_keeps_what_there_is() -> None:
    facts = replace(FACTS, tile_boxes=((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)))
    row = parse_page("doc", facts, [completion("one"), completion("tw", "length")], "markdown", keep_raw=False)
    assert (row.status, row.finish_reason, row.markdown) == (PageStatus.TRUNCATED, "length", "one\n\ntw")
    message = "the answer of tile 2 of 2 reached its limit of 4 tokens"
    assert row.failure == Failure(Stage.INFER, ErrorCode.OUTPUT_TRUNCATED, message)


def test_a_tile_that_repeats_itself_makes_the_page_truncated_and_the_books_of_its_tiles_are_added_up() -> None:
    facts = replace(FACTS, tile_boxes=((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)))
    loop = replace(completion("one", "repetition"), steps=3, drafted_tokens=9, accepted_tokens=1, resumes=2)
    row = parse_page("doc", facts, [loop, replace(loop, finish_reason="stop")], "markdown", keep_raw=False)
    assert (row.status, row.finish_reason, row.markdown) == (PageStatus.TRUNCATED, "repetition", "one\n\none")
    assert row.failure is not None
    assert row.failure.code == ErrorCode.OUTPUT_REPEATED
    assert (row.steps, row.drafted_tokens, row.accepted_tokens, row.resumes) == (6, 18, 2, 4)


def test_html_without_a_tag_is_kept_as_a_paragraph_and_flagged() -> None:
    row = row_of("I cannot\n\nread this.", "html")
    assert_sound(row)
    assert [(block.type, block.text) for block in row.blocks] == [("paragraph", "I cannot\n\nread this.")]
    assert row.flags == ("missing_fonts", "unparseable_html")


@pytest.mark.parametrize(("text", "output"), [("", "markdown"), ("```html\n<html><body></body></html>\n```", "html")])
def test_an_empty_answer_about_a_page_with_ink_is_flagged(text: str, output: Output) -> None:
    row = row_of(text, output)
    assert (row.status, row.markdown, row.blocks) == (PageStatus.OK, "", ())
    assert row.flags == ("missing_fonts", "empty_output")


def words_of(text: str) -> tuple[Word, ...]:
    return tuple(Word(word, (number / 100, 0.1, (number + 1) / 100, 0.2)) for number, word in enumerate(text.split()))


@pytest.mark.parametrize(
    ("answer", "is_flagged"),
    [
        ("Paid 1,250.00 on 14/7/1977, 33 of 48", False),
        ("33 of 48, paid on 14/7/1977: 1250 1,250.00", False),
        ("Paid 1,250.00 on 14/7/1917, 33 of 43", True),
        ("Paid on a day", True),
    ],
)
def test_numbers_that_were_changed_are_told_by_the_text_of_the_file_itself(answer, is_flagged):
    facts = replace(FACTS, words=words_of("Paid 1,250.00 on 14/7/1977, 33 of 48"))
    row = parse_page("doc", facts, [completion(answer)], "markdown", keep_raw=False)
    assert ("numbers_differ" in row.flags) == is_flagged


def test_a_blank_page_was_not_asked_about() -> None:
    row = parse_page("doc", replace(FACTS, is_blank=True), [], "markdown", keep_raw=True)
    assert (row.status, row.failure, row.finish_reason, row.markdown) == (PageStatus.BLANK, None, "", "")
    assert (row.tokens_in, row.tokens_out, row.mean_logprob, row.min_logprob) == (0, 0, 0.0, 0.0)
    assert (row.page_no, row.page_label, row.rotation, row.ink_ratio) == (3, "iii", 90, 0.1)
    assert row.flags == ("missing_fonts",)


def test_an_answer_missing_for_a_tile_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        parse_page("doc", FACTS, [], "markdown", keep_raw=False)


def test_failed_and_skipped_pages_are_rows_with_their_number() -> None:
    failure = Failure(Stage.RENDER, ErrorCode.RENDER_CRASH, "the renderer died")
    failed, skipped = failed_page("doc", 7, failure), skipped_page("doc", 8)
    assert (failed.doc_id, failed.page_no, failed.status, failed.failure) == ("doc", 7, PageStatus.FAILED, failure)
    assert (skipped.doc_id, skipped.page_no, skipped.status, skipped.failure) == ("doc", 8, PageStatus.SKIPPED, None)
    for row in (failed, skipped):
        assert_sound(row)
        assert (row.markdown, row.blocks, row.tiles, row.tokens_out) == ("", (), 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "# T\n\ntext",
        "# T\n\ntext<|im_end|>",
        "# T\n\ntext<|im_end|>\n<|endoftext|>\n",
        "```markdown\n# T\n\ntext\n```",
        "```markdown\n# T\n\ntext\n```<|im_end|>",
        "```markdown\n# T\n\ntext",
        "```Markdown\n# T\n\ntext\n``",
        "```\n# T\n\ntext\n```",
        "```md\r\n# T\r\n\r\ntext\r\n```",
    ],
)
def test_fences_and_special_tokens_around_an_answer_are_taken_off(text: str) -> None:
    assert row_of(text, "markdown").markdown == "# T\n\ntext"


@pytest.mark.parametrize("text", ["```python\nx\n```\n\nand\n\n```\ny\n```", "```\nx\n```\n\nand\n\n```\ny\n```"])
def test_fences_of_the_page_itself_stay(text: str) -> None:
    assert row_of(text, "markdown").markdown == text


@pytest.mark.parametrize(
    "text", ["<p>text</p>", "```html\n<p>text</p>\n```", "```html <p>text</p>", "```\n<p>text</p>```<|im_end|>"]
)
def test_fences_around_html_are_taken_off(text: str) -> None:
    row = row_of(text, "html")
    assert (row.markdown, row.html) == ("text", "<p>text</p>")


@pytest.mark.parametrize("output", ["markdown", "html", "text"])
def test_text_comes_out_normalised(output: Output) -> None:
    text = "Cafe\u0301\0 \ud83d\ude00 \ud800x"
    row = row_of(f"<p>{text}</p>" if output == "html" else text, output)
    assert row.blocks[0].text == row.markdown == "Caf\u00e9 \U0001f600 \ufffdx"


def test_entities_for_what_parquet_readers_choke_on_are_normalised_too() -> None:
    assert row_of("<p>e&#x301; &#0; &#xD800;</p>", "html").markdown == "\u00e9 \ufffd \ufffd"


def test_the_text_layer_breaks_lines_where_words_stand_lower_or_higher() -> None:
    words = (
        Word("Left", (0.1, 0.10, 0.2, 0.12)),
        Word("column", (0.2, 0.105, 0.3, 0.125)),  # a little lower: the same line
        Word("goes", (0.1, 0.13, 0.2, 0.15)),
        Word("Cafe\u0301\ud800", (0.5, 0.10, 0.6, 0.12)),
    )
    assert text_layer(words) == "Left column\ngoes\nCaf\u00e9\ufffd"
    assert text_layer(()) == ""
    assert parse_page("doc", replace(FACTS, words=words), [completion("x")], "text", keep_raw=False).text_layer


@pytest.mark.parametrize(
    ("answer", "output"), [(MARKDOWN, "markdown"), (HTML, "html"), (MARKDOWN, "html"), (HTML, "markdown")]
)
def test_an_answer_cut_off_anywhere_is_parsed(answer: str, output: Output) -> None:
    for end in range(len(answer) + 1):
        row = parse_page("doc", FACTS, [completion(answer[:end], "length")], output, keep_raw=True)
        assert row.status == PageStatus.TRUNCATED
        assert_sound(row)


PIECES = [
    '<p data-bbox="1 2 3 4">',
    "<td>",
    "</table>",
    "<!-- Table (1, 2, 3, 4) -->",
    "\n\n",
    "\n",
    "- ",
    "```",
    "```html",
]
PIECES += [
    "|",
    "$$",
    "\\begin{tabular}{l}",
    "\\\\",
    "&",
    "&lt;",
    "<|im_end|>",
    "# ",
    "1. ",
    " ",
    "\u0301",
    "\ud800",
    "\0",
    "\r",
]


# Without its tags the accent stands behind its letter.
@example('<p data-bbox="1 2 3 4">```html<p data-bbox="1 2 3 4">\u0301', "markdown", ((0.0, 0.0, 1.0, 1.0),))
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(st.characters(), max_size=6)).map("".join),
    st.sampled_from(["markdown", "html", "text"]),
    st.sampled_from([(WHOLE,), ((0.0, 0.0, 1.0, 0.3), (0.0, 0.3, 1.0, 1.0))]),
)
def test_any_answer_gives_a_sound_row(text: str, output: Output, tile_boxes: tuple[Box, ...]) -> None:
    answers = [completion(text)] * len(tile_boxes)
    facts = replace(FACTS, tile_boxes=tile_boxes)
    row = parse_page("doc", facts, answers, output, keep_raw=True)
    assert_sound(row)
    ended = [completion(text + "<|im_end|>")] * len(tile_boxes)
    assert replace(row, raw_output="") == parse_page("doc", facts, ended, output, keep_raw=False)
