"""What a checkpoint takes of memory: the formulas against the official files, and the cache that comes of them."""

import dataclasses
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model.capacity
from model.attention import PackedCausal
from model.capacity import cache_tokens
from model.config import parse_config
from model.engine_options import EngineOptions
from model.footprint import available_bytes, pass_bytes, token_bytes, weight_bytes
from model.parallel import Group
from model.qwen3_vl import empty_model
from tests.official import BYTES
from tests.official_files import SIZES, config_json, tensors_of

README = Path(__file__).parents[2] / "README.md"
FAMILY = ["2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B"]


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


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most there were at once."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.storages = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in given | self.storages:
                self.storages.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.free, key, size)
        return result

    def free(self, key, size):
        self.storages.discard(key)
        self.now -= size


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_takes_what_is_alive_in_it_and_not_twice_as_much(name, dtype):
    """On shapes alone, three blocks and two layers deep: depth adds nothing."""
    whole, tokens = config_of(f"{name}-Instruct"), 2048
    vision = dataclasses.replace(whole.vision, depth=3, deepstack_visual_indexes=(0, 1, 2))
    text = dataclasses.replace(whole.text, num_hidden_layers=2, vocab_size=1000)
    thin = dataclasses.replace(whole, vision=vision, text=text)
    network = empty_model(thin, device="meta", dtype=dtype)
    with Living() as tower:
        network.look(torch.zeros(tokens * 4, 768, dtype=torch.uint8, device="meta"), [(1, 2, 2 * tokens)], "sdpa")
    assert tower.most < pass_bytes(whole, dtype.itemsize, step_tokens=1, image_tokens=tokens, rows=0) < 2 * tower.most
    if whole.text.moe and dtype == torch.float32:  # grouped products are for bfloat16 alone on meta tensors
        return
    ids = torch.zeros(tokens, dtype=torch.long, device="meta")
    with Living() as decoder:
        network(ids, ids.expand(3, -1), PackedCausal([tokens], "sdpa"))
    assert (
        decoder.most < pass_bytes(whole, dtype.itemsize, step_tokens=tokens, image_tokens=1, rows=0) < 2 * decoder.most
    )


@pytest.mark.parametrize(("ranks", "expected"), [(1, 147_456), (2, 73_728), (8, 18_432), (16, 18_432)])
def test_a_token_of_the_cache_takes_its_keys_and_values(ranks, expected):
    assert token_bytes(config_of("8B-Instruct"), 2, ranks=ranks) == expected


@pytest.fixture(params=["2B-Instruct", "8B-Instruct", "32B-Instruct"])
def network(request):
    return empty_model(config_of(request.param), device="meta", dtype=torch.float32)


PAGE = 2048 + 1024 + 4096  # tokens of a default page with its prompt and its answer


def row_of(name):
    """What the README's table says of a checkpoint, from the formulas: bfloat16, or the decoder's matrices in FP8."""
    config, cache = config_of(f"{name}-Instruct"), token_bytes(config_of(f"{name}-Instruct"), 2)
    weights = [weight_bytes(config, 2, keeps_fp8=fp8) for fp8 in (False, True)]
    one_pass = pass_bytes(config, 2, step_tokens=2048, image_tokens=2048, rows=320)
    needs = [[w + one_pass + pages * PAGE * cache for w in weights] for pages in (1, 64)]
    cells = [f"{w / 1e9:.1f} GB" for w in weights] + [f"{1000 * cache / 1e9:.2f} GB"]
    return [f"Qwen3-VL-{name}", *cells, *(f"{a / 1e9:.0f} / {b / 1e9:.0f} GB" for a, b in needs)]


@pytest.mark.parametrize("name", FAMILY)
def test_the_table_of_the_readme_is_that_of_the_formulas(name):
    (line,) = re.findall(rf"^\| (Qwen3-VL-{name} .*) \|$", README.read_text(), re.MULTILINE)
    assert line.split(" | ") == row_of(name)


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
