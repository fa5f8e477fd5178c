"""Stand-ins that keep the real contract: an engine that answers with the page's own text, at once or slowly."""

import ctypes
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

import pipeline.native
from model.request import Completion, EngineStats, Prompt
from pipeline.native import read_asset_pieces
from pipeline.replica import Engine, EngineLoader
from pipeline.sandbox import Sandbox
from pipeline.suspects import Ledger, Verdict


class FakeEngine:
    """Answers the oldest `max_batch_size` prompts in a step with their draft text; refuses those with `refuses` inside.

    Where `dies_at` is given, the process dies at the first prompt that has it in its draft, once: it leaves that file.
    Drafts with `kills` inside kill it every time, those with `hangs` make a step that never ends, in native code that
    holds the interpreter.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        step_seconds: float,
        dies_at: str,
        died: Path,
        refuses: str,
        kills: str,
        hangs: str,
    ) -> None:
        self._waiting: list[Prompt] = []
        self._step_seconds = step_seconds
        self._dies_at = dies_at
        self._died = died
        self._refuses = refuses
        self._kills = kills
        self._hangs = hangs
        self.stats = EngineStats(max_batch_size=max_batch_size)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def add(self, prompt: Prompt) -> None:
        if self._refuses and self._refuses in prompt.draft_text:
            raise ValueError(f"{prompt.key} can never fit")
        expected = int(prompt.grids_G3.prod(axis=1).sum())
        assert prompt.patches_PC.shape == (expected, 768), f"{prompt.patches_PC.shape} patches, {expected} expected"
        self._waiting.append(prompt)

    def step(self) -> list[Completion]:
        time.sleep(self._step_seconds)
        batch = self._waiting[: self.stats.max_batch_size]
        del self._waiting[: self.stats.max_batch_size]
        if self._dies_at and any(self._dies_at in prompt.draft_text for prompt in batch) and not self._died.exists():
            self._died.touch()
            os._exit(1)
        if self._kills and any(self._kills in prompt.draft_text for prompt in batch):
            os._exit(1)
        if self._hangs and any(self._hangs in prompt.draft_text for prompt in batch):
            ctypes.PyDLL(None).sleep(3600)
        stats = self.stats
        self.stats = replace(
            stats, steps=stats.steps + 1, running_sum=stats.running_sum + len(batch), seconds=stats.seconds + 0.001
        )
        return [completion(prompt) for prompt in batch]


@dataclass(frozen=True)
class FakeLoader:
    """Makes a FakeEngine where it is called; a marker file says that it was."""

    max_batch_size: int = 2
    step_seconds: float = 0.0
    dies_at: str = ""
    died: Path = Path("/nonexistent")
    refuses: str = "REFUSE"
    kills: str = ""
    hangs: str = ""

    def __call__(self) -> FakeEngine:
        return FakeEngine(
            max_batch_size=self.max_batch_size,
            step_seconds=self.step_seconds,
            dies_at=self.dies_at,
            died=self.died,
            refuses=self.refuses,
            kills=self.kills,
            hangs=self.hangs,
        )


@dataclass(frozen=True)
class RankKiller:
    """Loads an engine spread over ranks where it is called; the first one loses a rank before its second step."""

    load_engine: EngineLoader
    killed: Path

    def __call__(self) -> Engine:
        engine = self.load_engine()
        step = engine.step

        def step_without_mercy() -> Sequence[Completion]:
            if engine.stats.steps and not self.killed.exists():
                (rank,) = [child for child in psutil.Process().children() if "model.ranks" in " ".join(child.cmdline())]
                self.killed.write_text(str(rank.pid))
                rank.kill()
            return step()

        engine.step = step_without_mercy
        return engine


def completion(prompt: Prompt) -> Completion:
    text = bright_events(prompt) if len(prompt.grids_G3) and prompt.grids_G3[0, 0] == 2 else prompt.draft_text
    token_ids = tuple(range(len(text)))
    return Completion(prompt.key, text, token_ids, len(prompt.token_ids_T), "stop", -0.1, -0.5, 0.1, 0.2, 0)


def bright_events(prompt: Prompt) -> str:
    """What is seen in a window sampled twice a second: the stretches of frame pairs with a bright frame."""
    pair_patches = np.split(prompt.patches_PC, np.cumsum(prompt.grids_G3.prod(axis=1))[:-1])
    is_bright = [max(half.mean() for half in np.split(patches, 2)) > 128 for patches in pair_patches]
    events, start = [], None
    for pair, bright in enumerate([*is_bright, False]):
        if bright and start is None:
            start = pair
        if not bright and start is not None:
            events.append({"start": start + 0.2, "end": pair - 1 + 0.2, "description": "a bright light"})
            start = None
    return json.dumps(events)


def read_until_a_crash(asset, page_nos, store, options):
    """As `read_asset_pieces`, in a process that crashes at page 2."""
    for page_no in page_nos:
        if page_no == 2:
            os.abort()
        yield from read_asset_pieces(asset, [page_no], store, options)


class CrashingSandbox(Sandbox):
    """A sandbox whose child crashes at page 2 of whatever it reads."""

    def iterate(self, function, *args, seconds):
        return super().iterate(read_until_a_crash, *args, seconds=seconds)


class UnshowableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


EXCEPTIONS = [
    ValueError("unknown side data type 31"),
    KeyError("Title"),
    AssertionError(),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    NotImplementedError("x" * 100_000),
    StopIteration(3),
    OSError(5, "Input/output error"),
    LookupError("no such chapter: \udcff"),
    UnshowableError(),
    UnpicklableError("no"),
    SystemExit(3),
    KeyboardInterrupt(),
]


class RaisingSandbox(Sandbox):
    """A sandbox whose decoder raises one of EXCEPTIONS, by its number, at whatever it reads."""

    def __init__(self, number: int) -> None:
        super().__init__(memory_bytes=2**30)
        self._number = number

    def iterate(self, function, *args, seconds):
        return super().iterate(read_with_a_decoder_that_raises, self._number, function, *args, seconds=seconds)


def read_with_a_decoder_that_raises(number, function, *args):
    def raise_one(*_):
        raise EXCEPTIONS[number]

    pipeline.native.read_pages = raise_one
    yield from function(*args)


class DirectLedger:
    """The ledger of suspects in this very process."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def started(self, replica: str) -> None:
        self.ledger.started(replica)

    async def begin(self, replica: str, unit_id: str) -> Verdict:
        return self.ledger.begin(replica, unit_id)

    async def begin_page(self, replica: str, unit_id: str, page_no: int) -> None:
        self.ledger.begin_page(replica, unit_id, page_no)

    async def end(self, replica: str, unit_id: str) -> None:
        self.ledger.end(replica, unit_id)
