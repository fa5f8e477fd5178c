"""Tensor parallelism: the ranks of one replica, the share of a tensor that is a rank's, and the layers cut that way.

Megatron-LM (arXiv 1909.08053): the first map of a block is cut by its outputs (columns of the matrix), the second by
its inputs (rows), so that one sum over the ranks ends the block. Everything between two blocks is whole on every rank.
One rank alone is the same code with nothing to send. Letters: P ranks, N tokens, E hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.layers import Linear

PASS_TIMEOUT = timedelta(minutes=5)  # a rank that is stopped, not dead, is given up after this
LOOPBACK = "127.0.0.1"  # all ranks are on one machine: its name need not resolve, and nobody outside is listened to


@dataclass(frozen=True, slots=True)
class Cut:
    """A rank's share of a tensor: entries `start` to `start + length` of the `whole` along dimension `dim`, in each of
    the `blocks` that lie along it one after another (two where gate and up projection are one tensor)."""

    dim: int
    start: int
    length: int
    whole: int
    blocks: int = 1

    def whole_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the tensor of which a rank's share has `shape`."""
        return (*shape[: self.dim], self.whole * self.blocks, *shape[self.dim + 1 :])

    def fill(self, share: Tensor, whole: Tensor) -> None:
        """Copies the share of `whole`, reading nothing else of it."""
        pairs = zip(share.chunk(self.blocks, self.dim), whole.chunk(self.blocks, self.dim), strict=True)
        for target, source in pairs:
            target.copy_(source.narrow(self.dim, self.start, self.length))


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of a replica, seen from one of them. Every rank makes the same calls in the same order."""

    rank: int = 0
    size: int = 1
    process_group: Any = None  # torch's, of more than one rank

    def cut(self, dim: int, whole: int, *, pieces: int | None = None, blocks: int = 1) -> Cut:
        """This rank's share of `whole` entries that come in `pieces` (heads) that must not be torn; of fewer pieces
        than ranks, neighbouring ranks hold the same one. `ModelConfig.check_tensor_parallel` says what divides."""
        pieces = pieces or whole
        assert pieces % self.size == 0 or self.size % pieces == 0, f"{pieces} pieces for {self.size} ranks"
        width = whole // pieces
        start, length = self.rank * pieces // self.size, max(1, pieces // self.size)
        return Cut(dim, start * width, length * width, whole, blocks)

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over the ranks, equal bit for bit on all of them; `partial` itself is overwritten."""
        if self.process_group is not None:
            self.process_group.allreduce([partial]).wait()
        return partial

    def gather(self, part: Tensor) -> Tensor:
        """What every rank has, [P, ...]; `part` has the same shape everywhere."""
        if self.process_group is None:
            return part[None]
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self.process_group.allgather([parts], [part.contiguous()]).wait()
        return torch.stack(parts)

    def of_first(self, value: Tensor) -> Tensor:
        """What rank 0 has; `value` itself is overwritten."""
        if self.process_group is not None:
            self.process_group.broadcast(value, 0).wait()
        return value

    def smallest(self, number: int, device: torch.device) -> int:
        if self.process_group is None:
            return number
        return int(self.gather(torch.tensor(number, device=device)).min())


ALONE = Group()


def join_group(rank: int, size: int, meeting: Path, device: torch.device) -> Group:
    """Waits for the other ranks at the file `meeting`, which nobody else uses: no port is chosen before it is bound.

    gloo on a CPU, over loopback; NCCL between GPUs. Nothing is registered with torch.distributed: a process may be in
    several groups.
    """
    store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    if device.type == "cuda":
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = PASS_TIMEOUT
        return Group(rank, size, dist.ProcessGroupNCCL(store, rank, size, nccl))
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._timeout = PASS_TIMEOUT
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    return Group(rank, size, dist.ProcessGroupGloo(store, rank, size, gloo))


class ColumnParallelLinear(Linear):
    """This rank's outputs of a linear map of `out_features` outputs, which come in `pieces` that are not torn."""

    def __init__(self, in_features: int, out_features: int, group: Group, *, pieces: int | None = None) -> None:
        cut = group.cut(0, out_features, pieces=pieces)
        super().__init__(in_features, cut.length, bias=False)
        self.cuts = {"weight": cut}


class RowParallelLinear(Linear):
    """A linear map of `in_features` inputs of which each rank has its share; the result is whole on every rank."""

    def __init__(self, in_features: int, out_features: int, group: Group, *, pieces: int | None = None) -> None:
        cut = group.cut(1, in_features, pieces=pieces)
        super().__init__(cut.length, out_features, bias=False)
        self.cuts = {"weight": cut}
        self.group = group

    def forward(self, part: Tensor) -> Tensor:
        return self.group.sum(super().forward(part))


class VocabularyParallelEmbedding(nn.Embedding):
    """Each rank has the vectors of its share of the vocabulary and gives zeros for all other tokens."""

    def __init__(self, vocab_size: int, hidden_size: int, group: Group) -> None:
        cut = group.cut(0, vocab_size)
        super().__init__(cut.length, hidden_size)
        self.cuts = {"weight": cut}
        self.group = group

    def forward(self, token_ids_N: Tensor) -> Tensor:
        if self.group.size == 1:
            return super().forward(token_ids_N)
        ours_N = token_ids_N - self.cuts["weight"].start
        is_ours_N = (ours_N >= 0) & (ours_N < self.num_embeddings)
        vectors_NE = super().forward(ours_N.where(is_ours_N, 0))
        return self.group.sum(vectors_NE * is_ours_N[:, None])


def cuts_of(network: nn.Module) -> dict[str, Cut]:
    """The cut of each parameter that has one, by its name; all others are whole on every rank."""
    return {
        f"{prefix}.{name}": cut
        for prefix, module in network.named_modules()
        for name, cut in getattr(module, "cuts", {}).items()
    }


def share_out(costs: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of the items for each rank, the dearest first to whom has least: at most 4/3 of the best split
    (Graham 1969). Every rank finds the same."""
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        rank = loads.index(min(loads))
        shares[rank].append(item)
        loads[rank] += costs[item]
    return [sorted(share) for share in shares]
