"""Completions -> a row of the pages table, with its blocks: tolerant of any answer, honest about what was wrong."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from model.request import Completion
from pipeline.answers import answer_columns, cut_off
from pipeline.boxes import tile_to_page
from pipeline.elements import Element, clean_text, without_special_tokens
from pipeline.parse_html import parse_html
from pipeline.parse_markdown import parse_markdown
from pipeline.prompts import Output
from pipeline.records import Block, Failure, PageFacts, PageRow, PageStatus, Word

_HTML_FENCE = re.compile(r"```(?:html|xml)?[ \t]*(?=[<\n]|\Z)", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
MIN_NUMBERS = 5  # fewer tell nothing
MAX_NUMBERS_MISSING = 0.1
_PARAGRAPH = re.compile(r"\n(?:[ \t]*\n)+")


def parse_page(
    doc_id: str, facts: PageFacts, completions: Sequence[Completion], output: Output, *, keep_raw: bool
) -> PageRow:
    """The row of a page from the answers to its tiles, in tile order; a blank page comes without any.

    An answer that reached its token limit makes the page `truncated`, and what there is of it is kept. These flags may
    join those of the decoder: `box_repaired` (a box lay outside of the grid or was inside out), `unparseable_html` (an
    answer without one tag: kept as a paragraph), `empty_output` (nothing was read on a page that is not blank),
    `numbers_differ` (many numbers of the file's own text are not among those that were read).
    """
    assert len(completions) == (0 if facts.is_blank else len(facts.tile_boxes)), (doc_id, facts.page_no)
    answers = [_unwrapped(completion.text, output) for completion in completions]
    parsed = [_parsed(answer, output) for answer in answers]
    elements = [
        replace(element, box=element.box and tile_to_page(element.box, tile_box))
        for (found, _), tile_box in zip(parsed, facts.tile_boxes, strict=False)  # a blank page has tiles but no answers
        for element in found
    ]
    markdown, blocks = _joined(elements)
    seen = {
        "box_repaired": any(element.box_repaired for element in elements),
        "unparseable_html": not all(is_parseable for _, is_parseable in parsed),
        "empty_output": not elements and not facts.is_blank,
        "numbers_differ": not facts.is_blank and _numbers_differ(text_layer(facts.words), markdown),
    }
    failure = cut_off(completions, "tile")
    status = PageStatus.BLANK if facts.is_blank else PageStatus.TRUNCATED if failure else PageStatus.OK
    row = _row_of(doc_id, facts)
    return replace(
        row,
        status=status,
        failure=failure,
        flags=(*facts.flags, *(flag for flag, is_seen in seen.items() if is_seen)),
        markdown=markdown,
        html="\n".join(answers) if output == "html" else "",
        **answer_columns(completions, keep_raw=keep_raw),
        blocks=blocks,
    )


def failed_page(doc_id: str, page_no: int, failure: Failure) -> PageRow:
    """The row of a page that could not be read."""
    return replace(_row_of(doc_id, _no_facts(page_no)), status=PageStatus.FAILED, failure=failure)


def skipped_page(doc_id: str, page_no: int) -> PageRow:
    """The row of a page outside of the ranges the job asked for."""
    return replace(_row_of(doc_id, _no_facts(page_no)), status=PageStatus.SKIPPED)


def text_layer(words: Sequence[Word]) -> str:
    """The words of a page's own text layer in the file's order, a line each time the next one stands above or below."""
    text = ""
    last: Word | None = None
    for word in words:
        if last:
            middle = (word.box[1] + word.box[3]) / 2
            text += " " if last.box[1] <= middle <= last.box[3] else "\n"
        text += word.text
        last = word
    return clean_text(text)


def _parsed(answer: str, output: Output) -> tuple[Sequence[Element], bool]:
    """The elements of one tile, boxes in fractions of the tile, and whether the answer was what was asked for."""
    if output == "markdown":
        return parse_markdown(answer), True
    if output == "html":
        elements = parse_html(answer)
        return ([Element("paragraph", answer, answer)], False) if elements is None else (elements, True)
    paragraphs = (paragraph.strip() for paragraph in _PARAGRAPH.split(answer))
    return [Element("paragraph", paragraph, paragraph) for paragraph in paragraphs if paragraph], True


def _unwrapped(text: str, output: Output) -> str:
    """An answer as clean text without the tokens that end it and the fence it may be wrapped in, whole or cut off."""
    text = without_special_tokens(clean_text(text))
    if output == "html":
        text = _HTML_FENCE.sub("", text)
    else:
        text = _without_fence(text, ("markdown", "md") if output == "markdown" else ("text", "txt", "plaintext"))
    return without_special_tokens(text)


def _without_fence(text: str, names: Sequence[str]) -> str:
    """`text` without the fence that bears one of the names, or without the nameless one around all of it."""
    lines = text.split("\n")
    fences = [index for index, line in enumerate(lines) if line.lstrip().startswith("```")]
    named = [index for index in fences if lines[index].strip(" \t`").lower() in names]
    is_wrapped = fences in ([0], [0, len(lines) - 1]) and lines[0].strip() == "```"
    if not named and not is_wrapped:
        return text
    opening = named[0] if named else 0
    inner = [index for index in fences if index > opening]
    if len(inner) % 2 and lines[inner[-1]].strip() == "```":  # fences inside come in pairs
        dropped = {opening, inner[-1]}
    else:  # cut off, maybe in its last line
        dropped = {opening} | ({len(lines) - 1} if lines[-1].strip() in ("`", "``") else set())
    return "\n".join(line for index, line in enumerate(lines) if index not in dropped)


def _joined(elements: Sequence[Element]) -> tuple[str, tuple[Block, ...]]:
    """The Markdown of a page, and its blocks with their spans in it."""
    return "".join(_sources(elements)), tuple(_blocks(elements))


def _sources(elements: Sequence[Element]) -> Iterator[str]:
    for index, element in enumerate(elements):
        yield _separator(elements, index)
        yield element.markdown


def _blocks(elements: Sequence[Element]) -> Iterator[Block]:
    end = 0
    for index, element in enumerate(elements):
        start = end + len(_separator(elements, index))
        end = start + len(element.markdown)
        yield Block(
            order=index,
            type=element.type,
            level=element.level,
            text=element.text,
            html=element.html,
            box=element.box,
            box_source="model" if element.box else "none",
            char_start=start,
            char_end=end,
        )


def _separator(elements: Sequence[Element], index: int) -> str:
    """What stands in Markdown between an element and the one before it."""
    if index == 0:
        return ""
    is_same_list = elements[index - 1].type == elements[index].type == "list_item" and not elements[index].starts_list
    return "\n" if is_same_list else "\n\n"


def _numbers_differ(own_text: str, read: str) -> bool:
    """Numbers are compared by their runs of digits, in any order: thousands and dates are written in many ways."""
    own, found = (Counter(_DIGITS.findall(text)) for text in (own_text, read))
    return own.total() >= MIN_NUMBERS and (own - found).total() > MAX_NUMBERS_MISSING * own.total()


def _row_of(doc_id: str, facts: PageFacts) -> PageRow:
    """The row of a page the model was not asked about."""
    return PageRow(
        doc_id=doc_id,
        page_no=facts.page_no,
        page_label=clean_text(facts.label),
        status=PageStatus.BLANK,
        failure=None,
        flags=facts.flags,
        width_pt=facts.width_pt,
        height_pt=facts.height_pt,
        rotation=facts.rotation,
        rendered_width=facts.rendered_width,
        rendered_height=facts.rendered_height,
        tiles=len(facts.tile_boxes),
        markdown="",
        html="",
        text_layer=text_layer(facts.words),
        ink_ratio=facts.ink_ratio,
        edge_density=facts.edge_density,
        finish_reason="",
        mean_logprob=0.0,
        min_logprob=0.0,
        tokens_in=0,
        tokens_out=0,
        steps=0,
        drafted_tokens=0,
        accepted_tokens=0,
        resumes=0,
        decode_ms=facts.decode_ms,
        queue_ms=0.0,
        infer_ms=0.0,
        reasoning="",
        raw_output="",
        blocks=(),
    )


def _no_facts(page_no: int) -> PageFacts:
    """The facts of a page that was not rendered."""
    return PageFacts(
        page_no=page_no,
        label="",
        width_pt=0.0,
        height_pt=0.0,
        rotation=0,
        rendered_width=0,
        rendered_height=0,
        tile_boxes=(),
        words=(),
        ink_ratio=0.0,
        edge_density=0.0,
        is_blank=False,
        flags=(),
        decode_ms=0.0,
    )
