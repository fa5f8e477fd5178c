"""Continuous batching: which requests work in the next forward pass, and on how many of their tokens. No torch.

There are no phases. A request knows some tokens (its prompt and what was generated so far) and has the keys and values
of the first `computed` of them in the cache; a pass computes a run of the others, a chunk. Where a chunk ends with the
last known token, the pass yields the next one. A decoding request is one whose chunks have one token, and behind it the
tokens of a draft, which the pass checks.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from model.cache import BlockPool
from model.drafts import Drafter, Overhead, share_budget
from model.grids import PlacedGrid
from model.prefix import BlockKeys
from model.request import Prompt

# What the requests of a pass have in common: in a pass of decoding ones each has its last known token left, and perhaps
# a draft; a pass of prompts computes the others.
Lane = Literal["mixed", "prompts", "decoding"]
RECENT = 0.1  # how much the answer that finished last counts in the usual length


@dataclass(slots=True, eq=False)
class Request:
    """A prompt on its way to a completion. Times are readings of one monotonic clock, in seconds."""

    prompt: Prompt
    max_new_tokens: int  # what the sampling asks for, cut to what the context and the cache have room for
    places: Sequence[PlacedGrid] = ()  # of the prompt's images and frame pairs
    added_seconds: float = 0.0
    started_seconds: float | None = None
    new_token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    preemptions: int = 0
    steps: int = 0  # passes that gave it tokens
    expected_new_tokens: int | None = None  # how long its answer probably is; None: as others were lately
    keys: BlockKeys | None = None  # None: it neither finds nor leaves blocks for others
    published: int = 0  # blocks that others may find
    drafter: Drafter | None = None
    reasoning_end: int | None = 0  # how many of the new tokens are reasoning, its closing tag included; None: not over

    @property
    def num_tokens(self) -> int:
        """Known tokens: the prompt and the generated ones."""
        return len(self.prompt.token_ids_T) + len(self.new_token_ids)

    @property
    def lane(self) -> Lane:
        return "decoding" if self.new_token_ids and self.computed == self.num_tokens - 1 else "prompts"


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
    cached_tokens: int = 0  # of requests that were admitted: found in the cache


class Scheduler:
    """First come, first served: running requests in order of their start, then waiting ones while there is room. Only
    those that are drafted from an answer now being written let others go first.

    Blocks are reserved for all known tokens of a request when it is admitted, later one by one as its answer grows; it
    is admitted when there is room for what its answer and those of the others will probably need. What requests before
    it left in the cache is not computed again. When no block is free, the newest running request gives its blocks back
    and waits at the front, keeping the tokens it has; its keys and values are computed again. The oldest request always
    goes on, so all of them finish, as long as each alone fits the cache.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_size: int,
        max_step_tokens: int,
        max_draft_tokens: int = 0,
        overhead: Overhead | None = None,  # None: nothing, so that no draft is worth its rows
    ) -> None:
        self._pool = pool
        self._max_batch_size = max_batch_size
        self._max_step_tokens = max_step_tokens
        self._max_draft_tokens = max_draft_tokens
        self._overhead = overhead or Overhead()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # in the order in which they were started
        self._usual_new_tokens = 0.0  # of the answers that finished lately

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def drafted_from(self, key: str) -> list[Request]:
        """Those at work or waiting that are drafted from the answer to the prompt with that key."""
        return [request for request in (*self._running, *self._waiting) if request.prompt.draft_from == key]

    def schedule(self, lane: Lane = "mixed", awaited: Collection[Request] = ()) -> Step:
        """The next pass. Its tokens count as computed from here on. Of earlier passes that are still at work `awaited`
        are the requests that get a token: they stay as they are. The pass has no chunks when the lane has no work."""
        budget = self._max_step_tokens
        chunks: list[Chunk] = []
        preempted: list[Request] = []
        cached_tokens = 0
        for request in self._running:
            self._publish(request)
        index = 0
        while index < len(self._running) and budget:
            request = self._running[index]
            index += 1
            if request in awaited or lane not in ("mixed", request.lane):
                continue
            end = min(request.num_tokens, request.computed + budget)
            preempted += self._make_room(request, end, awaited)
            if self._pool.blocks_for(end) <= len(request.blocks):
                chunks.append(_take_chunk(request, end))
                budget -= len(chunks[-1])
        while lane != "decoding" and budget and not preempted and (started := self._start_next()):
            cached_tokens += started.computed
            chunks.append(_take_chunk(started, min(started.num_tokens, started.computed + budget)))
            budget -= len(chunks[-1])
        if lane == "mixed":
            assert chunks or not self.has_work, "a pass without work: a request larger than the cache was added"
        self._add_drafts(chunks, min(budget, self._max_draft_tokens))
        return Step(tuple(chunks), tuple(preempted), cached_tokens)

    def finish(self, request: Request) -> None:
        """Takes a request that has its answer out and its blocks back."""
        self._running.remove(request)
        self._usual_new_tokens += RECENT * (len(request.new_token_ids) - self._usual_new_tokens)
        self._leave(request)

    def _make_room(self, request: Request, num_tokens: int, awaited: Collection[Request]) -> list[Request]:
        """Blocks for `num_tokens` tokens of a running request; the newest are preempted for it, at last it itself. When
        it would be one that awaits its token, there is no room yet."""
        preempted: list[Request] = []
        while not self._pool.grow(request.blocks, num_tokens):
            if self._running[-1] in awaited:
                break
            newest = self._running.pop()
            self._leave(newest)
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
        shares = share_budget([drafter for _, drafter in drafting], budget, len(self._running), self._overhead)
        for (index, drafter), share in zip(drafting, shares, strict=True):
            request = chunks[index].request
            left = request.max_new_tokens - len(request.new_token_ids) - 1
            draft = drafter.propose(min(share, left))
            num_tokens = request.num_tokens + len(draft)
            missing = self._pool.blocks_for(num_tokens) - len(request.blocks)
            if draft and missing + len(self._running) <= self._pool.num_free:
                self._pool.grow(request.blocks, num_tokens)
                chunks[index] = replace(chunks[index], draft=draft)

    def _start_next(self) -> Request | None:
        """Of those that wait the first one whose drafts would not come too late; if there is none, the first one: no
        place in the batch stays empty for them. It is running now, if there is room."""
        if not self._waiting or len(self._running) >= self._max_batch_size:
            return None
        at_work = {request.prompt.key for request in self._running}
        chosen = next((request for request in self._waiting if request.prompt.draft_from not in at_work), None)
        chosen = chosen or self._waiting[0]
        if not self._admits(chosen):
            return None
        self._waiting.remove(chosen)
        self._running.append(chosen)
        return chosen

    def _admits(self, request: Request) -> bool:
        """Whether a waiting request fits beside the growth of all; if so, it has its blocks, and those it found in the
        cache are computed. Alone it need only fit for now."""
        if request.keys:  # the last known token is computed in any case: its logits are wanted
            most = (request.num_tokens - 1) // self._pool.block_size
            request.blocks = self._pool.share(request.keys.first(most, request.new_token_ids))
        to_come = sum(max(1, self._still_expected(running)) for running in self._running)
        if self._running and self._still_expected(request) + to_come > self._pool.num_free:
            self._pool.release(request.blocks)
            return False
        request.computed = len(request.blocks) * self._pool.block_size
        request.published = len(request.blocks)
        if not self._pool.grow(request.blocks, request.num_tokens):
            self._leave(request)
            return False
        return True

    def _still_expected(self, request: Request) -> int:
        """Blocks that a request does not have yet, for its known tokens and for what it will probably write."""
        expected = request.expected_new_tokens
        answer = round(self._usual_new_tokens) if expected is None else expected
        length = len(request.prompt.token_ids_T) + min(answer, request.max_new_tokens)
        return self._pool.blocks_for(max(length, request.num_tokens)) - len(request.blocks)

    def _publish(self, request: Request) -> None:
        """What earlier passes have written."""
        full = request.computed // self._pool.block_size
        if request.keys and full > request.published:
            keys = request.keys.first(full, request.new_token_ids)
            for place in range(request.published, full):
                self._pool.publish(request.blocks[place], keys[place])
            request.published = full

    def _leave(self, request: Request) -> None:
        """Gives all its blocks back; what is in them can be found until their room is needed."""
        self._publish(request)
        self._pool.release(request.blocks)
        request.computed = request.published = 0


def _take_chunk(request: Request, end: int) -> Chunk:
    chunk = Chunk(request, request.computed, end, samples=end == request.num_tokens)
    request.computed = end
    return chunk
