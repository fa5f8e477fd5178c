"""One forward pass on the device: chunks of requests -> tensors -> network -> the next tokens.

Letters: N packed tokens of a pass, 3 = (time, row, column), M visual tokens among them, R rows that get a token,
O hidden size of the decoder, L DeepStack levels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.attention import (
    AttentionImplementation,
    CachedChunk,
    KeyValueCache,
    device_tensor,
    offsets_of,
    on_device,
    paged_attention,
    places_of,
)
from model.graphs import StepGraphs
from model.grids import PlacedGrid
from model.qwen3_vl import Qwen3VL
from model.sampler import choose_tokens, plan_draws
from model.scheduler import Chunk
from model.vision import VisualFeatures

# What goes through the vision tower at once: on a GPU enough to fill it, on a CPU no more than its caches hold.
PACK_PATCHES = {"cuda": 16384, "cpu": 4096}


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass that the device works on, or has done."""

    sampling: tuple[Chunk, ...]  # the chunks that get tokens
    pairs_R2: Tensor | None  # on the host: token ids, and log probabilities; None where nobody gets any
    copied: torch.cuda.Event | None  # they are there; None: already

    def wait(self) -> list[tuple[Chunk, list[SampledToken]]]:
        """The next tokens of each chunk that asks for some: one, and one more for every token of its draft up to the
        first that the network would not have written. The only place where the host waits."""
        if self.pairs_R2 is None:
            return []
        if self.copied:
            self.copied.synchronize()
        chosen = iter([SampledToken(int(token_id), logprob) for token_id, logprob in self.pairs_R2.tolist()])
        return [(chunk, _accepted(chunk.draft, list(islice(chosen, len(chunk.draft) + 1)))) for chunk in self.sampling]


class Runner:
    """The network, its cache, and the visual features that prompts have still to read."""

    def __init__(
        self,
        network: Qwen3VL,
        *,
        num_blocks: int,
        block_size: int,
        implementation: AttentionImplementation,
        cache_dtype: torch.dtype | None = None,  # None: as the weights
        graphs: Callable[..., StepGraphs] | None = None,  # None: steps are not recorded
    ) -> None:
        weight = network.model.language_model.embed_tokens.weight
        text = network.config.text
        all_blocks = num_blocks + (graphs is not None)
        shape = (text.num_hidden_layers, network.num_key_heads, all_blocks, block_size, text.head_dim)
        self._network = network
        self._device = weight.device
        self._implementation = implementation
        stored_dtype = cache_dtype or weight.dtype
        # Zeros: what was never written must be finite, since attention gives it the weight 0, not no weight.
        keys, values = (torch.zeros(shape, dtype=stored_dtype, device=weight.device) for _ in range(2))
        self._cache = KeyValueCache(keys, values, weight.dtype)
        self._sight = Sight(network, implementation)
        with on_device(self._device):
            self._graphs = graphs(network, self._cache, spare_block=num_blocks) if graphs else None
            if self._graphs:
                self._graphs.record_first()

    @torch.inference_mode()
    def launch(self, chunks: tuple[Chunk, ...]) -> Pass:
        """Has the device compute the chunks, behind the passes that were launched before."""
        with on_device(self._device):
            return self._launch(chunks)

    def _launch(self, chunks: tuple[Chunk, ...]) -> Pass:
        chunks = tuple(sorted(chunks, key=lambda chunk: len(chunk) == 1))  # as paged_attention wants them
        cached = [CachedChunk(chunk.request.blocks, chunk.start, chunk.start + len(chunk)) for chunk in chunks]
        token_ids_N, positions_3N = _token_ids(chunks), _positions(chunks, cached)
        sampling = tuple(chunk for chunk in chunks if chunk.samples)
        if self._graphs and all(map(_decodes, chunks)) and self._graphs.fits(cached):
            logits_RV = self._graphs.logits(token_ids_N, positions_3N, cached)
        else:
            visual, visual_rows_M = self._sight.features(chunks)
            hidden_RE = self._network(
                device_tensor(token_ids_N, self._device),
                device_tensor(positions_3N, self._device),
                paged_attention(self._cache, cached, self._implementation, num_heads=self._network.num_heads),
                visual,
                device_tensor(visual_rows_M, self._device),
                rows_R=device_tensor(_sampling_rows(chunks), self._device) if sampling else None,
            )
            if not sampling:
                return Pass((), None, None)
            logits_RV = self._network.logits(hidden_RE)
        numbered = [
            (chunk.request.prompt.sampling, len(chunk.request.new_token_ids) + offset)
            for chunk in sampling
            for offset in range(len(chunk.draft) + 1)
        ]
        draws = plan_draws(numbered, vocab_size=self._network.config.text.vocab_size, device=self._device)
        token_ids_R, logprobs_R = choose_tokens(logits_RV, draws, self._network.group)
        # Token ids are exact in float64, so that one copy brings both.
        pairs_R2 = torch.stack((token_ids_R.double(), logprobs_R.double()), dim=1).to("cpu", non_blocking=True)
        copied = None
        if self._device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        return Pass(sampling, pairs_R2, copied)

    def forget(self, key: str) -> None:
        """Drops what is kept for a request that is finished or preempted."""
        self._sight.forget(key)


