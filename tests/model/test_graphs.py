"""Recorded steps answer as others do, in Triton's interpreter. What is recorded here is replayed by calling it again:
only a GPU can show the recording itself (`python -m jobs.bench roofline --cuda-graphs --device cuda`)."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from test_engine import SAMPLED, Numbers, make_engine, mixed_contents, mixed_prompts, run, tokens
from tiny import Pair, random_pair

from model import kernels
from model.attention import CachedChunk
from model.engine import Engine
from model.engine_options import EngineOptions
from model.graphs import LONGEST_CHUNK, StepGraphs, graph_bytes
from model.request import Completion, Prompt
from model.runner import Runner

if not kernels.is_interpreted():
    pytest.skip("needs Triton's interpreter: conftest asks for it where there is no GPU", allow_module_level=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(6, tmp_path_factory.mktemp("checkpoint"))


class Recorder:
    """Repeats the work, and counts; what the work gives is spoiled first, as the memory of a graph is by the next."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self._last: torch.Tensor | None = None

    def __call__(self, work):
        self.recorded += 1

        def replay() -> torch.Tensor:
            self.replayed += 1
            if self._last is not None:
                self._last.fill_(torch.nan)
            self._last = work()
            return self._last

        return replay


def recorded_run(pair: Pair, prompts: Sequence[Prompt], recorder: Recorder, **options) -> list[Completion]:
    wanted = {"kv_cache_tokens": 4096, "prefix_cache": False, "attn_implementation": "triton", **options}
    engine_options = EngineOptions(**wanted)
    engine = Engine(pair.ours, Numbers(), engine_options, frozenset([7]))
    engine._runner = Runner(
        pair.ours,
        num_blocks=4096 // engine_options.block_size,
        block_size=engine_options.block_size,
        implementation="triton",
        cache_dtype=torch.float8_e4m3fn if engine_options.kv_cache_dtype else None,
        graphs=partial(
            StepGraphs,
            max_sequences=engine_options.max_batch_size,
            max_rows=engine_options.max_step_rows,
            record=recorder,
        ),
    )
    return run(engine, prompts)


def test_recorded_steps_answer_as_others_do_with_drafts_too(pair):
    rng = np.random.default_rng(41)
    contents = mixed_contents(rng)
    prompts = [*mixed_prompts(rng, contents)[:2], *mixed_prompts(rng, contents, **SAMPLED)[2:4]]
    expected = run(make_engine(pair), prompts)
    plain, drafting = Recorder(), Recorder()
    assert tokens(recorded_run(pair, prompts, plain, max_batch_size=3)) == tokens(expected)
    assert tokens(recorded_run(pair, prompts, Recorder(), max_batch_size=3, overlap=True)) == tokens(expected)
    assert plain.replayed > 10
    assert plain.recorded == 4  # 1, 2 and 3 sequences, rounded up, and a check of drafts, which never comes
    drafted = [
        Prompt(**{name: getattr(prompt, name) for name in Prompt.__slots__ if name != "draft_text"}, draft_text=text)
        for prompt, text in zip(prompts, (" ".join(map(str, answer.token_ids)) for answer in expected), strict=True)
    ]
    completions = recorded_run(pair, drafted, drafting)
    assert tokens(completions) == tokens(expected)
    assert sum(completion.accepted_tokens for completion in completions) > 10
    assert 0 < drafting.replayed < plain.replayed


def test_recorded_steps_read_a_cache_of_fp8(pair):
    rng = np.random.default_rng(42)
    prompts = mixed_prompts(rng, mixed_contents(rng))[:3]
    expected = run(make_engine(pair, kv_cache_dtype="fp8"), prompts)
    recorder = Recorder()
    assert tokens(recorded_run(pair, prompts, recorder, kv_cache_dtype="fp8")) == tokens(expected)
    assert recorder.replayed


def test_a_step_that_is_too_large_does_not_fit(pair):
    runner = Runner(pair.ours, num_blocks=4, block_size=16, implementation="triton")
    graphs = StepGraphs(pair.ours, runner._cache, max_sequences=2, max_rows=30, spare_block=3, record=Recorder())
    one, long = CachedChunk([0], 4, 5), CachedChunk([0, 1], 4, 21)
    assert graphs.fits([one, long])
    assert graphs.fits([long])
    assert not graphs.fits([one, one, one])
    assert not graphs.fits([long, long])  # 34 rows
    assert graphs.fits([CachedChunk([0, 1], 4, 4 + LONGEST_CHUNK)])
    assert not graphs.fits([CachedChunk([0, 1], 4, 5 + LONGEST_CHUNK)])  # no draft is so long


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuda_graphs": True}, "needs device cuda and tensor_parallel 1, not cpu and 1"),
        ({"cuda_graphs": True, "device": "cuda", "tensor_parallel": 2}, "not cuda and 2"),
    ],
)
def test_graphs_are_refused_where_they_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**options)


def test_all_graphs_give_their_logits_in_one_buffer(pair):
    """What each gave out in a tensor of its own stayed allocated: 4 to 10 GB for the sizes of a batch of 64 to 256."""
    runner = Runner(pair.ours, num_blocks=8, block_size=16, implementation="triton")
    graphs = StepGraphs(pair.ours, runner._cache, max_sequences=3, max_rows=30, spare_block=7, record=lambda work: work)
    with torch.inference_mode():
        given = [
            graphs.logits(
                np.zeros(count, np.int64),
                np.zeros((3, count), np.int64),
                [CachedChunk([n], 4, 5) for n in range(count)],
            )
            for count in (1, 2, 3)
        ]
    assert len({logits.data_ptr() for logits in given}) == 1
    vocabulary = pair.config.text.vocab_size
    held = given[0].untyped_storage().nbytes()
    assert graph_bytes(1000, max_rows=30, vocab_size=vocabulary, element_bytes=4) == 1000 + held
