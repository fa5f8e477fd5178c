"""Memory and time on a GPU beside their formulas: weights, the largest pass, graphs, and the roofline table."""

import argparse
from dataclasses import replace
from typing import Any

import torch

from jobs import bench_roofline
from jobs.bench_roofline import NoText, blank_page, random_network, sized_config
from jobs.gpu_answers import answers_of, engine_options_of
from jobs.gpu_kernels import CannotRunError, Numbers, Settings, available, within
from model.attention import on_device
from model.capacity import rehearse
from model.config import ModelConfig
from model.engine import Engine
from model.footprint import pass_bytes, token_bytes, weight_bytes
from model.graphs import graph_bytes

STEP_TOKENS, IMAGE_TOKENS, ROWS = 2048, 4096, 320
FORMULA_SHARE = 1.3  # of a formula that what it is for may take
ROOFLINE = {  # on a GPU, by config: batch, visual tokens, new tokens, and the bytes it takes
    "2b": (64, 1024, 128, 16e9),
    "8b": (64, 1024, 128, 34e9),
}


def thin(settings: Settings) -> ModelConfig:
    """The widths of the 8B with four layers and four blocks; on a CPU the embedded model."""
    config = sized_config("8b" if settings.is_cuda else "demo")
    if not settings.is_cuda:
        return config
    vision = replace(config.vision, depth=4, deepstack_visual_indexes=(1, 2, 3))
    return replace(config, text=replace(config.text, num_hidden_layers=4), vision=vision)


def check_weights(settings: Settings) -> Numbers:
    """What weights take, beside the formula that the cache is sized with and the README's table is made of."""
    config = thin(settings)
    formula = weight_bytes(config, settings.dtype.itemsize)
    settings.needs_bytes(1.1 * formula)
    device = torch.device(settings.device)
    network = random_network(config, device, settings.dtype)
    held = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if settings.is_cuda:
        held = torch.cuda.memory_allocated(device)
    return within("difference from the formula", abs(held / formula - 1), 0.02, {"bytes": held, "formula": formula})


def check_pass(settings: Settings) -> Numbers:
    """What the largest pass takes beside weights and cache."""
    settings.needs_cuda()
    config, device = thin(settings), torch.device(settings.device)
    formula = pass_bytes(config, 2, step_tokens=STEP_TOKENS, image_tokens=IMAGE_TOKENS, rows=ROWS)
    settings.needs_bytes(1.1 * weight_bytes(config, 2) + 2 * formula)
    network = random_network(config, device, settings.dtype)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with on_device(device):
        rehearse(
            network,
            num_tokens=STEP_TOKENS,
            image_tokens=IMAGE_TOKENS,
            num_rows=ROWS,
            implementation=available(settings, "auto", settings.dtype),
        )
    held = torch.cuda.max_memory_allocated(device) - before
    return within("share of the formula", held / formula, FORMULA_SHARE, {"bytes": held, "formula": formula})


def check_graphs(settings: Settings) -> Numbers:
    """What graphs keep, beside what the cache leaves them."""
    settings.needs_cuda()
    config, device, batch = thin(settings), torch.device(settings.device), 64
    least = pass_bytes(config, 2, step_tokens=STEP_TOKENS, image_tokens=IMAGE_TOKENS, rows=2 * batch)
    formula = graph_bytes(least, max_rows=2 * batch, vocab_size=config.text.vocab_size, element_bytes=2)
    cache = batch * 512 * token_bytes(config, 2)
    settings.needs_bytes(1.1 * weight_bytes(config, 2) + cache + 2 * least + formula)
    options = engine_options_of(
        settings,
        cuda_graphs=True,
        max_batch_size=batch,
        max_draft_tokens=batch,
        max_step_tokens=STEP_TOKENS,
        kv_cache_tokens=batch * 512,
    )
    network = random_network(config, device, settings.dtype)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    engine = Engine(network, NoText(), options, frozenset())
    page = blank_page(config, 64, 8)
    for count in (batch, 1, 3, batch // 2):
        answers_of(engine, [replace(page, key=str(number)) for number in range(count)])
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(device) - before - cache
    return within("share of what is left for them", held / formula, 1.0, {"bytes": held, "formula": formula})


def check_roofline(settings: Settings, *, config: str, **flags: Any) -> Numbers:
    """The table of jobs.bench_roofline, for people to judge."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    bench_roofline.add_arguments(parser)
    options = parser.parse_args([])
    chosen: dict[str, Any] = {"batch_size": 2, "visual_tokens": 16, "new_tokens": 4, "draft_tokens": 2, "seconds": 0.1}
    if settings.is_cuda:
        batch, visual_tokens, new_tokens, wanted = ROOFLINE[config]
        settings.needs_bytes(wanted)
        chosen = {"batch_size": batch, "visual_tokens": visual_tokens, "new_tokens": new_tokens}
    elif config != "demo":
        raise CannotRunError("is for GPUs")
    vars(options).update(config=config, device=settings.device, **chosen, **flags)
    bench = bench_roofline.Bench(options)
    terms = bench_roofline.measure(bench)
    numbers: Numbers = {f"{term.name}, share of its floor": term.floor / term.measured for term in terms}
    numbers |= {f"{term.name}, seconds of a page": term.measured for term in terms}
    return numbers | {"table": bench_roofline.report(bench, terms)}
