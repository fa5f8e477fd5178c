"""Replicas of several processes: they answer like one, do not meet each other, and none of them outlives the rest."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from model.engine import Engine, EngineOptions
from model.processor import Processor
from model.ranks import Followers
from model.request import Frames, Prompt, Sampling

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model" / "demo"
SECONDS_TO_END = 10.0

# Two replicas of two ranks in one process; prints their answers, then steps one of them for ever or waits.
REPLICAS = """
import sys, time
from model.engine import Engine, EngineOptions
from tests.model.test_ranks import DEMO, page

engines = [Engine.from_pretrained(str(DEMO), EngineOptions(tensor_parallel=2, kv_cache_tokens=8192)) for _ in range(2)]
for engine in engines:
    engine.add(page("a"))
    engine.add(page("b"))
    print(*sorted((completion.key, *completion.token_ids) for completion in engine.drain()), sep=";", flush=True)
if sys.argv[1] == "close":
    sys.exit()
while True:
    if sys.argv[1] == "wait":
        time.sleep(0.1)
    else:
        engines[1].add(page("a"))
        for _ in engines[1].drain():
            pass
"""


def page(key: str) -> Prompt:
    pixels = np.random.default_rng(ord(key)).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    return Processor.from_pretrained(str(DEMO)).encode(key, [Frames(pixels), "Read."], Sampling(max_new_tokens=6))


@contextmanager
def replicas(ending: str) -> Iterator[tuple[subprocess.Popen, list[str], list[psutil.Process]]]:
    """The process, what its replicas answered, and the ranks it started."""
    command = [sys.executable, "-c", REPLICAS, ending]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            answers = [process.stdout.readline().strip() for _ in range(2)]
            yield process, answers, psutil.Process(process.pid).children()
        finally:
            process.kill()


def all_gone(ranks: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(ranks, timeout=SECONDS_TO_END)[1]


@pytest.mark.parametrize("ending", ["wait", "step"])
def test_a_rank_that_is_killed_ends_its_replica_at_once_and_says_so(ending):
    with replicas(ending) as (process, answers, ranks):
        alone = Engine.from_pretrained(str(DEMO), EngineOptions(kv_cache_tokens=8192))
        alone.add(page("a"))
        alone.add(page("b"))
        expected = sorted((completion.key, *completion.token_ids) for completion in alone.drain())
        assert answers == [";".join(map(str, expected))] * 2
        assert len(ranks) == 2
        killed = time.monotonic()
        ranks[1].kill()
        assert process.wait(SECONDS_TO_END) == 1
        assert time.monotonic() - killed < SECONDS_TO_END
        assert "rank 1 of 2 ended with status -9: its replica ends with it" in process.stderr.read()
        assert all_gone(ranks)


def test_ranks_end_with_rank_0_however_it_ends():
    with replicas("step") as (process, _, ranks):
        process.kill()
        assert all_gone(ranks)
    with replicas("close") as (process, answers, _):
        assert answers[0] == answers[1] != ""
        assert process.wait(SECONDS_TO_END) == 0
        assert process.stderr.read() == ""
        assert not psutil.Process().children()


def test_a_rank_that_cannot_start_is_an_error_not_a_wait():
    followers = Followers(2, "cpu", len)  # cannot be called with a group and a leader
    with pytest.raises(RuntimeError, match="rank 1 of 2 ended with status 1 before it had loaded"):
        followers.wait("loaded")
    assert not psutil.Process().children()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel must be at least 1"),
        ({"tensor_parallel": 3}, "tensor_parallel 3: neither it nor num_key_value_heads, 2"),
        ({"tensor_parallel": 2, "device": "cuda:1"}, "device 'cuda:1' is one"),
    ],
)
def test_what_cannot_be_spread_is_refused_before_a_process_starts(options, message):
    with pytest.raises(ValueError, match=message):
        Engine.from_pretrained(str(DEMO), EngineOptions(**options))
    assert not psutil.Process().children()
