"""Training material points where the truth stands, and the helps are what they say: against brute force."""

import json
import multiprocessing
import re
import sys
import time
from dataclasses import replace
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from jobs.demo_checkpoint import WAVES, WORDS, position_waves
from jobs.evaluate import PageScore, box_iou, clip_question, clip_scores, html_score
from jobs.sample_truth import Glyph
from jobs.sample_videos import COLORS, answer_for, clip_window, is_clear, make_clip, pairs_of
from jobs.samples import DENSE_LADDER, PIXELS_PER_POINT, READABLE, render_batch, render_with_glyphs
from jobs.train_demo import MEAN_DECAY, Assistant, Produced, Progress, Trainer
from jobs.training_batches import (
    CELLS_ACROSS,
    CELLS_DOWN,
    HTML,
    MARKDOWN,
    NAMES,
    NOWHERE,
    aligned,
    box_ends,
    clip_batches,
    clip_sample,
    glyphs_of_cells,
    jumping,
    misread,
    page_batches,
    page_sample,
)
from jobs.training_clips import looks, sights
from jobs.training_losses import POINTING_LAYERS, PointingCausal, Probes, losses_of, tower_losses
from model.processor import Processor
from model.request import Completion, Frames
from model.weights import from_pretrained

CHECKPOINT = str(Path(__file__).parents[2] / "model" / "demo")


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("rung", [*READABLE, *DENSE_LADDER], ids=lambda rung: rung.name)
def test_every_printed_character_is_found_in_the_answer(rung):
    rng = np.random.default_rng(1)
    for page, _, glyphs in render_with_glyphs(rng, replace(rung, page_numbers=0.0), 5, held_out=False):
        answer = page.markdown()
        found = aligned(answer, glyphs, is_html=False)
        assert all(answer[index] == glyph.character for index, glyph in found.items())
        assert len(found) == len(glyphs)


def test_letters_stand_alone_and_the_words_of_the_formats_stay_whole(processor):
    def pieces(text: str) -> list[str]:
        token_ids = processor.tokenizer.encode(text, add_special_tokens=False).ids
        assert processor.tokenizer.decode(token_ids) == text
        return [processor.tokenizer.decode([token_id]) for token_id in token_ids]

    assert pieces("Restart 42 reds") == [*"Restart 42 reds"]
    assert pieces("the red title") == [*"the", " red", " title"]
    rng = np.random.default_rng(8)
    clip = make_clip(rng, seconds=60.0, size=(160, 96), held_out=True)
    texts = [answer_for(clip, pairs_of([index / 2 for index in range(120)]))]
    texts += [page.markdown() for page, _, _ in render_with_glyphs(rng, READABLE[-1], 10, held_out=True)]
    for piece in (piece.strip(" ") for text in texts for piece in pieces(text)):
        assert len(piece) <= 1 or piece in WORDS or not any(map(str.isalnum, piece)), piece


def test_html_is_aligned_but_for_its_tags():
    rng = np.random.default_rng(2)
    for page, _, glyphs in render_with_glyphs(rng, READABLE[2], 5, held_out=False):
        found = aligned(page.html(), glyphs, is_html=True)
        assert len(found) > 0.8 * len(glyphs)
        inside = page.html().find("data-bbox")
        assert not any(inside < index < page.html().find(">", inside) for index in found)


def test_the_ends_of_boxes_are_looked_for_at_the_outermost_characters_of_their_block():
    rng = np.random.default_rng(2)
    offs = []
    for page, pixels, glyphs in render_with_glyphs(rng, replace(READABLE[-1], skewed=0.0), 5, held_out=False):
        answer = page.html()
        ends = box_ends(answer, aligned(answer, glyphs, is_html=True))
        height, width = pixels.shape[:2]
        for box in re.finditer(r'data-bbox="([^"]*)"', answer):
            numbers = list(re.finditer(r"\d+", answer[: box.end()]))[-4:]
            for number, name, side in zip(numbers, "xyxy", (width, height, width, height), strict=True):
                if found := {getattr(ends[index], name) for index in range(*number.span()) if index in ends}:
                    (at,) = found  # all digits of a number at the same
                    offs.append(abs(int(number[0]) / 1000 * side - at) / PIXELS_PER_POINT)
    assert len(offs) > 100
    assert np.median(offs) < 6.5  # points, of characters about 13 high
    assert max(offs) < 65  # a table's rules stand off from its text


