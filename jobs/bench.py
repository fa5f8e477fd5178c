"""How fast it is, beside what else there is: one table and one ratio for each question, all of one run.

python -m jobs.bench engine      the engine beside transformers' static generate (and vLLM with --vllm FOLDER)
python -m jobs.bench drafts      with and without drafts, by kind of page, and for the windows of clips
python -m jobs.bench decode      pages and frames decoded, beside bare pypdfium2 and PyAV
python -m jobs.bench pipeline    the whole pipeline on Ray, beside the bare engine fed from memory
python -m jobs.bench roofline    a random network's measured steps beside the floor of the hardware
"""

import argparse
import contextlib
import io
import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from jobs import bench_decode, bench_pipeline, bench_roofline
from jobs.bench_peers import Timed, in_turns, timed, vllm_python, with_transformers, with_vllm
from jobs.demo_checkpoint import initialise
from jobs.options import CommandParser
from jobs.sample_videos import clip_window, make_clip
from jobs.samples import LADDER, PLAIN_LADDER, READABLE, make_page, render, render_batch, write_pdf
from model.checkpoint import checkpoint_folder, read_stop_token_ids
from model.config import read_config
from model.engine import Engine
from model.engine_options import EngineOptions
from model.processor import Processor
from model.qwen3_vl import empty_model
from model.request import Completion, Frames, Prompt, Sampling
from model.weights import save_weights
from pipeline.documents import DocumentOptions, read_pages
from pipeline.parse_pages import text_layer

LARGER = {  # about ten times the parameters of the embedded model
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "vision_config": {"hidden_size": 256, "intermediate_size": 1024, "depth": 8, "out_hidden_size": 768},
}
INSTRUCTION = "qwenvl markdown"
WINDOWS_OF_A_CLIP, WINDOW_SECONDS, STEP_SECONDS = 4, 16.0, 12.0
RUNGS = {rung.name: rung for rung in (*PLAIN_LADDER, *LADDER)}


@dataclass(frozen=True, slots=True)
class Page:
    """A sample page as the engine, and others, are asked about it."""

    prompt: Prompt
    pixels: NDArray[np.uint8]


def sample_pages(processor: Processor, rung_name: str, count: int, sampling: Sampling) -> list[Page]:
    """Held-out pages of one rung of the curriculum, or of all readable ones in turn (`mixed`), asked for Markdown."""
    rungs = READABLE if rung_name == "mixed" else [RUNGS[rung_name]]
    rng = np.random.default_rng(0)
    rendered = [render_batch(rng, rungs[number % len(rungs)], 1, held_out=True)[0] for number in range(count)]
    return [
        Page(processor.encode(f"page {number}", [Frames(pixels[None]), INSTRUCTION], sampling), pixels)
        for number, (_, pixels) in enumerate(rendered)
    ]


def engine_reader(options: EngineOptions, model: str) -> Callable[[Sequence[Prompt]], list[Completion]]:
    """Loads the engine -> what answers prompts, all together: the completions in their order.

    Without the prefix cache: it would find every page that was asked before."""
    engine = Engine.from_pretrained(model, replace(options, prefix_cache=False))

    def answer(prompts: Sequence[Prompt]) -> list[Completion]:
        completions = answer_all(engine, prompts)
        return [completions[prompt.key] for prompt in prompts]

    return answer


def answer_all(engine: Engine, prompts: Sequence[Prompt]) -> dict[str, Completion]:
    """The completion of each prompt by its key."""
    for prompt in prompts:
        engine.add(prompt)
    return {completion.key: completion for completion in engine.drain()}


def with_engine(options: EngineOptions, model: str, prompts: Sequence[Prompt]) -> Timed:
    """Loads the engine, answers one batch to warm up -> what answers all prompts: the tokens of each."""
    answer = engine_reader(options, model)
    answer(prompts[: options.max_batch_size])
    return timed(lambda: {completion.key: list(completion.token_ids) for completion in answer(prompts)})


