"""Real children: what hangs, crashes or eats memory costs one task, and nobody outlives the parent."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.records import BadInput, ErrorCode, Stage
from pipeline.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds: more than any of these tasks needs


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with closing(Sandbox(memory_bytes=512 << 20)) as sandbox:
        yield sandbox


def failure_code(sandbox: Sandbox, function: object, *args: object, seconds: float = PATIENCE) -> ErrorCode:
    with pytest.raises(BadInput) as caught:
        sandbox.run(function, *args, seconds=seconds)  # type: ignore[arg-type]
    assert caught.value.failure.stage is Stage.RENDER
    return caught.value.failure.code


def is_running(pid: int) -> bool:
    """Whether any thread of the process is left: its first one may be a zombie before the others are gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1 or psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


def test_tasks_run_in_one_other_process(sandbox: Sandbox) -> None:
    pids = {sandbox.run(os.getpid, seconds=PATIENCE) for _ in range(3)}
    assert len(pids) == 1
    assert pids != {os.getpid()}


@pytest.mark.parametrize(
    ("function", "args"), [(os.abort, ()), (os._exit, (3,)), (sys.exit, (0,)), (signal.raise_signal, (signal.SIGSEGV,))]
)
def test_a_child_that_dies_is_a_crash_and_the_next_task_has_another(
    sandbox: Sandbox, function: object, args: tuple[int, ...]
) -> None:
    first = sandbox.run(os.getpid, seconds=PATIENCE)
    assert failure_code(sandbox, function, *args) == ErrorCode.RENDER_CRASH
    assert sandbox.run(os.getpid, seconds=PATIENCE) != first


def test_a_child_that_hangs_is_killed(sandbox: Sandbox) -> None:
    pid = sandbox.run(os.getpid, seconds=PATIENCE)
    started = time.monotonic()
    assert failure_code(sandbox, time.sleep, 60, seconds=0.2) == ErrorCode.RENDER_TIMEOUT
    assert time.monotonic() - started < 5
    assert not is_running(pid)
    assert sandbox.run(math.sqrt, 16, seconds=PATIENCE) == 4


@pytest.mark.parametrize(("function", "args"), [(bytearray, (1 << 30,)), (np.ones, (1 << 28,))])
def test_memory_beyond_the_limit_is_refused(sandbox: Sandbox, function: object, args: tuple[int, ...]) -> None:
    assert failure_code(sandbox, function, *args) == ErrorCode.RENDER_OOM
    assert len(sandbox.run(bytearray, 1 << 20, seconds=PATIENCE)) == 1 << 20


def test_a_child_killed_by_the_system_ran_out_of_memory(sandbox: Sandbox) -> None:
    assert failure_code(sandbox, signal.raise_signal, signal.SIGKILL) == ErrorCode.RENDER_OOM


def test_exceptions_come_out_as_they_are_and_the_child_lives(sandbox: Sandbox) -> None:
    pid = sandbox.run(os.getpid, seconds=PATIENCE)
    with pytest.raises(ValueError, match="invalid literal"):
        sandbox.run(int, "x", seconds=PATIENCE)
    with pytest.raises(FileNotFoundError):
        sandbox.run(os.stat, "/nowhere", seconds=PATIENCE)
    with pytest.raises(EOFError):
        sandbox.run(raise_it, EOFError("of the task, not of the pipe"), seconds=PATIENCE)
    with pytest.raises(BadInput) as caught:
        sandbox.run(raise_it, BadInput(Stage.OPEN, ErrorCode.CORRUPT, "bits"), seconds=PATIENCE)
    assert caught.value.failure.code == ErrorCode.CORRUPT
    with pytest.raises(RuntimeError, match="Stubborn"):
        sandbox.run(raise_stubborn, seconds=PATIENCE)
    assert sandbox.run(os.getpid, seconds=PATIENCE) == pid


def raise_it(error: Exception) -> None:
    raise error