def test_targets_are_the_visual_tokens_under_the_characters(processor):
    rng = np.random.default_rng(3)
    ((page, pixels, glyphs),) = render_with_glyphs(rng, replace(READABLE[1], blank=0.0), 1, held_out=False)
    sample = page_sample(processor, page, pixels, glyphs, MARKDOWN)
    first = int(np.flatnonzero(sample.prompt.token_ids_T == processor.config.image_token_id)[0])
    columns = pixels.shape[1] // 32
    height, width = pixels.shape[:2]
    told = zip(sample.prompt.token_ids_T, sample.targets_LT[1], sample.cells_T, sample.xy_T2, strict=True)
    for token, target, cell, (x, y) in told:
        assert (target == NOWHERE) == (cell == NOWHERE) == (x == NOWHERE) == (y == NOWHERE)
        if target != NOWHERE:
            letters = processor.tokenizer.decode([int(token)]).strip()
            (row, column), (down, across) = divmod(target - first, columns), divmod(cell, CELLS_ACROSS)
            top, left = 32 * (row + down / CELLS_DOWN), 32 * (column + across / CELLS_ACROSS)
            there = {
                g.character
                for g in glyphs
                if top <= g.y < top + 32 / CELLS_DOWN and left <= g.x < left + 32 / CELLS_ACROSS
            }
            assert letters[0] in there
            assert top - 1 <= y / 1000 * height < top + 32 / CELLS_DOWN
            assert left - 1 <= x / 1000 * width < left + 32 / CELLS_ACROSS
    assert (sample.targets_LT[0, sample.answer_start :] != NOWHERE).mean() > 0.8
    first_look, second_look = (looks_T[looks_T != NOWHERE] for looks_T in sample.targets_LT)
    assert (first_look[1:] == second_look[:-1]).all()  # there stands what was written last
    assert first_look[0] == second_look[0]


def test_the_times_of_a_clip_are_looked_for_at_the_sight_and_read_from_the_text_before_it(processor):
    rng = np.random.default_rng(7)
    dates = 0
    for _ in range(6):
        clip = make_clip(rng, seconds=24.0, size=(160, 96), held_out=False)
        frames_THWC, times = clip_window(clip, 3.0, 16.0)
        if not is_clear(clip, times):
            continue
        frames = Frames(frames_THWC, tuple(time - 3.0 for time in times))
        sample = clip_sample(processor, clip, frames, times, 3.0)
        is_visual = sample.prompt.token_ids_T == processor.config.video_token_id
        pair_of = np.cumsum(sample.prompt.token_ids_T == processor.tokenizer.token_to_id("<")) - 1
        told = json.loads(answer_for(clip, pairs_of(times), 3.0) or "[]")
        written = [(key, digit) for event in told for key in ("start", "end") for digit in str(event[key])]
        read = []
        for token, (first, second) in zip(sample.prompt.token_ids_T, sample.targets_LT.T, strict=True):
            if first != NOWHERE:
                assert is_visual[first]
            if second != NOWHERE and not is_visual[second]:
                assert sample.prompt.token_ids_T[second] == token
                key, _ = written[len(read)]
                later = key == "end" and pair_of[second] < len(times) // 2 - 1  # that it is gone is seen a pair later
                assert pair_of[first] - pair_of[second] == later
                read.append(processor.tokenizer.decode([int(token)]))
        assert read == [digit for _, digit in written]
        dates += len(read)
    assert dates > 50


