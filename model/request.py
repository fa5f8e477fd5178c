"""The nouns at the model's door: a Prompt goes in, a Completion comes out. Numpy only.

Letters in array names: T tokens of one prompt, P stored patches, C values of one patch, G grids, 3 = (time, row,
column).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one completion is decoded; greedy unless a temperature is given.

    `stop_token_ids` adds to the checkpoint's own end-of-sequence ids. `seed` makes a sampled completion repeatable
    whatever else is in the batch: token n is drawn from a generator seeded with (seed, n).
    """

    max_new_tokens: int = 4096  # reasoning included
    max_reasoning_tokens: int | None = None  # of a thinking model, which then has to answer; None: no limit of its own
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

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
    continue at `next_position` on all three axes. `draft_text` is text the answer is likely to contain, or "".
    """

    key: str
    token_ids_T: NDArray[np.int32]
    positions_3T: NDArray[np.int32]
    next_position: int
    patches_PC: NDArray[np.uint8]
    grids_G3: NDArray[np.int32]
    sampling: Sampling
    draft_text: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to the Prompt with the same key. Log probabilities are natural, of the tokens that were chosen."""

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
    reasoning: str = ""  # what a thinking model wrote before its answer; no part of `text`
