"""Thinking variants: what is reasoning and what is the answer, and how the reasoning is bounded."""

from dataclasses import replace

import numpy as np
import pytest
from test_engine import Numbers
from tiny import Pair, random_frames, random_pair, random_prompt
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from model.engine import Engine, ThinkTokenIds, find_think_token_ids
from model.engine_options import EngineOptions
from model.request import Completion, Prompt, Sampling

OPEN = 281


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(3, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    """It ends as the template of a thinking model does: the opening tag and a line break."""
    rng = np.random.default_rng(2)
    prompt = random_prompt(rng, [3, random_frames(rng), 6], "page", max_new_tokens=20)
    ids = prompt.token_ids_T.copy()
    ids[-2:] = OPEN, 10
    return replace(prompt, token_ids_T=ids)


def answer(pair: Pair, prompt: Prompt, close: int | None, **options) -> Completion:
    think = None if close is None else ThinkTokenIds(OPEN, close)
    engine = Engine(pair.ours, Numbers(), EngineOptions(kv_cache_tokens=512, **options), frozenset([299]), think)
    engine.add(prompt)
    (completion,) = engine.drain()
    return completion


def words(token_ids) -> str:
    return " ".join(map(str, token_ids))


def continued(prompt: Prompt, token_ids) -> Prompt:
    """The prompt with the first tokens of its answer appended to it."""
    more = np.arange(len(token_ids)) + prompt.next_position
    return replace(
        prompt,
        token_ids_T=np.concatenate((prompt.token_ids_T, token_ids), dtype=np.int32),
        positions_3T=np.concatenate((prompt.positions_3T, np.tile(more, (3, 1))), axis=1, dtype=np.int32),
        next_position=prompt.next_position + len(token_ids),
    )


def test_what_stands_before_the_closing_tag_is_reasoning(pair, prompt):
    plain = answer(pair, prompt, None)
    assert (plain.reasoning, plain.text) == ("", words(plain.token_ids))
    at = next(at for at in range(3, 20) if plain.token_ids.index(plain.token_ids[at]) == at)
    thought = answer(pair, prompt, plain.token_ids[at])
    assert thought.token_ids == plain.token_ids
    assert thought.reasoning == words(plain.token_ids[:at])
    assert thought.text == words(plain.token_ids[at + 1 :])


def test_reasoning_that_never_ends_leaves_no_answer(pair, prompt):
    thought = answer(pair, prompt, 298)
    assert (thought.text, thought.finish_reason) == ("", "length")
    assert thought.reasoning == words(thought.token_ids)


def test_a_model_that_was_not_asked_to_think_does_not(pair, prompt):
    """The closing tag on a page that an instruct model reads is text like any other."""
    ids = prompt.token_ids_T.copy()
    ids[-2] = 11
    asked = replace(prompt, token_ids_T=ids)
    plain = answer(pair, asked, None)
    assert answer(pair, asked, plain.token_ids[4]) == replace(
        plain,
        seconds_queued=pytest.approx(0, abs=100),
        seconds_running=pytest.approx(0, abs=100),
    )


def test_reasoning_is_closed_at_its_limit_and_the_answer_follows_from_it(pair, prompt):
    plain = answer(pair, prompt, None)
    limited = replace(prompt, sampling=Sampling(max_new_tokens=12, max_reasoning_tokens=3))
    for options in ({}, {"max_step_tokens": 4}):
        thought = answer(pair, limited, 298, **options)
        assert thought.token_ids[:4] == (*plain.token_ids[:3], 298)
        rest = answer(
            pair, replace(continued(prompt, thought.token_ids[:4]), sampling=Sampling(max_new_tokens=8)), None
        )
        assert thought.token_ids[4:] == rest.token_ids
        assert (thought.reasoning, thought.text) == (words(plain.token_ids[:3]), words(rest.token_ids))
    with pytest.raises(ValueError, match="max_reasoning_tokens must be at least 1, or None, not 0"):
        Sampling(max_reasoning_tokens=0)


def test_the_tags_are_found_in_the_tokenizer():
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    assert find_think_token_ids(tokenizer) is None
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    assert find_think_token_ids(tokenizer) == (1, 2)
