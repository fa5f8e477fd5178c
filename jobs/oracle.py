"""An engine that answers from the truth: what the best model could say about the frames it is shown, and nothing more.

It stands where the model does, so that everything around the model can be measured by itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.sample_videos import SampleClip, answer_for, pairs_of
from model.processor import Processor
from model.request import Completion, EngineStats, Prompt
from pipeline.job import resolve_model

_KEY = re.compile(r"([0-9a-f]+)#(\d+)/1")  # of a prompt about a window: the video and the window's number
_TIME = re.compile(r"<([0-9.]+) seconds>")


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleLoader:
    """Makes the oracle where it is called: in the replica."""

    clips: Mapping[str, SampleClip]  # by the id of their video
    model: str  # the checkpoint whose processor made the prompts
    fps: float  # sampled frames a second
    step_us: int  # from the start of a window to the start of the next

    def __call__(self) -> "Oracle":
        return Oracle(self)


@dataclass(slots=True)
class Oracle:
    """Answers every prompt in the next step. Window n begins at (n - 1) * step_us, its k-th frame k / fps later."""

    truth: OracleLoader
    stats: EngineStats = field(default_factory=lambda: EngineStats(max_batch_size=8))
    _waiting: list[Prompt] = field(default_factory=list)
    _processor: Processor = field(init=False)

    def __post_init__(self) -> None:
        self._processor = Processor.from_pretrained(resolve_model(self.truth.model))

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def add(self, prompt: Prompt) -> None:
        self._waiting.append(prompt)

    def step(self) -> Sequence[Completion]:
        size = self.stats.max_batch_size
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        self.stats = replace(self.stats, steps=self.stats.steps + 1, running_sum=self.stats.running_sum + len(batch))
        return [self._completion(prompt) for prompt in batch]

    def _completion(self, prompt: Prompt) -> Completion:
        match = _KEY.fullmatch(prompt.key)
        assert match, f"{prompt.key} names no window"
        origin = (int(match[2]) - 1) * self.truth.step_us / 1_000_000
        told = _TIME.findall(self._processor.tokenizer.decode(prompt.token_ids_T.tolist(), skip_special_tokens=True))
        times = [number / self.truth.fps for number in range(2 * len(prompt.grids_G3))]
        if told[-1] == f"{times[-2]:.1f}":  # an odd last frame is shown twice: its own time stands before it
            times.pop()
        expected = [f"{(first + second) / 2:.1f}" for first, second in pairs_of(times)]
        assert told == expected, f"{prompt.key} says {told}, the frames are at {expected}"
        pairs = pairs_of([origin + time for time in times])
        text = answer_for(self.truth.clips[match[1]], pairs, origin)
        tokens = tuple(range(len(text)))
        return Completion(prompt.key, text, tokens, len(prompt.token_ids_T), "stop", 0.0, 0.0, 0.0, 0.0, 0)
