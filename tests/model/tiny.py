"""Tiny random checkpoints, and transformers' own network beside ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from model.config import ModelConfig, read_config
from model.positions import mrope_positions
from model.processor import frame_patches
from model.qwen3_vl import Qwen3VL
from model.request import Frames, Prompt, Sampling
from model.weights import from_pretrained

IMAGE, VIDEO, START, END = 290, 291, 292, 293


def random_config(rng: np.random.Generator, *, moe: bool = False, **text) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    """A configuration with other depths, head counts, sizes and taps at every draw; `text` as it is given."""
    head_dim = int(rng.choice([16, 32, 48]))
    third = head_dim // 6
    key_heads = int(rng.choice([1, 2, 3]))
    vision_heads = int(rng.choice([2, 4]))
    depth = int(rng.integers(2, 6))
    taps = sorted(rng.choice(depth, size=int(rng.integers(1, min(depth, 3) + 1)), replace=False).tolist())
    layers = int(rng.integers(max(3, len(taps)), 6))
    hidden = int(rng.choice([48, 64, 80]))
    experts = {}
    if moe:
        num_experts = int(rng.choice([4, 9, 16]))
        experts = {
            "num_experts": num_experts,
            "num_experts_per_tok": int(rng.integers(1, 5)),
            "moe_intermediate_size": int(rng.choice([16, 56])),
            "decoder_sparse_step": int(rng.integers(1, 3)),
            "mlp_only_layers": [0] if rng.integers(2) else [],
        }
    return (Qwen3VLMoeConfig if moe else Qwen3VLConfig)(
        text_config={
            "vocab_size": 300,
            "hidden_size": hidden,
            "intermediate_size": int(rng.choice([96, 128])),
            "num_hidden_layers": layers,
            "num_attention_heads": key_heads * int(rng.integers(1, 4)),
            "num_key_value_heads": key_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 4096,
            "initializer_range": 0.1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": float(rng.choice([1e4, 5e6])),
                "mrope_section": [head_dim // 2 - 2 * third, third, third],
                "mrope_interleaved": True,
            },
            **experts,
            **text,
        },
        vision_config={
            "depth": depth,
            "hidden_size": vision_heads * int(rng.choice([8, 12])) * 2,
            "intermediate_size": 56,
            "num_heads": vision_heads,
            "out_hidden_size": hidden,
            "num_position_embeddings": int(rng.choice([4, 6, 8])) ** 2,
            "deepstack_visual_indexes": taps,
            "initializer_range": 0.1,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=bool(rng.integers(2)),
    )


@dataclass
class Pair:
    theirs: Qwen3VLForConditionalGeneration | Qwen3VLMoeForConditionalGeneration
    ours: Qwen3VL
    folder: Path

    @property
    def config(self) -> ModelConfig:
        return self.ours.config


def random_pair(seed: int, folder: Path, *, moe: bool = False, **text) -> Pair:
    """transformers' network with random weights (norms too), saved by it and loaded by us."""
    torch.manual_seed(seed)
    network = Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration
    theirs = network(random_config(np.random.default_rng(seed), moe=moe, **text)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif name.endswith("mlp.gate.weight"):
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)  # routes that are clear
    theirs.save_pretrained(folder)
    assert read_config(folder).image_token_id == IMAGE
    return Pair(theirs, from_pretrained(str(folder), dtype=torch.float32), folder)


@contextmanager
def every_row(network: Qwen3VL) -> Iterator[list[torch.Tensor]]:
    """Whoever asks for some rows gets them as before, but of a pass that computes all; these come into the list."""
    passes: list[torch.Tensor] = []
    asked: list[torch.Tensor | None] = []

    def ask_for_all(_, args, kwargs):
        asked.append(kwargs.pop("rows_R", None))
        return args, kwargs

    def answer(_, args, hidden):
        passes.append(hidden)
        rows = asked.pop()
        return hidden if rows is None else hidden[rows]

    with network.register_forward_pre_hook(ask_for_all, with_kwargs=True), network.register_forward_hook(answer):
        yield passes


