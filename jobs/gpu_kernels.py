"""What runs on a GPU and nowhere else, beside its reference: attention, FP8 products, experts, copies.

Each check returns its numbers, or raises CheckFailedError where one is beyond its bound, CannotRunError where it cannot
run. References are computed in fp32 on the CPU from the very values that the device has. Letters: N tokens, H query
heads, K key heads, D head dimension, L tokens of a sequence, R routed rows, X experts, E features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import kernels
from model.attention import (
    FLASH_BLOCK_SIZE,
    AttentionImplementation,
    CachedChunk,
    KeyValueCache,
    checked_implementation,
    device_tensor,
    has_flash_attn,
    on_device,
    packed_attention,
    paged_attention,
)
from model.config import MoEConfig
from model.experts import Experts
from model.fp8 import Fp8Linear, dequantise, multiplies_fp8_blocks, quantise

Numbers = dict[str, Any]
SPANS = ((16, 17), (0, 5), (30, 47), (5, 6), (63, 64), (40, 45), (0, 300), (700, 701), (500, 530))
FAR_SPANS = ((40, 41), (0, 70))
FAR_TOKENS = 2_500_000  # of a cache in which key head 7 lies beyond 2^31 elements
FP8_ROWS = (1, 2, 3, 4, 5, 7, 16, 63, 257)
BF16_BOUND = 2e-2  # a rounding to eight bits of the weights, and one of the sum: on a CPU 0.003 to 0.005


class CheckFailedError(Exception):
    """What came out is not what it must be."""

    def __init__(self, reason: str, numbers: Numbers) -> None:
        super().__init__(reason)
        self.numbers = numbers


class CannotRunError(Exception):
    """The check cannot run here, and why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What every check is given."""

    device: str  # "cpu", "cuda"
    folder: Path  # a tiny checkpoint of random weights
    memory_bytes: int  # of the device that a check may take
    model: Path | None = None  # a checkpoint of the user's own

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_cuda else torch.float32

    def needs_cuda(self) -> None:
        if not self.is_cuda:
            raise CannotRunError("is for GPUs")

    def needs_bytes(self, wanted: float) -> None:
        if wanted > self.memory_bytes:
            raise CannotRunError(f"needs {wanted / 1e9:.1f} GB, and --memory-gb leaves {self.memory_bytes / 1e9:.1f}")


def within(what: str, measured: float, bound: float, numbers: Numbers | None = None) -> Numbers:
    """The numbers with `measured` and its bound. Raises CheckFailedError when it is larger, or no number."""
    numbers = {**(numbers or {}), what: measured, "bound": bound}
    if not measured <= bound:
        raise CheckFailedError(f"{what} is {measured:.2g}, more than {bound:.2g}", numbers)
    return numbers


@dataclass(frozen=True)
class PagedCase:
    """A cache of random content, chunks of sequences in shuffled blocks of it, and what a pass brings."""

    cached: tuple[Tensor, Tensor]  # keys, values [1, K, blocks, block size, D]
    new: tuple[Tensor, Tensor, Tensor]  # query [N, H, D], key and value [N, K, D]
    chunks: Sequence[CachedChunk] = field(repr=False)

    def attend(
        self, implementation: AttentionImplementation, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> the attention of the pass and the keys and values that are cached after it, fp32 on the CPU. With `dtype`
        everything that is not FP8 is of it."""
        place, dtype = torch.device(device), dtype or self.new[0].dtype
        is_fp8 = self.cached[0].dtype == torch.float8_e4m3fn
        keys, values = (part.clone().to(place, None if is_fp8 else dtype) for part in self.cached)
        cache = KeyValueCache(keys, values, dtype)
        new = [part.to(place, dtype) for part in self.new]
        with on_device(place):
            attending = paged_attention(cache, self.chunks, implementation, num_heads=new[0].shape[1])
            return attending(0, *new).float().cpu(), keys.float().cpu(), values.float().cpu()


