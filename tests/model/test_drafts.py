"""Drafts follow the text they are copied from, and no draft, however wrong, changes one token of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from test_engine import SAMPLED, make_engine, mixed_contents, mixed_prompts, run, tokens
from tiny import Pair, random_pair, random_prompt

from model.drafts import MAX_LENGTH, Drafter, Pointer, drafter, share_budget
from model.request import Completion, Prompt
from model.scheduler import Scheduler

NEWLINE = 1000  # stands for a token that writes no word


def is_newline(token_id: int) -> bool:
    return token_id >= NEWLINE


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(3, tmp_path_factory.mktemp("checkpoint"))


def steps_for(answer: Sequence[int], *spellings: Sequence[int]) -> tuple[int, Drafter]:
    """How many passes greedy decoding of `answer` takes with drafts from the spellings, checked as the engine does."""
    ours = drafter(spellings, is_newline)
    written = steps = 0
    while written < len(answer):
        draft = ours.propose(len(answer) - written - 1)
        right = 0
        while right < len(draft) and draft[right] == answer[written + right]:
            right += 1
        ours.learn(len(draft), right)
        ours.follow(answer[written : written + right + 1])
        written += right + 1
        steps += 1
    return steps, ours


def test_a_true_text_is_followed_with_longer_and_longer_drafts():
    steps, ours = steps_for(range(200), list(range(200)))
    assert steps <= 2 + 200 / (MAX_LENGTH + 1) + 2
    assert ours.accepted == ours.drafted == 200 - steps


def test_the_pointer_is_found_again_after_what_the_text_leaves_out_or_adds():
    text = list(range(300))
    left_out = [*range(80), 900, 901, 902, *range(80, 160), *range(200, 300)]
    assert steps_for(left_out, text)[0] < 45
    far_back = [*range(100, 200), *range(0, 100)]  # two columns in the other order
    assert steps_for(far_back, text)[0] < 35


def test_lines_may_be_joined_parted_or_marked_up():
    lines = [list(range(start, start + 10)) for start in range(0, 300, 10)]
    kept = [token for line in lines for token in (*line, NEWLINE)]
    joined = [token for line in lines for token in line]
    parted = [token for line in lines for token in (*line, NEWLINE + 1)]
    marked = [token for line in lines for token in (NEWLINE + 2, NEWLINE + 3, *line, NEWLINE + 1)]
    assert steps_for(joined, kept, joined)[0] < 30
    assert steps_for(kept, kept, joined)[0] < 30
    assert steps_for(parted, kept, joined)[0] < 35
    assert steps_for(marked, kept, joined)[0] < 40


def test_a_text_that_says_something_else_is_soon_left_alone():
    answer = np.random.default_rng(1).integers(0, 500, 300).tolist()
    text = list(range(500, 900))
    steps, ours = steps_for(answer, text)
    assert steps == 300
    assert ours.drafted <= 4
    assert not drafter([[]], is_newline).propose(5)


def test_the_budget_goes_to_the_texts_that_are_followed():
    followed, unknown, wrong = (Drafter([Pointer(list(range(50)), is_newline)]) for _ in range(3))
    for _ in range(8):
        followed.learn(8, 8)
        wrong.learn(2, 0)
    assert share_budget([wrong, followed, unknown], 100) == [1, 16, 4]
    assert share_budget([wrong, followed, unknown], 11) == [0, 11, 0]
    assert share_budget([wrong, wrong], 7) == [0, 0]
    assert share_budget([], 7) == []


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
    for options in ({}, {"max_step_tokens": 11}, {"max_batch_size": 2}, {"max_draft_tokens": 3}, {"block_size": 1}):
        completions = run(make_engine(pair, **options), drafting)
        assert tokens(completions) == tokens(expected), options
        for ours, theirs in zip(completions, expected, strict=True):
            assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert ours.steps <= theirs.steps == len(theirs.token_ids)
    mixed = [*drafting[::2], *prompts[1::2]]
    assert tokens(run(make_engine(pair), mixed)) == tokens([*expected[::2], *expected[1::2]])


@pytest.mark.parametrize("kind", DRAFTS)
def test_preempted_requests_go_on_with_their_drafts(pair, kind, monkeypatch):
    rng = np.random.default_rng(32)
    prompts = mixed_prompts(rng, mixed_contents(rng))
    expected = run(make_engine(pair), prompts)
    largest = max(len(prompt.token_ids_T) + prompt.sampling.max_new_tokens for prompt in prompts)
    engine = make_engine(pair, kv_cache_tokens=largest + 8, block_size=1, max_step_tokens=30)
    monkeypatch.setattr(Scheduler, "_still_expected", lambda *_: 0)  # nobody waits for the room that answers will need
    assert tokens(run(engine, with_drafts(prompts, expected, kind))) == tokens(expected)
    assert engine.stats.preemptions > 0


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
