"""Attention over the paged cache as one Triton kernel: single tokens, drafts to be checked and chunks of prompts alike.

Letters: N packed tokens, H query heads, K key heads, G = H / K, D head dimension, S sequences, B blocks of a table. The
softmax is summed up block by block (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
"""

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:  # comes with torch's CUDA builds; `checked_implementation` says so where it is asked for
    triton = tl = None
HAS_TRITON = triton is not None
constexpr: Any = tl.constexpr if tl else int

SMALLEST_TILE = 16  # rows; what the tensor cores multiply at least
LARGEST_TILE = 64


def is_interpreted() -> bool:
    """Whether triton, where there is one, runs kernels on the CPU (TRITON_INTERPRET=1)."""
    return HAS_TRITON and bool(triton.knobs.runtime.interpret)


def tile_tokens(longest: int, groups: int) -> int:
    """How many tokens of a sequence one program attends: its rows are tokens x query heads of one key head."""
    wanted = max(SMALLEST_TILE, min(LARGEST_TILE, 1 << (longest * groups - 1).bit_length()))
    return max(wanted // groups, 1)


def attend_paged(
    query_NHD: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    tables_SB: Tensor,
    offsets: Tensor,
    starts_S: Tensor,
    tile_sequences: Tensor,
    tile_firsts: Tensor,
    tokens_per_tile: int,
) -> Tensor:
    """-> [N, H, D]. `keys`, `values`: one layer's cache [K, blocks, block size, D], of the query's dtype or fp8; the
    block size is a power of two from 16 to 128. All index tensors int32: sequence s has its tokens at offsets[s] to
    offsets[s + 1] of N, and the first of them is token starts_S[s] of the sequence. Tile t attends `tokens_per_tile`
    tokens of sequence tile_sequences[t] from its tile_firsts[t] on.
    """
    output_NHD = torch.empty_like(query_NHD)
    num_heads, head_dim = query_NHD.shape[1:]
    groups = num_heads // len(keys)
    _attend_tile[(len(tile_sequences), len(keys))](
        query_NHD,
        keys,
        values,
        output_NHD,
        tables_SB,
        offsets,
        starts_S,
        tile_sequences,
        tile_firsts,
        head_dim**-0.5,
        query_NHD.stride(0),
        query_NHD.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        tables_SB.stride(0),
        GROUPS=groups,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=keys.shape[2],
        TOKENS=tokens_per_tile,
        ROWS=max(SMALLEST_TILE, triton.next_power_of_2(tokens_per_tile * groups)),
        COLUMNS=triton.next_power_of_2(head_dim),
        WIDE=not query_NHD.is_cuda,  # Triton's interpreter multiplies bf16 wrongly
    )
    return output_NHD


def _attend_tile_kernel(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    output,
    tables,
    offsets,
    starts,
    tile_sequences,
    tile_firsts,
    scale,
    query_token_stride,
    query_head_stride,
    cache_head_stride,
    cache_block_stride,
    cache_slot_stride,
    table_stride,
    GROUPS: constexpr,
    HEAD_DIM: constexpr,
    BLOCK_SIZE: constexpr,
    TOKENS: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    WIDE: constexpr,
):
    """`TOKENS` tokens of one sequence, the GROUPS query heads of one key head: rows of one matrix against its keys."""
    key_head = tl.program_id(1).to(tl.int64)  # times a head's stride it passes 2^31 in caches of millions of tokens
    sequence = tl.load(tile_sequences + tl.program_id(0))
    first = tl.load(tile_firsts + tl.program_id(0))
    begin = tl.load(offsets + sequence).to(tl.int64)
    length = tl.load(offsets + sequence + 1) - begin
    start = tl.load(starts + sequence)

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    token = first + rows // GROUPS
    is_row = (rows < TOKENS * GROUPS) & (token < length)
    is_column = columns < HEAD_DIM
    heads = key_head * GROUPS + rows % GROUPS
    places = (begin + token) * query_token_stride + heads * query_head_stride
    query_RD = tl.load(query + places[:, None] + columns, mask=is_row[:, None] & is_column, other=0.0)

    product_type = tl.float32 if WIDE else query_RD.dtype
    query_RD = query_RD.to(product_type)
    # Keys that the last token of the tile sees; a tile behind the end of its sequence has none to look at.
    seen = tl.where(first < length, start + tl.minimum(first + TOKENS, length), 0)
    slots = tl.arange(0, BLOCK_SIZE)
    largest_R = tl.full([ROWS], -float("inf"), tl.float32)
    total_R = tl.zeros([ROWS], tl.float32)
    sum_RD = tl.zeros([ROWS, COLUMNS], tl.float32)
    for index in range(0, tl.cdiv(seen, BLOCK_SIZE)):
        block = tl.load(tables + sequence * table_stride + index).to(tl.int64)
        inside = key_head * cache_head_stride + block * cache_block_stride + slots * cache_slot_stride
        key_place = index * BLOCK_SIZE + slots
        is_key = (key_place < seen)[:, None] & is_column
        key_TD = tl.load(keys + inside[:, None] + columns, mask=is_key, other=0.0).to(product_type)
        value_TD = tl.load(values + inside[:, None] + columns, mask=is_key, other=0.0).to(product_type)
        scores_RT = tl.dot(query_RD, tl.trans(key_TD), input_precision="ieee") * scale
        # A row that is none sees the first key: its numbers stay finite and are never stored.
        visible = key_place[None, :] <= tl.where(is_row, start + token, 0)[:, None]
        scores_RT = tl.where(visible, scores_RT, -float("inf"))
        new_largest_R = tl.maximum(largest_R, tl.max(scores_RT, 1))
        shrink_R = tl.exp(largest_R - new_largest_R)
        weights_RT = tl.exp(scores_RT - new_largest_R[:, None])
        total_R = total_R * shrink_R + tl.sum(weights_RT, 1)
        sum_RD = sum_RD * shrink_R[:, None]
        sum_RD += tl.dot(weights_RT.to(value_TD.dtype), value_TD, input_precision="ieee")
        largest_R = new_largest_R
    result_RD = sum_RD / tl.where(total_R > 0, total_R, 1.0)[:, None]
    tl.store(
        output + places[:, None] + columns, result_RD.to(output.dtype.element_ty), mask=is_row[:, None] & is_column
    )


_attend_tile: Any = triton.jit(_attend_tile_kernel) if triton else None