def paged_case(
    spans: Sequence[tuple[int, int]],
    heads: tuple[int, int, int],
    *,
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    seed: int = 1,
) -> PagedCase:
    """`heads`: query heads, key heads, head dimension; `spans`: first and last token of each chunk."""
    num_heads, key_heads, head_dim = heads
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(dtype)

    wanted = [-(-end // block_size) for _, end in spans]
    num_blocks = sum(wanted) + 5
    keys, values = (random(1, key_heads, num_blocks, block_size, head_dim).to(cache_dtype) for _ in range(2))
    shuffled = iter(rng.permutation(num_blocks).tolist())
    chunks = [
        CachedChunk([next(shuffled) for _ in range(count)], *span) for count, span in zip(wanted, spans, strict=True)
    ]
    total = sum(map(len, chunks))
    new = random(total, num_heads, head_dim), random(total, key_heads, head_dim), random(total, key_heads, head_dim)
    return PagedCase((keys, values), new, sorted(chunks, key=lambda chunk: len(chunk) == 1))


def check_paged(
    settings: Settings, *, implementation: str, fp8: bool = False, dtype: torch.dtype | None = None
) -> Numbers:
    """Chunks and single tokens over the cache, heads as in the 8B. `dtype`: None for that of the device."""
    dtype = dtype or settings.dtype
    cache_dtype = torch.float8_e4m3fn if fp8 else dtype
    chosen = available(settings, implementation, cache_dtype)
    block_size = FLASH_BLOCK_SIZE if chosen == "flash_attention_2" else 16
    case = paged_case(SPANS, (32, 8, 128), block_size=block_size, dtype=dtype, cache_dtype=cache_dtype)
    expected = case.attend("sdpa", dtype=torch.float32)
    got = case.attend(chosen, settings.device)
    for name, ours, right in zip(("keys", "values"), got[1:], expected[1:], strict=True):
        if not torch.equal(ours, right):
            raise CheckFailedError(f"the cached {name} are not what was written", {})
    bound = BF16_BOUND if dtype == torch.bfloat16 else 1e-5
    return within("largest difference", _largest(got[0], expected[0]), bound)


def available(settings: Settings, implementation: str, cache_dtype: torch.dtype) -> AttentionImplementation:
    """`implementation` where it runs here; `flash-attn` and `varlen_attn` are the two ways of flash_attention_2. Raises
    CannotRunError where it does not."""
    name = implementation
    if implementation in ("flash-attn", "varlen_attn"):
        settings.needs_cuda()
        name = "flash_attention_2"
        if (implementation == "flash-attn") != has_flash_attn():
            raise CannotRunError("flash-attn is taken first" if has_flash_attn() else "flash-attn is not installed")
    if implementation == "triton" and kernels.HAS_TRITON and not settings.is_cuda and not kernels.is_interpreted():
        raise CannotRunError("on a CPU triton needs its interpreter: TRITON_INTERPRET=1")
    try:
        return checked_implementation(name, torch.device(settings.device), cache_dtype)
    except ValueError as error:
        raise CannotRunError(str(error)) from error


def check_far_blocks(settings: Settings) -> Numbers:
    """The kernel over a cache of 2.5 million tokens, in whose last blocks the sequences lie."""
    settings.needs_cuda()
    settings.needs_bytes(2.2 * FAR_TOKENS * 8 * 128 * 2)
    chosen = available(settings, "triton", torch.bfloat16)
    near = paged_case(FAR_SPANS, (32, 8, 128), block_size=16, dtype=torch.bfloat16, cache_dtype=torch.bfloat16)
    expected = near.attend("sdpa", dtype=torch.float32)[0]
    device, num_blocks = torch.device(settings.device), near.cached[0].shape[2]
    shift = FAR_TOKENS // 16 - num_blocks
    shape = (1, 8, FAR_TOKENS // 16, 16, 128)
    keys, values = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    for far, part in zip((keys, values), near.cached, strict=True):
        far[:, :, shift:] = part.to(device)
    chunks = [CachedChunk([block + shift for block in c.table], c.start, c.end) for c in near.chunks]
    with on_device(device):
        attending = paged_attention(KeyValueCache(keys, values, torch.bfloat16), chunks, chosen, num_heads=32)
        got = attending(0, *(part.to(device) for part in near.new)).float().cpu()
    return within("largest difference", _largest(got, expected), BF16_BOUND)


def attend_packed(
    query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, lengths: Sequence[int], *, causal: bool
) -> Tensor:
    """Softmax attention inside each sequence by its definition, in the dtype of the tensors -> [N, H, D]."""
    output_NHD = torch.empty_like(query_NHD)
    groups = query_NHD.shape[1] // key_NKD.shape[1]
    for start, end in pairwise(np.cumsum([0, *lengths]).tolist()):
        query_HLD, key_HLD, value_HLD = (part[start:end].transpose(0, 1) for part in (query_NHD, key_NKD, value_NKD))
        key_HLD, value_HLD = (part.repeat_interleave(groups, dim=0) for part in (key_HLD, value_HLD))
        scores_HLL = query_HLD @ key_HLD.transpose(1, 2) / query_HLD.shape[-1] ** 0.5
        if causal:
            scores_HLL = scores_HLL + scores_HLL.new_full((end - start, end - start), -torch.inf).triu(1)
        output_NHD[start:end] = (scores_HLL.softmax(-1) @ value_HLD).transpose(0, 1)
    return output_NHD


def check_packed(settings: Settings, *, implementation: str) -> Numbers:
    """Images and frames in the heads of both towers, and a whole prompt in those of the decoder."""
    chosen = available(settings, implementation, settings.dtype)
    generator = torch.Generator().manual_seed(0)
    numbers: Numbers = {}
    for name, heads, key_heads, head_dim, causal in (
        ("tower of 64", 16, 16, 64, False),
        ("tower of 72", 16, 16, 72, False),
        ("decoder", 32, 8, 128, True),
    ):
        lengths = (8, 8, 8, 120, 4, 260)
        query, key, value = (
            torch.randn(sum(lengths), count, head_dim, generator=generator).to(settings.dtype)
            for count in (heads, key_heads, key_heads)
        )
        with on_device(torch.device(settings.device)):
            placed = query.to(settings.device), key.to(settings.device), value.to(settings.device)
            got = packed_attention(*placed, lengths, causal=causal, implementation=chosen).float().cpu()
        expected = attend_packed(query.float(), key.float(), value.float(), lengths, causal=causal)
        bound = BF16_BOUND if settings.is_cuda else 1e-5
        numbers |= within(f"largest difference in the {name}", _largest(got, expected), bound)
    return numbers


def check_fp8_products(settings: Settings) -> Numbers:
    """A map in FP8 blocks for few and odd rows, beside the product of what its blocks say."""
    device = torch.device(settings.device)
    if not multiplies_fp8_blocks(device):
        raise CannotRunError(
            "FP8 blocks are multiplied by GPUs of compute capability 9.x; elsewhere weights are dequantised"
        )
    generator = torch.Generator().manual_seed(0)
    numbers: Numbers = {}
    for inputs, outputs in ((256, 384), (4096, 1024)):
        values, scales = quantise(torch.randn(outputs, inputs, generator=generator))
        linear = Fp8Linear(inputs, outputs)
        linear.load_state_dict({"weight": values, "weight_scale_inv": scales})
        linear.to(device)
        for rows in FP8_ROWS:
            hidden = torch.randn(rows, inputs, generator=generator).bfloat16()
            with on_device(device):
                got = linear(hidden.to(device)).float().cpu()
            expected = dequantise(*quantise(hidden, 1), rows=1) @ dequantise(values, scales).T
            error = float((got - expected).norm() / expected.norm())
            numbers |= within(f"error of {rows} rows of {inputs}", error, 1e-2)
    return numbers


def check_experts(settings: Settings) -> Numbers:
    """Rows of many experts, some of which nobody chose, beside a loop over them."""
    moe = MoEConfig(16, 4, 128, decoder_sparse_step=1, mlp_only_layers=())
    device, dtype = torch.device(settings.device), settings.dtype
    generator = torch.Generator().manual_seed(0)
    experts = Experts(256, moe).requires_grad_(False)
    for parameter in experts.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    experts.to(dtype)
    numbers: Numbers = {}
    for rows in (4, 36, 1000):
        ends_X = torch.sort(torch.randint(0, rows + 1, (16,), generator=generator)).values.int()
        ends_X[-1] = rows
        hidden_RE = torch.randn(rows, 256, generator=generator).to(dtype)
        expected = torch.zeros(rows, 256)
        for expert, (start, end) in enumerate(pairwise([0, *ends_X.tolist()])):
            gate, up = (hidden_RE[start:end].float() @ experts.gate_up_proj[expert].float().T).chunk(2, dim=-1)
            expected[start:end] = (F.silu(gate) * up) @ experts.down_proj[expert].float().T
        with on_device(device):
            placed = experts.to(device)
            got = placed(hidden_RE.to(device), ends_X.to(device)).float().cpu()
        experts.to("cpu")
        bound = BF16_BOUND if settings.is_cuda else 1e-5
        numbers |= within(f"largest difference of {rows} rows", _largest(got, expected), bound)
    return numbers


def check_copies(settings: Settings) -> Numbers:
    """Arrays given to the device one after another, whose memory on the host is used again at once."""
    device = torch.device(settings.device)
    with on_device(device):
        placed = [device_tensor(np.full(100_000, number, dtype=np.int64), device) for number in range(200)]
        wrong = sum(int((tensor != number).sum()) for number, tensor in enumerate(placed))
    return within("wrong values", wrong, 0)


def _largest(got: Tensor, expected: Tensor) -> float:
    """Of all numbers, in parts of one more than they are."""
    return float(((got - expected).abs() / (1 + expected.abs())).max())
