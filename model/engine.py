"""The device's door: Prompts in, Completions out as they finish.

engine = Engine.from_pretrained("model/demo")
engine.add(prompt)
for completion in engine.drain(): ...
"""

import logging
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model.attention import check_block_size, checked_implementation
from model.cache import BlockPool
from model.capacity import cache_tokens
from model.checkpoint import Report, checkpoint_folder, read_stop_token_ids
from model.config import read_config
from model.drafts import OVERHEADS, Drafter
from model.engine_options import DTYPES, EngineOptions
from model.experts import multiplies_groups_alone
from model.footprint import LESS_CACHE
from model.graphs import StepGraphs
from model.grids import placed_grids
from model.layers import pack_weights
from model.loops import CHECK_EVERY, clean_length
from model.parallel import Group
from model.prefix import BlockKeys
from model.processor import read_tokenizer
from model.qwen3_vl import Qwen3VL
from model.ranks import Followers, Leader, rank_device
from model.request import Completion, EngineStats, FinishReason, Prompt
from model.runner import Pass, Runner, SampledToken
from model.scheduler import Chunk, Lane, Request, Scheduler
from model.weights import from_pretrained

logger = logging.getLogger(__name__)


class ThinkTokenIds(NamedTuple):
    """The tokens around what a thinking model writes before its answer."""

    open: int
    close: int