def until_stop(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """Tokens up to the first stop token: transformers goes on with padding, the engine leaves the stop out."""
    return next((tokens[:index] for index, token in enumerate(tokens) if token in stops), tokens)


def write_larger_checkpoint(folder: Path) -> None:
    """The embedded model's files with ten times the parameters, all of them random."""
    shutil.copytree(checkpoint_folder("model/demo"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    for section, values in LARGER.items():
        config[section] |= values
    (folder / "config.json").write_text(json.dumps(config))
    network = empty_model(read_config(folder), device="cpu", dtype=torch.float32)
    initialise(network, seed=0)
    save_weights(network, folder, torch.bfloat16)


def bench_engine(options: argparse.Namespace) -> None:
    """The same checkpoint, pages and limits through every engine in turn."""
    with contextlib.ExitStack() as stack:
        model = options.model
        if model == "larger":
            model = stack.enter_context(tempfile.TemporaryDirectory()) + "/larger"
            write_larger_checkpoint(Path(model))
        pages = sample_pages(
            Processor.from_pretrained(model),
            options.rung,
            options.pages,
            Sampling(max_new_tokens=options.max_new_tokens, stop_at_loops=False),
        )
        prompts = [page.prompt for page in pages]
        network = empty_model(read_config(checkpoint_folder(model)), device="meta", dtype=torch.float32)
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        print(f"{len(pages)} pages ({options.rung}), batch {options.batch_size}, {millions:.1f}M parameters")
        print(machine(options.device))
        works = {"transformers": with_transformers(model, options.device, options.batch_size, prompts)}
        if options.vllm:
            python, images = vllm_python(Path(options.vllm)), [page.pixels for page in pages]
            works["vLLM"] = stack.enter_context(with_vllm(python, model, options.batch_size, prompts, images))
        engine_options = EngineOptions(device=options.device, max_batch_size=options.batch_size)
        works["PageReel"] = with_engine(engine_options, model, prompts)
        stops = read_stop_token_ids(checkpoint_folder(model))
        results = dict(zip(works, in_turns(options.repeats, list(works.values())), strict=True))
    print(f"{'':14}{'seconds':>9}{'pages/s':>9}{'tokens/s':>10}{'CPU s':>9}{'tokens/CPU s':>14}")
    answers: dict[str, list[list[int]]] = {}
    for name, ((seconds, cpu_seconds), tokens) in results.items():
        answers[name] = [until_stop(tokens[prompt.key], stops) for prompt in prompts]
        written = sum(map(len, answers[name]))
        print(
            f"{name:14}{seconds:9.2f}{len(pages) / seconds:9.2f}{written / seconds:10.1f}"
            f"{cpu_seconds:9.2f}{written / cpu_seconds:14.1f}"
        )
    ours, _ = results.pop("PageReel")
    for other, (theirs, _) in results.items():
        same = sum(a == b for a, b in zip(answers["PageReel"], answers[other], strict=True))
        print(
            f"ratio to {other} {theirs.seconds / ours.seconds:.2f} (CPU time "
            f"{theirs.cpu_seconds / ours.cpu_seconds:.2f}); {same} of {len(pages)} answers are equal"
        )
    if not options.vllm:
        print("vLLM was left out: name a folder for its environment with --vllm")


def bench_drafts(options: argparse.Namespace) -> None:
    """Every kind of page with its text layer and without, windows of clips with the answer about the one before and
    without: what it saves, and that nothing changes."""
    processor = Processor.from_pretrained(options.model)
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    print(f"{options.pages} pages (windows) of each kind, batch {options.batch_size}; {machine(options.device)}")
    print(f"{'':20}{'tokens/step':>12}{'drafted':>9}{'kept':>7}{'wall ratio':>12}{'equal':>9}")
    engine_options = EngineOptions(device=options.device, max_batch_size=options.batch_size)
    plain, drafting = (
        engine_reader(replace(engine_options, max_draft_tokens=tokens), options.model) for tokens in (0, 256)
    )
    total, plain_total = 0.0, 0.0
    for kind in (*(rung.name for rung in READABLE), "scan", "clips", "own answers"):
        if kind == "clips":
            prompts = window_prompts(processor, options.pages, sampling)
        else:
            prompts = drafted_prompts(processor, kind, options.pages, sampling)
        if kind == "own answers":  # the most that drafts can bring
            prompts = [
                replace(prompt, draft_text=answer.text) for prompt, answer in zip(prompts, plain(prompts), strict=True)
            ]
        works = [timed(partial(answer, prompts)) for answer in (plain, drafting)]
        in_turns(1, works)  # to warm up
        (theirs, expected), (ours, completions) = in_turns(options.repeats, works)
        total, plain_total = total + ours.seconds, plain_total + theirs.seconds
        same = sum(ours.token_ids == theirs.token_ids for ours, theirs in zip(completions, expected, strict=True))
        tokens = sum(len(completion.token_ids) for completion in completions)
        steps, drafted, kept = (
            sum(getattr(completion, name) for completion in completions)
            for name in ("steps", "drafted_tokens", "accepted_tokens")
        )
        print(
            f"{kind:20}{tokens / steps:12.2f}{drafted:9}{kept:7}{theirs.seconds / ours.seconds:12.2f}"
            f"{same:5} of {len(prompts)}",
            flush=True,
        )
    print(f"ratio {plain_total / total:.2f}")


def drafted_prompts(processor: Processor, kind: str, count: int, sampling: Sampling) -> list[Prompt]:
    """Pages of one layout with the words of their own PDF as drafts; a scan, of the last layout, has none."""
    rung = next((rung for rung in READABLE if rung.name == kind), READABLE[-1])
    rng = np.random.default_rng(1)
    drawn = [make_page(rng, rung, held_out=True) for _ in range(count)]
    pdf = write_pdf(drawn)
    texts = [""] * count if kind == "scan" else text_layers(pdf, count)
    return [
        processor.encode(f"{kind} {number}", [Frames(pixels[None]), INSTRUCTION], sampling, draft_text=text)
        for number, (pixels, text) in enumerate(zip(render(pdf), texts, strict=True))
    ]


def window_prompts(processor: Processor, count: int, sampling: Sampling) -> list[Prompt]:
    """Overlapping windows of clips in the order of time, each but a clip's first drafted from the one before."""
    rng = np.random.default_rng(1)
    prompts: list[Prompt] = []
    for number in range(-(-count // WINDOWS_OF_A_CLIP)):
        clip = make_clip(
            rng, seconds=WINDOW_SECONDS + (WINDOWS_OF_A_CLIP - 1) * STEP_SECONDS, size=(160, 96), held_out=True
        )
        before = None
        for index in range(WINDOWS_OF_A_CLIP):
            start = index * STEP_SECONDS
            pixels, times = clip_window(clip, start, WINDOW_SECONDS)
            frames = Frames(pixels, tuple(time - start for time in times))
            key = f"clip {number}, window {index}"
            prompts.append(processor.encode(key, [frames, "qwenvl events"], sampling, draft_from=before))
            before = key
    return prompts[:count]


def run_decode(options: argparse.Namespace) -> None:
    print(machine("cpu"))
    bench_decode.run(options)


def run_pipeline(options: argparse.Namespace) -> None:
    print(machine("cpu"))
    bench_pipeline.compare(options)


def run_roofline(options: argparse.Namespace) -> None:
    print(machine(options.device))
    bench_roofline.run(options)


def text_layers(pdf: bytes, count: int) -> list[str]:
    """The words of each page as the pipeline reads them, line by line."""
    pages = read_pages(io.BytesIO(pdf), range(1, count + 1), DocumentOptions())
    return [text_layer(page.facts.words) for page in pages if not isinstance(page, tuple)]


def machine(device: str) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, {platform.machine()}, torch {torch.__version__}, commit {commit.strip() or 'unknown'}"


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = CommandParser(add_help=False)
    shared.add_argument("--model", default="model/demo", help="checkpoint: a folder or a hub id (default: model/demo)")
    shared.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    shared.add_argument("--pages", type=int, default=64, help="how many sample pages (default: 64)")
    shared.add_argument("--batch-size", type=int, default=64, help="pages at once, for all (default: 64, as an engine)")
    shared.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: 256)")
    shared.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    shared.add_argument(
        "--repeats", type=int, default=1, help="how often each is timed, in turns; the least counts (default: 1)"
    )
    engine = commands.add_parser("engine", parents=[shared], help="beside transformers and vLLM")
    engine.add_argument(
        "--rung", default="mixed", choices=["mixed", *RUNGS], help="layout of the pages (default: mixed)"
    )
    engine.add_argument("--vllm", help="folder of an environment for vLLM's CPU build; made when it is missing")
    engine.set_defaults(run=bench_engine)
    drafts = commands.add_parser("drafts", parents=[shared], help="with and without drafts")
    drafts.set_defaults(run=bench_drafts)
    roofline = commands.add_parser("roofline", help="measured steps beside the floor of the hardware")
    bench_roofline.add_arguments(roofline)
    roofline.set_defaults(run=run_roofline)
    decode = commands.add_parser("decode", help="pages and frames beside bare pypdfium2 and PyAV")
    bench_decode.add_arguments(decode)
    decode.set_defaults(run=run_decode, threads=1)
    pipeline = commands.add_parser("pipeline", help="the whole pipeline on Ray beside the bare engine")
    bench_pipeline.add_arguments(pipeline)
    pipeline.set_defaults(run=run_pipeline, threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    options.run(options)


if __name__ == "__main__":
    main()
