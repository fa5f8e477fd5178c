"""The rate of the whole pipeline on Ray beside that of its bare engine, fed with the same prompts from memory."""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np

from jobs.cluster import connected
from jobs.samples import PLAIN_LADDER, make_page, write_pdf
from model.request import Prompt
from pipeline.decode import Decoder
from pipeline.flow import Setup, cluster, decode_options, engine_loader, prepare, run
from pipeline.job import ParseJob
from pipeline.resources import Resources, allocate
from pipeline.rows import DecodedUnit

PAGES_OF_A_DOCUMENT = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="model/demo", help="checkpoint: a folder or a hub id (default: model/demo)")
    parser.add_argument("--pages", type=int, default=500, help="pages, five in a document (default: 500)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: 128)")


def compare(options: argparse.Namespace) -> None:
    """The pipeline reads a document to warm up, then a fifth of the pages, then all: what the last two runs have in
    common, their start, drops out of the difference."""
    with tempfile.TemporaryDirectory() as scratch, connected():
        few, many = options.pages // 5, options.pages
        seconds, engine_seconds = {}, {}
        for pages in (PAGES_OF_A_DOCUMENT, few, many):
            setup = _setup(Path(scratch), pages, options)
            resources = allocate(setup.job, cluster())
            manifest = run(setup, resources, io.StringIO())
            seconds[pages], engine_seconds[pages] = manifest.wall_seconds, manifest.engine_seconds
            print(f"pipeline, {pages} pages: {seconds[pages]:.1f} s", flush=True)
        prompts = _prompts(setup, resources)
    engine = engine_loader(setup, resources)()
    began = time.monotonic()
    for prompt in prompts:
        engine.add(prompt)
    while engine.has_work:
        engine.step()
    bare = len(prompts) / (time.monotonic() - began)
    steady = (many - few) / (seconds[many] - seconds[few])
    print(f"{'bare engine':24}{bare:8.2f} pages/s")
    print(f"{'pipeline, without start':24}{steady:8.2f} pages/s, ratio {steady / bare:.2f}")
    print(f"{'pipeline, all':24}{many / seconds[many]:8.2f} pages/s, ratio {many / seconds[many] / bare:.2f}")
    steps, wall = engine_seconds[many] - engine_seconds[few], seconds[many] - seconds[few]
    slower = steps / (many - few) * bare
    print(
        f"without start, the engine was in steps {steps / wall:.1%} of the time;"
        f" for a page they took {slower:.2f} of what the bare engine's took"
    )
    print(f"batches {manifest.occupancy:.0%} full in the pipeline, {engine.stats.occupancy:.0%} in the bare engine")


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
