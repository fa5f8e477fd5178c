"""Attention over the paged cache against the definition, written out token by token in numpy."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("spans", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize(
    ("implementation", "block_size", "mask_size"),
    [
        *[("sdpa", *sizes) for sizes in ((1, 2**22), (3, 2**22), (3, 21), (3, 1))],
        *[("numba", *sizes) for sizes in ((1, 2**22), (3, 2**22), (3, 21))],
    ],
)
def test_every_token_sees_its_own_sequence_up_to_itself(monkeypatch, implementation, block_size, mask_size, spans):
    monkeypatch.setattr(model.attention, "MASK_SIZE", mask_size)
    rng = np.random.default_rng(block_size)
    num_blocks = BLOCKS * 8
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


def test_what_a_cpu_attends_with_follows_the_dtype_of_its_cache():
    assert checked_implementation("auto", torch.device("cpu"), torch.float32) == "numba"
    assert checked_implementation("auto", torch.device("cpu"), torch.bfloat16) == "sdpa"
    with pytest.raises(ValueError, match=r"for a float32 cache on a CPU, not torch\.float8_e4m3fn on cpu"):
        checked_implementation("numba", torch.device("cpu"), torch.float8_e4m3fn)
