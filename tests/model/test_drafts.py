"""Drafts follow the text they are copied from, and no draft, however wrong, changes one token of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_engine import SAMPLED, make_engine, mixed_contents, mixed_prompts, run, tokens
from tiny import Pair, random_pair, random_prompt
from tokenizers import Tokenizer

from model.drafts import (
    MAX_LENGTH,
    MISREAD,
    SPACES,
    UNWORDED,
    UNWORDED_CHARACTERS,
    Drafter,
    Overhead,
    _codes_of,
    _costs,
    share_budget,
)
from model.request import Completion, Prompt
from model.scheduler import Scheduler

TOKENIZER = Tokenizer.from_file(str(Path(__file__).parents[2] / "model" / "demo" / "tokenizer.json"))
PROSE = """The parser returns a table for every page of the archive, and a row for every page that could not be read.
Nothing is lost between two runs: what was committed counts once, what was not is read again by the next one.
Rows carry a status and the code of an error. Prices are 12,345.67 in 2026, or 98 percent of what was asked.
Whoever wants to know more may look into the manifest, which lies beside the tables and names all of them.
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(3, tmp_path_factory.mktemp("checkpoint"))


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def drafter(text: str) -> Drafter:
    return Drafter(text, encode, lambda token_ids: TOKENIZER.decode(list(token_ids)))


def tokens_per_step(answer: str, text: str, threshold: float = 0.2) -> tuple[float, Drafter]:
    """Of greedy decoding of `answer` with drafts from the text, checked as the engine does."""
    ours, written = drafter(text), encode(answer)
    done = steps = 0
    while done < len(written):
        most = min(ours.worth_drafting(threshold), len(written) - done - 1)
        draft = ours.propose(most) if done else ()  # the engine drafts from the second token on
        assert len(draft) <= most
        right = 0
        while right < len(draft) and draft[right] == written[done + right]:
            right += 1
        ours.drafted += len(draft)
        ours.accepted += right
        ours.follow(written[done : done + right + 1])
        done += right + 1
        steps += 1
    return len(written) / steps, ours


def misread(text: str, share: float) -> str:
    """Letters are exchanged, left out or doubled, as a model does that sees badly."""
    rng = np.random.default_rng(3)
    letters = []
    for letter in text:
        kind = rng.random() / share if letter.isalpha() else 1
        letters.append(
            letter if kind >= 1 else "" if kind < 0.2 else 2 * letter if kind < 0.4 else "aeiou"[int(5 * kind)]
        )
    return "".join(letters)


def test_a_true_text_is_followed_with_longer_and_longer_drafts():
    rate, ours = tokens_per_step(PROSE, PROSE)
    assert rate > 9
    assert ours.accepted > 0.95 * ours.drafted
    assert ours.worth_drafting(0.2) == MAX_LENGTH


@pytest.mark.parametrize(("share", "least"), [(0.02, 4.0), (0.06, 2.7), (0.12, 2.0)])
def test_a_letter_that_was_misread_costs_a_step_and_not_the_place(share, least):
    assert tokens_per_step(misread(PROSE, share), PROSE)[0] > least


def test_lines_may_be_joined_parted_or_marked_up():
    lines = PROSE.splitlines()
    for answer in (" ".join(lines), "\n\n".join(lines), "\n".join(f"- {line}" for line in lines), "# " + PROSE):
        assert tokens_per_step(answer, PROSE)[0] > 5


def test_the_place_is_found_again_after_what_the_text_leaves_out_or_has_elsewhere():
    first, second, *others = PROSE.splitlines(keepends=True)
    assert tokens_per_step(first + "Nobody wrote this sentence. " + second, PROSE)[0] > 3
    assert tokens_per_step("".join([first, *others, second]), PROSE)[0] > 4  # columns in another order


def test_a_text_that_says_something_else_is_soon_left_alone():
    other = "".join(np.random.default_rng(1).permutation(list("qwxzvkj 0123456789" * 20)))
    rate, ours = tokens_per_step(PROSE, other)
    assert rate < 1.05
    assert ours.drafted < 0.2 * len(encode(PROSE))
    assert not drafter("").propose(5)


