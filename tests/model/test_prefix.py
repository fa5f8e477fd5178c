"""Prompts that begin alike share blocks of the cache: with any mix of requests, and with hits that end in an image."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import SAMPLED, make_engine, mixed_contents, mixed_prompts, run, tokens
from tiny import Pair, random_pair, random_prompt

from model.cache import BlockPool
from model.grids import placed_grids
from model.prefix import BlockKeys
from model.request import Frames, Prompt, Sampling
from model.scheduler import Request, Scheduler


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(3, tmp_path_factory.mktemp("checkpoint"))


def text_prompt(key: str, token_ids: list[int]) -> Prompt:
    length = len(token_ids)
    return Prompt(
        key=key,
        token_ids_T=np.array(token_ids, np.int32),
        positions_3T=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        next_position=length,
        patches_PC=np.empty((0, 1), np.uint8),
        grids_G3=np.empty((0, 3), np.int32),
        sampling=Sampling(max_new_tokens=9),
    )


@settings(deadline=None)
@given(
    prompts=st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=14), st.integers(1, 9)), min_size=1),
    block_size=st.integers(1, 4),
    spare_blocks=st.integers(0, 9),
    batch=st.integers(1, 4),
    step_tokens=st.integers(1, 20),
)
def test_what_a_chunk_builds_on_was_written_for_the_same_tokens(prompts, block_size, spare_blocks, batch, step_tokens):
    """A cache of Python tuples: every slot remembers the whole sequence up to the token that was written into it."""
    largest = max(len(token_ids) + new for token_ids, new in prompts)
    pool = BlockPool(-(-largest // block_size) + spare_blocks, block_size)
    scheduler = Scheduler(pool, max_batch_size=batch, max_step_tokens=step_tokens)
    for number, (token_ids, new) in enumerate(prompts):
        prompt = text_prompt(str(number), token_ids)
        scheduler.add(Request(prompt, new, keys=BlockKeys(prompt, [], block_size)))
    slots: dict[tuple[int, int], tuple[int, ...]] = {}
    while scheduler.has_work:
        step = scheduler.schedule()
        for chunk in step.chunks:
            request = chunk.request
            known = (*request.prompt.token_ids_T.tolist(), *request.new_token_ids)
            places = [(request.blocks[place // block_size], place % block_size) for place in range(chunk.end)]
            assert all(slots[where] == known[: place + 1] for place, where in enumerate(places[: chunk.start]))
            slots |= {where: known[: place + 1] for place, where in enumerate(places) if place >= chunk.start}
        for chunk in step.chunks:
            if chunk.samples:
                chunk.request.new_token_ids.append(sum(chunk.request.new_token_ids) % 2)
                if len(chunk.request.new_token_ids) == chunk.request.max_new_tokens:
                    scheduler.finish(chunk.request)
    assert pool.num_free == pool.num_blocks


def test_a_hit_that_ends_inside_an_image_changes_no_token(pair):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    image, other = Frames(pixels), Frames(255 - pixels)
    first = random_prompt(rng, [6, image, 2], "first", max_new_tokens=12)
    place = placed_grids(first, pair.config)[0]
    again = replace(first, key="again", token_ids_T=first.token_ids_T.copy())
    again.token_ids_T[place.end :] += 1  # another question about the same image
    different = random_prompt(rng, [6, other, 2], "different", max_new_tokens=12)
    different.token_ids_T[:] = first.token_ids_T  # the same question about another image
    expected = tokens(run(make_engine(pair), [first, again, different]))
    assert len(set(expected)) == 3
    engine = make_engine(pair, prefix_cache=True)
    hits = []
    for prompt, answer in zip((first, again, different, first), (*expected, expected[0]), strict=True):
        before = engine.stats.cached_tokens
        assert run(engine, [prompt])[0].token_ids == answer
        hits.append(engine.stats.cached_tokens - before)
    whole_blocks = (len(first.token_ids_T) - 1) // 4 * 4
    assert hits == [0, place.end // 4 * 4, place.start // 4 * 4, whole_blocks]
    assert place.start < hits[1] < place.end


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_preempted_request_finds_what_nobody_has_overwritten(pair, sampling, overlap):
    rng = np.random.default_rng(13)
    prompts = mixed_prompts(rng, mixed_contents(rng), **sampling)
    expected = tokens(run(make_engine(pair), prompts))
    largest = max(len(prompt.token_ids_T) + prompt.sampling.max_new_tokens for prompt in prompts)
    cramped = {"kv_cache_tokens": largest + 8, "block_size": 1, "max_step_tokens": 9, "overlap": overlap}
    engine = make_engine(pair, **cramped, prefix_cache=True)
    assert tokens(run(engine, prompts)) == expected
    assert engine.stats.preemptions > 0
    assert engine.stats.cached_tokens > 0
    assert tokens(run(engine, prompts)) == expected  # over a cache full of what the first round left


def test_the_longest_unused_blocks_make_room_first():
    pool = BlockPool(6, 1)
    tables: list[list[int]] = [[], [], []]
    for name, table in enumerate(tables):
        pool.grow(table, 2)
        for place, block in enumerate(table):
            pool.publish(block, bytes([name, place]))
    for table in (tables[1], tables[0], tables[2]):
        pool.release(table)
    pool.release(pool.share([bytes([1, 0]), bytes([1, 1])]))  # used again
    pool.grow(tables[0], 2)
    found = [pool.share([bytes([name, 0]), bytes([name, 1])]) for name in range(3)]
    assert [len(table) for table in found] == [0, 2, 2]


def test_a_request_waits_for_the_room_its_answer_will_probably_need():
    def admitted_beside_another(expected_new_tokens: int) -> int:
        scheduler = Scheduler(BlockPool(10, 4), max_batch_size=4, max_step_tokens=64)
        for key in ("first", "second"):
            scheduler.add(Request(text_prompt(key, [1] * 8), 30, expected_new_tokens=expected_new_tokens))
        return len(scheduler.schedule().chunks)

    assert admitted_beside_another(8) == 2
    assert admitted_beside_another(20) == 1
