"""Attention over the paged cache against the definition, written out token by token in numpy."""

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

import model.attention
from model.attention import (
    CAUSAL_ROWS,
    CachedChunk,
    KeyValueCache,
    checked_implementation,
    packed_attention,
    paged_attention,
)

HEADS, KEY_HEADS, HEAD_DIM = 6, 2, 8
LAYERS, BLOCKS = 2, 12
ROWS = {
    "chunks and single tokens": ((3, 7), (0, 5), (6, 7), (0, 1), (10, 11)),
    "chunks": ((0, 9), (4, 6)),
    "one": ((8, 9),),
    "longer than our loops take": ((5, 30), (0, 20), (2, 3), (30, 31)),
}


def attend(query_D: np.ndarray, keys_TD: np.ndarray, values_TD: np.ndarray) -> np.ndarray:
    scores_T = keys_TD @ query_D / HEAD_DIM**0.5
    weights_T = np.exp(scores_T - scores_T.max())
    return weights_T @ values_TD / weights_T.sum()


def flash_varlen_stand_in(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, causal, block_table):
    """What flash-attn 2.8 documents for `flash_attn_varlen_func`, in loops: the mask is aligned to the bottom right."""
    assert causal
    assert {part.dtype for part in (cu_seqlens_q, cu_seqlens_k, block_table)} == {torch.int32}
    assert cu_seqlens_q.diff().max() == max_seqlen_q
    assert cu_seqlens_k.diff().max() == max_seqlen_k
    output = torch.empty_like(q)
    for row, (start, end) in enumerate(pairwise(cu_seqlens_q)):
        length = int(cu_seqlens_k[row + 1] - cu_seqlens_k[row])
        keys, values = (part[block_table[row].long()].flatten(0, 1)[:length].numpy() for part in (k, v))
        for index in range(int(start), int(end)):
            seen = length - int(end) + index + 1
            for head in range(HEADS):
                ours = (slice(seen), head // (HEADS // KEY_HEADS))
                output[index, head] = torch.from_numpy(attend(q[index, head].numpy(), keys[ours], values[ours]))
    return output


def flash_kvcache_stand_in(q, k_cache, v_cache, *, cache_seqlens, block_table, causal):
    """`flash_attn_with_kvcache` with one new token of each sequence that is already in the cache."""
    assert q.shape[1] == 1
    offsets = torch.arange(len(q) + 1, dtype=torch.int32)
    key_offsets = torch.cat((torch.zeros(1, dtype=torch.int32), cache_seqlens.cumsum(0, dtype=torch.int32)))
    longest = int(cache_seqlens.max())
    attended = flash_varlen_stand_in(
        q[:, 0], k_cache, v_cache, offsets, key_offsets, 1, longest, causal=causal, block_table=block_table
    )
    return attended[:, None]


def torch_varlen_stand_in(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size, enable_gqa, seqused_k=None, block_table=None
):
    """What torch documents for `varlen_attn`, over packed keys or over the blocks of a cache."""
    assert enable_gqa == (query.shape[1] != key.shape[-2])
    if block_table is None:
        assert (seqused_k, window_size) == (None, (-1, -1))
        return flash_packed_stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal=False)
    assert (cu_seq_k, window_size) == (None, (-1, 0))
    assert seqused_k.dtype == torch.int32
    key_offsets = torch.cat((torch.zeros(1, dtype=torch.int32), seqused_k.cumsum(0, dtype=torch.int32)))
    return flash_varlen_stand_in(
        query, key, value, cu_seq_q, key_offsets, max_q, max_k, causal=True, block_table=block_table
    )


FLASH_STAND_INS = {
    "flash-attn": {
        "flash_attn_varlen_func": flash_varlen_stand_in,
        "flash_attn_with_kvcache": flash_kvcache_stand_in,
        "varlen_attn": None,
    },
    "torch": {"flash_attn_varlen_func": None, "flash_attn_with_kvcache": None, "varlen_attn": torch_varlen_stand_in},
}


