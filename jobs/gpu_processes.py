"""Checks in processes of their own, each with a time limit: a fault, a hang or a crash in one ends nothing else."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jobs.gpu_kernels import CannotRunError, CheckFailedError, Numbers, Settings

SECONDS_IN_ALL = 460.0  # on GPUs
SECONDS_EACH = 60.0
SLOWER = 4  # a CPU may be, which others use too
SECONDS_TO_END = 5.0  # of a process that was killed
SHOWN = 200  # characters of a reason


@dataclass(frozen=True, slots=True)
class Check:
    """`run` returns its numbers, raises CheckFailedError or CannotRunError, or ends as it likes: a failure too."""

    name: str
    run: Callable[[Settings], Numbers]
    seconds: float = SECONDS_EACH


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    status: str  # "PASS", "FAIL", "SKIPPED"
    seconds: float
    reason: str
    numbers: Numbers

    def __str__(self) -> str:
        return f"{self.status:<8}{self.name:<44}{self.seconds:7.1f} s  {self.reason[:SHOWN]}".rstrip()


def run_all(chosen: Sequence[Check], settings: Settings, scratch: Path) -> list[Result]:
    """One after the other, each with its line, as long as there is time."""
    slower = 1 if settings.is_cuda else SLOWER
    end = time.monotonic() + slower * SECONDS_IN_ALL
    results = []
    for check in chosen:
        left = end - time.monotonic()
        if left > 1:
            result = run_one(replace(check, seconds=min(slower * check.seconds, left)), settings, scratch)
        else:
            result = Result(check.name, "SKIPPED", 0.0, "out of time: run it with --only", {})
        print(result, flush=True)
        results.append(result)
    return results


def run_one(check: Check, settings: Settings, scratch: Path) -> Result:
    """In a process of its own, whose words go into a file; the last of them are the reason when it breaks."""
    # A process that has used a GPU must not be forked, so on GPUs each begins anew; on CPUs one imports for all.
    if not settings.is_cuda:
        multiprocessing.set_forkserver_preload(["jobs.gpu_memory"])
    words, answer = scratch / "words", scratch / "answer.json"
    answer.unlink(missing_ok=True)
    began = time.monotonic()
    arguments = (check.run, settings, words, answer)
    start = multiprocessing.get_context("spawn") if settings.is_cuda else multiprocessing.get_context("forkserver")
    process = start.Process(target=_life, args=arguments)
    process.start()
    process.join(check.seconds)
    seconds = time.monotonic() - began
    if process.is_alive():
        process.kill()
        process.join(SECONDS_TO_END)
        return Result(check.name, "FAIL", seconds, f"not done after {check.seconds:.0f} s: killed", {})
    if answer.is_file():
        said = json.loads(answer.read_text())
        return Result(check.name, said["status"], seconds, said["reason"], said["numbers"])
    lines = words.read_text(errors="replace").strip().splitlines() if words.is_file() else []
    reason = f"ended with status {process.exitcode}: {lines[-1] if lines else 'no words'}"
    return Result(check.name, "FAIL", seconds, reason, {"words": lines[-30:]})


def _life(run: Callable[[Settings], Numbers], settings: Settings, words: Path, answer: Path) -> None:
    """Of the process of one check. What is not an answer is in `words`."""
    with words.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status, reason = "PASS", ""
    try:
        numbers = run(_bounded(settings))
        reason = _shown(numbers)
    except CheckFailedError as error:
        status, reason, numbers = "FAIL", str(error), error.numbers
    except CannotRunError as error:
        status, reason, numbers = "SKIPPED", str(error), {}
    sys.stdout.flush()
    part = answer.with_suffix(".part")
    part.write_text(json.dumps({"status": status, "reason": reason, "numbers": numbers}))
    part.rename(answer)


def _bounded(settings: Settings) -> Settings:
    """torch may take no more of the GPU than is asked for, nor than is free."""
    if not settings.is_cuda:
        torch.set_num_threads(1)  # tiny networks; more threads mostly wait for each other
    if not torch.cuda.is_available():
        return settings
    free, total = torch.cuda.mem_get_info()
    wanted = min(settings.memory_bytes, int(0.9 * free))
    torch.cuda.set_per_process_memory_fraction(wanted / total)
    return replace(settings, memory_bytes=wanted)


def _shown(numbers: Numbers) -> str:
    """The numbers that are some, in a line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if isinstance(value, int | float))
