"""The Triton kernel, in Triton's interpreter on a CPU, against the reference path of torch over the same cache."""

import pytest
import torch

from jobs.gpu_kernels import paged_case
from model import kernels

if not kernels.is_interpreted():
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
    case = paged_case(spans, heads, block_size=16, dtype=dtype, cache_dtype=cache_dtype)
    expected, got = case.attend("sdpa"), case.attend("triton")
    torch.testing.assert_close(got[0], expected[0], atol=tolerance, rtol=tolerance)
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_tiles_hold_as_many_tokens_as_their_rows_allow():
    assert kernels.tile_tokens(1, 4) == 4  # 16 rows is the least a tile has
    assert kernels.tile_tokens(5, 4) == 8
    assert kernels.tile_tokens(2000, 4) == 16
    assert kernels.tile_tokens(2000, 100) == 1
