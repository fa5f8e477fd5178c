"""Attention over packed sequences (the vision tower, whole prompts) and over the paged key/value cache (the engine).

Letters: N packed positions of all sequences, H query heads, K key heads, G = H / K query heads of one key head, D head
dimension, S sequences, B blocks of a block table.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model import cpu_kernels, kernels

try:
    from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
except ImportError:  # an optional extra: torch has kernels of its own
    flash_attn_varlen_func = flash_attn_with_kvcache = None
if torch.cuda.is_available():
    from torch.nn.attention.varlen import varlen_attn
else:  # it is for GPUs, and its import takes as long as that of torch: it brings torch's compiler along
    varlen_attn = None  # type: ignore[assignment]

AttentionImplementation = Literal["sdpa", "numba", "triton", "flash_attention_2"]
FLASH_BLOCK_SIZE = 256  # FlashAttention 2 reads paged caches in blocks of a multiple of this
CAUSAL, WHOLE = (-1, 0), (-1, -1)  # how far a token sees back and ahead, -1 is to the end: torch's words for masks
CAUSAL_ROWS = 256  # of a masked product in training
SHORT_CHUNK = 32  # tokens: up to here our own loops on a CPU are faster than torch's matrix products
MASK_SIZE = 2**23  # elements of the largest mask: long chunks over many keys are attended a few rows at a time


class Attention(Protocol):
    """How the tokens of one forward pass see each other (and a cache, if there is one)."""

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        """-> [N, H, D]; `layer` counts decoder layers from 0."""


def checked_implementation(name: str, device: torch.device, cache_dtype: torch.dtype) -> AttentionImplementation:
    """`name` when it can be used here; `auto` is triton on a GPU that has it, numba on a CPU in float32, else sdpa.

    Raises ValueError that names the choices, or what to install.
    """
    has_loops = device.type == "cpu" and cache_dtype == torch.float32
    if name == "auto":
        if device.type == "cuda" and kernels.HAS_TRITON:
            _check_fp8_cache(device, cache_dtype)
            return "triton"
        return "numba" if has_loops else "sdpa"
    if name == "sdpa":
        return "sdpa"
    if name == "numba":
        if not has_loops:
            raise ValueError(
                f"attn_implementation 'numba' is for a float32 cache on a CPU, not {cache_dtype} on {device.type}: "
                "choose 'auto'"
            )
        return "numba"
    if name == "triton":
        if not kernels.HAS_TRITON:
            raise ValueError("attn_implementation 'triton' needs triton: pip install triton")
        _check_fp8_cache(device, cache_dtype)
        return "triton"
    if name != "flash_attention_2":
        raise ValueError(
            f"attn_implementation {name!r}: choose 'auto', 'sdpa', 'numba', 'triton' or 'flash_attention_2'"
        )
    _check_flash(device, cache_dtype)
    return "flash_attention_2"


def _check_flash(device: torch.device, cache_dtype: torch.dtype) -> None:
    """Raises ValueError where neither the package nor torch's own build can read a cache of this dtype."""
    if device.type != "cuda":
        raise ValueError(f"attn_implementation 'flash_attention_2' is for GPUs, not {device.type}: choose 'auto'")
    if cache_dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"attn_implementation 'flash_attention_2' computes in bfloat16 or float16, not {cache_dtype}: choose 'auto'"
        )
    if (
        not has_flash_attn()
        and varlen_attn is not None
        and "block_table" not in inspect.signature(varlen_attn).parameters
    ):
        raise ValueError(
            f"attn_implementation 'flash_attention_2' needs flash-attn, or torch 2.12 or newer, not "
            f"{torch.__version__}: choose 'auto'"
        )


def has_flash_attn() -> bool:
    """Whether `flash_attention_2` is the package; else it is torch's own build, where torch has one."""
    return flash_attn_varlen_func is not None


