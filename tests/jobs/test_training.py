"""Training material points where the truth stands, and the helps are what they say: against brute force."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluate import clip_question, clip_scores
from jobs.samples import READABLE, Glyph, render_with_glyphs
from jobs.training_batches import (
    ALPHABET,
    CELL_HEIGHT,
    CELL_WIDTH,
    HTML,
    MARKDOWN,
    NOWHERE,
    aligned,
    clip_batches,
    glyphs_of_cells,
    page_batches,
    page_sample,
)
from jobs.training_losses import POINTING_LAYERS, GlyphProbe, PointingCausal, losses_of
from model.processor import Processor
from model.request import Completion
from model.weights import from_pretrained

CHECKPOINT = str(Path(__file__).parents[2] / "model" / "demo")


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("rung", READABLE, ids=lambda rung: rung.name)
def test_every_printed_character_is_found_in_the_answer(rung):
    rng = np.random.default_rng(1)
    for page, _, glyphs in render_with_glyphs(rng, replace(rung, page_numbers=0.0), 5, held_out=False):
        answer = page.markdown()
        found = aligned(answer, glyphs, is_html=False)
        assert all(answer[index] == glyph.character for index, glyph in found.items())
        assert len(found) == len(glyphs)


def test_html_is_aligned_but_for_its_tags():
    rng = np.random.default_rng(2)
    for page, _, glyphs in render_with_glyphs(rng, READABLE[2], 5, held_out=False):
        found = aligned(page.html(), glyphs, is_html=True)
        assert len(found) > 0.8 * len(glyphs)
        inside = page.html().find("data-bbox")
        assert not any(inside < index < page.html().find(">", inside) for index in found)


def test_targets_are_the_visual_tokens_under_the_characters(processor):
    rng = np.random.default_rng(3)
    ((page, pixels, glyphs),) = render_with_glyphs(rng, replace(READABLE[1], blank=0.0), 1, held_out=False)
    sample = page_sample(processor, page, pixels, glyphs, MARKDOWN)
    first = int(np.flatnonzero(sample.prompt.token_ids_T == processor.config.image_token_id)[0])
    columns = pixels.shape[1] // 32
    for token, target in zip(sample.prompt.token_ids_T, sample.targets_T, strict=True):
        if target != NOWHERE:
            letters = processor.tokenizer.decode([int(token)]).strip()
            row, column = divmod(target - first, columns)
            there = {g.character for g in glyphs if int(g.y // 32) == row and int(g.x // 32) == column}
            assert letters[0] in there
    assert (sample.targets_T[sample.answer_start :] != NOWHERE).mean() > 0.8


def test_cells_hold_the_characters_whose_middle_lies_in_them():
    glyphs = [Glyph("a", 3.0, 2.0), Glyph("b", 40.0, 20.0), Glyph("c", 70.0, 2.0), Glyph("é", 1.0, 1.0)]
    seen = glyphs_of_cells(glyphs, width=64, height=32, multiple=32)
    assert seen.shape == (2, (32 // CELL_HEIGHT) * (32 // CELL_WIDTH), len(ALPHABET))
    places = {tuple(place) for place in np.argwhere(seen).tolist()}
    assert places == {(0, 0, ALPHABET.index("a")), (1, 5, ALPHABET.index("b"))}


def test_batches_are_rectangular_and_hold_prompt_and_answer(processor):
    rng = np.random.default_rng(4)
    batches = list(page_batches(processor, rng, READABLE[2], held_out=False, token_budget=1024, html_share=1.0))
    batches += list(clip_batches(processor, rng, held_out=False, token_budget=1024))
    for batch in batches:
        samples, length = batch.token_ids_BT.shape
        assert batch.positions_3N.shape == (3, samples * length)
        assert samples == 1 or samples * length <= 1024
        visual = sum(rows * columns // 4 for _, rows, columns in batch.grids_G3)
        is_visual = np.isin(batch.token_ids_BT, [processor.config.image_token_id, processor.config.video_token_id])
        assert visual == is_visual.sum()
        assert not (is_visual & batch.is_answer_BT).any()
        ends = batch.token_ids_BT == processor.tokenizer.token_to_id("<|im_end|>")
        assert (ends & batch.is_answer_BT).sum(1).tolist() == [1] * samples
    assert HTML in processor.tokenizer.decode(batches[0].token_ids_BT[0].tolist())


def test_the_pointing_loss_is_the_cross_entropy_of_the_attention():
    torch.manual_seed(0)
    samples, length, heads, width = 2, 6, 4, 8
    query, key, value = (torch.randn(samples * length, count, width) for count in (heads, 2, 2))
    targets = torch.full((samples, length), NOWHERE)
    targets[0, 3], targets[1, 5] = 1, 0
    pointing = PointingCausal(targets)
    attended = pointing(POINTING_LAYERS[0], query, key, value)
    assert attended.shape == query.shape
    expected = []
    for sample, token, target in ((0, 3, 1), (1, 5, 0)):
        start = sample * length
        scores = [query[start + token - 1, 0] @ key[start + seen, 0] / width**0.5 for seen in range(token)]
        expected.append(-torch.log_softmax(torch.stack(scores), 0)[target])
    assert torch.allclose(pointing.losses[0], torch.stack(expected).mean(), atol=1e-6)
    pointing(POINTING_LAYERS[-1] + 1, query, key, value)
    assert len(pointing.losses) == 1


def test_every_parameter_gets_a_gradient_and_some_steps_lower_the_loss(processor):
    network = from_pretrained(CHECKPOINT, dtype=torch.float32).train().requires_grad_(True)
    probe = GlyphProbe(network.config)
    rng = np.random.default_rng(5)
    batch = next(page_batches(processor, rng, READABLE[0], held_out=False, token_budget=512))
    parameters = [*network.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-4)
    totals = []
    for _ in range(6):
        losses, _ = losses_of(network, probe, batch)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]


def test_a_true_answer_about_a_clip_scores_full_marks_and_silence_none(processor):
    rng = np.random.default_rng(6)
    for number in range(5):
        question = clip_question(processor, rng, number)
        answer = Completion("", question.true_answer, (), 0, "stop", 0.0, 0.0, 0.0, 0.0, 0)
        scores = clip_scores(question, answer)
        assert scores.true == scores.told == scores.found == scores.dated == len(question.truth)
        assert (scores.invented, scores.doubled) == (0, 0)
        assert clip_scores(question, replace(answer, text="")).found == 0