class StubbornError(Exception):
    """Cannot be unpickled: its constructor wants what pickle does not keep."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("Stubborn")


def raise_stubborn() -> None:
    raise StubbornError(1, 2)


def test_what_native_libraries_write_to_stderr_does_not_flood_the_log(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sandbox.run(os.write, 2, b"Bad code word at line 1", seconds=PATIENCE) == 23
    assert capfd.readouterr().err == ""


def test_items_arrive_one_by_one_and_the_clock_starts_again_with_each(sandbox: Sandbox) -> None:
    sandbox.run(math.sqrt, 1, seconds=PATIENCE)  # the child is up
    assert list(sandbox.iterate(map, time.sleep, [0.5] * 4, seconds=1.5)) == [None] * 4
    items = sandbox.iterate(map, time.sleep, [0, 0, 60], seconds=0.5)
    assert [next(items), next(items)] == [None, None]
    with pytest.raises(BadInput, match=ErrorCode.RENDER_TIMEOUT):
        next(items)


def test_a_crash_comes_after_the_items_that_were_made_before_it(sandbox: Sandbox) -> None:
    items = sandbox.iterate(map, np.full, [1_000_000, 1_000_000, -1], [7, 8, 9], seconds=PATIENCE)
    assert [next(items)[0], next(items)[0]] == [7, 8]
    with pytest.raises(ValueError, match="negative"):
        next(items)
    items = sandbox.iterate(
        map, signal.raise_signal, [signal.SIGCONT, signal.SIGCONT, signal.SIGABRT], seconds=PATIENCE
    )
    assert [next(items), next(items)] == [None, None]
    with pytest.raises(BadInput, match="SIGABRT"):
        next(items)


def test_an_iteration_given_up_leaves_nothing_for_the_next_task(sandbox: Sandbox) -> None:
    items = sandbox.iterate(range, 1000, seconds=PATIENCE)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert list(sandbox.iterate(range, 3, seconds=PATIENCE)) == [0, 1, 2]


def test_the_child_is_replaced_after_so_many_tasks() -> None:
    with closing(Sandbox(memory_bytes=512 << 20, max_tasks=2)) as sandbox:
        pids = [sandbox.run(os.getpid, seconds=PATIENCE) for _ in range(5)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
        assert [is_running(pid) for pid in pids] == [False] * 4 + [True]
    assert not is_running(pids[4])


def test_a_child_that_died_while_idle_is_not_held_against_the_next_task(sandbox: Sandbox) -> None:
    pid = sandbox.run(os.getpid, seconds=PATIENCE)
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    assert sandbox.run(os.getpid, seconds=PATIENCE) != pid


def test_a_page_of_pixels_travels_unchanged_in_milliseconds(sandbox: Sandbox) -> None:
    page_HWC = np.random.default_rng(0).integers(0, 256, (1632, 1280, 3), dtype=np.uint8)
    assert np.array_equal(sandbox.run(np.flip, page_HWC, seconds=PATIENCE), page_HWC[::-1, ::-1, ::-1])
    times = []
    for _ in range(7):
        started = time.perf_counter()
        sandbox.run(np.ones, page_HWC.shape, np.uint8, seconds=PATIENCE)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05, "6 MB: a few milliseconds on an idle machine"


BUSY_PARENT = """
import os, sys, time
from pipeline.sandbox import Sandbox
sandbox = Sandbox(memory_bytes=512 << 20)
print(sandbox.run(os.getpid, seconds=30), flush=True)
sandbox.run(time.sleep, 600, seconds=600)
"""
IDLE_PARENT = BUSY_PARENT.replace("sandbox.run(time.sleep, 600, seconds=600)", "time.sleep(600)")


@pytest.mark.parametrize("code", [BUSY_PARENT, IDLE_PARENT], ids=["busy", "idle"])
def test_the_child_ends_when_its_parent_is_killed(code: str) -> None:
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    wait_until_gone(child)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)
