"""A checkpoint of the shape of the 2B, written with random weights: memory while it loads, one page, and its logits."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_long_context import Silent
from test_qwen3_vl import SMALL_TOWER, official_config
from tiny import every_row, their_pixels
from transformers import Qwen3VLForConditionalGeneration

from model.config import read_config
from model.engine import Engine
from model.engine_options import EngineOptions
from model.positions import mrope_positions
from model.processor import frame_patches
from model.qwen3_vl import empty_model
from model.request import Frames, Prompt, Sampling
from model.weights import from_pretrained, save_weights
from tests.memory import resident

IMAGE, START, END = 151655, 151652, 151653
SIZES = {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144}


def write_checkpoint(folder: Path) -> None:
    raw = official_config(**SIZES) | {"tie_word_embeddings": True}
    raw["vision_config"] |= {"out_hidden_size": 2048} | SMALL_TOWER
    (folder / "config.json").write_text(json.dumps(raw))
    network = empty_model(read_config(folder), device="cpu", dtype=torch.bfloat16).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(std=0.02, generator=generator)
    save_weights(network, folder, torch.bfloat16)


def page() -> Frames:
    return Frames(np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), dtype=np.uint8))


def prompt() -> Prompt:
    words = np.random.default_rng(1).integers(0, 150_000, 20).tolist()
    ids = np.array([*words[:5], START, *[IMAGE] * 256, END, *words[5:]], dtype=np.int32)
    grids = np.array([[1, 32, 32]], dtype=np.int32)
    positions, following = mrope_positions(ids, grids, visual_token_ids=(IMAGE,), merge_size=2)
    patches = frame_patches(page().pixels_THWC, patch_size=16, merge_size=2)
    return Prompt("page", ids, positions, following, patches, grids, Sampling(max_new_tokens=2))


def loading(folder: str) -> None:
    """Prints by how many bytes memory grew at most, in a process that does nothing else."""
    before = resident("VmRSS")
    began = time.monotonic()
    from_pretrained(folder)
    print(resident("VmHWM") - before, time.monotonic() - began)


def reading(folder: str, out: str) -> None:
    """Our logits of the last 16 tokens of the prompt, by the engine in chunks."""
    network = from_pretrained(folder)
    engine = Engine(network, Silent(), EngineOptions(max_step_tokens=150, kv_cache_tokens=512), frozenset())
    engine.add(prompt())
    with every_row(network) as passes:
        (completion,) = engine.drain()
    assert len(completion.token_ids) == 2
    with torch.inference_mode():
        torch.save(network.logits(torch.cat(passes[:2])[-16:]).float(), out)


def their_reading(folder: str, out: str) -> None:
    network = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.from_numpy(prompt().token_ids_T).long()[None]
    pixels, grid = their_pixels(page())
    with torch.inference_mode():
        output = network(
            input_ids=ids,
            mm_token_type_ids=(ids == IMAGE).int(),
            pixel_values=pixels.bfloat16(),
            image_grid_thw=torch.tensor([grid]),
            logits_to_keep=16,
            use_cache=False,
        )
    torch.save(output.logits[0].float(), out)


def in_a_process(call: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", f"import test_real_size as here; here.{call}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.heavy
def test_a_checkpoint_of_the_2b_loads_in_its_own_size_and_reads_a_page_as_transformers_does(tmp_path):
    write_checkpoint(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    growth, seconds = map(float, in_a_process(f"loading({str(tmp_path)!r})").split())
    print(f"{size} bytes: {growth / size:.3f} of them in memory while loading, {seconds:.0f} s")
    assert growth < 1.2 * size
    for reader in ("reading", "their_reading"):
        in_a_process(f"{reader}({str(tmp_path)!r}, {str(tmp_path / reader)!r})")
    ours, theirs = (torch.load(tmp_path / reader) for reader in ("reading", "their_reading"))
    (tmp_path / "model.safetensors").unlink()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"relative difference of the logits {error:.4f}, {(ours.argmax(1) == theirs.argmax(1)).sum()} of 16 tokens")
    assert error < 0.05
