"""How many tokens the key/value cache can hold, beside the weights and what the largest pass needs."""

import torch

from model.attention import AttentionImplementation, PackedCausal, on_device
from model.engine_options import EngineOptions
from model.footprint import LESS_CACHE, available_bytes, pass_bytes, token_bytes
from model.graphs import graph_bytes
from model.qwen3_vl import Qwen3VL
from model.sampler import choose_tokens

FREE_MEMORY_SHARE = 0.9  # of what a GPU has left beside weights and one pass; the rest is for fragments
CPU_MEMORY_SHARE = 0.25  # of what is free, for a cache on a CPU that could use more: decoders and others live there too


def cache_tokens(network: Qwen3VL, options: EngineOptions, implementation: AttentionImplementation) -> int:
    """How many tokens the key/value cache holds: as many as the batch can use and there is memory for.

    Raises ValueError when the longest prompt with its answer does not fit, where the options say how long it is.
    """
    if options.kv_cache_tokens is not None:
        return options.kv_cache_tokens
    text = network.config.text
    weight = network.model.language_model.embed_tokens.weight
    each = token_bytes(network.config, 1 if options.kv_cache_dtype == "fp8" else weight.element_size())
    each = each * network.num_key_heads // text.num_key_value_heads
    longest = min(options.max_sequence_tokens or text.max_position_embeddings, text.max_position_embeddings)
    longest = -(-longest // options.block_size) * options.block_size
    if weight.device.type == "cuda":
        free = budget = _free_cuda_bytes(network, options, implementation)
    else:
        free = available_bytes() // network.group.size - _cpu_pass_bytes(network, options)  # ranks share the machine
        least = longest * each if options.max_sequence_tokens else 0
        budget = max(int(free * CPU_MEMORY_SHARE), min(least, free))
    budget = network.group.smallest(budget, weight.device)
    tokens = min(options.max_batch_size * longest, budget // each)
    if tokens < (longest if options.max_sequence_tokens else options.block_size):
        raise ValueError(
            f"a prompt with its answer may take {longest:,} tokens, {longest * each / 1e9:.1f} GB of the key/value "
            f"cache, and {max(budget, 0) / 1e9:.1f} GB are free for it on {weight.device}: {LESS_CACHE}"
        )
    return tokens


def _cpu_pass_bytes(network: Qwen3VL, options: EngineOptions) -> int:
    return pass_bytes(
        network.config,
        network.model.language_model.embed_tokens.weight.element_size(),
        step_tokens=options.max_step_tokens,
        image_tokens=options.max_image_tokens,
        rows=options.max_step_rows,
    )


def _free_cuda_bytes(network: Qwen3VL, options: EngineOptions, implementation: AttentionImplementation) -> int:
    """What the GPU has left beside the weights and the largest pass."""
    device = network.model.language_model.embed_tokens.weight.device
    torch.cuda.reset_peak_memory_stats(device)
    weights_bytes = torch.cuda.memory_allocated(device)
    with on_device(device):
        rehearse(
            network,
            num_tokens=options.max_step_tokens,
            image_tokens=options.max_image_tokens,
            num_rows=options.max_step_rows,
            implementation=implementation,
        )
    needed_bytes = torch.cuda.max_memory_allocated(device) - weights_bytes
    if options.cuda_graphs:  # they are recorded when the cache has taken what is left
        needed_bytes += graph_bytes(
            needed_bytes,
            max_rows=options.max_step_rows,
            vocab_size=network.config.text.vocab_size,
            element_bytes=network.model.language_model.embed_tokens.weight.element_size(),
        )
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int((free_bytes - needed_bytes) * FREE_MEMORY_SHARE)


@torch.inference_mode()
def rehearse(
    network: Qwen3VL, *, num_tokens: int, image_tokens: int, num_rows: int, implementation: AttentionImplementation
) -> None:
    """The largest pass without a cache: two images of `image_tokens` visual tokens, `num_tokens` tokens, `num_rows`
    rows of logits. What it needs in memory is what serving needs beside weights and cache."""
    config = network.config
    device = network.model.visual.pos_embed.weight.device
    merge = config.vision.spatial_merge_size
    width = config.vision.in_channels * config.vision.patch_size**2
    grids = [(1, merge, merge * image_tokens)] * 2  # the images of a pass, and the rest of one that its end cuts
    patches_PC = torch.zeros(2 * image_tokens * merge**2, width, dtype=torch.uint8, device=device)
    network.look(patches_PC, grids, implementation)
    token_ids_N = torch.zeros(num_tokens, dtype=torch.long, device=device)
    positions_3N = torch.zeros(3, num_tokens, dtype=torch.long, device=device)
    hidden_NE = network(token_ids_N, positions_3N, PackedCausal([num_tokens], implementation))
    choose_tokens(network.logits(hidden_NE[:num_rows]), None, network.group)