def test_alignment_costs_what_its_definition_says():
    """Sellers' recurrence, written out, for all places at once; spaces are alike, marks cost less than letters."""

    def least(tail: str, text: str) -> int:
        if not tail:
            return 0
        ours = UNWORDED if tail[-1] in UNWORDED_CHARACTERS else MISREAD
        if not text:
            return ours + least(tail[:-1], text)
        theirs = UNWORDED if text[-1] in UNWORDED_CHARACTERS else MISREAD
        same = tail[-1] == text[-1] or (tail[-1] in SPACES and text[-1] in SPACES)
        return min(
            least(tail[:-1], text[:-1]) + (0 if same else MISREAD),
            least(tail[:-1], text) + ours,
            least(tail, text[:-1]) + theirs,
        )

    for tail, text in (("ab c", "xab\ncab"), ("# ab", "b ab#"), ("aab", ""), ("**b", "a b\tc")):
        costs = _costs(*_codes_of(tail), *_codes_of(text))
        assert costs.tolist() == [least(tail, text[:end]) for end in range(len(text) + 1)]


def test_a_text_that_was_left_alone_is_followed_again_without_a_draft_that_was_wrong():
    other = "".join(np.random.default_rng(1).permutation(list("qwxzvkj 0123456789" * 20)))
    rate, ours = tokens_per_step(other + PROSE, PROSE, threshold=0.6)
    assert ours.acceptance > 0.9
    assert ours.accepted > 0.9 * ours.drafted
    assert rate > 1.5


@pytest.mark.parametrize("overhead", [Overhead(), Overhead(12, 1.5), Overhead(200, 3)])
def test_a_draft_is_as_long_as_it_saves_most(overhead):
    """Against all lengths tried: rows cost one each, a kept token saves its own row and its part of the rest."""
    ours = drafter(PROSE)
    for sequences in (1, 7, 64):
        for ours.acceptance in (0.05, 0.3, 0.62, 0.9, 0.97):
            saved_rows = 1 + overhead.of_sequence + overhead.of_pass / sequences
            gains = [
                sum(ours.acceptance**token * saved_rows - 1 for token in range(1, length + 1))
                for length in range(MAX_LENGTH + 1)
            ]
            assert share_budget([ours], 1000, sequences, overhead) == [int(np.argmax(gains))]


def test_the_budget_goes_to_the_texts_that_are_followed():
    followed, unknown, wrong = (drafter(PROSE) for _ in range(3))
    followed.acceptance, wrong.acceptance = 0.95, 0.3
    overhead = Overhead(of_pass=6)  # with three requests one in three has to be kept
    assert share_budget([wrong, followed, unknown], 100, 3, overhead) == [0, 21, 4]
    assert share_budget([wrong, followed, unknown], 22, 3, overhead) == [0, 21, 1]
    assert share_budget([wrong, followed, unknown], 11, 3, overhead) == [0, 11, 0]
    assert share_budget([], 7, 0, overhead) == []


def noisy(answer: Sequence[int], rng: np.random.Generator) -> list[int]:
    """The answer with tokens left out, added and changed."""
    text = []
    for token in answer:
        kind = rng.random()
        text += [] if kind < 0.1 else [int(rng.integers(280))] if kind < 0.2 else [token]
        text += [int(rng.integers(280))] if kind > 0.9 else []
    return text


DRAFTS: dict[str, Callable[[Sequence[int], np.random.Generator], Sequence[int]]] = {
    "the answer": lambda answer, rng: answer,
    "noise in it": noisy,
    "another text": lambda answer, rng: rng.integers(0, 280, 40).tolist(),
    "the answer twice, then reversed": lambda answer, rng: [*answer, *answer, *answer[::-1]],
}