def test_what_a_clip_shows_is_where_it_is_said_to_be(processor):
    rng = np.random.default_rng(8)
    seen: set[str] = set()
    for _ in range(8):
        clip = make_clip(rng, seconds=24.0, size=(160, 96), held_out=False)
        pairs = pairs_of([index / 2 for index in range(48)])
        for (first, second), marks in zip(pairs, sights(clip, pairs), strict=True):
            assert all(0 <= mark.x < 160 and 0 <= mark.y < 96 for mark in marks)
            seen |= {mark.character for mark in marks}
            if clip.scene(first) is not clip.scene(second):
                continue
            frame = clip.frame(first).astype(int)
            names = {(mark.x, mark.y): {other.character for other in marks if other.x == mark.x} for mark in marks}
            for mark in marks:
                if mark.character in COLORS and "stays" in names[mark.x, mark.y]:
                    assert tuple(frame[int(mark.y), int(mark.x)]) == COLORS[mark.character]
                if len(mark.character) == 1:  # ink in the letter's box
                    box = frame[max(int(mark.y) - 8, 0) : int(mark.y) + 8, max(int(mark.x) - 4, 0) : int(mark.x) + 5]
                    assert np.ptp(box) > 60
        answer = answer_for(clip, pairs)
        read = looks(clip, pairs, answer)
        assert all(0 <= look.x < 160 and 0 <= look.y < 96 for look in read.values())
        assert all(
            answer[index].isdigit() or answer[index] == "." for index in read if read[index].time_pair is not None
        )
    assert {"circle", "stays", "e", "red"} <= seen


def test_cells_hold_the_characters_whose_middle_lies_in_them():
    glyphs = [Glyph("a", 3.0, 2.0), Glyph("b", 40.0, 20.0), Glyph("c", 70.0, 2.0), Glyph("é", 1.0, 1.0)]
    seen = glyphs_of_cells(glyphs, width=64, height=32, multiple=32)
    assert seen.shape == (2, CELLS_DOWN * CELLS_ACROSS, len(NAMES))
    places = {tuple(place) for place in np.argwhere(seen).tolist()}
    assert places == {(0, 0, NAMES.index("a")), (1, CELLS_ACROSS + 1, NAMES.index("b"))}


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
        assert not (is_visual & (batch.asked_BT != NOWHERE)).any()
        asked_ends = batch.asked_BT == processor.tokenizer.token_to_id("<|im_end|>")
        assert set(asked_ends.sum(1).tolist()) <= {1, 2}  # two: where it jumps back from the end, and there
    assert HTML in processor.tokenizer.decode(batches[0].token_ids_BT[0].tolist())


def a_sample(processor, rng):
    ((page, pixels, glyphs),) = render_with_glyphs(rng, replace(READABLE[-1], blank=0.0), 1, held_out=False)
    return page_sample(processor, page, pixels, glyphs, MARKDOWN)


def test_some_letters_are_shown_misread_and_the_truth_is_asked_for(processor):
    rng = np.random.default_rng(14)
    shares, alike = [], []
    for _ in range(20):
        sample = a_sample(processor, rng)
        told = sample.prompt.token_ids_T.tolist()
        slipped = misread(sample, rng, 0.1)
        is_read = sample.targets_LT[0] != NOWHERE
        is_other = slipped.prompt.token_ids_T != sample.prompt.token_ids_T
        assert not is_other[~is_read].any()
        assert (slipped.asked_T == sample.asked_T).all()
        shares.append(is_other[is_read].mean())
        pairs = set(pairwise(told))
        for at in np.flatnonzero(is_other).tolist():
            assert slipped.prompt.token_ids_T[at] in np.array(told)[is_read]
            if not is_other[at - 1]:  # a slip begins
                alike.append((told[at - 1], int(slipped.prompt.token_ids_T[at])) in pairs)
    assert 0.1 < np.mean(shares) < 0.2  # two at a time
    assert np.mean(alike) > 0.6  # they follow that letter somewhere; of any letters a quarter would


def with_a_jump(told, place, back, nothing):
    """What is asked for at each token when the answer jumps at a place: back, or ahead where `back` is negative."""
    return told[: place + 1] + max(back - 1, 0) * [nothing] + told[max(place, place - back + 1) :]


