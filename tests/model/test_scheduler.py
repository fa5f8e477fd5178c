"""The scheduler without a model: a token that was asked for is simply there."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.cache import BlockPool
from model.request import Prompt, Sampling
from model.scheduler import Lane, Request, Scheduler, Step


def make_request(key: str, prompt_tokens: int, max_new_tokens: int) -> Request:
    prompt = Prompt(
        key=key,
        token_ids_T=np.zeros(prompt_tokens, np.int32),
        positions_3T=np.zeros((3, prompt_tokens), np.int32),
        next_position=prompt_tokens,
        patches_PC=np.empty((0, 1), np.uint8),
        grids_G3=np.empty((0, 3), np.int32),
        sampling=Sampling(max_new_tokens=max_new_tokens),
    )
    return Request(prompt, max_new_tokens)


def make_scheduler(
    *, num_blocks: int, block_size: int, batch: int = 8, tokens: int = 64
) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(num_blocks, block_size)
    return Scheduler(pool, max_batch_size=batch, max_step_tokens=tokens), pool


def play_step(scheduler: Scheduler) -> tuple[list[tuple[str, int, int]], list[str], list[Request]]:
    """One pass -> (key, start, end) of its chunks, who was preempted, who finished."""
    step = scheduler.schedule()
    finished = []
    for chunk in step.chunks:
        if chunk.samples:
            chunk.request.new_token_ids.append(len(chunk.request.new_token_ids))
            if len(chunk.request.new_token_ids) == chunk.request.max_new_tokens:
                scheduler.finish(chunk.request)
                finished.append(chunk.request)
    chunks = [(chunk.request.prompt.key, chunk.start, chunk.end) for chunk in step.chunks]
    return chunks, [request.prompt.key for request in step.preempted], finished


def test_a_long_prompt_goes_in_chunks_beside_requests_that_decode():
    scheduler, _ = make_scheduler(num_blocks=100, block_size=4, tokens=10)
    scheduler.add(make_request("short", 4, 5))
    scheduler.add(make_request("long", 20, 2))
    scheduler.add(make_request("last", 3, 1))
    steps = [play_step(scheduler)[0] for _ in range(4)]
    assert steps == [
        [("short", 0, 4), ("long", 0, 6)],
        [("short", 4, 5), ("long", 6, 15)],
        [("short", 5, 6), ("long", 15, 20), ("last", 0, 3)],
        [("short", 6, 7), ("long", 20, 21)],
    ]


def test_the_newest_request_makes_room_and_is_computed_again_with_the_tokens_it_has():
    scheduler, pool = make_scheduler(num_blocks=5, block_size=2)
    scheduler.add(make_request("old", 3, 6))
    scheduler.add(make_request("new", 2, 4))
    history = []
    while scheduler.has_work:
        history.append(play_step(scheduler)[:2])
    assert history == [
        ([("old", 0, 3), ("new", 0, 2)], []),
        ([("old", 3, 4), ("new", 2, 3)], []),
        ([("old", 4, 5), ("new", 3, 4)], []),
        ([("old", 5, 6)], ["new"]),  # "new" wants a third block, and "old" holds the other three
        ([("old", 6, 7)], []),
        ([("old", 7, 8)], []),
        ([("new", 0, 5)], []),  # two tokens of prompt and the three it had
    ]
    assert pool.num_free == 5


def test_a_request_waits_until_its_whole_prompt_fits_beside_the_growth_of_the_others():
    scheduler, _ = make_scheduler(num_blocks=6, block_size=4)
    scheduler.add(make_request("first", 8, 4))
    scheduler.add(make_request("second", 16, 1))  # four blocks are free, but one is kept for the first to grow into
    waits = [play_step(scheduler)[0] for _ in range(4)]
    assert all(key == "first" for chunks in waits for key, _, _ in chunks)
    assert play_step(scheduler)[0] == [("second", 0, 16)]


@given(
    requests=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 10)), min_size=1, max_size=12),
    block_size=st.integers(1, 9),
    spare_blocks=st.integers(0, 12),
    batch=st.integers(1, 6),
    tokens=st.integers(1, 50),
)
def test_every_request_finishes_whatever_the_sizes(requests, block_size, spare_blocks, batch, tokens):
    """Arrival times, prompt lengths, answer lengths and all limits are drawn; the cache fits the largest request."""
    most_tokens = max(length + new for length, new, _ in requests)
    num_blocks = -(-most_tokens // block_size) + spare_blocks
    scheduler, pool = make_scheduler(num_blocks=num_blocks, block_size=block_size, batch=batch, tokens=tokens)
    arriving = sorted(
        ((arrival, make_request(str(number), length, new)) for number, (length, new, arrival) in enumerate(requests)),
        key=lambda pair: pair[0],
    )
    work = {request.prompt.key: request for _, request in arriving}
    unfinished = list(work)
    computed: dict[str, int] = defaultdict(int)
    finished: list[Request] = []
    step = 0
    while arriving or scheduler.has_work:
        while arriving and arriving[0][0] <= step:
            scheduler.add(arriving.pop(0)[1])
        step += 1
        if not scheduler.has_work:
            continue
        chunks, preempted, done = play_step(scheduler)
        computed.update(dict.fromkeys(preempted, 0))
        assert 0 < sum(end - start for _, start, end in chunks) <= tokens
        assert len(chunks) <= batch
        assert not set(preempted) & {key for key, _, _ in chunks}
        for key, start, end in chunks:  # no token is left out, and none is computed twice without a preemption
            assert start == computed[key]
            computed[key] = end
        assert [key for key, _, _ in chunks] == unfinished[: len(chunks)]  # nobody is overtaken
        unfinished = [key for key in unfinished if work[key] not in done]
        finished += done
        owned = [block for request in work.values() for block in request.blocks]
        assert len(owned) == len(set(owned))
        assert len(owned) + pool.num_free == num_blocks
        assert all(len(work[key].blocks) * block_size >= end for key, _, end in chunks if work[key] not in done)
        assert step < 10_000
    assert sorted(request.prompt.key for request in finished) == sorted(work)
    assert all(len(request.new_token_ids) == request.max_new_tokens for request in finished)
    assert pool.num_free == num_blocks


def test_what_is_drafted_from_an_answer_being_written_lets_others_go_first_but_leaves_no_place_empty():
    """Windows of two videos, each drafted from the one before."""
    scheduler, _ = make_scheduler(num_blocks=1000, block_size=4, batch=3)
    windows = [(video, number) for video in "ab" for number in range(1, 5)]
    requests = {f"{video}{number}": make_request(f"{video}{number}", 4, 2) for video, number in windows}
    for (video, number), request in zip(windows, requests.values(), strict=True):
        request.prompt = replace(request.prompt, draft_from=f"{video}{number - 1}" if number > 1 else None)
        scheduler.add(request)
    started: list[list[str]] = []
    while scheduler.has_work:
        chunks, _, _ = play_step(scheduler)
        if new := [key for key, start, _ in chunks if start == 0]:
            started.append(new)
    assert started == [["a1", "a3", "b1"], ["a2", "a4", "b2"], ["b3", "b4"]]
    assert [request.prompt.key for request in scheduler.drafted_from("a1")] == []


@given(
    requests=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=12),
    block_size=st.integers(1, 9),
    spare_blocks=st.integers(0, 12),
    batch=st.integers(1, 6),
    tokens=st.integers(1, 50),
)
def test_every_request_finishes_with_two_passes_at_work(requests, block_size, spare_blocks, batch, tokens):
    """As the engine plays them: each lane launches a pass when it has none, and the oldest pass brings its tokens."""
    num_blocks = -(-max(map(sum, requests)) // block_size) + spare_blocks
    scheduler, pool = make_scheduler(num_blocks=num_blocks, block_size=block_size, batch=batch, tokens=tokens)
    work = [make_request(str(number), *sizes) for number, sizes in enumerate(requests)]
    for request in work:
        scheduler.add(request)
    launched: dict[Lane, Step] = {}
    passes = 0
    while scheduler.has_work:
        for lane in ("decoding", "prompts"):
            if lane in launched:
                continue
            awaited = {chunk.request for step in launched.values() for chunk in step.chunks if chunk.samples}
            step = scheduler.schedule(lane, awaited)
            assert not awaited & {*step.preempted, *(chunk.request for chunk in step.chunks)}
            if lane == "decoding":
                assert all(len(chunk) == 1 and chunk.request.new_token_ids for chunk in step.chunks)
            if step.chunks:
                launched[lane] = step
        assert launched, "nothing is at work and nothing can be"
        passes += 1
        assert passes < 10_000
        for chunk in launched.pop(next(iter(launched))).chunks:
            if chunk.samples:
                assert chunk.end == chunk.request.num_tokens
                chunk.request.new_token_ids.append(0)
                if len(chunk.request.new_token_ids) == chunk.request.max_new_tokens:
                    scheduler.finish(chunk.request)
    assert all(len(request.new_token_ids) == request.max_new_tokens for request in work)
    assert pool.num_free == num_blocks


def test_a_request_larger_than_the_cache_is_a_broken_invariant():
    scheduler, _ = make_scheduler(num_blocks=2, block_size=4)
    scheduler.add(make_request("huge", 9, 1))
    with pytest.raises(AssertionError, match="larger than the cache"):
        scheduler.schedule()
