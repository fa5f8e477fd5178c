"""What benchmarks compute before they measure: against published sizes and by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from jobs.bench import sample_pages, until_stop
from jobs.bench_peers import Timed, Took, in_turns, with_vllm
from jobs.bench_roofline import Bench, page_grid, sized_config
from jobs.bench_vllm import one_mark
from model.processor import Processor
from model.qwen3_vl import empty_model
from model.request import Sampling

# Of the published checkpoints (the 30B's as its config gives it).
PARAMETERS = {"2b": 2127532032, "4b": 4437815808, "8b": 8767123696, "32b": 33357390064, "30b-a3b": 31070754032}


def meta_bench(name: str) -> Bench:
    """Formulas only: a network without weights."""
    bench = Bench.__new__(Bench)
    bench.config = sized_config(name)
    bench.network = empty_model(bench.config, device="meta", dtype=torch.bfloat16)
    bench.dtype = bench.cache_dtype = torch.bfloat16
    return bench


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_have_the_parameters_of_the_published_models(name):
    assert sum(parameter.numel() for parameter in meta_bench(name).network.parameters()) == PARAMETERS[name]


def test_a_size_that_is_unknown_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"'9b': choose demo, 2b, 4b, 8b, 32b, 30b-a3b"):
        sized_config("9b")


def test_a_token_is_multiplied_with_its_experts_and_many_tokens_read_all_of_them():
    dense, experts = meta_bench("8b"), meta_bench("30b-a3b")
    assert dense.text_parameters() == dense.text_parameters(64)
    one_layers = 3 * 2048 * 768 * 128 * 48  # of the experts' matrices
    rest = experts.text_parameters(10**6) - one_layers
    assert experts.text_parameters() == rest + one_layers * 8 // 128
    assert experts.text_parameters(1) == experts.text_parameters()
    assert experts.text_parameters(16) == pytest.approx(rest + one_layers * (1 - (15 / 16) ** 16), rel=1e-6)


def test_a_token_of_the_8b_takes_its_bytes_in_the_cache():
    assert meta_bench("8b").cache_bytes() == 147_456  # 36 layers x 8 heads x 128 x 2 x 2 bytes


def test_a_page_is_nearly_square_and_marks_and_stops_are_cut():
    assert page_grid(256, 2) == (1, 32, 32)
    assert page_grid(90, 2) == (1, 18, 20)
    assert one_mark([1, 9, 9, 9, 2, 2], 9) == [1, 9, 2, 2]
    assert until_stop([4, 5, 0, 0], frozenset([0])) == [4, 5]


def test_those_that_are_compared_take_turns_and_the_least_counts():
    order = []

    def taking(name: str, times: list[float]) -> Timed:
        def once() -> tuple[Took, str]:
            order.append(name)
            seconds = times.pop(0)
            return Took(seconds, 10 - seconds), f"{name} {seconds}"

        return once

    results = in_turns(2, [taking("ours", [3.0, 1.0]), taking("theirs", [2.0, 4.0])])
    assert order == ["ours", "theirs", "ours", "theirs"]
    assert results == [(Took(1.0, 7.0), "ours 1.0"), (Took(2.0, 6.0), "theirs 4.0")]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_vllm_that_ends_is_told_and_not_waited_for():
    model = str(Path(__file__).parents[2] / "model" / "demo")
    page = sample_pages(Processor.from_pretrained(model), "plain_lines", 1, Sampling(max_new_tokens=4))[0]
    with (
        pytest.raises(RuntimeError, match="vLLM ended with status 1"),
        with_vllm(Path(sys.executable), model, 1, [page.prompt], [page.pixels]),
    ):
        pass
