"""Where the time of a page goes: the floor by formula and the measured steps of a network with random weights.

Letters: P parameters a token is multiplied with, T visual tokens of a page, B requests, S tokens of each in the cache.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from model.attention import (
    FLASH_BLOCK_SIZE,
    CachedChunk,
    KeyValueCache,
    PackedCausal,
    checked_implementation,
    device_tensor,
    paged_attention,
)
from model.checkpoint import checkpoint_folder
from model.config import ModelConfig, parse_config, read_config
from model.engine import Engine
from model.engine_options import EngineOptions
from model.graphs import StepGraphs
from model.layers import Linear, pack_weights
from model.positions import mrope_positions
from model.qwen3_vl import Qwen3VL, empty_model
from model.request import Prompt, Sampling

# Dense bf16 operations and bytes of memory in a second, by the vendor's data sheet.
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
SIZES = {  # hidden, intermediate, layers, query heads, key heads, tied; vision: hidden, intermediate, depth, taps
    "2b": (2048, 6144, 28, 16, 8, True, 1024, 4096, 24, (5, 11, 17)),
    "4b": (2560, 9728, 36, 32, 8, True, 1024, 4096, 24, (5, 11, 17)),
    "8b": (4096, 12288, 36, 32, 8, False, 1152, 4304, 27, (8, 16, 24)),
    "32b": (5120, 25600, 64, 64, 8, False, 1152, 4304, 27, (8, 16, 24)),
    "30b-a3b": (2048, 6144, 48, 32, 4, False, 1152, 4304, 27, (8, 16, 24)),
}
EXPERTS: dict[str, dict[str, Any]] = {
    "30b-a3b": {
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        **{"decoder_sparse_step": 1, "mlp_only_layers": []},
    },
}
PROMPT_TOKENS = 60  # of a page, beside its visual tokens


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a page's way, in seconds for one page."""

    name: str
    floor: float
    measured: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="demo", help=f"demo, {', '.join(SIZES)} (default: demo)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batch-size", type=int, default=16, help="requests at once (default: 16)")
    parser.add_argument("--visual-tokens", type=int, default=256, help="of a page, at least 16 (default: 256)")
    parser.add_argument("--new-tokens", type=int, default=200, help="of an answer (default: 200)")
    parser.add_argument("--tokens-per-step", type=float, default=2.24, help="where drafts are on (default: 2.24)")
    parser.add_argument("--draft-tokens", type=int, default=4, help="of a verify step (default: 4)")
    parser.add_argument("--fp8-cache", action="store_true", help="key/value cache in float8_e4m3fn")
    parser.add_argument("--cuda-graphs", action="store_true", help="decode and verify steps as CUDA graphs")
    parser.add_argument("--overlap", action="store_true", help="the engine prepares a pass while one is at work")
    parser.add_argument(
        "--attn-implementation", default="auto", help="auto, sdpa, numba, triton, flash_attention_2 (default: auto)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of each measurement (default: 1)")


