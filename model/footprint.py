"""What a checkpoint takes of memory, by formula: its weights, a token of the cache, the largest pass. No torch.

Bytes are those of one rank of `ranks`.
"""

import os
from pathlib import Path

from model.config import ModelConfig, VisionConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
CGROUP_FILES = (  # limit and use, of version 2 and of version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
CGROUPS = Path("/sys/fs/cgroup")
LESS_CACHE = (
    "give less max_new_tokens, fewer max_tokens_per_page or max_tokens_per_window, dtype bfloat16, kv_cache_dtype fp8, "
    "a smaller model, or more memory"
)
MEMORY_INFO = Path("/proc/meminfo")


def tower_parameters(vision: VisionConfig) -> int:
    """Of the vision tower, which is whole on every rank."""
    width, inner, joined = (
        vision.hidden_size,
        vision.intermediate_size,
        vision.hidden_size * vision.spatial_merge_size**2,
    )
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    block = 4 * width + 3 * width * (width + 1) + width * (width + 1) + inner * (width + 1) + width * (inner + 1)
    merger = joined * (joined + 1) + vision.out_hidden_size * (joined + 1)
    mergers = (merger + 2 * width) + len(vision.deepstack_visual_indexes) * (merger + 2 * joined)
    return width * (patch + 1) + vision.num_position_embeddings * width + vision.depth * block + mergers


def decoder_parameters(config: ModelConfig) -> tuple[int, int]:
    """(of the linear maps of all layers, which FP8 checkpoints quantise; of embedding, head, norms and routers)."""
    text = config.text
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    maps = 2 * text.hidden_size * (queries + keys) * text.num_hidden_layers
    others = (2 * text.hidden_size + 2 * text.head_dim) * text.num_hidden_layers + text.hidden_size
    others += text.vocab_size * text.hidden_size * (1 if config.tie_word_embeddings else 2)
    for layer in range(text.num_hidden_layers):
        if text.moe and text.moe.covers(layer):
            maps += 3 * text.hidden_size * text.moe.moe_intermediate_size * text.moe.num_experts
            others += text.hidden_size * text.moe.num_experts
        else:
            maps += 3 * text.hidden_size * text.intermediate_size
    return maps, others


def weight_bytes(config: ModelConfig, element_bytes: int, *, keeps_fp8: bool = False, ranks: int = 1) -> int:
    """All parameters at `element_bytes` each; with `keeps_fp8` the decoder's matrices at one byte and their scales."""
    maps, others = decoder_parameters(config)
    map_bytes = maps + maps * 4 // 128**2 if keeps_fp8 else maps * element_bytes
    return tower_parameters(config.vision) * element_bytes + (map_bytes + others * element_bytes) // ranks


def token_bytes(config: ModelConfig, element_bytes: int, *, ranks: int = 1) -> int:
    """Keys and values of one token in all layers; key heads that are fewer than ranks are held more than once."""
    text = config.text
    return 2 * text.num_hidden_layers * max(1, text.num_key_value_heads // ranks) * text.head_dim * element_bytes


def pass_bytes(config: ModelConfig, element_bytes: int, *, step_tokens: int, image_tokens: int, rows: int) -> int:
    """About what the largest pass needs beside weights and cache: the tower over an image of `image_tokens`, then the
    decoder over `step_tokens`, then `rows` rows of logits, which are also held in float32. Attention writes no scores
    worth counting. 1.1 to 2 times what is alive at once, for allocators keep more than that."""
    vision, text = config.vision, config.text
    patches = image_tokens * vision.spatial_merge_size**2
    tower = patches * (8 * vision.hidden_size + 2 * vision.intermediate_size) * element_bytes
    tower += patches * 6 * vision.hidden_size * 4  # positions, and queries and keys while they are rotated: float32
    inner = 3 * text.intermediate_size
    if text.moe:  # each token once for each of its experts
        inner = text.moe.num_experts_per_tok * (3 * text.hidden_size + 2 * text.moe.moe_intermediate_size)
    decoder = step_tokens * (8 * text.hidden_size + inner) * element_bytes
    return max(tower, decoder) + rows * text.vocab_size * (element_bytes + 8)


def available_bytes() -> int:
    """Memory of this machine that nobody uses, or of this container where that is less."""
    try:
        lines = MEMORY_INFO.read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # not Linux
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit_file, use_file in CGROUP_FILES:
        try:
            limit, use = (CGROUPS / limit_file).read_text().strip(), (CGROUPS / use_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():  # else "max"
            found.append(max(0, int(limit) - int(use)))
    return min(found)
