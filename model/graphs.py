"""Decode and verify steps as CUDA graphs: recorded once for each size, most of them before the first request, then the
host starts a step by a single call, where it takes longer to launch some hundred kernels than a GPU to run them.

A graph does the same work on the same memory each time, so all that differs between steps lies in buffers that are
filled before. A step is rounded up to one of a few sizes: rows beyond the real ones write into a block of the cache
that nobody reads, sequences beyond have no tokens, and nobody looks at what comes out of them.

Letters: N rows (tokens) of a step, S sequences, B blocks of a table, V vocabulary.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import kernels
from model.attention import (
    CachedChunk,
    KeyValueCache,
    PagedTriton,
    Tiles,
    device_tensor,
    offsets_of,
    slots_of,
    tables_of,
)
from model.drafts import MAX_LENGTH
from model.qwen3_vl import Qwen3VL

logger = logging.getLogger(__name__)

Work = Callable[[], Tensor]
LONGEST_CHUNK = 1 + MAX_LENGTH


class StepGraphs:
    def __init__(
        self,
        network: Qwen3VL,
        cache: KeyValueCache,
        *,
        max_sequences: int,
        max_rows: int,
        spare_block: int,
        record: Callable[[Work], Work] | None = None,
    ) -> None:
        """`spare_block`: of the cache, the one nobody reads. `record`: makes of some work, which reads and writes the
        same memory each time, what repeats it; None: a CUDA graph."""
        self._network = network
        self._cache = cache
        self._max_sequences = max_sequences
        self._max_rows = max_rows
        self._spare_slot = spare_block * cache.block_size
        self._record = record or _CudaRecorder()
        self._recorded: dict[tuple[int, int, int], tuple[Work, Work]] = {}  # what was recorded, and what repeats it
        rows, sequences = _rounded(max_rows), _rounded(max_sequences)
        zeros = partial(torch.zeros, device=cache.keys.device)
        self._token_ids_N = zeros(rows, dtype=torch.long)
        self._positions_3N = zeros(3, rows, dtype=torch.long)
        self._slots_N = torch.full((rows,), self._spare_slot, device=cache.keys.device)
        longest = -(-network.config.text.max_position_embeddings // cache.block_size)
        self._tables_SB = zeros(sequences, min(cache.keys.shape[2], longest), dtype=torch.int32)
        self._offsets = zeros(sequences + 1, dtype=torch.int32)
        self._starts_S = zeros(sequences, dtype=torch.int32)
        # One for all graphs: what each of them gave out by itself would stay allocated, gigabytes in all.
        vocabulary = network.config.text.vocab_size // network.group.size
        self._logits_NV = zeros(rows, vocabulary, dtype=cache.dtype)

    @torch.inference_mode()
    def record_first(self) -> None:
        """Before the first request: the largest step that checks drafts, then all that check none, from the largest to
        the smallest. One pool serves them all, so the first one takes what there is to take; the sizes between, some
        hundred, are recorded when they come, in what the pool has."""
        counts = sorted({_rounded(count) for count in range(1, self._max_sequences + 1)}, reverse=True)
        sizes = [(count, count, 1) for count in counts]
        if self._max_rows > self._max_sequences:
            sizes.insert(0, (_rounded(self._max_rows), counts[0], LONGEST_CHUNK))
        began = time.perf_counter()
        for size in sizes:
            self._keep(size)
        logger.info("%d graphs recorded in %.1f s", len(sizes), time.perf_counter() - began)

    def fits(self, chunks: Sequence[CachedChunk]) -> bool:
        """Whether a step of these chunks, none of which has an image, can be done here."""
        lengths = [len(chunk) for chunk in chunks]
        return len(lengths) <= self._max_sequences and sum(lengths) <= self._max_rows and max(lengths) <= LONGEST_CHUNK

    def logits(
        self, token_ids_N: NDArray[np.int64], positions_3N: NDArray[np.int64], chunks: Sequence[CachedChunk]
    ) -> Tensor:
        """The logits [N, V] of all tokens of a step that fits. They are overwritten by the next one."""
        longest = LONGEST_CHUNK if any(len(chunk) > 1 for chunk in chunks) else 1
        size = _rounded(len(token_ids_N)), _rounded(len(chunks)), longest
        self._fill(token_ids_N, positions_3N, chunks, *size[:2])
        if size not in self._recorded:
            self._keep(size)
        _, repeat = self._recorded[size]
        return repeat()[: len(token_ids_N)]

    def _keep(self, size: tuple[int, int, int]) -> None:
        """Records the work of a size. The work stays as well: it holds tensors of its own that a graph reads by their
        address, and which would be given to others."""
        work = self._work(*size)
        self._recorded[size] = work, self._record(work)

    def _fill(
        self,
        token_ids_N: NDArray[np.int64],
        positions_3N: NDArray[np.int64],
        chunks: Sequence[CachedChunk],
        rows: int,
        sequences: int,
    ) -> None:
        count = len(token_ids_N)
        slots_N = np.full(rows, self._spare_slot, dtype=np.int64)
        tables_SB = tables_of(chunks, self._cache.block_size)
        slots_N[:count] = slots_of(chunks, tables_SB, self._cache.block_size)
        offsets = np.full(sequences + 1, count, dtype=np.int32)
        offsets[: len(chunks) + 1] = offsets_of([len(chunk) for chunk in chunks])
        for buffer, values in (
            (self._token_ids_N[:count], token_ids_N),
            (self._positions_3N[:, :count], positions_3N),
            (self._slots_N[:rows], slots_N),
            (self._tables_SB[: len(chunks), : tables_SB.shape[1]], tables_SB.astype(np.int32)),
            (self._offsets[: sequences + 1], offsets),
            (self._starts_S[: len(chunks)], np.array([chunk.start for chunk in chunks], dtype=np.int32)),
        ):
            buffer.copy_(device_tensor(values, buffer.device), non_blocking=True)

    def _work(self, rows: int, sequences: int, longest: int) -> Work:
        tokens = kernels.tile_tokens(longest, self._network.num_heads // self._network.num_key_heads)
        tiles_of_each = -(-longest // tokens)
        numbers = torch.arange(sequences * tiles_of_each, dtype=torch.int32, device=self._slots_N.device)
        tiles = Tiles(
            slots_N=self._slots_N[:rows],
            tables_SB=self._tables_SB[:sequences],
            offsets=self._offsets[: sequences + 1],
            starts_S=self._starts_S[:sequences],
            sequences=numbers // tiles_of_each,
            firsts=numbers % tiles_of_each * tokens,
            tokens=tokens,
        )
        attention = PagedTriton(self._cache, tiles)
        no_rows = self._token_ids_N[:0]

        def work() -> Tensor:
            hidden_NE = self._network(
                self._token_ids_N[:rows], self._positions_3N[:, :rows], attention, visual_rows_M=no_rows
            )
            return self._logits_NV[:rows].copy_(self._network.logits(hidden_NE))

        return work


def graph_bytes(pass_bytes: int, *, max_rows: int, vocab_size: int, element_bytes: int) -> int:
    """What graphs keep beside eager passes: the logits, and a pool of their own that is as large as the largest step at
    most."""
    return pass_bytes + _rounded(max_rows) * vocab_size * element_bytes


class _CudaRecorder:
    """Graphs of one memory pool: never two of them run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # Of the device that is current now: torch's own for recording is that of the first graph in the process.
        self._stream = torch.cuda.Stream()

    def __call__(self, work: Work) -> Work:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()  # kernels are compiled and libraries make their workspaces, which must not be recorded
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = work()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def _rounded(count: int) -> int:
    """A few sizes that waste little: powers of two up to 8, multiples of 8 up to 64, of 32 beyond."""
    if count <= 8:
        return 1 << (count - 1).bit_length()
    step = 8 if count <= 64 else 32
    return -(-count // step) * step