def sized_config(name: str) -> ModelConfig:
    """The sizes of a published model, or of the embedded one. Raises ValueError for an unknown name."""
    if name == "demo":
        return read_config(checkpoint_folder("model/demo"))
    if name not in SIZES:
        raise ValueError(f"config {name!r}: choose demo, {', '.join(SIZES)}")
    hidden, intermediate, layers, heads, key_heads, tied, seen, wide, depth, taps = SIZES[name]
    text: dict[str, Any] = {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "rope_theta": 5e6,
    }
    text |= {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_heads}
    text |= {"head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 262144}
    text |= {"hidden_act": "silu", "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]}}
    vision: dict[str, Any] = {
        "depth": depth,
        "hidden_size": seen,
        "intermediate_size": wide,
        "num_heads": 16,
        "in_channels": 3,
    }
    vision |= {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 2304}
    vision |= {"out_hidden_size": hidden, "deepstack_visual_indexes": taps, "hidden_act": "gelu_pytorch_tanh"}
    text |= EXPERTS.get(name, {})
    ids: dict[str, Any] = {"image_token_id": 151655, "video_token_id": 151656}
    ids |= {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
    kind = "qwen3_vl_moe" if name in EXPERTS else "qwen3_vl"
    raw = {"model_type": kind, "text_config": text, "vision_config": vision, "dtype": "bfloat16", **ids}
    return parse_config({**raw, "tie_word_embeddings": tied})


def peaks(device: torch.device, dtype: torch.dtype, seconds: float) -> tuple[float, float]:
    """Operations and bytes in a second: by data sheet where the GPU is known, else as a large product and copy show."""
    if device.type == "cuda":
        for name, known in PEAKS.items():
            if name in torch.cuda.get_device_name(device):
                return known
    side = 4096 if device.type == "cuda" else 1024
    product = Linear(side, side, bias=False, device=device, dtype=dtype)  # on a CPU not `@`, which is another library
    pack_weights(product)
    square = torch.ones(side, side, device=device, dtype=dtype)
    large = torch.ones(2**26, device=device, dtype=dtype)
    copy = torch.empty_like(large)
    product_seconds = timed(lambda: product(square), device, seconds)
    copy_seconds = timed(lambda: copy.copy_(large), device, seconds)
    return 2 * side**3 / product_seconds, 2 * large.nbytes / copy_seconds


def timed(work: Callable[[], object], device: torch.device, least_seconds: float) -> float:
    """Median seconds of one call, warmed up and waited for, of as many as take `least_seconds`."""
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - began < least_seconds:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[len(seconds) // 3 :]))


class Bench:
    """One random network on its device, and the formulas of its steps."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.cache_dtype = torch.float8_e4m3fn if options.fp8_cache else self.dtype
        self.config = sized_config(options.config)
        self.implementation = checked_implementation(options.attn_implementation, self.device, self.cache_dtype)
        self.block_size = FLASH_BLOCK_SIZE if self.implementation == "flash_attention_2" else 64  # tokens of a block
        if options.cuda_graphs and (self.device.type != "cuda" or self.implementation != "triton"):
            raise ValueError(f"--cuda-graphs needs cuda and triton, not {self.device} and {self.implementation}")
        self.network = random_network(self.config, self.device, self.dtype)
        self.operations, self.bandwidth = peaks(self.device, self.dtype, options.seconds)

    def text_parameters(self, rows: int | None = None) -> int:
        """What a token is multiplied with, or what `rows` tokens are together: of the experts only those they chose
        (by a router that likes all of them equally)."""
        decoder, moe = self.network.model.language_model.layers, self.config.text.moe
        share = 1.0
        if moe:
            chosen = moe.num_experts_per_tok / moe.num_experts
            share = chosen if rows is None else 1 - (1 - chosen) ** rows
        return round(
            sum(
                parameter.numel() * (share if ".experts." in name else 1.0)
                for name, parameter in decoder.named_parameters()
            )
        )

    @property
    def head_parameters(self) -> int:
        return self.config.text.vocab_size * self.config.text.hidden_size

    def cache_bytes(self) -> int:
        """Of one token."""
        text = self.config.text
        return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.cache_dtype.itemsize

    def look(self) -> Term:
        vision, tokens = self.config.vision, self.options.visual_tokens
        grid = page_grid(tokens, vision.spatial_merge_size)
        patches = grid[1] * grid[2]
        width = vision.in_channels * vision.patch_size**2
        pixels_PC = torch.zeros(patches, width, dtype=torch.uint8, device=self.device)
        linear = sum(parameter.numel() for parameter in self.network.model.visual.blocks.parameters())
        operations = 2 * patches * linear + 4 * patches**2 * vision.hidden_size * vision.depth
        mergers = [self.network.model.visual.merger, *self.network.model.visual.deepstack_merger_list]
        operations += 2 * tokens * sum(parameter.numel() for part in mergers for parameter in part.parameters())
        measured = timed(
            lambda: self.network.look(pixels_PC, [grid], self.implementation), self.device, self.options.seconds
        )
        return Term("vision", operations / self.operations, measured)

    def prefill(self) -> Term:
        text, length = self.config.text, self.options.visual_tokens + PROMPT_TOKENS
        ids_N = torch.zeros(length, dtype=torch.long, device=self.device)
        positions_3N = torch.arange(length, device=self.device).expand(3, -1)
        attention = PackedCausal([length], self.implementation)
        operations = 2 * length * self.text_parameters()
        operations += 2 * length**2 * text.num_attention_heads * text.head_dim * text.num_hidden_layers
        measured = timed(lambda: self.network(ids_N, positions_3N, attention), self.device, self.options.seconds)
        return Term("prefill", operations / self.operations, measured)

    def whole(self, floor: float) -> Term:
        """Twice a batch of pages through the engine itself: no drafts, every answer of full length."""
        options = self.options
        prompt = blank_page(self.config, options.visual_tokens, options.new_tokens)
        blocks = -(-(len(prompt.token_ids_T) + options.new_tokens) // self.block_size)
        engine_options = EngineOptions(
            max_batch_size=options.batch_size,
            max_draft_tokens=0,
            prefix_cache=False,
            kv_cache_tokens=options.batch_size * blocks * self.block_size,
            kv_cache_dtype="fp8" if options.fp8_cache else None,
            block_size=self.block_size,
            device=str(self.device),
            attn_implementation=self.implementation,
            cuda_graphs=options.cuda_graphs,
            overlap=options.overlap,
        )
        engine = Engine(self.network, NoText(), engine_options, frozenset())

        def answer(pages: int) -> float:
            for number in range(pages):
                engine.add(replace(prompt, key=str(number)))
            began = time.perf_counter()
            completions = list(engine.drain())
            assert [len(completion.token_ids) for completion in completions] == pages * [options.new_tokens]
            return (time.perf_counter() - began) / pages

        answer(options.batch_size)  # kernels are compiled, graphs recorded
        return Term("engine", floor, answer(2 * options.batch_size))

    def step(self, drafts: int, tokens_per_step: float) -> Term:
        """A step of the whole batch in the middle of its answers, shared out to a page."""
        options, batch = self.options, self.options.batch_size
        seen = options.visual_tokens + PROMPT_TOKENS + options.new_tokens // 2
        blocks = -(-(seen + drafts + 1) // self.block_size)
        text = self.config.text
        spare = batch * blocks  # the block that nobody reads
        shape = (text.num_hidden_layers, text.num_key_value_heads, spare + 1, self.block_size, text.head_dim)
        keys, values = (torch.zeros(shape, dtype=self.cache_dtype, device=self.device) for _ in range(2))
        cache = KeyValueCache(keys, values, self.dtype)
        tables = np.arange(batch * blocks).reshape(batch, blocks).tolist()
        chunks = [CachedChunk(table, seen, seen + 1 + drafts) for table in tables]
        rows = batch * (1 + drafts)
        token_ids_N, positions_3N = np.zeros(rows, dtype=np.int64), np.full((3, rows), seen)
        device_ids_N, device_positions_3N = (device_tensor(part, self.device) for part in (token_ids_N, positions_3N))
        graphs = None
        if options.cuda_graphs:
            graphs = StepGraphs(self.network, cache, max_sequences=batch, max_rows=rows, spare_block=spare)

        def work() -> torch.Tensor:
            if graphs:
                return graphs.logits(token_ids_N, positions_3N, chunks).argmax(-1)
            attention = paged_attention(cache, chunks, self.implementation, num_heads=text.num_attention_heads)
            return self.network.logits(self.network(device_ids_N, device_positions_3N, attention)).argmax(-1)

        read, multiplied = (self.text_parameters(seen) + self.head_parameters for seen in (rows, None))
        weights_seconds = read * torch.finfo(self.dtype).bits / 8 / self.bandwidth
        floor = max(weights_seconds, 2 * rows * multiplied / self.operations)
        floor += batch * seen * self.cache_bytes() / self.bandwidth
        steps = options.new_tokens / tokens_per_step
        measured = timed(work, self.device, options.seconds)
        return Term("verify" if drafts else "decode", floor * steps / batch, measured * steps / batch)


class NoText:
    """In place of a tokenizer: what a random network writes says nothing."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return ""


def blank_page(config: ModelConfig, visual_tokens: int, new_tokens: int) -> Prompt:
    """A white page of so many visual tokens, or nearly, and some text behind it."""
    vision = config.vision
    grid = page_grid(visual_tokens, vision.spatial_merge_size)
    patches = grid[1] * grid[2]
    seen = patches // vision.spatial_merge_size**2
    token_ids_T = np.array([config.image_token_id] * seen + [0] * PROMPT_TOKENS, dtype=np.int32)
    grids_G3 = np.array([grid], dtype=np.int32)
    visual = (config.image_token_id, config.video_token_id)
    positions_3T, following = mrope_positions(
        token_ids_T, grids_G3, visual_token_ids=visual, merge_size=vision.spatial_merge_size
    )
    return Prompt(
        key="",
        token_ids_T=token_ids_T,
        positions_3T=positions_3T,
        next_position=following,
        patches_PC=np.full((patches, vision.in_channels * vision.patch_size**2), 255, dtype=np.uint8),
        grids_G3=grids_G3,
        sampling=Sampling(max_new_tokens=new_tokens, stop_at_loops=False),
    )


def random_network(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Qwen3VL:
    """Made on the device: nothing travels."""
    network = empty_model(config, device=device, dtype=dtype).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(std=0.02)
    pack_weights(network)
    return network


def page_grid(visual_tokens: int, merge: int) -> tuple[int, int, int]:
    """The nearest square page."""
    rows = round(visual_tokens**0.5)
    return 1, merge * rows, merge * (visual_tokens // rows)


@torch.inference_mode()
def measure(bench: Bench) -> list[Term]:
    """Vision, prefill, decode, verify, and the engine with all of them but verify."""
    options = bench.options
    vision, prefill = bench.look(), bench.prefill()
    decode, verify = bench.step(0, 1.0), bench.step(options.draft_tokens, options.tokens_per_step)
    whole = bench.whole(vision.floor + prefill.floor + decode.floor)
    return [vision, prefill, decode, verify, whole]


def report(bench: Bench, terms: Sequence[Term]) -> str:
    """The table of what `measure` found."""
    options = bench.options
    total = sum(parameter.numel() for parameter in bench.network.parameters())
    cache = "fp8" if options.fp8_cache else str(bench.dtype).removeprefix("torch.")
    lines = [
        f"{options.config}, {total / 1e6:.0f}M random parameters, batch {options.batch_size}, {options.visual_tokens}"
        f" visual and {options.new_tokens} new tokens, cache {cache}, attention {bench.implementation}"
        f"{', CUDA graphs' if options.cuda_graphs else ''}{', overlap' if options.overlap else ''}",
        f"{bench.operations / 1e12:.2f} T operations/s, {bench.bandwidth / 1e9:.0f} GB/s",
        f"{'':10}{'floor ms':>10}{'measured':>10}{'share':>8}",
    ]
    for term in terms:
        share = term.floor / term.measured
        lines.append(f"{term.name:10}{1e3 * term.floor:10.2f}{1e3 * term.measured:10.2f}{share:8.0%}")
    vision, prefill, decode, verify, _ = terms
    for last in (decode, verify):
        parts = (vision, prefill, last)
        floor, measured = sum(term.floor for term in parts), sum(term.measured for term in parts)
        rates = f"{1 / measured:.2f} pages/s of {1 / floor:.2f} by the floor"
        lines.append(f"with {last.name} steps: {rates}, ratio {floor / measured:.2f}")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    bench = Bench(options)
    print(report(bench, measure(bench)))