def _decodes(chunk: Chunk) -> bool:
    """Whether all of its rows are asked for: the last known token, behind the prompt, and a draft."""
    return chunk.samples and chunk.end - chunk.start == 1 and chunk.start >= len(chunk.request.prompt.token_ids_T)


def _sampling_rows(chunks: Sequence[Chunk]) -> NDArray[np.int64]:
    """Of the packed tokens those that yield the next one, or check a draft: the last ones of each chunk that asks."""
    lengths_S = [len(chunk) for chunk in chunks]
    asked_S = [len(chunk.draft) + 1 if chunk.samples else 0 for chunk in chunks]
    firsts_N = np.repeat(np.cumsum(lengths_S) - asked_S, lengths_S)
    return np.flatnonzero(np.arange(len(firsts_N)) >= firsts_N)


def _accepted(draft: tuple[int, ...], chosen: list[SampledToken]) -> list[SampledToken]:
    """chosen[n] is right if all of draft[:n] is what was chosen before it."""
    right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1].token_id, zip(draft, chosen, strict=False)))
    return chosen[: right + 1]


class Sight:
    """Runs the vision tower when the first chunk that needs an image comes, and keeps its features until the last one
    has read them. A chunk may begin and end anywhere, inside an image too."""

    def __init__(self, network: Qwen3VL, implementation: AttentionImplementation) -> None:
        self._network = network
        self._device = network.model.visual.pos_embed.weight.device
        self._implementation = implementation
        self._features: dict[str, dict[int, VisualFeatures]] = {}  # by request and number of the grid

    @property
    def num_held(self) -> int:
        """Grids whose features wait for a later chunk."""
        return sum(map(len, self._features.values()))

    def features(self, chunks: tuple[Chunk, ...]) -> tuple[VisualFeatures | None, NDArray[np.int64]]:
        """What the visual tokens of the packed chunks receive, or None where there are none, and their rows int64 [M].

        DeepStack levels and embeddings are cut alike.
        """
        wanted: list[tuple[Chunk, int, PlacedGrid]] = []
        rows: list[NDArray[np.int64]] = []
        first_row = 0
        for chunk in chunks:
            for number, placed in _overlapping(chunk):
                wanted.append((chunk, number, placed))
                start, end = max(chunk.start, placed.start), min(chunk.end, placed.end)
                rows.append(np.arange(start, end) + (first_row - chunk.start))
            first_row += len(chunk)
        if not wanted:
            return None, np.empty(0, dtype=np.int64)
        self._encode([what for what in wanted if what[1] not in self._features.get(what[0].request.prompt.key, ())])
        parts = [self._take(*what) for what in wanted]
        embeddings_MO = torch.cat([part.embeddings_MO for part in parts])
        deepstack_LMO = torch.cat([part.deepstack_LMO for part in parts], dim=1)
        return VisualFeatures(embeddings_MO, deepstack_LMO), np.concatenate(rows)

    def forget(self, key: str) -> None:
        self._features.pop(key, None)

    def _encode(self, wanted: list[tuple[Chunk, int, PlacedGrid]]) -> None:
        """The missing grids of a pass go through the tower in packs."""
        for pack in _packs(wanted, PACK_PATCHES[self._device.type]):
            self._encode_pack(pack)

    def _encode_pack(self, pack: list[tuple[Chunk, int, PlacedGrid]]) -> None:
        patches_PC = np.concatenate(
            [chunk.request.prompt.patches_PC[placed.first_patch : placed.last_patch] for chunk, _, placed in pack]
        )
        features = self._network.look(
            device_tensor(patches_PC, self._device), [placed.grid for _, _, placed in pack], self._implementation
        )
        sizes = [placed.end - placed.start for _, _, placed in pack]
        embeddings = features.embeddings_MO.split(sizes)
        deepstack = features.deepstack_LMO.split(sizes, dim=1)
        for (chunk, number, _), *parts in zip(pack, embeddings, deepstack, strict=True):
            self._features.setdefault(chunk.request.prompt.key, {})[number] = VisualFeatures(*parts)

    def _take(self, chunk: Chunk, number: int, placed: PlacedGrid) -> VisualFeatures:
        """The features of the tokens that chunk and grid share; with the last of them the grid's are given up."""
        held = self._features[chunk.request.prompt.key]
        features = held.pop(number) if chunk.end >= placed.end else held[number]
        shared = slice(max(chunk.start - placed.start, 0), min(chunk.end, placed.end) - placed.start)
        return VisualFeatures(features.embeddings_MO[shared], features.deepstack_LMO[:, shared])