def _check_fp8_cache(device: torch.device, cache_dtype: torch.dtype) -> None:
    """Raises ValueError for a GPU on which the kernel does not compile: e4m3 came with Ada and Hopper."""
    if cache_dtype == torch.float8_e4m3fn and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 9):
            raise ValueError(
                f"kv_cache_dtype 'fp8' needs a GPU of compute capability 8.9 or more, and this one has "
                f"{capability[0]}.{capability[1]}: leave it out, or choose attn_implementation 'sdpa'"
            )


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one of this thread. Streams, kernels of our own and graphs go to the current device,
    whatever device their tensors are on, and each thread begins with GPU 0."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def device_tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    """`values` on `device`; to a GPU by pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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
        ends = device_tensor(offsets_of(lengths), query_NHD.device)
        packed = (query_NHD, key_NKD, value_NKD, ends, ends, max(lengths), max(lengths))
        if flash_attn_varlen_func:
            return flash_attn_varlen_func(*packed, causal=causal)
        has_groups = query_NHD.shape[1] != key_NKD.shape[1]
        return cast(Tensor, varlen_attn(*packed, window_size=CAUSAL if causal else WHOLE, enable_gqa=has_groups))
    outputs = []
    start = 0
    for length, count in _runs(lengths):  # sequences of one length go through one dense batch
        end = start + length * count
        if not causal and cpu_kernels.attends_dense(query_NHD, key_NKD, length):
            parts = (part[start:end].split(length) for part in (query_NHD, key_NKD, value_NKD))
            outputs += [cpu_kernels.attend_dense(*sequence) for sequence in zip(*parts, strict=True)]
            start = end
            continue
        query, key, value = (
            part[start:end].unflatten(0, (count, length)).transpose(1, 2) for part in (query_NHD, key_NKD, value_NKD)
        )
        if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            attended = _attend_by_products(query, key, value, causal=causal)
        else:
            has_groups = query.shape[1] != key.shape[1]
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=has_groups)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _attend_by_products(query_SHLD: Tensor, key_SKLD: Tensor, value_SKLD: Tensor, *, causal: bool) -> Tensor:
    """Softmax attention of S sequences of L tokens as products of matrices -> [S, H, L, D].

    For training in bf16 on a CPU: of torch's own kernels one multiplies in fp32 and the other is slow backwards.
    Causal, a few rows at a time, for what is masked need not be multiplied.
    """
    count, heads, length, width = query_SHLD.shape
    query_SHLD = query_SHLD * width**-0.5
    rows = CAUSAL_ROWS if causal else length
    attended = []
    for start in range(0, length, rows):
        end = min(start + rows, length)
        # The query heads of a key head are rows of one product.
        query_SKGRD = query_SHLD[:, :, start:end].reshape(count, key_SKLD.shape[1], -1, width)
        scores_SHRL = (query_SKGRD @ key_SKLD[:, :, :end].transpose(-1, -2)).view(count, heads, end - start, end)
        if causal:
            scores_SHRL = scores_SHRL + scores_SHRL.new_full((end - start, end), -torch.inf).triu_(start + 1)
        shares_SKGRL = scores_SHRL.softmax(-1).view(*query_SKGRD.shape[:-1], end)
        attended.append((shares_SKGRL @ value_SKLD[:, :, :end]).view(count, heads, end - start, width))
    return torch.cat(attended, dim=2) if len(attended) > 1 else attended[0]


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


@dataclass(frozen=True, slots=True)
class KeyValueCache:
    """Keys and values of every decoder layer, each [layers, K, blocks, block size, D], in FP8 or in the dtype of the
    network: with the heads outside, blocks that follow each other are one [T, D] matrix of a head, which is read in
    place. FP8 (e4m3) has no scales here: what lies beyond its largest value is cut to it."""

    keys: Tensor
    values: Tensor
    dtype: torch.dtype  # of the network

    @property
    def block_size(self) -> int:
        return self.keys.shape[3]


