"""Strict stand-ins for kernels that only GPUs have: they take what the real ones take, refuse what those refuse, and
compute the definition in fp32.

Facts from flash-attn 2.8.3 (flash_attn_interface.py, csrc/flash_attn/flash_api.cpp) and from the wheels of torch 2.11.0
and 2.13.0 (torch/nn/attention/varlen.py). Letters: Q, T query and key tokens of a sequence, H query and K key heads.
"""

import torch
from torch import Tensor

PAGE_MULTIPLE = 256
LARGEST_HEAD = 256


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    _refuse(
        any((dropout_p, softcap, alibi_slopes, return_attn_probs, window_size != (-1, -1))), "not what we ask of it"
    )
    check_offsets(cu_seqlens_q, max_seqlen_q, len(q))
    check_offsets(cu_seqlens_k, max_seqlen_k, None if block_table is not None else len(k))
    return attended(q, k, v, cu_seqlens_q, cu_seqlens_k.diff(), block_table, causal=causal, scale=softmax_scale)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    others = (k, v, rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, alibi_slopes)
    _refuse(any(part is not None for part in others) or return_softmax_lse, "not what we ask of it")
    _refuse(q.dim() != 4, f"q must be [batch, tokens, heads, size], not {tuple(q.shape)}")
    _refuse(cache_seqlens.dtype != torch.int32 or not cache_seqlens.is_contiguous(), "cache_seqlens must be int32")
    _refuse(
        cache_seqlens.shape != (len(q),),
        f"cache_seqlens has {tuple(cache_seqlens.shape)}, not one for each of {len(q)}",
    )
    offsets = torch.arange(len(q) + 1, dtype=torch.int32) * q.shape[1]
    packed = q.flatten(0, 1)
    found = attended(packed, k_cache, v_cache, offsets, cache_seqlens, block_table, causal=causal, scale=softmax_scale)
    return found.unflatten(0, q.shape[:2])


def varlen_attn_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """Packed sequences only; more query heads than key heads are not asked about."""
    return _varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size, scale, None, None)


def varlen_attn_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    heads, key_heads = query.size(1), key.size(1 if block_table is None else 2)
    _refuse(not enable_gqa and heads != key_heads, f"{heads} query and {key_heads} key heads without enable_gqa")
    _refuse(block_table is not None and seqused_k is None, "block_table needs seqused_k")
    return _varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size, scale, seqused_k, block_table)


def _varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size, scale, seqused_k, block_table):
    # Written as optional, but flash_api.cpp under it takes a tensor.
    _refuse(cu_seq_k is None, "cu_seq_k is None")
    _refuse(window_size not in ((-1, -1), (-1, 0)), f"window_size {window_size}: not what we ask of it")
    check_offsets(cu_seq_q, max_q, len(query))
    check_offsets(cu_seq_k, max_k, None if block_table is not None else len(key))
    if seqused_k is not None:
        _refuse(seqused_k.dtype != torch.int32 or not seqused_k.is_contiguous(), "seqused_k must be int32")
        _refuse(not torch.equal(seqused_k, cu_seq_k.diff()), "seqused_k and cu_seq_k say two things")
    causal = window_size == (-1, 0)
    return attended(query, key, value, cu_seq_q, cu_seq_k.diff(), block_table, causal=causal, scale=scale)


def check_offsets(offsets: Tensor, longest: int, total: int | None) -> None:
    _refuse(offsets.dtype != torch.int32 or not offsets.is_contiguous(), f"offsets are {offsets.dtype}, not int32")
    _refuse(not isinstance(longest, int), f"the longest is {type(longest)}, not an int")
    _refuse(int(offsets.diff().max()) > longest, f"a sequence is longer than {longest}")
    _refuse(total is not None and int(offsets[-1]) != total, f"offsets end at {int(offsets[-1])}, not at {total}")


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    block_table: Tensor | None,
    *,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Causal masks end at the last key, as those of flash-attn since 2.1: the last token sees all keys."""
    check_heads(q, k, v, block_table)
    _refuse(len(offsets) != len(lengths) + 1, f"{len(offsets)} offsets for {len(lengths)} sequences")
    output = torch.empty_like(q)
    starts = [0, *lengths.cumsum(0).tolist()]
    for row, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        length = int(lengths[row])
        if block_table is None:
            keys, values = (part[starts[row] : starts[row] + length] for part in (k, v))
        else:
            pages = block_table[row, : -(-length // k.shape[1])].long()
            _refuse(bool((pages >= len(k)).any()), "a page that is not there")
            keys, values = (part[pages].flatten(0, 1)[:length] for part in (k, v))
        query = q[first:last].float().unflatten(1, (k.shape[-2], -1))  # Q, K, G, D
        scores = torch.einsum("qkgd,tkd->kgqt", query, keys.float()) * (scale or q.shape[-1] ** -0.5)
        if causal:
            unseen = torch.ones(last - first, length, dtype=torch.bool).triu(length - (last - first) + 1)
            scores = scores.masked_fill(unseen, -torch.inf)
        output[first:last] = (
            torch.einsum("kgqt,tkd->qkgd", scores.softmax(-1), values.float()).flatten(1, 2).to(q.dtype)
        )
    return output


def check_heads(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor | None) -> None:
    _refuse(q.dtype not in (torch.float16, torch.bfloat16), f"only fp16 and bf16, not {q.dtype}")
    _refuse({k.dtype, v.dtype} != {q.dtype}, f"query {q.dtype}, key {k.dtype} and value {v.dtype}")
    _refuse(any(part.stride(-1) != 1 for part in (q, k, v)), "the last dimension must be contiguous")
    size = q.shape[-1]
    _refuse(size > LARGEST_HEAD or size % 8 != 0, f"heads of {size}: multiples of 8 up to {LARGEST_HEAD}")
    _refuse(q.shape[-2] % k.shape[-2] != 0, f"{q.shape[-2]} query heads for {k.shape[-2]} key heads")
    _refuse(k.shape != v.shape or k.shape[-1] != size, f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    _refuse(k.dim() != (3 if block_table is None else 4), f"keys of {k.dim()} dimensions")
    strides = [stride for part in (q, k, v) for stride in part.stride()[:-1]]
    _refuse(any(stride % 8 for stride in strides), "rows are read in 16 bytes, and do not begin at such")
    if block_table is not None:
        _refuse(block_table.dtype != torch.int32 or block_table.stride(-1) != 1, "block_table must be int32")
        _refuse(k.shape[1] % PAGE_MULTIPLE != 0, f"pages of {k.shape[1]} tokens: multiples of {PAGE_MULTIPLE}")


def _refuse(is_wrong: bool, reason: str) -> None:
    if is_wrong:
        raise ValueError(reason)
