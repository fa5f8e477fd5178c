"""The GPU actor: prompts of a unit in, their completions out; one engine batches across all calls in flight."""

import asyncio
import faulthandler
import logging
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Protocol

import ray

from model.request import Completion, EngineStats, Prompt, resumed_completion, resumed_prompt
from pipeline.job import resolve_model
from pipeline.loading import LoadingLines
from pipeline.records import ErrorCode, Failure, Stage
from pipeline.rows import AnsweredPiece, AnsweredUnit, DecodedPiece, DecodedUnit, ReplicaLoad, Row
from pipeline.suspects import Suspects, Verdict

logger = logging.getLogger(__name__)

STDERR = 2  # the descriptor, whatever has become of sys.stderr
MAX_RESUMES = 2  # of one answer that fell into loops
RESUME_TEMPERATURE = 0.3  # times the number of the try: the setting that led into the loop is not asked again


class Engine(Protocol):
    """What a replica asks of `model.engine.Engine`."""

    @property
    def has_work(self) -> bool: ...
    @property
    def stats(self) -> EngineStats: ...
    def add(self, prompt: Prompt) -> None: ...
    def step(self) -> Sequence[Completion]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoader:
    """Loads the engine of a checkpoint, where it is called: the driver and the decoders never import torch."""

    model: str  # folder or hub id
    device: str
    dtype: str | None
    max_batch_size: int
    tensor_parallel: int
    max_sequence_tokens: int
    max_image_tokens: int
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    cuda_graphs: bool = False
    overlap: bool = False
    max_context: int | None = None
    rope_scaling_factor: float | None = None

    def __call__(self) -> Engine:
        from model.engine import Engine
        from model.engine_options import EngineOptions

        options = EngineOptions(
            **{field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        )
        report = LoadingLines(self.model, sys.stderr)  # which Ray shows where the job was started
        return Engine.from_pretrained(resolve_model(self.model), options, report)


class StepClock:
    """Ends the process when a step takes longer than `seconds`, with the stack of every thread in its log: the last
    lines say where it hung. The clock is one of C: it also runs while native code holds the interpreter.

    Setting it starts a thread, which takes a fiftieth of a short step on a CPU: it is set anew only after a tenth of
    its time, and for that tenth more.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._slack = seconds / 10
        self._set_at: float | None = None

    def step_begins(self) -> None:
        now = time.monotonic()
        if self._set_at is None or now - self._set_at > self._slack:
            faulthandler.dump_traceback_later(self._seconds + self._slack, exit=True, file=STDERR)
            self._set_at = now

    def stop(self) -> None:
        """There is nothing to do: waiting may take any time."""
        faulthandler.cancel_dump_traceback_later()
        self._set_at = None


class EngineThread:
    """Runs an engine on a thread of its own; any thread may submit.

    An error inside the engine, and a step that hangs, ends the whole process: a half-broken engine must not answer,
    callers must not wait for ever, and Ray starts the actor anew and repeats its calls.
    """

    def __init__(self, engine: Engine, step_timeout_seconds: float) -> None:
        self._engine = engine
        self._clock = StepClock(step_timeout_seconds)
        self._inbox = queue.SimpleQueue[tuple[Prompt, Future[Completion | Failure]]]()
        self._waiting: dict[str, Future[Completion | Failure]] = {}
        threading.Thread(target=self._serve, name="engine", daemon=True).start()

    def submit(self, prompt: Prompt) -> "Future[Completion | Failure]":
        """The completion to come, or the Failure `infer_rejected` for a prompt that can never fit."""
        future: Future[Completion | Failure] = Future()
        self._inbox.put((prompt, future))
        return future

    def _serve(self) -> None:
        try:
            while True:
                self._admit()
                if self._engine.has_work:
                    self._clock.step_begins()
                    for completion in self._engine.step():
                        self._waiting.pop(completion.key).set_result(completion)
                if not self._engine.has_work:
                    self._clock.stop()
        finally:
            # Never sys.exit: Ray would take it for a wish and leave a dead actor in the pool.
            logger.critical("the engine broke: this replica ends and is started anew", exc_info=True)
            logging.shutdown()
            os._exit(1)

    def _admit(self) -> None:
        """Hands everything submitted to the engine; waits for something when the engine has nothing to do."""
        while not self._engine.has_work or not self._inbox.empty():
            prompt, future = self._inbox.get()
            assert prompt.key not in self._waiting, f"two prompts with the key {prompt.key}"
            try:
                self._engine.add(prompt)
            except ValueError as error:
                future.set_result(Failure(Stage.INFER, ErrorCode.INFER_REJECTED, str(error)))
            else:
                self._waiting[prompt.key] = future


class Gate:
    """Lets many in together, or one alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._entrance = asyncio.Lock()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._entrance:
            self._inside += 1
            self._is_empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._is_empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._entrance:
            await self._is_empty.wait()
            yield


class Replica:
    """One row in, one row out. Many calls are in flight at once, so that the engine's batch is full across units."""

    def __init__(self, load_engine: Callable[[], Engine], suspects: Suspects, step_timeout_seconds: float) -> None:
        self._replica_id = uuid.uuid4().hex
        # Ray starts an actor that died anew under its old id. Outside an actor, asking for it would start a Ray.
        actor_id = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        self._actor_id = actor_id or self._replica_id
        self._suspects = suspects
        self._suspects.started(self._actor_id)
        self._engine = load_engine()
        self._thread = EngineThread(self._engine, step_timeout_seconds)
        self._gate = Gate()

    async def __call__(self, row: Row) -> Row:
        """Raises SystemicError when engines die whatever they read."""
        decoded = DecodedUnit.from_row(row)
        unit_id = decoded.unit.unit_id
        verdict = await self._suspects.begin(self._actor_id, unit_id)
        if verdict.alone:
            pieces, failures = await self._answer_alone(decoded, verdict)
        else:
            async with self._gate.together():
                pieces, failures = await asyncio.gather(*(self._answer(piece) for piece in decoded.pieces)), []
        await self._suspects.end(self._actor_id, unit_id)
        stats = self._engine.stats
        load = ReplicaLoad(self._replica_id, stats.steps, stats.occupancy, stats.seconds)
        return AnsweredUnit(decoded.unit, tuple(pieces), (*decoded.failures, *failures), load).to_row()

    async def _answer_alone(
        self, decoded: DecodedUnit, verdict: Verdict
    ) -> tuple[list[AnsweredPiece], list[tuple[int, Failure]]]:
        """The pieces of a suspect, one by one with nothing beside them; the convicted ones as failures."""
        pieces, failures = [], []
        async with self._gate.alone():
            for piece in decoded.pieces:
                number = piece.facts.number
                if deaths := verdict.convicted.get(number):
                    message = f"{deaths} engines died while they read this one, the last one of nothing else"
                    failures.append((number, Failure(Stage.INFER, ErrorCode.INFER_CRASH, message, deaths)))
                    continue
                await self._suspects.begin_page(self._actor_id, decoded.unit.unit_id, number)
                pieces.append(await self._answer(piece))
        return pieces, failures

    async def _answer(self, piece: DecodedPiece) -> AnsweredPiece:
        answers = tuple(await asyncio.gather(*(self._answer_prompt(prompt) for prompt in piece.prompts)))
        for prompt, answer in zip(piece.prompts, answers, strict=True):
            assert isinstance(answer, Failure) or answer.key == prompt.key, f"{prompt.key} got {answer}"
        return AnsweredPiece(piece.facts, answers)

    async def _answer_prompt(self, prompt: Prompt) -> Completion | Failure:
        """An answer that fell into a loop is taken up behind its clean beginning, drawn now and not greedy."""
        answer = await asyncio.wrap_future(self._thread.submit(prompt))
        while (
            isinstance(answer, Completion)
            and answer.finish_reason == "repetition"
            and answer.resumes < MAX_RESUMES
            and not answer.reasoning  # the rest could not tell reasoning from answer
        ):
            written = answer.token_ids[: answer.text_tokens]
            sampling = replace(
                prompt.sampling,
                max_new_tokens=prompt.sampling.max_new_tokens - len(written),
                temperature=max(prompt.sampling.temperature, RESUME_TEMPERATURE * (answer.resumes + 1)),
                seed=prompt.sampling.seed + answer.resumes + 1,
            )
            rest = await asyncio.wrap_future(self._thread.submit(resumed_prompt(prompt, written, sampling)))
            if isinstance(rest, Failure):  # no room for one more token
                return answer
            answer = resumed_completion(answer, rest)
        return answer