class Engine:
    """Continuous batching over one network. Calls from several threads at once are not safe."""

    def __init__(
        self,
        network: Qwen3VL,
        tokenizer: Any,
        options: EngineOptions,
        stop_token_ids: frozenset[int],
        think_token_ids: ThinkTokenIds | None = None,
        followers: Followers | None = None,
    ) -> None:
        """`tokenizer` is asked for `decode(token_ids, skip_special_tokens=...)`, and for the drafts for
        `encode(text, add_special_tokens=False).ids`; one of `stop_token_ids` ends any completion; `think_token_ids`
        open and close the reasoning of a thinking model; `followers` are told
        what this engine is given, when the network is spread over them.

        Raises ValueError for an attention implementation that cannot be used here.
        """
        weight = network.model.language_model.embed_tokens.weight
        cache_dtype = torch.float8_e4m3fn if options.kv_cache_dtype else weight.dtype
        implementation = checked_implementation(options.attn_implementation, weight.device, cache_dtype)
        check_block_size(options.block_size, implementation)
        graphs = None
        if options.cuda_graphs:
            if implementation != "triton":
                raise ValueError(f"cuda_graphs needs attn_implementation 'triton', not {implementation!r}")
            if network.config.text.moe and not multiplies_groups_alone(weight):
                raise ValueError(
                    f"cuda_graphs with a mixture of experts needs bfloat16 and compute capability 9.x or 10.x, not "
                    f"{weight.dtype} on {weight.device}: leave cuda_graphs out"
                )
            graphs = partial(StepGraphs, max_sequences=options.max_batch_size, max_rows=options.max_step_rows)
        logger.info("attention by %s over a cache of %s on %s", implementation, cache_dtype, weight.device)
        num_blocks = cache_tokens(network, options, implementation) // options.block_size
        pool = BlockPool(num_blocks, options.block_size)
        self._followers = followers
        self._tokenizer = tokenizer
        self._stop_token_ids = stop_token_ids
        self._think_token_ids = think_token_ids
        self._cache_room = num_blocks * options.block_size
        self._context = network.config.text.max_position_embeddings
        yarn = network.config.text.yarn
        self._max_position = yarn.max_position if yarn else None  # without YaRN the context is the nearer limit
        self._runner = Runner(
            network,
            num_blocks=num_blocks,
            block_size=options.block_size,
            cache_dtype=cache_dtype,
            implementation=implementation,
            graphs=graphs,
        )
        self._scheduler = Scheduler(
            pool,
            max_batch_size=options.max_batch_size,
            max_step_tokens=options.max_step_tokens,
            max_draft_tokens=options.max_draft_tokens,
            overhead=OVERHEADS[weight.device.type],
        )
        self._config = network.config
        self._options = options
        self._lanes: tuple[Lane, ...] = ("decoding", "prompts") if options.overlap else ("mixed",)
        self._launched: dict[Lane, Pass] = {}  # in this order
        self._keys: set[str] = set()
        self._stats = EngineStats(max_batch_size=options.max_batch_size)

    @classmethod
    def from_pretrained(
        cls, model: str, options: EngineOptions | None = None, report: Report | None = None
    ) -> "Engine":
        """The engine of a folder or hub id; `report` hears how far loading is (`model.checkpoint.LoadProgress`).

        Raises ValueError for a checkpoint or options that cannot be run.
        """
        options = options or EngineOptions()
        folder = checkpoint_folder(model)
        read_config(folder).check_tensor_parallel(options.tensor_parallel)
        options.check_device()
        followers = Followers(options.tensor_parallel, options.device, _follow, folder, options)
        try:
            network = _load(folder, options, followers.group, report)
            followers.wait("loaded")
        except BaseException:
            followers.close()
            raise
        followers.watch()
        tokenizer = read_tokenizer(folder)
        think_token_ids = find_think_token_ids(tokenizer)
        return cls(network, tokenizer, options, read_stop_token_ids(folder), think_token_ids, followers)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def add(self, prompt: Prompt) -> None:
        """Queues a prompt. Its `max_new_tokens` is cut to what context and cache leave beside it.

        Raises ValueError for a key that is still at work, and for a prompt that leaves no room for one token.
        """
        length = len(prompt.token_ids_T)
        room = self._context - length
        if self._max_position is not None:
            room = min(room, self._max_position - prompt.next_position)
        if prompt.key in self._keys:
            raise ValueError(f"the key {prompt.key!r} is already at work")
        if length == 0 or room < 1 or length >= self._cache_room:
            raise ValueError(
                f"prompt {prompt.key!r} has {length} tokens; it needs at least one, and with one for its answer at most"
                f" {self._context} (context) and {self._cache_room} (key/value cache)"
                + (f"; positions reach {self._max_position} (RoPE scaling)" if self._max_position else "")
            )
        limit = min(prompt.sampling.max_new_tokens, room)
        if length + limit > self._cache_room:
            raise ValueError(
                f"prompt {prompt.key!r} has {length} tokens and may be answered with {limit}, and the key/value cache "
                f"has room for {self._cache_room}: {LESS_CACHE}, or more kv_cache_tokens"
            )
        places = placed_grids(prompt, self._config)
        largest = max((place.end - place.start for place in places), default=0)
        if largest > self._options.max_image_tokens:
            raise ValueError(
                f"prompt {prompt.key!r} has an image of {largest} visual tokens, and memory was measured with "
                f"{self._options.max_image_tokens}: give more max_image_tokens, or a smaller image"
            )
        if self._followers:
            self._followers.tell(prompt)
        self._keys.add(prompt.key)
        request = Request(prompt, max_new_tokens=limit, places=places, added_seconds=time.perf_counter())
        if self._options.prefix_cache:
            request.keys = BlockKeys(prompt, places, self._options.block_size)
        self._draft(request, prompt.draft_text)
        if self._think_token_ids and self._think_token_ids.open in prompt.token_ids_T[-2:]:  # a line break may follow
            request.reasoning_end = None
        self._scheduler.add(request)

    def _draft(self, request: Request, text: str) -> None:
        """From now on `text` is looked into for what a request writes next."""
        if text and self._options.max_draft_tokens:
            request.expected_new_tokens = len(self._encode(text))
            request.drafter = Drafter(text, self._encode, self._decode)
            request.drafter.follow(request.new_token_ids)

    def step(self) -> list[Completion]:
        """One forward pass -> the completions that ended with it. With `overlap` the next pass is launched before this
        one is waited for."""
        if not self.has_work:
            return []
        if self._followers:
            self._followers.tell(self.progress)
        began = time.perf_counter()
        for lane in self._lanes:
            if lane not in self._launched:
                self._launch(lane, began)
        assert self._launched, "no lane has work: a request larger than the cache was added"
        sampled = self._launched.pop(next(iter(self._launched))).wait()  # the one that was launched first
        ended = time.perf_counter()
        completions = []
        for chunk, tokens in sampled:
            if reason := self._accept(chunk, tokens):
                completions.append(self._finish(chunk.request, reason, ended))
        self._stats = replace(
            self._stats,
            new_tokens=self._stats.new_tokens + sum(len(tokens) for _, tokens in sampled),
            accepted_tokens=self._stats.accepted_tokens + sum(len(tokens) - 1 for _, tokens in sampled),
            completions=self._stats.completions + len(completions),
            seconds=self._stats.seconds + time.perf_counter() - began,
        )
        return completions

    def _launch(self, lane: Lane, now_seconds: float) -> None:
        """The next pass of a lane, if there is work for it."""
        awaited = {chunk.request for launched in self._launched.values() for chunk in launched.sampling}
        step = self._scheduler.schedule(lane, awaited)
        for request in step.preempted:
            self._runner.forget(request.prompt.key)
        started = [chunk.request for chunk in step.chunks if chunk.request.started_seconds is None]
        for request in started:
            request.started_seconds = now_seconds
        self._stats = replace(
            self._stats,
            steps=self._stats.steps + bool(step.chunks),
            running_sum=self._stats.running_sum + (self._scheduler.num_running if step.chunks else 0),
            prompt_tokens=self._stats.prompt_tokens + sum(len(request.prompt.token_ids_T) for request in started),
            cached_tokens=self._stats.cached_tokens + step.cached_tokens,
            computed_tokens=self._stats.computed_tokens + sum(len(chunk) for chunk in step.chunks),
            drafted_tokens=self._stats.drafted_tokens + sum(len(chunk.draft) for chunk in step.chunks),
            preemptions=self._stats.preemptions + len(step.preempted),
        )
        if step.chunks:
            self._launched[lane] = self._runner.launch(step.chunks)

    @property
    def progress(self) -> tuple[int, ...]:
        """Equal on all ranks before every step, or they would wait for each other for ever."""
        stats = self._stats
        return stats.steps, stats.computed_tokens, stats.new_tokens, stats.completions, stats.preemptions

    def drain(self) -> Iterator[Completion]:
        """Steps until nothing is left; prompts may be added meanwhile."""
        while self.has_work:
            yield from self.step()

    def _accept(self, chunk: Chunk, tokens: list[SampledToken]) -> FinishReason | None:
        """Appends the tokens up to one that ends the completion -> why it ends, if it does."""
        request = chunk.request
        request.steps += 1
        before = len(request.new_token_ids)
        reason = self._append(request, tokens)
        written = request.new_token_ids[before:]
        request.computed += len(written) - 1  # what was accepted of the draft is in the cache
        if request.drafter:
            request.drafter.drafted += len(chunk.draft)
            request.drafter.accepted += len(tokens) - 1
            request.drafter.follow(written)
        return reason or ("repetition" if self._loops(request, len(written)) else None)

    def _append(self, request: Request, tokens: list[SampledToken]) -> FinishReason | None:
        """What follows a token that was replaced, or that ends the completion, does not count."""
        stops = self._stop_token_ids.union(request.prompt.sampling.stop_token_ids)
        for chosen in tokens:
            token = self._reason(request, chosen)
            request.new_token_ids.append(token.token_id)
            request.logprobs.append(token.logprob)
            if token.token_id in stops:
                return "stop"
            if len(request.new_token_ids) == request.max_new_tokens:
                return "length"
            if token is not chosen:
                break
        return None

    def _loops(self, request: Request, num_new: int) -> bool:
        """Whether the answer has come to say the same over and over; asked anew every `CHECK_EVERY` tokens."""
        length = len(request.new_token_ids)
        if not request.prompt.sampling.stop_at_loops or length // CHECK_EVERY == (length - num_new) // CHECK_EVERY:
            return False
        return clean_length(self._decode(request.new_token_ids)) is not None

    def _reason(self, request: Request, token: SampledToken) -> SampledToken:
        """Keeps track of whether a request still reasons. Reasoning that reached its limit is closed: that token is
        ours, with the log probability 0. A model whose template does not open its reasoning may do so first."""
        if self._think_token_ids is None:
            return token
        written = len(request.new_token_ids)
        if written == 0 and token.token_id == self._think_token_ids.open:
            request.reasoning_end = None
        elif request.reasoning_end is None:
            if written == request.prompt.sampling.max_reasoning_tokens:
                token = SampledToken(self._think_token_ids.close, 0.0)
            if token.token_id == self._think_token_ids.close:
                request.reasoning_end = written + 1
        return token

    def _finish(self, request: Request, reason: FinishReason, now_seconds: float) -> Completion:
        """The token that stopped the answer stays in `token_ids` and its probabilities, but not in the text. Reasoning
        that never ended is all there is: the text is empty."""
        prompt = request.prompt
        self._scheduler.finish(request)
        self._runner.forget(prompt.key)
        self._keys.remove(prompt.key)
        assert request.started_seconds is not None, f"{prompt.key} finished before it started"
        text_tokens = self._text_tokens(request.new_token_ids, reason)
        text_ids = request.new_token_ids[:text_tokens]
        end = len(text_ids) if request.reasoning_end is None else request.reasoning_end
        reasoning_ids = [token for token in text_ids[:end] if token not in (self._think_token_ids or ())]
        text = self._decode(text_ids[end:]).lstrip("\n" if end else "")
        for other in self._scheduler.drafted_from(prompt.key):
            if not other.drafter:  # it may have a text of its own, or this prompt was resumed and is answered again
                self._draft(other, text)
        return Completion(
            key=prompt.key,
            text=text,
            reasoning=self._decode(reasoning_ids).strip() if end else "",
            token_ids=tuple(request.new_token_ids),
            prompt_tokens=len(prompt.token_ids_T),
            finish_reason=reason,
            mean_logprob=sum(request.logprobs) / len(request.logprobs),
            min_logprob=min(request.logprobs),
            seconds_queued=request.started_seconds - request.added_seconds,
            seconds_running=now_seconds - request.started_seconds,
            preemptions=request.preemptions,
            text_tokens=text_tokens,
            steps=request.steps,
            drafted_tokens=request.drafter.drafted if request.drafter else 0,
            accepted_tokens=request.drafter.accepted if request.drafter else 0,
        )

    def _text_tokens(self, token_ids: list[int], reason: FinishReason) -> int:
        """How many of the tokens give the text: all but the one that stopped it, or those in front of a loop and of its
        first round, the last one whole."""
        if reason != "repetition":
            return len(token_ids) - (reason == "stop")
        clean = clean_length(self._decode(token_ids))
        assert clean is not None, "a loop was seen and is gone"
        counts = range(len(token_ids) + 1)
        return bisect_right(counts, clean, key=lambda count: len(self._decode(token_ids[:count]))) - 1

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def _encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids


def find_think_token_ids(tokenizer: Any) -> ThinkTokenIds | None:
    """None for a tokenizer without the tags of reasoning."""
    tags = [tokenizer.token_to_id(tag) for tag in ("<think>", "</think>")]
    return None if None in tags else ThinkTokenIds(*tags)


def _load(folder: Path, options: EngineOptions, group: Group, report: Report | None = None) -> Qwen3VL:
    """The share of the rank that `group` is seen from."""
    device = rank_device(options.device, group.rank) if group.size > 1 else torch.device(options.device)
    dtype = DTYPES[options.dtype] if options.dtype else None
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    network = from_pretrained(
        str(folder),
        device=device,
        dtype=dtype,
        expert_layout=options.expert_layout,
        max_context=options.max_context,
        rope_scaling_factor=options.rope_scaling_factor,
        quantization=options.quantization,
        group=group,
        report=report,
    )
    pack_weights(network)
    return network


def _follow(group: Group, leader: Leader, folder: Path, options: EngineOptions) -> None:
    """The life of a rank beside rank 0: the same engine, told what to do; its completions are nobody's."""
    network = _load(folder, options, group)
    leader.say("loaded")
    tokenizer = read_tokenizer(folder)
    engine = Engine(network, tokenizer, options, read_stop_token_ids(folder), find_think_token_ids(tokenizer))
    for message in leader:
        if isinstance(message, Prompt):
            engine.add(message)
        else:
            assert engine.progress == message, f"rank {group.rank} is at {engine.progress}, rank 0 at {message}"
            engine.step()
