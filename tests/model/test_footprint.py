"""What a checkpoint takes of memory: the formulas against the official files, and the cache that comes of them."""

import numpy as np
import pytest
import torch

import model.capacity
from model.capacity import cache_tokens
from model.config import parse_config
from model.engine_options import EngineOptions
from model.footprint import available_bytes, token_bytes, weight_bytes
from model.parallel import Group
from model.qwen3_vl import empty_model
from tests.official import BYTES
from tests.official_files import SIZES, config_json, tensors_of


def config_of(name):
    return parse_config(config_json(SIZES[name]))


@pytest.mark.parametrize("name", SIZES)
def test_weights_take_what_the_files_hold(name):
    """Less the head that a tied FP8 checkpoint stores besides."""
    held = sum(
        BYTES[dtype] * int(np.prod(shape))
        for tensor, dtype, shape in tensors_of(SIZES[name])
        if not (SIZES[name].tied and tensor == "lm_head.weight")
    )
    assert weight_bytes(config_of(name), 2, keeps_fp8=SIZES[name].fp8) == held


@pytest.mark.parametrize(("ranks", "expected"), [(1, 147_456), (2, 73_728), (8, 18_432), (16, 18_432)])
def test_a_token_of_the_cache_takes_its_keys_and_values(ranks, expected):
    assert token_bytes(config_of("8B-Instruct"), 2, ranks=ranks) == expected


@pytest.fixture(params=["2B-Instruct", "8B-Instruct", "32B-Instruct"])
def network(request):
    return empty_model(config_of(request.param), device="meta", dtype=torch.float32)


PAGE = 2048 + 1024 + 4096  # tokens of a default page with its prompt and its answer


def test_a_cache_on_a_cpu_holds_a_whole_page_and_its_answer(network, monkeypatch):
    monkeypatch.setattr(model.capacity, "available_bytes", lambda: 20 * 10**9)
    assert cache_tokens(network, EngineOptions(max_sequence_tokens=PAGE), "sdpa") >= PAGE


def test_a_cache_on_a_cpu_grows_with_the_memory_up_to_what_the_batch_can_use(network, monkeypatch):
    monkeypatch.setattr(model.capacity, "available_bytes", lambda: 10**13)
    options = EngineOptions(max_sequence_tokens=PAGE, max_batch_size=8)
    assert cache_tokens(network, options, "sdpa") == 8 * PAGE


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_ranks_of_a_cpu_together_take_no_more_than_their_share_of_the_machine(monkeypatch, size):
    monkeypatch.setattr(model.capacity, "available_bytes", lambda: 10**11)
    config = config_of("8B-Instruct")
    network = empty_model(config, device="meta", dtype=torch.bfloat16, group=Group(0, size))
    options = EngineOptions(max_sequence_tokens=20 * PAGE, tensor_parallel=size)
    held = cache_tokens(network, options, "sdpa") * token_bytes(config, 2, ranks=size) * size
    assert held <= 10**11 * model.capacity.CPU_MEMORY_SHARE


def test_a_page_for_which_there_is_no_room_is_refused_with_what_to_give(network, monkeypatch):
    monkeypatch.setattr(model.capacity, "available_bytes", lambda: 10**9)
    with pytest.raises(ValueError, match=r"7,168 tokens, \d+\.\d GB .* are free for it .*: give less max_new_tokens"):
        cache_tokens(network, EngineOptions(max_sequence_tokens=PAGE), "sdpa")


def test_available_memory_is_that_of_the_container_where_that_is_less(tmp_path, monkeypatch):
    everything = available_bytes()
    monkeypatch.setattr("model.footprint.CGROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert available_bytes() == pytest.approx(everything, rel=0.2)
    (tmp_path / "memory.max").write_text("1000005\n")
    assert available_bytes() == 1_000_000