@dataclass(frozen=True, slots=True)
class CachedChunk:
    """Tokens `start` to `end` of a sequence whose tokens lie in the blocks of `table`; those before are cached."""

    table: Sequence[int]
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def paged_attention(
    cache: KeyValueCache, chunks: Sequence[CachedChunk], implementation: AttentionImplementation, *, num_heads: int
) -> Attention:
    """Attention of one forward pass over the cache: each layer's new keys and values are written, and every token sees
    its own sequence up to itself. The pass packs the tokens of `chunks` in their order, chunks of one token last.
    `num_heads` are the query heads of this rank.

    Raises ValueError for `flash_attention_2` over blocks it cannot read.
    """
    num_longs = sum(len(chunk) > 1 for chunk in chunks)
    longs, singles = chunks[:num_longs], chunks[num_longs:]
    assert all(len(chunk) == 1 for chunk in singles), "chunks of one token must come last"
    if implementation == "sdpa":
        return PagedSdpa(cache, chunks)
    if implementation == "numba":
        return PagedNumba(cache, chunks)
    check_block_size(cache.block_size, implementation)
    if implementation == "triton":
        return PagedTriton(cache, tiles_of(chunks, cache, num_heads))
    return PagedFlash(cache, longs, singles) if flash_attn_varlen_func else PagedVarlen(cache, chunks)


def check_block_size(block_size: int, implementation: AttentionImplementation) -> None:
    """Raises ValueError for blocks that `implementation` cannot read."""
    if implementation == "flash_attention_2" and block_size % FLASH_BLOCK_SIZE:
        raise ValueError(f"flash_attention_2 needs a block_size that is a multiple of 256, not {block_size}")
    if implementation == "triton" and block_size not in (16, 32, 64, 128):  # larger ones have no room on any GPU
        raise ValueError(f"triton needs a block_size of 16, 32, 64 or 128, not {block_size}")


class PagedSdpa:
    """The reference: torch's attention for one chunk after the other, so that none is padded. Heads are grouped by
    reshaping the queries; keys are never repeated."""

    def __init__(self, cache: KeyValueCache, chunks: Sequence[CachedChunk]) -> None:
        self._cache = cache
        slots_N = slots_of(chunks, tables_of(chunks, cache.block_size), cache.block_size)
        self._slots_N = device_tensor(slots_N, cache.keys.device)
        self._chunks = [_PlacedChunk(cache, chunk) for chunk in chunks]
        self._rows = [slice(*ends) for ends in pairwise(offsets_of([len(chunk) for chunk in chunks]).tolist())]

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        if self._cache.keys.dtype == torch.float8_e4m3fn:  # a chunk sees itself as later chunks will see it
            key_NKD, value_NKD = (_to_fp8(part).to(part.dtype) for part in (key_NKD, value_NKD))
        _write(self._cache, layer, self._slots_N, key_NKD, value_NKD)
        return torch.cat(
            [
                chunk.attend(layer, query_NHD[rows], key_NKD[rows], value_NKD[rows])
                for chunk, rows in zip(self._chunks, self._rows, strict=True)
            ]
        )


class PagedNumba:
    """The way on CPUs: single tokens and drafts are attended by one compiled loop, where they lie; the long chunks of
    prompts are matrix products, which torch does best."""

    def __init__(self, cache: KeyValueCache, chunks: Sequence[CachedChunk]) -> None:
        self._cache = cache
        tables_SB = tables_of(chunks, cache.block_size)
        self._slots_N = slots_of(chunks, tables_SB, cache.block_size)
        lengths = [len(chunk) for chunk in chunks]
        firsts = offsets_of(lengths).tolist()
        self._longs = [
            (slice(first, first + length), _PlacedChunk(cache, chunk))
            for first, length, chunk in zip(firsts, lengths, chunks, strict=False)  # the last offset is the end
            if length > SHORT_CHUNK
        ]
        shorts = [row for row, length in enumerate(lengths) if length <= SHORT_CHUNK]
        self._tables_SB = tables_SB[shorts]
        self._spans_3S = np.array(
            [(firsts[row], lengths[row], chunks[row].start) for row in shorts], dtype=np.int64
        ).T.copy()

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        cpu_kernels.write_paged(keys, values, self._slots_N, key_NKD, value_NKD)
        output_NHD = torch.empty_like(query_NHD)
        for rows, chunk in self._longs:
            output_NHD[rows] = chunk.attend(layer, query_NHD[rows], key_NKD[rows], value_NKD[rows])
        if len(self._tables_SB):
            firsts_S, lengths_S, starts_S = self._spans_3S
            cpu_kernels.attend_paged(
                query_NHD,
                keys,
                values,
                output_NHD,
                tables_SB=self._tables_SB,
                firsts_S=firsts_S,
                lengths_S=lengths_S,
                starts_S=starts_S,
            )
        return output_NHD