def _overlapping(chunk: Chunk) -> list[tuple[int, PlacedGrid]]:
    """The grids of which the chunk has tokens, with their numbers."""
    request = chunk.request
    if chunk.start >= len(request.prompt.token_ids_T):
        return []
    return [
        (number, placed)
        for number, placed in enumerate(request.places)
        if placed.start < chunk.end and placed.end > chunk.start
    ]


def _packs(
    wanted: list[tuple[Chunk, int, PlacedGrid]], most_patches: int
) -> Iterator[list[tuple[Chunk, int, PlacedGrid]]]:
    """Cut in order, each pack of at most `most_patches` stored patches, or of one grid."""
    pack: list[tuple[Chunk, int, PlacedGrid]] = []
    patches = 0
    for what in wanted:
        size = what[2].last_patch - what[2].first_patch
        if pack and patches + size > most_patches:
            yield pack
            pack, patches = [], 0
        pack.append(what)
        patches += size
    if pack:
        yield pack


def _token_ids(chunks: Sequence[Chunk]) -> NDArray[np.int64]:
    """What the packed tokens are, [N]."""
    token_ids: list[int] = []
    for chunk in chunks:
        prompt_ids, new_ids = chunk.request.prompt.token_ids_T, chunk.request.new_token_ids
        length = len(prompt_ids)
        if chunk.start < length:
            token_ids += prompt_ids[chunk.start : chunk.end].tolist()
        token_ids += new_ids[max(chunk.start - length, 0) : max(chunk.end - length, 0)]
        token_ids += chunk.draft
    return np.array(token_ids, dtype=np.int64)


def _positions(chunks: Sequence[Chunk], cached: Sequence[CachedChunk]) -> NDArray[np.int64]:
    """[3, N]: a prompt's own, then counting up from its next position on all three axes."""
    prompts = [chunk.request.prompt for chunk in chunks]
    sequences_N, places_N = places_of(cached)
    shifts_S = np.array([prompt.next_position - len(prompt.token_ids_T) for prompt in prompts])
    positions_3N = np.tile(places_N + shifts_S[sequences_N], (3, 1))
    firsts = offsets_of([len(chunk) for chunk in chunks]).tolist()
    for chunk, prompt, first in zip(chunks, prompts, firsts, strict=False):  # the last offset is the end
        own = prompt.positions_3T[:, chunk.start : chunk.end]  # nothing behind the prompt
        positions_3N[:, first : first + own.shape[1]] = own
    return positions_3N