@pytest.mark.parametrize("spans", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize(
    ("implementation", "block_size", "mask_size", "flash"),
    [
        *[("sdpa", *sizes, "torch") for sizes in ((1, 2**22), (3, 2**22), (3, 21), (3, 1))],
        *[("numba", *sizes, "torch") for sizes in ((1, 2**22), (3, 2**22), (3, 21))],
        *[("flash_attention_2", 256, 0, flash) for flash in FLASH_STAND_INS],
    ],
)
def test_every_token_sees_its_own_sequence_up_to_itself(
    monkeypatch, implementation, block_size, mask_size, flash, spans
):
    monkeypatch.setattr(model.attention, "MASK_SIZE", mask_size)
    for name, stand_in in FLASH_STAND_INS[flash].items():
        monkeypatch.setattr(model.attention, name, stand_in)
    rng = np.random.default_rng(block_size)
    num_blocks = BLOCKS * 8 if block_size < 16 else len(spans)
    dtype, tolerance = (np.float32, 1e-5) if implementation == "numba" else (np.float64, 1e-10)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    keys, values = (random(LAYERS, KEY_HEADS, num_blocks, block_size, HEAD_DIM) for _ in range(2))
    cached = [torch.from_numpy(part.copy()) for part in (keys, values)]
    cache = KeyValueCache(*cached, cached[0].dtype)
    shuffled = iter(rng.permutation(num_blocks).tolist())
    tables = [[next(shuffled) for _ in range(-(-end // block_size))] for _, end in spans]
    chunks = [CachedChunk(table, *span) for table, span in zip(tables, spans, strict=True)]
    attention = paged_attention(cache, chunks, implementation, num_heads=HEADS)
    for layer in range(LAYERS):
        total = sum(end - start for start, end in spans)
        query = random(total, HEADS, HEAD_DIM)
        new_keys, new_values = (random(total, KEY_HEADS, HEAD_DIM) for _ in range(2))
        got = attention(layer, *(torch.from_numpy(part) for part in (query, new_keys, new_values)))
        expected = np.empty_like(query)
        row = 0
        for table, (start, end) in zip(tables, spans, strict=True):
            for place in range(start, end):
                slot = (layer, slice(None), table[place // block_size], place % block_size)
                keys[slot], values[slot] = new_keys[row + place - start], new_values[row + place - start]
            for place in range(start, end):
                sequence = [(table[seen // block_size], seen % block_size) for seen in range(place + 1)]
                for head in range(HEADS):
                    group = head // (HEADS // KEY_HEADS)
                    seen_keys = np.array([keys[layer, group, block, slot] for block, slot in sequence])
                    seen_values = np.array([values[layer, group, block, slot] for block, slot in sequence])
                    expected[row, head] = attend(query[row, head], seen_keys, seen_values)
                row += 1
        np.testing.assert_allclose(got.numpy(), expected, atol=tolerance)
    np.testing.assert_array_equal(cache.keys.numpy(), keys)  # nothing else in the cache was touched
    np.testing.assert_array_equal(cache.values.numpy(), values)


def test_flash_attention_refuses_blocks_it_cannot_read():
    cache = KeyValueCache(*(torch.zeros(1, KEY_HEADS, 4, 16, HEAD_DIM) for _ in range(2)), torch.float32)
    with pytest.raises(ValueError, match="multiple of 256, not 16"):
        paged_attention(cache, [CachedChunk([0], 0, 3)], "flash_attention_2", num_heads=HEADS)


def flash_packed_stand_in(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, causal):
    """`flash_attn_varlen_func` over packed sequences that see themselves whole; head dims it documents: multiples of 8
    up to 256."""
    assert not causal
    assert q.shape[-1] % 8 == 0
    assert q.shape[-1] <= 256
    assert cu_seqlens_q.dtype == torch.int32
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q.diff().max() == max_seqlen_q == max_seqlen_k
    output = torch.empty_like(q)
    for start, end in pairwise(cu_seqlens_q.tolist()):
        for head in range(q.shape[1]):
            scores = (q[start:end, head] @ k[start:end, head].T) / q.shape[-1] ** 0.5
            output[start:end, head] = scores.softmax(-1) @ v[start:end, head]
    return output


@pytest.mark.parametrize("flash", FLASH_STAND_INS)
@pytest.mark.parametrize("head_dim", [64, 72])
def test_the_heads_of_both_towers_go_through_flash_attention_as_through_torch(monkeypatch, head_dim, flash):
    stand_ins = FLASH_STAND_INS[flash]
    package = stand_ins["flash_attn_varlen_func"] and flash_packed_stand_in
    monkeypatch.setattr(model.attention, "flash_attn_varlen_func", package)
    monkeypatch.setattr(model.attention, "varlen_attn", stand_ins["varlen_attn"])
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 5 + 5 + 12 + 4, 2, head_dim)
    outputs = [
        packed_attention(query, key, value, (5, 5, 12, 4), causal=False, implementation=implementation)
        for implementation in ("sdpa", "flash_attention_2")
    ]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(("key_heads", "causal"), [(6, False), (2, True)])
def test_under_autocast_on_a_cpu_attention_and_its_gradients_are_those_of_torch_in_fp64(key_heads, causal):
    generator = torch.Generator().manual_seed(0)
    lengths = (5, 5, 2 * CAUSAL_ROWS + 40, 4)
    parts = [torch.randn(sum(lengths), heads, 16, generator=generator) for heads in (6, key_heads, key_heads)]
    wanted = torch.randn(sum(lengths), 6, 16, generator=generator)  # the loss is its product with what comes out

    def attended(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [part.to(dtype).requires_grad_() for part in parts]
        found = packed_attention(*leaves, lengths, causal=causal, implementation="sdpa")
        return found, *torch.autograd.grad((found * wanted).sum(), leaves)

    with torch.autocast("cpu", torch.bfloat16):
        ours = attended(torch.float32)
    assert ours[0].dtype == torch.bfloat16
    for found, expected in zip(ours, attended(torch.float64), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0.05)


def test_flash_attention_is_for_gpus_with_the_package_or_without():
    assert checked_implementation("flash_attention_2", torch.device("cuda"), torch.bfloat16) == "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' is for GPUs, not cpu: choose 'auto'"):
        checked_implementation("flash_attention_2", torch.device("cpu"), torch.float32)


def test_torch_has_the_arguments_our_flash_attention_gives_it():
    """What the stand-in takes is what torch's own function takes."""
    ours, theirs = (inspect.signature(function).parameters for function in (torch_varlen_stand_in, varlen_attn))
    assert list(ours)[:7] == list(theirs)[:7]
    assert set(ours) <= set(theirs)


def test_what_a_cpu_attends_with_follows_the_dtype_of_its_cache():
    assert checked_implementation("auto", torch.device("cpu"), torch.float32) == "numba"
    assert checked_implementation("auto", torch.device("cpu"), torch.bfloat16) == "sdpa"
    with pytest.raises(ValueError, match=r"for a float32 cache on a CPU, not torch\.float8_e4m3fn on cpu"):
        checked_implementation("numba", torch.device("cpu"), torch.float8_e4m3fn)
