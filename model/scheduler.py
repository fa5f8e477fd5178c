"""Continuous batching: which requests work in the next forward pass, and on how many of their tokens. No torch.

There are no phases. A request knows some tokens (its prompt and what was generated so far) and has the keys and values
of the first `computed` of them in the cache; a pass computes a run of the others, a chunk. Where a chunk ends with the
last known token, the pass yields the next one. A decoding request is one whose chunks have one token, and behind it the
tokens of a draft, which the pass checks.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from model.cache import BlockPool
from model.drafts import Drafter, share_budget
from model.request import Prompt


@dataclass(slots=True, eq=False)
class Request:
    """A prompt on its way to a completion. Times are readings of one monotonic clock, in seconds."""

    prompt: Prompt
    max_new_tokens: int  # what the sampling asks for, cut to what the context and the cache have room for
    added_seconds: float = 0.0
    started_seconds: float | None = None
    new_token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    preemptions: int = 0
    steps: int = 0  # passes that gave it tokens
    drafter: Drafter | None = None
    reasoning_end: int | None = 0  # how many of the new tokens are reasoning, its closing tag included; None: not over

    @property
    def num_tokens(self) -> int:
        """Known tokens: the prompt and the generated ones."""
        return len(self.prompt.token_ids_T) + len(self.new_token_ids)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `end` of a request, and the `draft` of those that may follow, computed in one pass."""

    request: Request
    start: int
    end: int
    samples: bool  # the chunk ends with the last known token: the pass yields the next one
    draft: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.end - self.start + len(self.draft)


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass does, and who had to make room for it."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Request, ...]


class Scheduler:
    """First come, first served: running requests in order of arrival, then waiting ones while there is room.

    Blocks are reserved for all known tokens of a request when it is admitted, later one by one as its answer grows.
    When none is free, the newest running request gives its blocks back and waits at the front, keeping the tokens it
    has; its keys and values are computed again. The oldest request always goes on, so all of them finish, as long as
    each alone fits the cache.
    """

    def __init__(
        self, pool: BlockPool, *, max_batch_size: int, max_step_tokens: int, max_draft_tokens: int = 0
    ) -> None:
        self._pool = pool
        self._max_batch_size = max_batch_size
        self._max_step_tokens = max_step_tokens
        self._max_draft_tokens = max_draft_tokens
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # running + waiting is always in order of arrival

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def schedule(self) -> Step:
        """The next pass. Its tokens count as computed from here on."""
        budget = self._max_step_tokens
        chunks: list[Chunk] = []
        preempted: list[Request] = []
        index = 0
        while index < len(self._running) and budget:
            request = self._running[index]
            end = min(request.num_tokens, request.computed + budget)
            preempted += self._make_room(request, end)
            if index < len(self._running):  # it was not itself the newest
                chunks.append(_take_chunk(request, end))
                budget -= len(chunks[-1])
            index += 1
        while budget and not preempted and self._can_admit():
            request = self._waiting.popleft()
            reserved = self._pool.grow(request.blocks, request.num_tokens)
            assert reserved, f"{request.prompt.key} was admitted without room"
            self._running.append(request)
            chunks.append(_take_chunk(request, min(request.num_tokens, budget)))
            budget -= len(chunks[-1])
        assert chunks or not self.has_work, "a pass without work: a request larger than the cache was added"
        self._add_drafts(chunks, min(budget, self._max_draft_tokens))
        return Step(tuple(chunks), tuple(preempted))

    def finish(self, request: Request) -> None:
        """Takes a request that has its answer out and its blocks back."""
        self._running.remove(request)
        self._pool.release(request.blocks)

    def _make_room(self, request: Request, num_tokens: int) -> list[Request]:
        """Blocks for `num_tokens` tokens of a running request; the newest are preempted for it, at last it itself."""
        preempted = []
        while not self._pool.grow(request.blocks, num_tokens):
            newest = self._running.pop()
            self._pool.release(newest.blocks)
            newest.computed = 0
            newest.preemptions += 1
            self._waiting.appendleft(newest)
            preempted.append(newest)
            if newest is request:
                break
        return preempted

    def _add_drafts(self, chunks: list[Chunk], budget: int) -> None:
        """Puts drafts behind the chunks of decoding requests, into blocks that nobody needs now or next."""
        drafting = [
            (index, chunk.request.drafter)
            for index, chunk in enumerate(chunks)
            if chunk.request.drafter and chunk.samples and len(chunk) == 1 and chunk.request.new_token_ids
        ]
        shares = share_budget([drafter for _, drafter in drafting], budget)
        for (index, drafter), share in zip(drafting, shares, strict=True):
            request = chunks[index].request
            left = request.max_new_tokens - len(request.new_token_ids) - 1
            draft = drafter.propose(min(share, left)) if min(share, left) > 0 else ()
            num_tokens = request.num_tokens + len(draft)
            missing = self._pool.blocks_for(num_tokens) - len(request.blocks)
            if draft and missing + len(self._running) <= self._pool.num_free:
                self._pool.grow(request.blocks, num_tokens)
                chunks[index] = replace(chunks[index], draft=draft)

    def _can_admit(self) -> bool:
        """The next waiting request fits, and every running one keeps a free block to grow into."""
        if not self._waiting or len(self._running) >= self._max_batch_size:
            return False
        wanted = self._pool.blocks_for(self._waiting[0].num_tokens)
        return wanted + len(self._running) <= self._pool.num_free


def _take_chunk(request: Request, end: int) -> Chunk:
    chunk = Chunk(request, request.computed, end, samples=end == request.num_tokens)
    request.computed = end
    return chunk
