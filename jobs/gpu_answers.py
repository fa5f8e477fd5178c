"""Whole networks and engines on a GPU, beside the plain network on the CPU: what `gpu_check` asks after the kernels.

Greedy answers of two ways of summation part at the first tie, so no tokens are compared. Instead the plain network
reads each answer: at every token it says how much better the best one would have been, and how probable the answer was.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from jobs.gpu_kernels import CannotRunError, CheckFailedError, Numbers, Settings, available, within
from jobs.random_checkpoint import write_weights
from model.attention import FLASH_BLOCK_SIZE, PackedCausal, on_device
from model.checkpoint import checkpoint_folder, read_stop_token_ids
from model.config import read_config
from model.engine import Engine
from model.engine_options import EngineOptions
from model.footprint import weight_bytes
from model.fp8 import multiplies_fp8_blocks
from model.processor import Processor, read_tokenizer
from model.qwen3_vl import Qwen3VL
from model.request import Completion, Frames, Prompt, Sampling
from model.weights import Quantization, from_pretrained

# The embedded checkpoint's files, with heads as the official ones have them and sizes that FP8 blocks divide.
TINY = {
    "text_config": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "vision_config": {"hidden_size": 128, "num_heads": 2, "intermediate_size": 256, "depth": 4},
}
NEW_TOKENS = 24
BATCH = 5
# What bfloat16 may do: on a CPU it did 0.005 and 0.002, with an FP8 cache 0.12 and 0.024.
REGRET = 0.1  # in deviations of a token's logits, of which the best is three to four above the mean
LOGPROB = 0.02  # of an answer's mean log probability


def write_tiny_checkpoint(folder: Path, stream: TextIO) -> None:
    """A few million random parameters under the embedded checkpoint's small files."""
    embedded = checkpoint_folder("model/demo")
    config = json.loads((embedded / "config.json").read_text())
    for section, values in TINY.items():
        config[section] |= values
    shutil.copytree(embedded, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"), dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, config, seed=0, shard_bytes=10**9, stream=stream)


def prompts_of(processor: Processor, count: int, **sampling: Any) -> list[Prompt]:
    """Text, an image, two images, a video, in turns, each time others."""
    rng = np.random.default_rng(5)

    def frames(number: int, height: int, width: int) -> Frames:
        pixels = rng.integers(0, 256, (number, height, width, 3), dtype=np.uint8)
        return Frames(pixels, tuple(0.5 * index for index in range(number)) if number > 1 else None)

    contents: list[list[str | Frames]] = []
    for _ in range(-(-count // 4)):
        contents += [
            ["What is on the page?"],
            [frames(1, 128, 96), "qwenvl markdown"],
            [frames(1, 64, 64), "and", frames(1, 32, 160), "differ?"],
            [frames(4, 64, 96), "What happens?"],
        ]
    asked = Sampling(max_new_tokens=NEW_TOKENS, stop_at_loops=False, **sampling)
    return [processor.encode(str(number), content, asked) for number, content in enumerate(contents[:count])]


@torch.inference_mode()
def whole_logits(network: Qwen3VL, prompt: Prompt, answer: Sequence[int] = ()) -> Tensor:
    """The logits of a prompt and what follows it, in one pass without a cache: fp32 [T, V], on the CPU."""
    device = network.model.visual.pos_embed.weight.device
    grids = [tuple(grid) for grid in prompt.grids_G3.tolist()]
    token_ids_N = np.concatenate([prompt.token_ids_T, np.array(answer, dtype=np.int32)]).astype(np.int64)
    following = prompt.next_position + np.tile(np.arange(len(answer)), (3, 1))
    positions_3N = np.concatenate([prompt.positions_3T, following], axis=1).astype(np.int64)
    with on_device(device):
        visual = network.look(torch.from_numpy(prompt.patches_PC).to(device), grids) if grids else None
        placed = (torch.from_numpy(part).to(device) for part in (token_ids_N, positions_3N))
        hidden_NE = network(*placed, PackedCausal([len(token_ids_N)]), visual)
        return network.logits(hidden_NE).float().cpu()


def judged(network: Qwen3VL, prompts: Sequence[Prompt], completions: Sequence[Completion], scale: float) -> Numbers:
    """Raises CheckFailedError for answers that `network` would not have given; `scale` widens the usual bounds."""
    regret = difference = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        logits_TV = whole_logits(network, prompt, completion.token_ids[:-1])[len(prompt.token_ids_T) - 1 :]
        tokens_T1 = torch.tensor(completion.token_ids)[:, None]
        missed_T = logits_TV.amax(1) - logits_TV.gather(1, tokens_T1)[:, 0]
        regret = max(regret, float((missed_T / logits_TV.std(1)).max()))
        right = float(logits_TV.log_softmax(1).gather(1, tokens_T1).mean())
        difference = max(difference, abs(completion.mean_logprob - right))
    numbers = {"answers": len(completions), "tokens": sum(len(c.token_ids) for c in completions), "regret": regret}
    numbers = within("difference of a mean log probability", difference, scale * LOGPROB, numbers)
    return within("regret", regret, scale * REGRET, numbers)


def check_network(settings: Settings) -> Numbers:
    """Logits of prompts with and without images on the device, beside those of the CPU."""
    processor = Processor.from_pretrained(str(settings.folder))
    ours = from_pretrained(str(settings.folder), device=settings.device, dtype=settings.dtype)
    right = from_pretrained(str(settings.folder), dtype=torch.float32)
    worst = 0.0
    for prompt in prompts_of(processor, 4):
        expected = whole_logits(right, prompt)
        got = whole_logits(ours, prompt)
        worst = max(worst, float((got - expected).abs().max() / expected.std()))
    return within("largest difference of a logit", worst, 0.15 if settings.is_cuda else 1e-4)


def check_answers(
    settings: Settings,
    *,
    devices: int = 1,
    drafts: bool = False,
    scale: float = 1.0,
    quantization: Quantization | None = None,
    **options: Any,
) -> Numbers:
    """Answers of an engine with these options, read by the plain network in fp32. `devices`: how many it takes."""
    if settings.is_cuda and torch.cuda.device_count() < devices:
        raise CannotRunError(f"needs {devices} GPUs, and torch sees {torch.cuda.device_count()}")
    if quantization and not multiplies_fp8_blocks(torch.device(settings.device)):
        raise CannotRunError("FP8 blocks are multiplied on capability 9.x by CUDA 12.9")
    engine_options = engine_options_of(settings, quantization=quantization, **options)
    folder = str(settings.folder)
    right = from_pretrained(folder, dtype=torch.float32, quantization=quantization)
    prompts = prompts_of(Processor.from_pretrained(folder), 3 * BATCH)
    engine = Engine.from_pretrained(folder, engine_options)
    completions = answers_of(engine, prompts)
    if drafts:
        prompts = [replace(p, draft_text=c.text) for p, c in zip(prompts, completions, strict=True)]
        completions = answers_of(engine, prompts)
    numbers = judged(right, prompts, completions, scale)
    numbers |= {"steps": engine.stats.steps, "accepted": engine.stats.accepted_tokens}
    if drafts and not engine.stats.drafted_tokens:
        raise CheckFailedError("nothing was drafted", numbers)
    return numbers


def engine_options_of(settings: Settings, **options: Any) -> EngineOptions:
    """Of a small engine with a small cache. Raises CannotRunError for options that cannot be here."""
    implementation = options.pop("attn_implementation", "auto")
    if options.get("cuda_graphs"):
        settings.needs_cuda()
        implementation = "triton"
    fp8 = options.get("kv_cache_dtype") == "fp8"
    chosen = available(settings, implementation, torch.float8_e4m3fn if fp8 else settings.dtype)
    is_flash = chosen == "flash_attention_2"
    usual: dict[str, Any] = {
        "device": settings.device,
        "max_batch_size": BATCH,
        "max_step_tokens": 96,  # prompts come in chunks
        "block_size": FLASH_BLOCK_SIZE if is_flash else 16,
        "kv_cache_tokens": BATCH * (4 * FLASH_BLOCK_SIZE if is_flash else 512),
        "attn_implementation": chosen,
    }
    try:
        return EngineOptions(**usual | options)
    except ValueError as error:
        raise CannotRunError(str(error)) from error


def answers_of(engine: Engine, prompts: Sequence[Prompt]) -> list[Completion]:
    for prompt in prompts:
        engine.add(prompt)
    completions = {completion.key: completion for completion in engine.drain()}
    return [completions[prompt.key] for prompt in prompts]


def check_own_model(settings: Settings) -> Numbers:
    """The checkpoint of --model answers as its network reads it on the device, without cache and kernels of ours."""
    if settings.model is None:
        raise CannotRunError("give --model FOLDER")
    folder = str(settings.model)
    config = read_config(settings.model)
    settings.needs_bytes(1.2 * weight_bytes(config, settings.dtype.itemsize) + 2e9)
    network = from_pretrained(folder, device=settings.device, dtype=settings.dtype)
    options = engine_options_of(settings, max_step_tokens=1024)
    engine = Engine(network, read_tokenizer(settings.model), options, read_stop_token_ids(settings.model))
    prompts = prompts_of(Processor.from_pretrained(folder), 8)
    numbers = judged(network, prompts, answers_of(engine, prompts), 10.0)
    return numbers | {"weights": weight_bytes(config, settings.dtype.itemsize)}