def with_drafts(prompts: Sequence[Prompt], answers: Sequence[Completion], kind: str) -> list[Prompt]:
    rng = np.random.default_rng(5)
    return [
        replace(prompt, draft_text=" ".join(map(str, DRAFTS[kind](answer.token_ids, rng))))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", DRAFTS)
def test_answers_are_the_same_with_drafts_as_without(pair, kind, sampling):
    """In batches of any size, in passes of any length, and beside requests that have no draft."""
    rng = np.random.default_rng(31)
    prompts = mixed_prompts(rng, mixed_contents(rng), **sampling)
    expected = run(make_engine(pair), prompts)
    drafting = with_drafts(prompts, expected, kind)
    few = ({"max_step_tokens": 11}, {"max_batch_size": 2}, {"max_draft_tokens": 3}, {"block_size": 1})
    for options in ({}, *few, {"overlap": True}):
        completions = run(make_engine(pair, **options), drafting)
        assert tokens(completions) == tokens(expected), options
        for ours, theirs in zip(completions, expected, strict=True):
            assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert ours.steps <= theirs.steps == len(theirs.token_ids)
    mixed = [*drafting[::2], *prompts[1::2]]
    assert tokens(run(make_engine(pair), mixed)) == tokens([*expected[::2], *expected[1::2]])


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("kind", DRAFTS)
def test_preempted_requests_go_on_with_their_drafts(pair, kind, overlap, monkeypatch):
    rng = np.random.default_rng(32)
    prompts = mixed_prompts(rng, mixed_contents(rng))
    expected = run(make_engine(pair), prompts)
    largest = max(len(prompt.token_ids_T) + prompt.sampling.max_new_tokens for prompt in prompts)
    engine = make_engine(pair, kv_cache_tokens=largest, block_size=1, max_step_tokens=30, overlap=overlap)
    monkeypatch.setattr(Scheduler, "_still_expected", lambda *_: 0)  # nobody waits for the room that answers will need
    assert tokens(run(engine, with_drafts(prompts, expected, kind))) == tokens(expected)
    assert engine.stats.preemptions > 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_an_answer_is_drafted_from_another_one_that_was_there_in_time(pair, batch, overlap):
    """Four chains of three prompts that ask the same, the first of each for fewer tokens. Beside each other they get
    their drafts while they are being answered."""
    rng = np.random.default_rng(34)
    firsts = [random_prompt(rng, [9, number], f"{number}/1", max_new_tokens=12) for number in range(1, 5)]
    more = replace(firsts[0].sampling, max_new_tokens=30)
    prompts = [
        first if number == 1 else replace(first, key=f"{first.key[0]}/{number}", sampling=more)
        for first in firsts
        for number in (1, 2, 3)
    ]
    expected = run(make_engine(pair), prompts)
    chained = [
        prompt if prompt.key[-1] == "1" else replace(prompt, draft_from=f"{prompt.key[:2]}{int(prompt.key[-1]) - 1}")
        for prompt in prompts
    ]
    options = {"max_batch_size": batch, "prefix_cache": False, "overlap": overlap}
    completions = run(make_engine(pair, **options), chained)
    assert tokens(completions) == tokens(expected)
    assert sum(completion.accepted_tokens for completion in completions) > 0
    if batch == 1:
        assert all((ours.accepted_tokens > 0) == (ours.key[-1] != "1") for ours in completions)
    engine = make_engine(pair, **options)
    completions = run(engine, [replace(prompt, draft_text="1 2 3") for prompt in chained])  # no draft is forgotten
    assert tokens(completions) == tokens(expected)
    assert engine.stats.drafted_tokens == sum(completion.drafted_tokens for completion in completions)
    off = run(make_engine(pair, max_draft_tokens=0, **options), chained)
    assert tokens(off) == tokens(expected)
    assert not any(completion.drafted_tokens for completion in off)


def test_the_statistics_say_what_was_drafted_and_kept(pair):
    rng = np.random.default_rng(33)
    prompt = random_prompt(rng, [9], "page", max_new_tokens=40, stop_token_ids=())
    plain = run(make_engine(pair), [prompt])[0]
    assert (plain.steps, plain.drafted_tokens, plain.accepted_tokens) == (len(plain.token_ids), 0, 0)
    engine = make_engine(pair)
    text = " ".join(map(str, plain.token_ids))
    drafted = run(engine, [replace(prompt, draft_text=text)])[0]
    assert drafted.token_ids == plain.token_ids
    assert drafted.steps + drafted.accepted_tokens == len(drafted.token_ids)
    assert 0 < drafted.accepted_tokens <= drafted.drafted_tokens
    assert drafted.steps < 12
    assert engine.stats.drafted_tokens == drafted.drafted_tokens
    assert engine.stats.accepted_tokens == drafted.accepted_tokens
    off = make_engine(pair, max_draft_tokens=0)
    assert run(off, [replace(prompt, draft_text=text)])[0].drafted_tokens == 0
