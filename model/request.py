"""The nouns at the model's door: a Prompt goes in, a Completion comes out. Numpy only.

Letters in array names: T tokens of one prompt, P stored patches, C values of one patch, G grids, 3 = (time, row,
column).
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one completion is decoded; greedy unless a temperature is given.

    `stop_token_ids` adds to the checkpoint's own end-of-sequence ids. `stop_at_loops` ends an answer that says the same
    over and over. `seed` makes a sampled completion repeatable
    whatever else is in the batch: token n is drawn from a generator seeded with (seed, n).
    """

    max_new_tokens: int = 4096  # reasoning included
    max_reasoning_tokens: int | None = None  # of a thinking model, which then has to answer; None: no limit of its own
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    stop_at_loops: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.max_reasoning_tokens is not None and self.max_reasoning_tokens < 1:
            raise ValueError(f"max_reasoning_tokens must be at least 1, or None, not {self.max_reasoning_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, not {self.top_k}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")


@dataclass(frozen=True, slots=True)
class Frames:
    """What the model looks at in one place of a prompt: an image, or frames of a video with their times.

    `pixels_THWC` is uint8 RGB, both sides multiples of the checkpoint's patch times merge size (32). An image has one
    frame and no `seconds`; a video has one time in seconds for each frame.
    """

    pixels_THWC: NDArray[np.uint8]
    seconds: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, ready for the device.

    `grids_G3` has one row (frames, rows, columns) for each image or frame pair in order of appearance: frames is 1 for
    an image (the network sees it twice) and 2 for a pair; rows and columns count patches. `patches_PC` holds, grid
    after grid and frame after frame, rows x columns patches of `patch * patch * 3` bytes in (channel, row, column)
    order, the patches of a frame in 2x2-merge order. `positions_3T` are interleaved M-RoPE positions; generated tokens
    continue at `next_position` on all three axes. `draft_text` is text the answer is likely to contain, or "";
    `draft_from` the key of another prompt, whose answer is such a text if it is there in time.
    """

    key: str
    token_ids_T: NDArray[np.int32]
    positions_3T: NDArray[np.int32]
    next_position: int
    patches_PC: NDArray[np.uint8]
    grids_G3: NDArray[np.int32]
    sampling: Sampling
    draft_text: str = ""
    draft_from: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to the Prompt with the same key. Log probabilities are natural, of the tokens that were chosen.

    After `repetition` the text ends behind the first round of the loop; `token_ids` are all that were written, and the
    first `text_tokens` of them give the text.
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    mean_logprob: float
    min_logprob: float
    seconds_queued: float  # from add to the first step that worked on it
    seconds_running: float  # from then to the last token, preemptions included
    preemptions: int
    text_tokens: int = 0
    steps: int = 0  # forward passes that gave it tokens; without drafts as many as tokens
    drafted_tokens: int = 0  # proposed from the draft text
    accepted_tokens: int = 0  # of these, the ones the network wrote itself
    resumes: int = 0  # how often it was taken up again behind a loop, with another sampling
    reasoning: str = ""  # what a thinking model wrote before its answer; no part of `text`


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine did: sums since it was made."""

    max_batch_size: int
    steps: int = 0
    running_sum: int = 0  # requests at work, summed over the steps
    prompt_tokens: int = 0  # of the requests that were started
    cached_tokens: int = 0  # of prompts, and of answers that were preempted: found in the cache
    computed_tokens: int = 0  # prompts and answers; what is computed again and what is drafted count too
    new_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    completions: int = 0
    preemptions: int = 0
    seconds: float = 0.0  # spent in steps

    @property
    def occupancy(self) -> float:
        """The mean share of the batch that was in use, 0 to 1."""
        return self.running_sum / (self.steps * self.max_batch_size) if self.steps else 0.0


def resumed_prompt(prompt: Prompt, token_ids: tuple[int, ...], sampling: Sampling) -> Prompt:
    """`prompt` with the beginning of its answer: what comes back is the rest."""
    count = len(token_ids)
    following = np.tile(np.arange(prompt.next_position, prompt.next_position + count, dtype=np.int32), (3, 1))
    return replace(
        prompt,
        token_ids_T=np.concatenate((prompt.token_ids_T, np.array(token_ids, dtype=np.int32))),
        positions_3T=np.concatenate((prompt.positions_3T, following), axis=1),
        next_position=prompt.next_position + count,
        sampling=sampling,
    )


def resumed_completion(first: Completion, rest: Completion) -> Completion:
    """The whole answer: the clean beginning of `first`, and `rest`, the answer to the prompt that was resumed there."""
    kept = first.token_ids[: first.text_tokens]
    total = max(len(kept) + len(rest.token_ids), 1)
    return Completion(
        key=first.key,
        text=first.text + rest.text,
        reasoning=first.reasoning + rest.reasoning,
        token_ids=kept + rest.token_ids,
        prompt_tokens=first.prompt_tokens,
        finish_reason=rest.finish_reason,
        mean_logprob=(first.mean_logprob * len(kept) + rest.mean_logprob * len(rest.token_ids)) / total,
        min_logprob=min(first.min_logprob, rest.min_logprob),
        seconds_queued=first.seconds_queued + rest.seconds_queued,
        seconds_running=first.seconds_running + rest.seconds_running,
        preemptions=first.preemptions + rest.preemptions,
        text_tokens=len(kept) + rest.text_tokens,
        steps=first.steps + rest.steps,
        drafted_tokens=first.drafted_tokens + rest.drafted_tokens,
        accepted_tokens=first.accepted_tokens + rest.accepted_tokens,
        resumes=first.resumes + rest.resumes + 1,
    )
