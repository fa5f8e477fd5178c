"""The rate of the whole pipeline on Ray beside that of its bare engine, fed with the same prompts from memory."""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.cluster import connected
from jobs.samples import PLAIN_LADDER, make_page, write_pdf
from model.request import Completion, EngineStats, Prompt
from pipeline.decode import Decoder
from pipeline.flow import Setup, allocated, decode_options, engine_loader, find_survey, prepare, run
from pipeline.job import ParseJob
from pipeline.replica import Engine
from pipeline.resources import Resources
from pipeline.rows import DecodedUnit

PAGES_OF_A_DOCUMENT = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="model/demo", help="checkpoint: a folder or a hub id (default: model/demo)")
    parser.add_argument("--pages", type=int, default=500, help="pages, five in a document (default: 500)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: 128)")


@dataclass(frozen=True, slots=True)
class ClockedLoader:
    """Its engine notes in a file, for it lives in another process, when it got its first prompt and gave its last
    answer: between them the pipeline runs, without its start, its survey and its end."""

    load: Callable[[], Engine]
    file: Path

    def __call__(self) -> "ClockedEngine":
        return ClockedEngine(self.load(), self.file)

    def seconds(self) -> float:
        first, last = map(float, self.file.read_text().split())
        return last - first


class ClockedEngine:
    def __init__(self, engine: Engine, file: Path) -> None:
        self._engine = engine
        self._file = file
        self._first_prompt_at: float | None = None

    @property
    def has_work(self) -> bool:
        return self._engine.has_work

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    def add(self, prompt: Prompt) -> None:
        self._first_prompt_at = self._first_prompt_at or time.time()
        self._engine.add(prompt)

    def step(self) -> Sequence[Completion]:
        completions = self._engine.step()
        if completions:
            self._file.write_text(f"{self._first_prompt_at} {time.time()}")
        return completions


def compare(options: argparse.Namespace) -> None:
    """The pipeline reads a document to warm up, then all pages; a bare engine answers the same prompts before that and
    another after it, for a machine's speed changes from minute to minute."""
    with tempfile.TemporaryDirectory() as scratch, connected():
        for pages in (PAGES_OF_A_DOCUMENT, options.pages):
            setup = _setup(Path(scratch), pages, options)
            resources = allocated(setup)
            find_survey(setup, resources, io.StringIO())
            prompts = _prompts(setup, resources)
            load_engine = engine_loader(setup, resources)
            before = _alone(load_engine(), prompts).seconds
            clocked = ClockedLoader(load_engine, Path(scratch) / f"clock-{pages}")
            manifest = run(setup, resources, io.StringIO(), load_engine=clocked)
        seconds, last = clocked.seconds(), _alone(load_engine(), prompts)
    alone = (before + last.seconds) / 2
    print(f"{'bare engine, before':24}{len(prompts) / before:8.2f} pages/s")
    print(f"{'bare engine, after':24}{len(prompts) / last.seconds:8.2f} pages/s")
    print(f"{'pipeline, while it reads':24}{len(prompts) / seconds:8.2f} pages/s, ratio {alone / seconds:.2f}")
    wall = manifest.wall_seconds
    print(f"{'pipeline, start and end':24}{len(prompts) / wall:8.2f} pages/s, ratio {alone / wall:.2f}")
    print(
        f"while it read, the engine was in steps {manifest.engine_seconds / seconds:.1%} of the time;"
        f" they took {manifest.engine_seconds / alone:.2f} of what the bare engine took"
    )
    print(f"batches {manifest.occupancy:.0%} full in the pipeline, {last.occupancy:.0%} in the bare engine")


def _alone(engine: Engine, prompts: Sequence[Prompt]) -> EngineStats:
    """A new engine: what it did before would be in its prefix cache."""
    for prompt in prompts:
        engine.add(prompt)
    while engine.has_work:
        engine.step()
    return engine.stats


def _setup(scratch: Path, pages: int, options: argparse.Namespace) -> Setup:
    inputs = scratch / f"in-{pages}"
    inputs.mkdir()
    rng = np.random.default_rng(pages)
    for number in range(pages // PAGES_OF_A_DOCUMENT):
        drawn = [make_page(rng, PLAIN_LADDER[-1], held_out=True) for _ in range(PAGES_OF_A_DOCUMENT)]
        (inputs / f"{number:05d}.pdf").write_bytes(write_pdf(drawn))
    output = str(scratch / f"out-{pages}")
    job = ParseJob(input=str(inputs), output=output, model=options.model, max_new_tokens=options.max_new_tokens)
    return prepare(job)


def _prompts(setup: Setup, resources: Resources) -> list[Prompt]:
    """Those of the job that was just done, made by its own decoder."""
    survey = setup.books.survey()
    assert survey is not None
    decoder = Decoder(decode_options(setup, resources))
    decoded = (DecodedUnit.from_row(decoder(row)) for row in setup.books.all_units(survey).to_pylist())
    return [prompt for unit in decoded for piece in unit.pieces for prompt in piece.prompts]
