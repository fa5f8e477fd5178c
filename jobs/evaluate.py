"""Measures what a checkpoint reads on held-out samples that it was never trained on: `python -m jobs.evaluate`.

Pages of every layout of the curriculum, asked for Markdown: the share of characters that are wrong (edit distance over
the length of the truth), and whether `transformers`' own `generate` writes the same text in float32. Windows of clips,
asked for events: how many are found, dated within a frame pair, invented. Blank pages: whether anything is written.
Other pages, asked for HTML: how much of the text is wrong, and how many blocks have a box where they stand. All through
the project's own engine, greedy. Without --model, the demonstration checkpoint.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from transformers.utils.logging import disable_progress_bar

from jobs.bench import answer_all, until_stop
from jobs.bench_peers import transformers_reader
from jobs.event_scores import MICROSECONDS, Counts, EventScores, as_sampled, match_greedily, score_events, told_event
from jobs.options import CommandParser
from jobs.sample_videos import SampleEvent, answer_for, clip_window, disturb, is_clear, make_clip, pairs_of
from jobs.samples import PIXELS_PER_POINT, READABLE, Difficulty, render_batch
from jobs.training_batches import EVENTS, HTML, MARKDOWN
from model.checkpoint import checkpoint_folder, read_stop_token_ids
from model.engine import Engine
from model.engine_options import EngineOptions
from model.processor import Processor
from model.request import Completion, Frames, Prompt, Sampling
from pipeline.parse_events import parse_events
from pipeline.parse_html import parse_html
from pipeline.records import Box, WindowSpan

SEED = 20_000  # no training run draws from it
CLIP_SIZE = (160, 96)
CLIP_SECONDS = 16.0
FPS = 2.0
BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class PageScore:
    truth: str
    answer: str
    is_same: bool | None  # as transformers writes; None: not compared

    @property
    def errors(self) -> int:
        return Levenshtein.distance(self.truth, self.answer)


@dataclass(frozen=True, slots=True)
class HtmlScore(Counts):
    """Of pages as the pipeline reads their HTML; those of several pages add up."""

    letters: int = 0  # of the text of all blocks
    errors: int = 0  # edit distance of the text that was told
    blocks: int = 0
    boxed: int = 0  # blocks with a box told that has an IoU of 0.5 or more with theirs, a box for one block at most


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    prompt: Prompt
    span: WindowSpan
    truth: list[SampleEvent]
    true_answer: str


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model/demo", help="checkpoint: a folder or a hub id (default: model/demo)")
    parser.add_argument("--pages", type=int, default=300, help="pages, over all layouts (default: 300)")
    parser.add_argument("--clips", type=int, default=100, help="windows of clips (default: 100)")
    parser.add_argument("--blanks", type=int, default=50, help="blank pages (default: 50)")
    parser.add_argument("--html", type=int, default=40, help="pages to be told as HTML (default: 40)")
    parser.add_argument("--compare", type=int, default=300, help="pages that transformers reads too (default: 300)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--examples", type=int, default=0, help="print so many answers of each kind beside the truth")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    processor = Processor.from_pretrained(options.model)
    engine = Engine.from_pretrained(options.model, EngineOptions(dtype="float32", max_batch_size=BATCH_SIZE))
    stops = read_stop_token_ids(checkpoint_folder(options.model))
    disable_progress_bar()
    read_as_transformers = transformers_reader(options.model, "cpu")
    rng = np.random.default_rng(SEED)

    print(f"pages rendered at {72 * PIXELS_PER_POINT:.0f} dpi")
    print(f"{'layout':20}{'pages':>6}{'letters':>9}{'wrong':>9}{'perfect':>9}{'as transformers':>17}")
    scores: list[PageScore] = []
    for layout, pages in shared_out(options.pages):
        compared = min(pages, -(-options.compare // len(READABLE)))
        found = read_pages(
            *(processor, engine, rng, layout, pages),
            instruction=MARKDOWN,
            stops=stops,
            read_as_transformers=read_as_transformers,
            compared=compared,
        )
        print(page_line(layout.name, found), flush=True)
        for score in found[: options.examples]:
            print(f"  truth  {score.truth!r}\n  answer {score.answer!r}")
        scores += found
    print(page_line("all layouts", scores))

    blanks = read_blanks(processor, engine, rng, options.blanks)
    print(f"\nblank pages: something written on {sum(map(bool, blanks))} of {len(blanks)}")

    questions = [clip_question(processor, rng, number) for number in range(options.clips)]
    answers = answer_all(engine, [question.prompt for question in questions])
    totals = EventScores()
    for index, question in enumerate(questions):
        answer = answers[question.prompt.key]
        totals += clip_scores(question, answer)
        if index < options.examples:
            print(f"  truth  {question.true_answer}\n  answer {answer.text}")
    if questions:
        print(
            f"\nclips: {len(questions)} windows of {CLIP_SECONDS:g} s, {totals.true} events: {totals.found} found, "
            f"{totals.recalled} with an IoU of 0.7 or more ({totals.recall:.1%}), {totals.dated} with both ends within "
            f"a frame pair ({totals.dated_share:.1%}); {totals.invented} invented (of these {totals.misworded} only in "
            f"other words), {totals.doubled} told twice"
        )
    html = HtmlScore()
    for layout, pages in shared_out(options.html):
        found = read_pages(
            *(processor, engine, rng, layout, pages),
            instruction=HTML,
            stops=stops,
            read_as_transformers=read_as_transformers,
            compared=0,
        )
        html = sum((html_score(score) for score in found), html)
    if options.html:
        print(
            f"\nhtml: {options.html} pages, {html.errors / html.letters:.2%} of {html.letters} letters of text wrong; "
            f"{html.boxed} of {html.blocks} blocks ({html.boxed / html.blocks:.1%}) with a box where they stand"
        )
    print(f"\n{time.monotonic() - started:.0f} s, {torch.get_num_threads()} CPU threads")


def shared_out(pages: int) -> Iterator[tuple[Difficulty, int]]:
    """The layouts, each with its part of so many pages, where it gets any."""
    for number, layout in enumerate(READABLE):
        if part := pages * (number + 1) // len(READABLE) - pages * number // len(READABLE):
            yield layout, part


def page_line(name: str, scores: Sequence[PageScore]) -> str:
    letters = sum(len(score.truth) for score in scores)
    errors = sum(score.errors for score in scores)
    perfect = sum(score.errors == 0 for score in scores)
    compared = [score.is_same for score in scores if score.is_same is not None]
    same = f"{sum(compared)} of {len(compared)}" if compared else "-"
    return f"{name:20}{len(scores):6}{letters:9}{errors / max(letters, 1):9.2%}{perfect:9}{same:>17}"


def read_pages(
    processor: Processor,
    engine: Engine,
    rng: np.random.Generator,
    layout: Difficulty,
    count: int,
    *,
    instruction: str,
    stops: frozenset[int],
    read_as_transformers: Callable[[list[Prompt]], dict[str, list[int]]],
    compared: int,
) -> list[PageScore]:
    """Reads so many pages of a layout as Markdown or HTML; the first `compared` of them with transformers too."""
    pages = render_batch(rng, replace(layout, blank=0.0), count, held_out=True)
    prompts, truths = [], []
    for number, (page, pixels) in enumerate(pages):
        truth = page.html() if instruction == HTML else page.markdown()
        # Twice the tokens of the truth: an answer that never ends is wrong enough by then.
        limit = 2 * len(processor.tokenizer.encode(truth, add_special_tokens=False).ids) + 16
        sampling = Sampling(max_new_tokens=limit)
        prompts.append(processor.encode(f"{layout.name} {number}", [Frames(pixels[None]), instruction], sampling))
        truths.append(truth)
    answers = answer_all(engine, prompts)
    peers: dict[str, list[int]] = {}
    for first in range(0, compared, BATCH_SIZE):
        peers |= read_as_transformers(prompts[first : min(first + BATCH_SIZE, compared)])
    scores = []
    for prompt, truth in zip(prompts, truths, strict=True):
        answer = answers[prompt.key]
        ours = until_stop(list(answer.token_ids), stops)
        # Their batch runs on to the longest limit in it: a prompt's own limit is applied here.
        theirs = peers.get(prompt.key)
        is_same = None if theirs is None else ours == until_stop(theirs[: prompt.sampling.max_new_tokens], stops)
        scores.append(PageScore(truth, answer.text, is_same))
    return scores


def read_blanks(processor: Processor, engine: Engine, rng: np.random.Generator, count: int) -> list[str]:
    """The answers about blank pages. (The pipeline recognises most of them itself and does not ask.)"""
    prompts = []
    for number in range(count):
        layout = replace(READABLE[number % len(READABLE)], blank=1.0)
        ((_, pixels),) = render_batch(rng, layout, 1, held_out=True)
        sampling = Sampling(max_new_tokens=64)
        prompts.append(processor.encode(f"blank {number}", [Frames(pixels[None]), MARKDOWN], sampling))
    answers = answer_all(engine, prompts)
    return [answers[prompt.key].text for prompt in prompts]


def html_score(score: PageScore) -> HtmlScore:
    truth, told = (parse_html(text) or () for text in (score.truth, score.answer))
    true_text, told_text = ("\n".join(element.text for element in elements) for elements in (truth, told))
    true_boxes, told_boxes = ([element.box for element in elements if element.box] for elements in (truth, told))
    pairs = [(box_iou(true, said), i, j) for i, true in enumerate(true_boxes) for j, said in enumerate(told_boxes)]
    boxed = match_greedily(pair for pair in pairs if pair[0] >= 0.5)
    errors = Levenshtein.distance(true_text, told_text)
    return HtmlScore(len(true_text), errors, len(true_boxes), len(boxed))


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union; 0 where neither box has any area."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def clip_question(processor: Processor, rng: np.random.Generator, number: int) -> ClipQuestion:
    """A window somewhere in a clip of held-out words, and what is to be seen in it."""
    while True:
        clip = make_clip(rng, seconds=3 * CLIP_SECONDS, size=CLIP_SIZE, held_out=True)
        start = float(rng.uniform(0, 2 * CLIP_SECONDS))
        frames_THWC, times = clip_window(clip, start, CLIP_SECONDS, fps=FPS)
        if is_clear(clip, times):
            break
    frames_THWC = disturb(rng, frames_THWC)
    frames = Frames(frames_THWC, tuple(instant - start for instant in times))
    prompt = processor.encode(f"clip {number}", [frames, EVENTS], Sampling(max_new_tokens=600))
    span = WindowSpan(
        index=0,
        start_us=round(start * MICROSECONDS),
        end_us=round((start + CLIP_SECONDS) * MICROSECONDS),
        frame_us=tuple(round(instant * MICROSECONDS) for instant in times),
        origin_us=round(start * MICROSECONDS),
    )
    pairs = pairs_of(times)
    truth = as_sampled(clip.events, pairs, start + CLIP_SECONDS)
    return ClipQuestion(prompt, span, truth, answer_for(clip, pairs, start))


def clip_scores(question: ClipQuestion, answer: Completion) -> EventScores:
    parsed = parse_events(answer.text, question.span, finish_reason=answer.finish_reason)
    told = [told_event(event.start_us, event.end_us, event.description) for event in parsed.events]
    return score_events(told, question.truth, pair_seconds=2 / FPS)


if __name__ == "__main__":
    main()
