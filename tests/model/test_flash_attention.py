"""FlashAttention 2 as the package and as torch's own build, by stand-ins as strict as the real ones."""

import inspect
from functools import partial

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

import model.attention
from jobs.gpu_kernels import attend_packed, paged_case
from model.attention import (
    CachedChunk,
    KeyValueCache,
    check_block_size,
    checked_implementation,
    packed_attention,
    paged_attention,
)
from tests import flash_stand_ins
from tests.flash_stand_ins import varlen_attn_2_11, varlen_attn_2_13

BUILDS = {
    "flash-attn": {
        "flash_attn_varlen_func": flash_stand_ins.flash_attn_varlen_func,
        "flash_attn_with_kvcache": flash_stand_ins.flash_attn_with_kvcache,
        "varlen_attn": None,
    },
    "torch": {"flash_attn_varlen_func": None, "flash_attn_with_kvcache": None, "varlen_attn": varlen_attn_2_13},
}
SPANS = {
    "chunks and single tokens": ((3, 7), (0, 5), (300, 520), (6, 7), (0, 1), (600, 601)),
    "chunks": ((0, 9), (4, 6)),
    "single tokens": ((8, 9), (511, 512), (512, 513)),
}


@pytest.fixture(params=BUILDS)
def build(request, monkeypatch):
    for name, stand_in in BUILDS[request.param].items():
        monkeypatch.setattr(model.attention, name, stand_in)


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("heads", [(32, 8, 128), (4, 4, 64), (6, 2, 24)], ids=str)
def test_chunks_over_the_cache_are_attended_as_by_torch(build, spans, heads):
    case = paged_case(spans, heads, block_size=256, dtype=torch.bfloat16, cache_dtype=torch.bfloat16)
    expected, got = case.attend("sdpa", dtype=torch.float32), case.attend("flash_attention_2")
    torch.testing.assert_close(got[0], expected[0], atol=1e-2, rtol=1e-2)
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])


@pytest.mark.parametrize(("heads", "causal"), [((16, 16, 64), False), ((16, 16, 72), False), ((32, 8, 128), True)])
def test_packed_sequences_are_attended_by_the_definition(build, heads, causal):
    torch.manual_seed(0)
    num_heads, key_heads, size = heads
    lengths = (5, 5, 12, 4)
    query, key, value = (torch.randn(26, count, size).bfloat16() for count in (num_heads, key_heads, key_heads))
    got = packed_attention(query, key, value, lengths, causal=causal, implementation="flash_attention_2")
    expected = attend_packed(query.float(), key.float(), value.float(), lengths, causal=causal)
    torch.testing.assert_close(got.float(), expected, atol=1e-2, rtol=1e-2)


def test_the_heads_of_a_tower_that_are_cut_out_of_one_projection_need_no_copy(build):
    """Query, key and value as the vision tower has them: every third row of one tensor."""
    torch.manual_seed(0)
    query, key, value = torch.randn(20, 3 * 16 * 72).bfloat16().unflatten(-1, (3, 16, -1)).unbind(1)
    got = packed_attention(query, key, value, (20,), causal=False, implementation="flash_attention_2")
    expected = attend_packed(query.float(), key.float(), value.float(), (20,), causal=False)
    torch.testing.assert_close(got.float(), expected, atol=1e-2, rtol=1e-2)


def test_blocks_that_it_cannot_read_are_refused():
    cache = KeyValueCache(*(torch.zeros(1, 2, 4, 16, 8) for _ in range(2)), torch.float32)
    with pytest.raises(ValueError, match="multiple of 256, not 16"):
        paged_attention(cache, [CachedChunk([0], 0, 3)], "flash_attention_2", num_heads=4)


@pytest.mark.parametrize("block_size", [8, 48, 256])
def test_blocks_for_which_the_kernel_has_no_room_are_refused(block_size):
    """Compiled ahead of time, 256 tokens take 180,228 bytes of shared memory on sm_80 and 278,532 on sm_90, which have
    166,912 and 232,448."""
    with pytest.raises(ValueError, match=f"triton needs a block_size of 16, 32, 64 or 128, not {block_size}"):
        check_block_size(block_size, "triton")
    check_block_size(128, "triton")


def test_it_is_for_gpus_with_the_package_or_with_torch():
    check = partial(checked_implementation, "flash_attention_2")
    assert check(torch.device("cuda"), torch.bfloat16) == "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' is for GPUs, not cpu: choose 'auto'"):
        check(torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=r"computes in bfloat16 or float16, not torch\.float32"):
        check(torch.device("cuda"), torch.float32)


def test_a_torch_that_reads_no_blocks_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(model.attention, "flash_attn_varlen_func", None)
    monkeypatch.setattr(model.attention, "varlen_attn", varlen_attn_2_11)
    with pytest.raises(ValueError, match=r"needs flash-attn, or torch 2\.12 or newer"):
        checked_implementation("flash_attention_2", torch.device("cuda"), torch.bfloat16)


def test_the_stand_in_takes_what_torch_takes():
    ours, theirs = (inspect.signature(function).parameters for function in (varlen_attn_2_13, varlen_attn))
    assert [(name, part.kind, part.default) for name, part in ours.items()] == [
        (name, part.kind, part.default) for name, part in theirs.items()
    ]


def pages(**changes):
    """Arguments of varlen_attn over two pages, of which some are changed."""
    good = {
        "query": torch.zeros(1, 4, 8, dtype=torch.bfloat16),
        "key": torch.zeros(2, 256, 2, 8, dtype=torch.bfloat16),
        "value": torch.zeros(2, 256, 2, 8, dtype=torch.bfloat16),
        "cu_seq_q": torch.tensor([0, 1], dtype=torch.int32),
        "cu_seq_k": torch.tensor([0, 300], dtype=torch.int32),
        "max_q": 1,
        "max_k": 300,
        "enable_gqa": True,
        "seqused_k": torch.tensor([300], dtype=torch.int32),
        "block_table": torch.tensor([[1, 0]], dtype=torch.int32),
    }
    return varlen_attn_2_13(**good | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(1, 4, 8)}, "only fp16 and bf16"),
        ({"cu_seq_k": None}, "cu_seq_k is None"),
        ({"cu_seq_q": torch.tensor([0, 1])}, "int64, not int32"),
        ({"enable_gqa": False}, "without enable_gqa"),
        ({"seqused_k": None}, "block_table needs seqused_k"),
        ({"block_table": torch.tensor([[1, 0]])}, "block_table must be int32"),
        ({"block_table": torch.tensor([[1, 2]], dtype=torch.int32)}, "a page that is not there"),
        ({"max_k": 299}, "a sequence is longer than 299"),
        ({"key": torch.zeros(2, 16, 2, 8, dtype=torch.bfloat16)}, "shapes"),
    ],
)
def test_the_stand_in_refuses_what_the_real_one_does(changes, message):
    pages()
    with pytest.raises(ValueError, match=message):
        pages(**changes)