def random_frames(rng: np.random.Generator, *, pairs: int = 0, largest: int = 4) -> Frames:
    """An image, or a video of `pairs` frame pairs one second apart, each side 1 to `largest` visual tokens."""
    height, width = (32 * int(rng.integers(1, largest + 1)) for _ in range(2))
    shape = (2 * pairs or 1, height, width, 3)
    seconds = tuple(0.5 * index for index in range(2 * pairs)) if pairs else None
    return Frames(rng.integers(0, 256, shape, dtype=np.uint8), seconds)


def random_prompt(rng: np.random.Generator, content: list[int | Frames], key: str = "", **sampling) -> Prompt:
    """A prompt of random text (an int says how many tokens) and frames, without a tokenizer. The time before a frame
    pair is three random tokens."""
    token_ids: list[int] = []
    grids, patches = [], []
    for part in content:
        if isinstance(part, int):
            token_ids += rng.integers(0, 280, part).tolist()
            continue
        count, height, width, _ = part.pixels_THWC.shape
        tokens = height * width // 1024
        visual = IMAGE if part.seconds is None else VIDEO
        for _ in range(1 if part.seconds is None else count // 2):
            stamp = [] if part.seconds is None else rng.integers(0, 280, 3).tolist()
            token_ids += [*stamp, START, *[visual] * tokens, END]
            grids.append((1 if part.seconds is None else 2, height // 16, width // 16))
        patches.append(frame_patches(part.pixels_THWC, patch_size=16, merge_size=2))
    ids = np.array(token_ids, dtype=np.int32)
    grids_G3 = np.array(grids, dtype=np.int32).reshape(-1, 3)
    positions, following = mrope_positions(ids, grids_G3, visual_token_ids=(IMAGE, VIDEO), merge_size=2)
    return Prompt(
        key=key,
        token_ids_T=ids,
        positions_3T=positions,
        next_position=following,
        patches_PC=np.concatenate(patches) if patches else np.empty((0, 768), np.uint8),
        grids_G3=grids_G3,
        sampling=Sampling(**sampling),
    )


def their_pixels(frames: Frames) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """pixel_values [patches, 1536] in [-1, 1] and grid_thw, written out from the definition: a patch is
    (channel, frame of the pair, row, column), patches come in 2x2 blocks, an image is its own second frame."""
    pixels = frames.pixels_THWC.astype(np.float64) / 255
    pixels = (pixels - 0.5) / 0.5
    if frames.seconds is None:
        pixels = np.concatenate([pixels, pixels])
    count, height, width, _ = pixels.shape
    rows = []
    for pair in range(count // 2):
        for block_row in range(height // 32):
            for block_column in range(width // 32):
                for row in (2 * block_row, 2 * block_row + 1):
                    for column in (2 * block_column, 2 * block_column + 1):
                        patch = pixels[
                            2 * pair : 2 * pair + 2, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16
                        ]
                        rows.append(patch.transpose(3, 0, 1, 2).reshape(-1))
    return torch.tensor(np.array(rows), dtype=torch.float32), (count // 2, height // 16, width // 16)


def their_inputs(prompts: list[Prompt], contents: list[list[int | Frames]]) -> dict[str, torch.Tensor]:
    """What transformers' model takes for a batch of prompts, padded on the left."""
    longest = max(len(prompt.token_ids_T) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.token_ids_T) :] = torch.from_numpy(prompt.token_ids_T.astype(np.int64))
        mask[row, longest - len(prompt.token_ids_T) :] = 1
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
    }
    frames = [part for content in contents for part in content if isinstance(part, Frames)]
    for name, wanted in (("image", None), ("video", True)):
        ours = [their_pixels(part) for part in frames if (part.seconds is not None) == bool(wanted)]
        if ours:
            suffix = "_videos" if wanted else ""
            inputs[f"pixel_values{suffix}"] = torch.cat([pixels for pixels, _ in ours])
            inputs[f"{name}_grid_thw"] = torch.tensor([grid for _, grid in ours])
    return inputs
