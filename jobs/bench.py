"""One table, one ratio: the engine beside `transformers.generate` on the same pages, in one run.

python -m jobs.bench                      the embedded model on 24 sample pages, on this machine's CPU
python -m jobs.bench --model FOLDER --device cuda --pages 256
"""

import argparse
import platform
import subprocess
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from jobs.samples import LADDER, render_batch
from model.engine import Engine, EngineOptions, read_stop_token_ids
from model.processor import Processor, checkpoint_folder
from model.request import Frames, Prompt, Sampling


def sample_prompts(processor: Processor, pages: int, max_new_tokens: int) -> list[Prompt]:
    """Half pages of every layout, asked for markdown."""
    rng = np.random.default_rng(0)
    rung = next(rung for rung in LADDER if rung.name == "half_page")
    return [
        processor.encode(
            f"page {number}", [Frames(pixels[None]), "qwenvl markdown"], Sampling(max_new_tokens=max_new_tokens)
        )
        for number, (_, pixels) in enumerate(render_batch(rng, rung, pages, held_out=True))
    ]


def with_engine(model: str, device: str, batch_size: int, prompts: list[Prompt]) -> tuple[float, dict[str, list[int]]]:
    """Seconds for all prompts together, and the tokens of each, after one batch to warm up."""
    engine = Engine.from_pretrained(model, EngineOptions(device=device, max_batch_size=batch_size))

    def answer(batch: list[Prompt]) -> dict[str, list[int]]:
        for prompt in batch:
            engine.add(prompt)
        return {completion.key: list(completion.token_ids) for completion in engine.drain()}

    answer(prompts[:batch_size])
    start = time.perf_counter()
    tokens = answer(prompts)
    return time.perf_counter() - start, tokens


@torch.inference_mode()
def with_transformers(
    model: str, device: str, batch_size: int, prompts: list[Prompt]
) -> tuple[float, dict[str, list[int]]]:
    """The same through transformers: static batches, padded on the left, in the same precision."""
    dtype = torch.float32 if device == "cpu" else "auto"
    network = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint_folder(model), dtype=dtype).eval()
    network.to(torch.device(device))

    def answer(batch: list[Prompt]) -> dict[str, list[int]]:
        inputs = {name: value.to(device) for name, value in padded_batch(batch, network.config.image_token_id).items()}
        limit = max(prompt.sampling.max_new_tokens for prompt in batch)
        written = network.generate(**inputs, do_sample=False, max_new_tokens=limit)
        new = written[:, inputs["input_ids"].shape[1] :].tolist()
        return {prompt.key: row for prompt, row in zip(batch, new, strict=True)}

    answer(prompts[:batch_size])
    start = time.perf_counter()
    tokens: dict[str, list[int]] = {}
    for first in range(0, len(prompts), batch_size):
        tokens |= answer(prompts[first : first + batch_size])
    return time.perf_counter() - start, tokens


def padded_batch(prompts: list[Prompt], image_token_id: int) -> dict[str, torch.Tensor]:
    """What transformers' model takes for prompts of images: its own pixel layout, every patch in two equal frames."""
    longest = max(len(prompt.token_ids_T) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.token_ids_T) :] = torch.from_numpy(prompt.token_ids_T.astype(np.int64))
        mask[row, longest - len(prompt.token_ids_T) :] = 1
    patches = torch.from_numpy(np.concatenate([prompt.patches_PC for prompt in prompts])).float()
    pixels = ((patches - 127.5) / 127.5).unflatten(1, (3, 1, -1)).expand(-1, -1, 2, -1).flatten(1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == image_token_id).int(),
        "pixel_values": pixels,
        "image_grid_thw": torch.from_numpy(np.concatenate([prompt.grids_G3 for prompt in prompts])).long(),
    }


def until_stop(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """Tokens up to the first stop token: transformers goes on with padding, the engine leaves the stop out."""
    return next((tokens[:index] for index, token in enumerate(tokens) if token in stops), tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model/demo", help="checkpoint: a folder or a hub id")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--pages", type=int, default=24, help="how many sample pages (default: 24)")
    parser.add_argument("--batch-size", type=int, default=8, help="pages at once, for both (default: 8)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: 256)")
    options = parser.parse_args()
    disable_progress_bar()
    processor = Processor.from_pretrained(options.model)
    prompts = sample_prompts(processor, options.pages, options.max_new_tokens)
    stops = read_stop_token_ids(checkpoint_folder(options.model))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{options.pages} pages, batch {options.batch_size}, {machine}, {platform.machine()}, commit {commit.strip()}"
    )
    print(f"{'':14}{'seconds':>9}{'pages/s':>9}{'tokens/s':>10}")
    rates, answers = {}, {}
    runners: dict[str, Callable[..., tuple[float, dict[str, list[int]]]]] = {
        "transformers": with_transformers,
        "PageReel": with_engine,
    }
    for name, runner in runners.items():
        seconds, tokens = runner(options.model, options.device, options.batch_size, prompts)
        answers[name] = {key: until_stop(ids, stops) for key, ids in tokens.items()}
        written = sum(len(ids) for ids in answers[name].values())
        rates[name] = options.pages / seconds
        print(f"{name:14}{seconds:9.2f}{rates[name]:9.2f}{written / seconds:10.1f}")
    same = sum(answers["PageReel"][prompt.key] == answers["transformers"][prompt.key] for prompt in prompts)
    print(f"ratio {rates['PageReel'] / rates['transformers']:.2f}; {same} of {options.pages} answers are equal")


if __name__ == "__main__":
    main()
