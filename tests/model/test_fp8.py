"""FP8: the quantiser, official checkpoints against their dequantised twins, and the cache."""

import json
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_engine import mixed_contents, mixed_prompts, run
from tiny import random_pair

import model.fp8
import model.weights
from model.attention import checked_implementation
from model.config import read_config
from model.engine import Engine
from model.engine_options import EngineOptions
from model.fp8 import Fp8Linear, dequantise, quantise
from model.qwen3_vl import empty_model
from model.weights import from_pretrained

OFFICIAL = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.visual.merger.linear_fc1"],
}


@pytest.mark.parametrize("shape", [(128, 128), (300, 130), (2, 140, 500), (1, 1)])
def test_the_quantiser_round_trips(shape):
    """e4m3 keeps three bits behind the leading one: half a step is 1/16 of a value, and 2^-10 of a scale near zero."""
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.rand(shape).mul(20).exp2()
    values, scales = quantise(weight)
    assert scales.shape == (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    again = dequantise(values, scales)
    assert ((again - weight).abs() <= weight.abs() / 16 + scales.max() * 2**-10).all()
    twice, same_scales = quantise(again)
    assert torch.equal(dequantise(twice, same_scales), again)


def test_every_block_has_a_scale_of_its_own_and_zeros_stay_zeros():
    weight = torch.zeros(256, 384)
    weight[:128, 128:256] = 1e-6
    weight[128:, 256:] = 1e6
    values, scales = quantise(weight)
    torch.testing.assert_close(scales, torch.tensor([[1, 1e-6 / 448, 1], [1, 1, 1e6 / 448]]))
    torch.testing.assert_close(dequantise(values, scales), weight)


def as_fp8(folder, *, split=False, official=False):
    """Rewrites a checkpoint as its FP8 export -> the same with dequantised weights, by name in the network."""
    tensors, exported, dequantised = load_file(folder / "model.safetensors"), {}, {}
    for name, tensor in tensors.items():
        plain = ".language_model.layers." not in name or "_proj" not in name
        if plain:
            exported[name] = dequantised[name] = tensor
        elif ".experts." in name and split:
            parts = [tensor.chunk(2, dim=1)] if "gate_up" in name else [(tensor,)]
            kinds = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
            rebuilt = []
            for kind, part in zip(kinds, parts[0], strict=True):
                rebuilt.append([])
                for expert, weight in enumerate(part):
                    values, scales = quantise(weight)
                    own = f"{name.rpartition('.')[0]}.{expert}.{kind}.weight"
                    exported |= {own: values, f"{own}_scale_inv": scales}
                    rebuilt[-1].append(dequantise(values, scales))
            dequantised[name] = torch.cat([torch.stack(one) for one in rebuilt], dim=1)
        else:
            turned = official and ".experts." in name
            values, scales = quantise(tensor.transpose(1, 2) if turned else tensor)
            exported |= {name: values.contiguous(), f"{name}_scale_inv": scales.bfloat16().contiguous()}
            weight = dequantise(values, scales.bfloat16())
            dequantised[name] = weight.transpose(1, 2) if turned else weight
    save_file({name: tensor.contiguous() for name, tensor in exported.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": OFFICIAL}))
    return dequantised


@pytest.mark.parametrize(
    ("moe", "layout"), [(False, {}), (True, {}), (True, {"split": True}), (True, {"official": True})]
)
def test_an_fp8_checkpoint_loads_as_its_dequantised_reference(tmp_path, caplog, moe, layout):
    random_pair(1, tmp_path, moe=moe)
    expected = as_fp8(tmp_path, **layout)
    with caplog.at_level(logging.WARNING):
        loaded = from_pretrained(str(tmp_path), dtype=torch.float32).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    assert [record.message for record in caplog.records] == [
        "cpu does not multiply FP8 blocks (Hopper does): FP8 weights are dequantised at load"
    ]


def test_weights_quantised_at_load_are_those_of_the_fp8_export(tmp_path):
    """The same bytes an exporter would have written, dequantised; what is not the decoder's is untouched."""
    pair = random_pair(2, tmp_path)
    loaded = from_pretrained(str(tmp_path), dtype=torch.float32, quantization="fp8").state_dict()
    changed = {name for name, value in loaded.items() if not torch.equal(value, pair.ours.state_dict()[name])}
    assert changed == {n for n in loaded if ".language_model.layers." in n and n.endswith("_proj.weight")}
    for name in changed:
        assert torch.equal(loaded[name], dequantise(*quantise(pair.ours.state_dict()[name])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop(f"{n}_scale_inv"), r"1 missing \(.*q_proj.weight_scale_inv\)"),
        (lambda t, n: t.update({f"{n}_scale": torch.ones(1)}), r"1 unknown scales \(.*q_proj.weight_scale\)"),
        (lambda t, n: t.update({f"{n}_scale_inv": torch.ones(3, 2)}), r"1 misshapen \(.*is \(3, 2\), not \(1, 1\)\)"),
        (lambda t, n: t.update({"lm_head.input_scale": torch.ones(1)}), r"1 unknown scales \(lm_head.input_scale\)"),
    ],
)
def test_scales_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    random_pair(1, tmp_path)
    as_fp8(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors, "model.language_model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        from_pretrained(str(tmp_path))


def test_other_quantizations_are_refused(tmp_path):
    random_pair(1, tmp_path)
    as_fp8(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name, value in (("quant_method", "awq"), ("weight_block_size", [64, 64]), ("activation_scheme", "static")):
        path.write_text(json.dumps(config | {"quantization_config": OFFICIAL | {name: value}}))
        with pytest.raises(ValueError, match=f"quantization_config.{name} is"):
            from_pretrained(str(tmp_path))
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "quantization_config"}))
    with pytest.raises(ValueError, match="no quantization_config"):
        from_pretrained(str(tmp_path))


def hopper_stand_in(a, b, *, scale_a, scale_recipe_a, scale_b, scale_recipe_b, output_dtype):
    """torch's block-scaled product by its definition, for the layouts its tests on Hopper require."""
    assert (scale_recipe_a, scale_recipe_b) == (
        model.fp8.ScalingType.BlockWise1x128,
        model.fp8.ScalingType.BlockWise128x128,
    )
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert len(a) % 4 == 0  # as cuBLASLt wants rows; one that has fewer scales than it reads gets what lies behind them
    assert a.is_contiguous()
    assert b.stride(0) == 1  # column major
    assert a.shape[1] % 16 == b.shape[1] % 16 == 0
    blocks = -(-a.shape[1] // 128)
    fours = -(-blocks // 4) * 4
    assert scale_a.shape == (len(a), blocks)
    assert scale_a.stride() in ((1, len(a)), (1, 1) if blocks == 1 else ())
    assert scale_b.shape == (fours, -(-b.shape[1] // 128))
    assert scale_b.stride() == (1, fours)
    output = torch.zeros(a.shape[0], b.shape[1])
    columns = torch.arange(b.shape[1]) // 128
    for block in range(scale_a.shape[1]):
        inner = slice(128 * block, 128 * block + 128)
        output += a[:, inner].float() @ b[inner].float() * scale_a[:, block, None] * scale_b[block, columns]
    return output.to(output_dtype)


def test_a_map_in_fp8_blocks_is_near_the_exact_one(monkeypatch):
    monkeypatch.setattr(model.fp8, "scaled_mm", hopper_stand_in)
    torch.manual_seed(0)
    weight, hidden = torch.randn(160, 320), torch.randn(7, 320)
    linear = Fp8Linear(320, 160)
    values, scales = quantise(weight)
    linear.load_state_dict({"weight": values, "weight_scale_inv": scales})
    exact = hidden @ dequantise(values, scales).T
    got = linear(hidden)
    torch.testing.assert_close(
        got, dequantise(*quantise(hidden, 1), rows=1) @ dequantise(values, scales).T, atol=1e-4, rtol=1e-4
    )
    assert (got - exact).norm() / exact.norm() < 0.04


def test_a_network_that_keeps_fp8_answers_as_the_dequantised_one(tmp_path, monkeypatch):
    """Loading for a device that multiplies FP8 blocks: an FP8 checkpoint, and one that is quantised at load."""
    random_pair(1, tmp_path)
    reference = from_pretrained(str(tmp_path), dtype=torch.float32, quantization="fp8")
    monkeypatch.setattr(model.weights, "multiplies_fp8_blocks", lambda device: True)
    made = from_pretrained(str(tmp_path), dtype=torch.float32, quantization="fp8").state_dict()
    as_fp8(tmp_path)
    read = from_pretrained(str(tmp_path), dtype=torch.float32)
    maps = [name for name, module in read.named_modules() if isinstance(module, Fp8Linear)]
    assert len(maps) == 7 * read.config.text.num_hidden_layers
    for name in maps:
        values, scales = read.get_parameter(f"{name}.weight"), read.get_parameter(f"{name}.weight_scale_inv")
        assert values.dtype == torch.float8_e4m3fn
        assert torch.equal(values.float(), made[f"{name}.weight"].float())
        torch.testing.assert_close(scales.data, made[f"{name}.weight_scale_inv"], atol=0, rtol=2**-8)  # bf16 on disk
        own = dequantise(made[f"{name}.weight"], made[f"{name}.weight_scale_inv"])
        assert torch.equal(own, reference.get_parameter(f"{name}.weight"))


class Numbers:
    def decode(self, token_ids, skip_special_tokens):
        return " ".join(map(str, token_ids))


def test_an_fp8_cache_is_near_the_exact_one_and_does_not_depend_on_chunks(tmp_path):
    pair = random_pair(3, tmp_path)
    rng = np.random.default_rng(4)
    prompts = [
        replace(p, sampling=replace(p.sampling, max_new_tokens=5)) for p in mixed_prompts(rng, mixed_contents(rng))
    ]

    def answers(**options):
        engine = Engine(pair.ours, Numbers(), EngineOptions(kv_cache_tokens=4096, **options), frozenset([7]))
        return run(engine, prompts)

    exact, rounded = answers(), answers(kv_cache_dtype="fp8")
    chunked = answers(kv_cache_dtype="fp8", max_step_tokens=11, max_batch_size=3)
    assert [one.token_ids for one in rounded] == [one.token_ids for one in chunked]
    firsts = [(one, two) for one, two in zip(exact, rounded, strict=True) if one.token_ids == two.token_ids]
    assert len(firsts) >= 4
    for one, two in firsts:
        assert one.mean_logprob == pytest.approx(two.mean_logprob, abs=0.1)
    assert [one.mean_logprob for one in exact] != [two.mean_logprob for two in rounded]
    with pytest.raises(ValueError, match="kv_cache_dtype 'fp8': flash_attention_2"):
        EngineOptions(kv_cache_dtype="fp8", attn_implementation="flash_attention_2", block_size=256)


def test_layers_that_the_checkpoint_leaves_out_stay_as_they_were_trained(tmp_path):
    random_pair(1, tmp_path)
    as_fp8(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = OFFICIAL | {"ignored_layers": ["model.language_model.layers.1"]}
    path.write_text(json.dumps(config))
    network = empty_model(read_config(tmp_path), device="meta", dtype=torch.bfloat16, fp8=True)
    kept = {name for name, module in network.named_modules() if isinstance(module, Fp8Linear)}
    assert any(".layers.0." in name for name in kept)
    assert not any(".layers.1." in name for name in kept)
    with pytest.raises(ValueError, match=r"leaves out model.language_model.layers.1.*stored in FP8"):
        from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("capability", "cuda", "multiplies"),
    [((9, 0), "12.9", True), ((9, 0), "13.0", True), ((9, 0), "12.6", False), ((10, 0), "13.0", False)],
)
def test_blocks_are_multiplied_where_torch_has_the_product(monkeypatch, capability, cuda, multiplies):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert model.fp8.multiplies_fp8_blocks(torch.device("cuda")) is multiplies


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_any_number_of_rows_is_multiplied_in_fours(monkeypatch, rows):
    monkeypatch.setattr(model.fp8, "scaled_mm", hopper_stand_in)
    torch.manual_seed(0)
    weight, hidden = torch.randn(160, 320), torch.randn(rows, 320)
    linear = Fp8Linear(320, 160)
    values, scales = quantise(weight)
    linear.load_state_dict({"weight": values, "weight_scale_inv": scales})
    expected = dequantise(*quantise(hidden, 1), rows=1) @ dequantise(values, scales).T
    torch.testing.assert_close(linear(hidden), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("capability", "is_refused"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False)]
)
@pytest.mark.parametrize("name", ["auto", "triton"])
def test_an_fp8_cache_is_refused_where_its_kernel_does_not_compile(monkeypatch, name, capability, is_refused):
    monkeypatch.setattr("model.kernels.HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check = partial(checked_implementation, name, torch.device("cuda", 1), torch.float8_e4m3fn)
    if is_refused:
        with pytest.raises(ValueError, match=rf"capability 8.9 or more, and this one has {capability[0]}"):
            check()
    else:
        assert check() == "triton"
