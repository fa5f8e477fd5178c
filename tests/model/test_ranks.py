"""Replicas of several processes: they answer like one, do not meet each other, and none of them outlives the rest."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from model.engine import Engine
from model.engine_options import EngineOptions
from model.processor import Processor
from model.ranks import Followers
from model.request import Frames, Prompt, Sampling

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "model" / "demo"
SECONDS_TO_END = 20.0  # a busy machine's; on a quiet one it is milliseconds

# Replicas of two ranks in one process; prints their answers, then ends, waits, or steps the last of them for ever.
REPLICAS = """
import sys, time
from model.engine import Engine
from model.engine_options import EngineOptions
from tests.model.test_ranks import DEMO, page

options = EngineOptions(tensor_parallel=2, kv_cache_tokens=8192)
engines = [Engine.from_pretrained(str(DEMO), options) for _ in range(int(sys.argv[2]))]
for engine in engines:
    engine.add(page("a"))
    engine.add(page("b"))
    print(*sorted((completion.key, *completion.token_ids) for completion in engine.drain()), sep=";", flush=True)
while sys.argv[1] == "wait":
    time.sleep(0.1)
while sys.argv[1] == "step":
    engine.add(page("a"))
    for _ in engine.drain():
        pass
"""


def rank_processes() -> list[psutil.Process]:
    """Children of this process that are ranks; other tests' Ray may be among the children too."""
    return [child for child in psutil.Process().children() if "model.ranks" in " ".join(child.cmdline())]


def page(key: str) -> Prompt:
    pixels = np.random.default_rng(ord(key)).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    return Processor.from_pretrained(str(DEMO)).encode(key, [Frames(pixels), "Read."], Sampling(max_new_tokens=6))


@contextmanager
def replicas(ending: str, count: int = 1) -> Iterator[tuple[subprocess.Popen, list[str], list[psutil.Process]]]:
    """The process, what its replicas answered, and the ranks it started."""
    command = [sys.executable, "-c", REPLICAS, ending, str(count)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            answers = [process.stdout.readline().strip() for _ in range(count)]
            yield process, answers, psutil.Process(process.pid).children()
        finally:
            process.kill()


def all_gone(ranks: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(ranks, timeout=SECONDS_TO_END)[1]


@pytest.mark.parametrize("ending", ["step", pytest.param("wait", marks=pytest.mark.heavy)])
def test_a_rank_that_is_killed_ends_its_replica_at_once_and_says_so(ending):
    with replicas(ending) as (process, _, (rank,)):
        rank.kill()
        assert process.wait(SECONDS_TO_END) == 1
        assert "rank 1 of 2 ended with status -9: its replica ends with it" in process.stderr.read()


def test_ranks_end_when_rank_0_is_killed():
    with replicas("step") as (process, _, ranks):
        assert len(ranks) == 1
        process.kill()
        assert all_gone(ranks)


def test_two_replicas_in_one_process_answer_as_one_rank_and_end_in_silence():
    alone = Engine.from_pretrained(str(DEMO), EngineOptions(kv_cache_tokens=8192))
    alone.add(page("a"))
    alone.add(page("b"))
    expected = sorted((completion.key, *completion.token_ids) for completion in alone.drain())
    with replicas("close", 2) as (process, answers, ranks):
        assert answers == [";".join(map(str, expected))] * 2
        assert process.wait(2 * SECONDS_TO_END) == 0
        assert process.stderr.read() == ""
        assert all_gone(ranks)


def test_a_rank_that_cannot_start_is_an_error_not_a_wait():
    # It may be gone before the last connection is made.
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 ended with status 1 before it had (joined|loaded)"):
        Followers(2, "cpu", len).wait("loaded")  # cannot be called with a group and a leader
    assert not rank_processes()


@pytest.mark.parametrize(("is_killed", "message"), [(True, "rank 1 of 2 ended with status -9"), (False, "by peer")])
def test_ranks_that_do_not_meet_are_an_error_and_leave_no_process(monkeypatch, is_killed, message):
    def fail(*_):
        if is_killed:
            [rank] = rank_processes()
            rank.kill()
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("model.ranks.join_group", fail)
    monkeypatch.setattr("model.ranks.SECONDS_TO_STOP", 1.0)
    with pytest.raises(RuntimeError, match=message):
        Followers(2, "cpu", len)
    assert not rank_processes()


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
    assert not rank_processes()