class _PlacedChunk:
    """A chunk, with what all layers need to attend it. One with nothing before it does not read the cache at all. A
    sequence whose blocks follow each other is read where it lies (the pool sees to it that most do), others are
    gathered."""

    def __init__(self, cache: KeyValueCache, chunk: CachedChunk) -> None:
        self._cache = cache
        self._end = chunk.end
        self._band = _causal_band(chunk, cache) if chunk.start else None
        used = list(chunk.table[: -(-chunk.end // cache.block_size)])
        self._first = used[0] * cache.block_size if used == list(range(used[0], used[0] + len(used))) else None
        self._blocks = device_tensor(np.array(used, dtype=np.int64), cache.keys.device)

    def attend(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        """Of its rows, whose keys and values are in the cache already -> [N, H, D]."""
        if self._band is None:
            return _chunk_attention(query_NHD, key_NKD.transpose(0, 1), value_NKD.transpose(0, 1), None)
        key_KTD, value_KTD = (self._read(part[layer]) for part in (self._cache.keys, self._cache.values))
        return _cached_attention(query_NHD, key_KTD, value_KTD, self._band)

    def _read(self, cached: Tensor) -> Tensor:
        """All of the sequence in one layer's keys or values, [K, T, D] in the dtype of the network."""
        if self._first is None:
            found_KTD = cached[:, self._blocks].flatten(1, 2)[:, : self._end]
        else:
            found_KTD = cached.flatten(1, 2)[:, self._first : self._first + self._end]
        return found_KTD.to(self._cache.dtype)  # from FP8


@dataclass(frozen=True, slots=True)
class Tiles:
    """What the kernel has to know of a pass, on its device; index tensors int32 but for the slots (int64).

    Sequence s has its tokens at offsets[s] to offsets[s + 1] of N, the first of them is its token starts_S[s], and its
    blocks are tables_SB[s]. Tile t attends `tokens` of the tokens of sequence sequences[t], from its firsts[t] on.
    """

    slots_N: Tensor  # of the cache, where the new keys and values go
    tables_SB: Tensor
    offsets: Tensor
    starts_S: Tensor
    sequences: Tensor
    firsts: Tensor
    tokens: int


def tiles_of(chunks: Sequence[CachedChunk], cache: KeyValueCache, num_heads: int) -> Tiles:
    device = cache.keys.device
    tokens = kernels.tile_tokens(max(map(len, chunks)), num_heads // cache.keys.shape[1])
    cut = [(row, first) for row, chunk in enumerate(chunks) for first in range(0, len(chunk), tokens)]
    sequences, firsts = np.array(cut, dtype=np.int32).T.copy()
    tables_SB = tables_of(chunks, cache.block_size)
    return Tiles(
        device_tensor(slots_of(chunks, tables_SB, cache.block_size), device),
        device_tensor(tables_SB.astype(np.int32), device),
        device_tensor(offsets_of([len(chunk) for chunk in chunks]), device),
        device_tensor(np.array([chunk.start for chunk in chunks], dtype=np.int32), device),
        device_tensor(sequences, device),
        device_tensor(firsts, device),
        tokens,
    )


class PagedTriton:
    """Our kernel reads the blocks in place, whatever the length of a chunk; the cache may be fp8."""

    def __init__(self, cache: KeyValueCache, tiles: Tiles) -> None:
        self._cache = cache
        self._tiles = tiles

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        tiles = self._tiles
        keys, values = _write(self._cache, layer, tiles.slots_N, key_NKD, value_NKD)
        return kernels.attend_paged(
            query_NHD.contiguous(),
            keys,
            values,
            tables_SB=tiles.tables_SB,
            offsets=tiles.offsets,
            starts_S=tiles.starts_S,
            tile_sequences=tiles.sequences,
            tile_firsts=tiles.firsts,
            tokens_per_tile=tiles.tokens,
        )


class PagedFlash:
    """flash-attn 2.8 reads the blocks in place; its causal masks are aligned to the last key, as chunks need it."""

    def __init__(self, cache: KeyValueCache, longs: Sequence[CachedChunk], singles: Sequence[CachedChunk]) -> None:
        device = cache.keys.device
        chunks = [*longs, *singles]
        self._cache = cache
        self._num_longs = len(longs)
        self._long_rows = sum(len(chunk) for chunk in longs)
        tables_SB = tables_of(chunks, cache.block_size)
        self._slots_N = device_tensor(slots_of(chunks, tables_SB, cache.block_size), device)
        self._tables_SB = device_tensor(tables_SB.astype(np.int32), device)
        self._ends_S = device_tensor(np.array([chunk.end for chunk in chunks], dtype=np.int32), device)
        self._query_offsets = device_tensor(offsets_of([len(chunk) for chunk in longs]), device)
        self._key_offsets = device_tensor(offsets_of([chunk.end for chunk in longs]), device)
        self._longest_query = max((len(chunk) for chunk in longs), default=0)
        self._longest_key = max((chunk.end for chunk in longs), default=0)

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        written = _write(self._cache, layer, self._slots_N, key_NKD, value_NKD)
        keys, values = (part.permute(1, 2, 0, 3) for part in written)  # any strides will do, if D is contiguous
        outputs = []
        if self._num_longs:
            attended_NHD = flash_attn_varlen_func(
                query_NHD[: self._long_rows],
                keys,
                values,
                self._query_offsets,
                self._key_offsets,
                self._longest_query,
                self._longest_key,
                causal=True,
                block_table=self._tables_SB[: self._num_longs],
            )
            outputs.append(attended_NHD)
        if self._long_rows < len(query_NHD):
            attended_S1HD = flash_attn_with_kvcache(
                query_NHD[self._long_rows :, None],
                keys,
                values,
                cache_seqlens=self._ends_S[self._num_longs :],
                block_table=self._tables_SB[self._num_longs :],
                causal=True,
            )
            outputs.append(attended_S1HD.squeeze(1))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class PagedVarlen:
    """torch's own build of FlashAttention 2 reads the blocks in place too, chunks and single tokens in one call. Its
    causal mask ends at the last key as well."""

    def __init__(self, cache: KeyValueCache, chunks: Sequence[CachedChunk]) -> None:
        device = cache.keys.device
        self._cache = cache
        tables_SB = tables_of(chunks, cache.block_size)
        self._slots_N = device_tensor(slots_of(chunks, tables_SB, cache.block_size), device)
        self._tables_SB = device_tensor(tables_SB.astype(np.int32), device)
        self._offsets = device_tensor(offsets_of([len(chunk) for chunk in chunks]), device)
        ends = [chunk.end for chunk in chunks]
        self._ends_S = device_tensor(np.array(ends, dtype=np.int32), device)
        self._key_offsets = device_tensor(offsets_of(ends), device)
        self._longest_query = max(len(chunk) for chunk in chunks)
        self._longest_key = max(chunk.end for chunk in chunks)

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        written = _write(self._cache, layer, self._slots_N, key_NKD, value_NKD)
        keys, values = (part.permute(1, 2, 0, 3) for part in written)  # any strides will do, if D is contiguous
        attended_NHD = varlen_attn(
            query_NHD,
            keys,
            values,
            self._offsets,
            self._key_offsets,  # says what seqused_k says; torch documents it as optional, and its C++ reads it
            self._longest_query,
            self._longest_key,
            window_size=CAUSAL,
            enable_gqa=query_NHD.shape[1] != key_NKD.shape[1],
            seqused_k=self._ends_S,
            block_table=self._tables_SB,
        )
        return cast(Tensor, attended_NHD)


def _write(
    cache: KeyValueCache, layer: int, slots_N: Tensor, key_NKD: Tensor, value_NKD: Tensor
) -> tuple[Tensor, Tensor]:
    """Puts the new keys and values of a layer into their slots -> its whole cache, each [K, blocks, block size, D]."""
    keys, values = cache.keys[layer], cache.values[layer]
    for cached, new_NKD in ((keys, key_NKD), (values, value_NKD)):
        new_KND = new_NKD.transpose(0, 1)
        if cached.dtype == torch.float8_e4m3fn:  # copied as bytes, since not every device indexes FP8
            cached.view(torch.uint8).flatten(1, 2).index_copy_(1, slots_N, _to_fp8(new_KND).view(torch.uint8))
        else:
            cached.flatten(1, 2).index_copy_(1, slots_N, new_KND)
    return keys, values


def _to_fp8(values: Tensor) -> Tensor:
    """Beyond the largest value torch would make NaN."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    return values.clamp(-largest, largest).to(torch.float8_e4m3fn)


def _chunk_attention(query_NHD: Tensor, key_KTD: Tensor, value_KTD: Tensor, mask_NT: Tensor | None) -> Tensor:
    """N tokens over T keys, the key heads as a batch; without a mask N is T and the order causal."""
    query_KGND = query_NHD.unflatten(1, (len(key_KTD), -1)).permute(1, 2, 0, 3)
    groups = query_KGND.shape[1]
    attended_KGND = F.scaled_dot_product_attention(
        query_KGND,
        key_KTD[:, None].expand(-1, groups, -1, -1),  # no copy: the groups share their keys by a stride of 0
        value_KTD[:, None].expand(-1, groups, -1, -1),
        attn_mask=mask_NT,
        is_causal=mask_NT is None,
    )
    return attended_KGND.permute(2, 0, 1, 3).flatten(1, 2)


def _causal_band(chunk: CachedChunk, cache: KeyValueCache) -> Tensor:
    """The mask of the last rows of a chunk, with more columns in front: moved left by r, it is the mask of the rows
    r before. What a pass needs for masks is bounded by about MASK_SIZE, however long context and chunk are.
    """
    num_rows = min(len(chunk), max(1, MASK_SIZE // chunk.end))
    last = (len(chunk) - 1) // num_rows * num_rows  # the first row of the last part
    columns = torch.arange(last + chunk.end, device=cache.keys.device)
    rows = torch.arange(num_rows, device=cache.keys.device)
    return _additive(columns <= chunk.start + last + rows[:, None], cache.dtype)


def _cached_attention(query_NHD: Tensor, key_KTD: Tensor, value_KTD: Tensor, band: Tensor) -> Tensor:
    """A chunk over all tokens up to its end, as many rows at a time as the band has."""
    end = key_KTD.shape[1]
    last = band.shape[1] - end
    parts = query_NHD.split(len(band))
    return torch.cat(
        [
            _chunk_attention(part, key_KTD, value_KTD, band[: len(part), shift : shift + end])
            for part, shift in zip(parts, range(last, -1, -len(band)), strict=True)
        ]
    )


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, -torch.inf)


def tables_of(chunks: Sequence[CachedChunk], block_size: int) -> NDArray[np.int64]:
    """The blocks in use, [S, B]; shorter tables are filled up with block 0, which no token looks at."""
    used = [chunk.table[: -(-chunk.end // block_size)] for chunk in chunks]
    tables_SB = np.zeros((len(used), max(map(len, used), default=0)), dtype=np.int64)
    for row, table in zip(tables_SB, used, strict=True):
        row[: len(table)] = table
    return tables_SB


def slots_of(chunks: Sequence[CachedChunk], tables_SB: NDArray[np.int64], block_size: int) -> NDArray[np.int64]:
    """Where in the cache, counted in tokens, each packed token lies, [N]. `tables_SB` as `tables_of` makes them."""
    sequences_N, places_N = places_of(chunks)
    blocks_N = tables_SB[sequences_N, places_N // block_size]
    return blocks_N * block_size + places_N % block_size


def places_of(chunks: Sequence[CachedChunk]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which chunk each packed token is of, and which token of its sequence it is, each [N]."""
    lengths_S = [len(chunk) for chunk in chunks]
    sequences_N = np.repeat(np.arange(len(chunks)), lengths_S)
    starts_S = np.array([chunk.start for chunk in chunks])
    return sequences_N, np.arange(len(sequences_N)) + (starts_S - offsets_of(lengths_S)[:-1])[sequences_N]


def offsets_of(lengths: Sequence[int]) -> NDArray[np.int32]:
    return np.cumsum([0, *lengths], dtype=np.int32)