def test_after_a_jump_back_or_ahead_the_answer_goes_on(processor):
    rng = np.random.default_rng(15)
    jumps = set()
    for _ in range(60):
        sample = a_sample(processor, rng)
        slipped, start = jumping(sample, rng), sample.answer_start
        answer, asked = sample.asked_T[start:].tolist(), slipped.asked_T[start:].tolist()
        shown = slipped.prompt.token_ids_T[start:].tolist()
        back = len(shown) - len(answer)
        jumps.add(back)
        if back == 0:
            continue
        places = [at for at in range(1, len(answer)) if shown == answer[:at] + answer[max(at - back, 0) :]]
        place = next(at for at in places if asked == with_a_jump(answer, at, back, NOWHERE))
        for of_sample, of_slipped in (
            *zip(sample.targets_LT, slipped.targets_LT, strict=True),
            (sample.cells_T, slipped.cells_T),
            (sample.xy_T2, slipped.xy_T2),
        ):
            expected, found = of_sample[start:].tolist(), of_slipped[start:].tolist()
            nothing = np.full_like(of_sample[0], NOWHERE).tolist()
            assert found == with_a_jump(expected, place, back, nothing)
        assert slipped.prompt.positions_3T.shape[1] == len(slipped.asked_T)
        assert (np.diff(slipped.prompt.positions_3T[:, start:]) == 1).all()
        assert slipped.prompt.next_position == slipped.prompt.positions_3T[0, -1] + 1
    assert min(jumps) < -10
    assert max(jumps) > 10


def test_held_out_batches_have_no_slips_and_the_others_do(processor):
    rng = np.random.default_rng(16)
    for held_out in (True, False):
        pages = page_batches(processor, rng, READABLE[-1], held_out=held_out, token_budget=2048)
        batches = [*pages, *clip_batches(processor, rng, held_out=held_out, token_budget=2048)]
        is_shown = [(b.asked_BT == b.token_ids_BT)[b.asked_BT != NOWHERE].all() for b in batches]
        assert all(is_shown) if held_out else not all(is_shown)


def test_what_is_asked_for_is_the_truth_not_what_is_shown(processor):
    network = from_pretrained(CHECKPOINT, dtype=torch.float32)
    probes = Probes(network.config)
    rng = np.random.default_rng(17)
    clean = next(page_batches(processor, rng, READABLE[1], held_out=True, token_budget=512))
    is_read = clean.targets_LBT[0] != NOWHERE
    letter = clean.token_ids_BT[is_read][0]
    blind = replace(clean, token_ids_BT=np.where(is_read, letter, clean.token_ids_BT))
    other = replace(clean, asked_BT=np.where(is_read, letter, clean.asked_BT))
    with torch.no_grad():
        as_told, truth_hidden, truth_changed = (losses_of(network, probes, batch)[1] for batch in (clean, blind, other))
    assert as_told > 0.95
    assert truth_hidden < as_told
    assert truth_changed < 0.5


def test_the_pointing_loss_is_the_cross_entropy_of_the_attention():
    torch.manual_seed(0)
    samples, length, heads, width = 2, 6, 4, 8
    query, key, value = (torch.randn(samples * length, count, width) for count in (heads, 2, 2))
    targets = torch.full((2, samples, length), NOWHERE)
    targets[0, 0, 3], targets[0, 1, 5] = 1, 0
    targets[1, 0, 3], targets[1, 1, 5] = 2, 4
    pointing = PointingCausal(targets)
    for look, layer in enumerate(POINTING_LAYERS):
        attended = pointing(layer, query, key, value)
        assert attended.shape == query.shape
        expected = []
        for sample, token in ((0, 3), (1, 5)):
            start = sample * length
            scores = [query[start + token - 1, 0] @ key[start + seen, 0] / width**0.5 for seen in range(token)]
            expected.append(-torch.log_softmax(torch.stack(scores), 0)[targets[look, sample, token]])
        assert torch.allclose(pointing.losses[look], torch.stack(expected).mean(), atol=1e-6)
    pointing(POINTING_LAYERS[-1] + 1, query, key, value)
    assert len(pointing.losses) == len(POINTING_LAYERS)


def test_the_cell_is_asked_of_the_row_before_the_token_that_is_read():
    torch.manual_seed(0)
    probes = Probes(from_pretrained(CHECKPOINT).config)
    torch.nn.init.normal_(probes.cell.weight)
    hidden = torch.randn(6, probes.cell.in_features)
    last = probes.cell.out_features - 1
    cells = torch.tensor([NOWHERE, NOWHERE, 4, NOWHERE, 0, last])
    expected = [-torch.log_softmax(probes.cell(hidden[row]), 0)[cell] for row, cell in ((1, 4), (3, 0), (4, last))]
    cell_loss = probes.place_losses(hidden, cells, torch.zeros(6, 2, dtype=torch.long))["cell"]
    assert torch.allclose(cell_loss, torch.stack(expected).mean(), atol=1e-6)


