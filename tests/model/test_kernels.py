"""The Triton kernel, in Triton's interpreter on a CPU, against the reference path of torch over the same cache."""

import numpy as np
import pytest
import torch

from model import kernels
from model.attention import CachedChunk, KeyValueCache, paged_attention

if not kernels.HAS_TRITON or not kernels.triton.knobs.runtime.interpret:
    pytest.skip("needs Triton's interpreter: conftest asks for it where there is no GPU", allow_module_level=True)

MIXED = ((16, 17), (0, 5), (30, 47), (5, 6), (63, 64), (40, 45))
SPANS = {"decode": ((3, 4), (70, 71), (15, 16), (16, 17)), "prefill": ((0, 70), (0, 3)), "mixed": MIXED}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("heads", [(4, 2, 32), (6, 2, 24), (8, 1, 64), (3, 3, 16)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 2e-2),
        (torch.float32, torch.float8_e4m3fn, 1e-5),
    ],
    ids=["fp32", "bf16", "fp8 cache"],
)
def test_the_kernel_attends_as_torch_does(spans, heads, dtype, cache_dtype, tolerance):
    num_heads, key_heads, head_dim = heads
    rng = np.random.default_rng(1)
    block_size, num_blocks = 16, 40

    def random(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(dtype)

    filled = [random(1, key_heads, num_blocks, block_size, head_dim).to(cache_dtype) for _ in range(2)]
    shuffled = iter(rng.permutation(num_blocks).tolist())
    chunks = [CachedChunk([next(shuffled) for _ in range(-(-end // block_size))], start, end) for start, end in spans]
    total = sum(end - start for start, end in spans)
    chunks.sort(key=lambda chunk: len(chunk) == 1)
    new = [random(total, num_heads, head_dim), random(total, key_heads, head_dim), random(total, key_heads, head_dim)]
    outputs, caches = [], []
    for implementation in ("sdpa", "triton"):
        cache = KeyValueCache(*(part.clone() for part in filled), dtype)
        outputs.append(paged_attention(cache, chunks, implementation, num_heads=num_heads)(0, *new).float())
        caches.append(cache)
    torch.testing.assert_close(outputs[1], outputs[0], atol=tolerance, rtol=tolerance)
    for part in ("keys", "values"):
        ours, theirs = (getattr(cache, part).float() for cache in caches)
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_tiles_hold_as_many_tokens_as_their_rows_allow():
    assert kernels.tile_tokens(1, 4) == 4  # 16 rows is the least a tile has
    assert kernels.tile_tokens(5, 4) == 8
    assert kernels.tile_tokens(2000, 4) == 16
    assert kernels.tile_tokens(2000, 100) == 1
