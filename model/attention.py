"""Attention over packed sequences: what the vision tower and a whole prompt at once need.

Letters: N packed positions of all sequences, H query heads, K key heads (H is a multiple of K), D head dimension.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # an optional extra: checked_implementation says so where it is asked for
    flash_attn_varlen_func = None

AttentionImplementation = Literal["sdpa", "flash_attention_2"]


class Attention(Protocol):
    """How the tokens of one forward pass see each other (and a cache, if there is one)."""

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        """-> [N, H, D]; `layer` counts decoder layers from 0."""


def checked_implementation(name: str) -> AttentionImplementation:
    """`name` when it can be used here. Raises ValueError that names the choices, or the extra to install."""
    if name == "sdpa":
        return "sdpa"
    if name != "flash_attention_2":
        raise ValueError(f"attn_implementation {name!r}: choose 'sdpa' or 'flash_attention_2'")
    if flash_attn_varlen_func is None:
        raise ValueError("attn_implementation 'flash_attention_2' needs flash-attn: pip install '.[flash]'")
    return "flash_attention_2"


def packed_attention(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    lengths: Sequence[int],
    *,
    causal: bool,
    implementation: AttentionImplementation,
) -> Tensor:
    """Softmax attention inside each of the sequences of `lengths` (they add up to N) -> [N, H, D]."""
    if implementation == "flash_attention_2":
        counts = torch.tensor([0, *lengths], dtype=torch.int32, device=query_NHD.device)
        ends = counts.cumsum(0, dtype=torch.int32)
        return flash_attn_varlen_func(
            query_NHD, key_NKD, value_NKD, ends, ends, max(lengths), max(lengths), causal=causal
        )
    outputs = []
    start = 0
    for length, count in _runs(lengths):  # sequences of one length go through one dense batch
        end = start + length * count
        query, key, value = (
            part[start:end].unflatten(0, (count, length)).transpose(1, 2) for part in (query_NHD, key_NKD, value_NKD)
        )
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """[5, 5, 7] -> [(5, 2), (7, 1)]."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][0] == length:
            runs[-1] = (length, runs[-1][1] + 1)
        else:
            runs.append((length, 1))
    return runs


class PackedCausal:
    """Whole prompts at once without a cache: training, and the reference of the engine's tests."""

    def __init__(self, lengths: Sequence[int], implementation: AttentionImplementation = "sdpa") -> None:
        self.lengths = tuple(lengths)
        self.implementation = implementation

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        return packed_attention(
            query_NHD, key_NKD, value_NKD, self.lengths, causal=True, implementation=self.implementation
        )