def test_where_a_token_lies_is_asked_in_hundreds_and_tens_of_thousandths():
    probes = Probes(from_pretrained(CHECKPOINT).config)
    grids = [(1, 6, 10), (2, 4, 8)]  # of patches; visual tokens: 3 x 5 and 2 x 4
    middles = [
        (1000 * (column + 0.5) / columns, 1000 * (row + 0.5) / rows)
        for rows, columns in ((3, 5), (2, 4))
        for row in range(rows)
        for column in range(columns)
    ]
    tokens = torch.eye(len(middles), probes.token_xy.in_features)
    told = torch.zeros(probes.token_xy.out_features, probes.token_xy.in_features)
    for token, (x, y) in enumerate(middles):
        for number, digit in enumerate((x // 100, y // 100, x // 10 % 10, y // 10 % 10)):
            told[10 * number + int(digit), token] = 20.0
    for probe in (probes.token_xy, probes.pointed_xy):
        probe.weight.data, probe.bias.data = told, torch.zeros_like(probe.bias)
    assert probes.token_xy_loss(tokens, grids, 2) < 1e-6
    assert probes.token_xy_loss(tokens.roll(1, 0), grids, 2) > 5

    cells, asked = torch.full((4,), NOWHERE), torch.full((4, 2), NOWHERE)
    cells[2], asked[2] = 0, torch.tensor([int(at) for at in middles[7]])
    hidden = torch.stack([tokens[0], tokens[7], tokens[1], tokens[2]])  # asked for in the row before
    assert probes.place_losses(hidden, cells, asked)["pointed xy"] < 1e-6
    assert probes.place_losses(hidden.roll(1, 0), cells, asked)["pointed xy"] > 5


def test_the_position_table_says_rows_and_columns_of_a_new_checkpoint_apart():
    waves = position_waves(6).reshape(6, 6, 4, len(WAVES))
    for row, column in ((0, 0), (2, 5), (5, 1)):
        for number, wave in enumerate(WAVES):
            down, across = (2 * np.pi * wave * at / 5 for at in (row, column))
            expected = torch.tensor([np.sin(down), np.cos(down), np.sin(across), np.cos(across)])
            assert torch.allclose(waves[row, column, :, number].double(), expected, atol=1e-5)


def test_every_parameter_gets_a_gradient_and_some_steps_lower_the_loss(processor):
    network = from_pretrained(CHECKPOINT, dtype=torch.float32).train().requires_grad_(True)
    probes = Probes(network.config)
    torch.nn.init.normal_(probes.cell.weight, std=0.02)  # of zeros, as it begins, nothing would reach the network
    rng = np.random.default_rng(5)
    batch = next(page_batches(processor, rng, READABLE[0], held_out=False, token_budget=512))
    parameters = [*network.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-4)
    totals = []
    for _ in range(6):
        losses, _ = losses_of(network, probes, batch)
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


def test_html_is_scored_by_its_text_and_by_boxes_where_the_blocks_stand():
    rng = np.random.default_rng(12)
    (page, _), *_ = render_batch(rng, replace(READABLE[-1], blank=0.0), 1, held_out=True)
    truth = page.html()
    perfect = html_score(PageScore(truth, truth, None))
    assert perfect.blocks == perfect.boxed == len(page.blocks)
    assert perfect.errors == 0 < perfect.letters
    silent = html_score(PageScore(truth, "", None))
    assert (silent.errors, silent.boxed) == (silent.letters, 0)
    first = page.blocks[0].text
    assert html_score(PageScore(truth, truth.replace(first, first + "!!", 1), None)).errors == 2
    twice = re.sub(r'data-bbox="[^"]*"', 'data-bbox="0 0 1000 1000"', truth)  # one box for all fits one block at most
    assert html_score(PageScore(truth, twice, None)).boxed <= 1


def test_the_iou_of_boxes_is_that_of_their_cells():
    rng = np.random.default_rng(13)

    def cells(box):
        grid = np.zeros((20, 20), dtype=bool)
        grid[box[1] : box[3], box[0] : box[2]] = True
        return grid

    for _ in range(100):
        corners = np.sort(rng.integers(0, 21, (2, 2, 2)), axis=1).reshape(2, 4).tolist()
        first, second = map(cells, corners)
        union = (first | second).sum()
        expected = (first & second).sum() / union if union else 0.0
        assert box_iou(*([side / 20 for side in box] for box in corners)) == pytest.approx(expected)


def test_training_begins_where_a_shipped_checkpoint_ended_and_goes_on_where_it_was_stopped(tmp_path):
    shipped = json.loads((Path(CHECKPOINT) / "training.json").read_text())
    trainer = Trainer(tmp_path, Path(CHECKPOINT))
    assert trainer.progress == Progress(**shipped)
    weights = from_pretrained(CHECKPOINT, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in trainer.network.state_dict().items())
    trainer.progress.step += 5
    with torch.no_grad():
        trainer.probes.cell.bias.fill_(3.0)
    trainer.save()
    again = Trainer(tmp_path)
    assert again.progress.step == shipped["step"] + 5
    assert (again.probes.cell.bias == 3.0).all()


def test_the_checkpoint_has_the_running_mean_of_the_weights(tmp_path, processor):
    trainer = Trainer(tmp_path, Path(CHECKPOINT))
    rng = np.random.default_rng(9)
    batches = list(page_batches(processor, rng, READABLE[0], held_out=False, token_budget=256))[:3]
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    weight = trainer.network.get_parameter(name)
    mean = None
    for run in range(2):
        for batch in batches:
            before = weight.detach().clone()
            trainer.learn(Produced(0, False, batch), 1e-3)
            assert not torch.equal(weight, before)
            now = weight.detach()
            mean = now.clone() if mean is None else MEAN_DECAY * mean + (1 - MEAN_DECAY) * now
        trainer.save()
        saved = from_pretrained(str(trainer.checkpoint)).get_parameter(name)
        ours = trainer.mean_network.get_parameter(name)
        torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-7)
        assert torch.equal(saved, ours.bfloat16())
        if run == 0:  # the mean goes on, too
            trainer = Trainer(tmp_path)
            weight = trainer.network.get_parameter(name)


def test_gradients_of_an_assistant_are_averaged_batch_by_batch_and_taken_once():
    parameter = torch.nn.Parameter(torch.zeros(2))
    assistant = Assistant([parameter], [torch.tensor([5.0, 2.0])], multiprocessing.Value("i", 2))
    parameter.grad = torch.tensor([1.0, 4.0])
    assistant.take([parameter])  # the sum over two batches, and that of one
    assert parameter.grad.tolist() == [2.0, 2.0]
    assistant.take([parameter])
    assert parameter.grad.tolist() == [2.0, 2.0]


def test_a_new_probe_is_fitted_before_its_gradients_reach_a_trained_tower(tmp_path, processor):
    trainer = Trainer(tmp_path, Path(CHECKPOINT))
    assert trainer.has_new_probes
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    rng = np.random.default_rng(7)
    made = page_batches(processor, rng, DENSE_LADDER[0], held_out=False, token_budget=256)
    batches = [Produced(0, False, batch, is_for_tower=True) for batch in made]

    def lost() -> float:
        return tower_losses(trainer.network, trainer.probes, batches[0].batch)["letters"].item()

    at_first = lost()
    trainer.fit_letters(islice(cycle(batches), 20))
    assert lost() < 0.5 * at_first
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in trainer.network.parameters())
    trainer.save()
    assert not Trainer(tmp_path, Path(CHECKPOINT)).has_new_probes


def test_a_trainer_that_is_killed_leaves_no_process_behind(tmp_path):
    options = ["--work", str(tmp_path / "work"), "--minutes", "5", "--token-budget", "512", "--log-every", "1"]
    command = [sys.executable, "-m", "jobs.train_demo", *options]
    with (tmp_path / "log").open("w") as log:
        trainer = psutil.Popen(command, stdout=log, stderr=log, cwd=Path(CHECKPOINT).parents[1])
    deadline = time.monotonic() + 240
    while "step 2" not in (tmp_path / "log").read_text():  # by then the generator and the assistant are at work
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.2)
    helpers = trainer.children(recursive=True)
    assert len(helpers) >= 2
    trainer.kill()
    trainer.wait()
    _, alive = psutil.wait_procs(helpers, timeout=60)
    for helper in alive:
        helper.kill()
    assert not alive
