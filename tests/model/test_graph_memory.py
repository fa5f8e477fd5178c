"""Graphs are recorded before the first request, in the memory that the cache left them. Bytes are counted by a recorder
that keeps a pool as CUDA's allocator does: as large as the largest work that was recorded into it."""

import gc
import weakref
from functools import partial
from itertools import product

import pytest
import torch
from tiny import random_pair
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import kernels
from model.capacity import rehearse
from model.graphs import LONGEST_CHUNK, StepGraphs, graph_bytes
from model.runner import Runner

BATCH, DRAFTS = 20, 40


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {part.untyped_storage().data_ptr() for part in tree_leaves((args, kwargs)) if torch.is_tensor(part)}
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor):
                self._hold(tensor, given)
        return found

    def _hold(self, tensor: torch.Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._users:
            if place in given:  # of memory that was there before
                return
            self._users[place] = 0
            self._held += size
            self.peak = max(self.peak, self._held)
        self._users[place] += 1
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self._held -= size


class Recorder:
    """A pool that all records share, and how large each of them made it."""

    def __init__(self) -> None:
        self.pool_bytes: list[int] = []

    def __call__(self, work):
        with Peak() as peak:
            work()
        self.pool_bytes.append(max(peak.peak, *self.pool_bytes[-1:], 0))
        return work


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Its kernel gives zeros: memory is all that is asked about, and triton need not be there."""
    monkeypatch.setattr(kernels, "attend_paged", lambda query_NHD, *cached, **places: torch.zeros_like(query_NHD))
    return random_pair(6, tmp_path).ours


def runner(network, recorder) -> Runner:
    graphs = partial(StepGraphs, max_sequences=BATCH, max_rows=BATCH + DRAFTS, record=recorder)
    return Runner(network, num_blocks=64, block_size=16, implementation="triton", graphs=graphs)


def test_decode_steps_of_all_sizes_are_recorded_before_the_first_request_in_what_the_cache_left(network):
    recorder = Recorder()
    graphs = runner(network, recorder)._graphs
    assert [*graphs._recorded] == [
        (64, 24, LONGEST_CHUNK),
        *[(count, count, 1) for count in (24, 16, 8, 4, 2, 1)],
    ]
    assert len(set(recorder.pool_bytes)) == 1  # none but the first one made the pool larger
    with Peak() as eager, torch.inference_mode():
        rehearse(network, num_tokens=128, image_tokens=16, num_rows=BATCH + DRAFTS, implementation="sdpa")
    vocabulary = network.config.text.vocab_size
    left = graph_bytes(eager.peak, max_rows=BATCH + DRAFTS, vocab_size=vocabulary, element_bytes=4)
    logits = graphs._logits_NV.nbytes
    print(f"pool {recorder.pool_bytes[0]:,} and logits {logits:,} of {left:,} bytes")
    assert recorder.pool_bytes[-1] + logits <= left


def test_steps_that_check_drafts_need_no_more_than_the_pool_has(network):
    recorder = Recorder()
    graphs = runner(network, recorder)._graphs
    before = recorder.pool_bytes[-1]
    with torch.inference_mode():
        for rows, sequences in product((2, 16, 24, 40, 64), (1, 2, 8, 24)):
            recorder(graphs._work(rows, sequences, LONGEST_CHUNK))
    assert recorder.pool_bytes[-1] == before


def test_what_is_recorded_first_writes_where_nobody_reads(network):
    cache = runner(network, Recorder())._cache
    assert not cache.keys[:, :, :64].any()
    assert cache.keys[:, :, 64:].any()


def test_what_a_graph_reads_by_its_address_stays(network, monkeypatch):
    """A graph holds no tensors: those of its work that nobody else holds were given to others, and it read theirs."""
    read: list[weakref.ref] = []

    def attend(query_NHD, *cached, **places):
        read.extend(weakref.ref(part) for part in places.values() if torch.is_tensor(part))
        return torch.zeros_like(query_NHD)

    def record(work):
        output = work()
        return lambda: output  # as a graph's replay, which keeps what came out and not the work

    monkeypatch.setattr(kernels, "attend_paged", attend)
    kept = runner(network, record)
    gc.collect()
    assert kept
    assert read
    assert all(tensor() is not None for tensor in read)


def test_tables_are_as_wide_as_the_context_and_not_as_the_cache(network):
    context = network.config.text.max_position_embeddings
    graphs = partial(StepGraphs, max_sequences=BATCH, max_rows=BATCH, record=lambda work: work)
    large = Runner(network, num_blocks=context, block_size=16, implementation="triton", graphs=graphs)
    assert large._graphs._tables_SB.shape == (24, context // 16)
