"""How many tokens the key/value cache can hold, beside the weights and what the largest pass needs."""

import torch

from model.attention import AttentionImplementation, PackedCausal
from model.engine_options import EngineOptions
from model.qwen3_vl import Qwen3VL
from model.sampler import choose_tokens

CPU_CACHE_BYTES = 2**30  # the most a cache takes on a CPU when nobody says how many tokens
FREE_MEMORY_SHARE = 0.9  # of what a GPU has left beside weights and one pass; the rest is for fragments


def cache_tokens(network: Qwen3VL, options: EngineOptions, implementation: AttentionImplementation) -> int:
    """How many tokens the key/value cache holds."""
    if options.kv_cache_tokens is not None:
        return options.kv_cache_tokens
    text = network.config.text
    weight = network.model.language_model.embed_tokens.weight
    token_bytes = 2 * text.num_hidden_layers * network.num_key_heads * text.head_dim
    token_bytes *= 1 if options.kv_cache_dtype == "fp8" else weight.element_size()
    budget = CPU_CACHE_BYTES
    if weight.device.type == "cuda":
        budget = _free_cuda_bytes(network, options, implementation)
    budget = network.group.smallest(budget, weight.device)
    tokens = min(options.max_batch_size * text.max_position_embeddings, budget // token_bytes)
    if tokens < options.block_size:
        raise ValueError(f"{budget} bytes of free memory hold no block of {options.block_size} tokens")
    return tokens


def _free_cuda_bytes(network: Qwen3VL, options: EngineOptions, implementation: AttentionImplementation) -> int:
    """What the GPU has left beside the weights and the largest pass."""
    device = network.model.language_model.embed_tokens.weight.device
    torch.cuda.reset_peak_memory_stats(device)
    weights_bytes = torch.cuda.memory_allocated(device)
    rehearse(network, num_tokens=options.max_step_tokens, num_rows=options.max_step_rows, implementation=implementation)
    pass_bytes = torch.cuda.max_memory_allocated(device) - weights_bytes
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int((free_bytes - pass_bytes) * FREE_MEMORY_SHARE)


@torch.inference_mode()
def rehearse(network: Qwen3VL, *, num_tokens: int, num_rows: int, implementation: AttentionImplementation) -> None:
    """The largest pass without a cache: two images of `num_tokens` visual tokens, `num_tokens` tokens, `num_rows` rows
    of logits. What it needs in memory is what serving needs beside weights and cache."""
    config = network.config
    device = network.model.visual.pos_embed.weight.device
    merge = config.vision.spatial_merge_size
    width = config.vision.in_channels * config.vision.patch_size**2
    grids = [(1, merge, merge * num_tokens)] * 2  # the images of a pass, and the rest of one that its end cuts
    patches_PC = torch.zeros(2 * num_tokens * merge**2, width, dtype=torch.uint8, device=device)
    network.look(patches_PC, grids, implementation)
    token_ids_N = torch.zeros(num_tokens, dtype=torch.long, device=device)
    positions_3N = torch.zeros(3, num_tokens, dtype=torch.long, device=device)
    hidden_NE = network(token_ids_N, positions_3N, PackedCausal([num_tokens], implementation))
    choose_tokens(network.logits(hidden_NE[:num_rows]), None, network.group)
