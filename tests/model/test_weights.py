"""The loader takes the official layouts and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_config, random_pair
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

from model.attention import PackedCausal
from model.layers import pack_weights
from model.weights import from_pretrained, save_weights

DEMO = Path(__file__).parents[2] / "model" / "demo"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_sharded_checkpoint_loads_as_the_single_file_does(tmp_path):
    pair = random_pair(0, tmp_path / "single")
    pair.theirs.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2

    sharded = from_pretrained(str(tmp_path / "sharded"), dtype=torch.float32).state_dict()

    assert sharded.keys() == pair.ours.state_dict().keys()
    assert all(torch.equal(sharded[name], value) for name, value in pair.ours.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.visual.merger.norm.bias"), r"1 missing \(model.visual.merger.norm.bias\)"),
        (lambda t: t.update(surprise=torch.zeros(1)), r"1 unexpected \(surprise\)"),
        (
            lambda t: t.update({"model.visual.patch_embed.proj.bias": torch.zeros(5)}),
            r"1 misshapen \(model.visual.patch_embed.proj.bias is \(5,\), not",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    random_pair(1, tmp_path)
    rewrite(tmp_path, change)

    with pytest.raises(ValueError, match=message):
        from_pretrained(str(tmp_path))


def test_an_index_that_names_a_missing_file_is_refused(tmp_path):
    pair = random_pair(2, tmp_path / "single")
    pair.theirs.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[0]
    shard.unlink()

    with pytest.raises(ValueError, match=shard.name):
        from_pretrained(str(tmp_path / "sharded"))


def as_official(tensors):
    for name in [name for name in tensors if ".mlp.experts." in name]:
        tensors[name] = tensors[name].transpose(1, 2).contiguous()


def as_split(tensors):
    """One matrix for each expert and projection, as quantised exports have them."""
    for name in [name for name in tensors if name.endswith("experts.gate_up_proj")]:
        prefix = name.removesuffix(".gate_up_proj")
        gate_up, down = tensors.pop(name), tensors.pop(f"{prefix}.down_proj")
        half = gate_up.shape[1] // 2
        for expert in range(len(down)):
            tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate_up[expert, :half].contiguous()
            tensors[f"{prefix}.{expert}.up_proj.weight"] = gate_up[expert, half:].contiguous()
            tensors[f"{prefix}.{expert}.down_proj.weight"] = down[expert].contiguous()


@pytest.mark.parametrize("layout", [as_official, as_split])
@pytest.mark.parametrize("seed", range(3))
def test_experts_load_from_every_layout_found_on_disk(tmp_path, seed, layout):
    pair = random_pair(seed, tmp_path, moe=True)
    rewrite(tmp_path, layout)

    again = from_pretrained(str(tmp_path), dtype=torch.float32).state_dict()

    assert any(".experts." in name for name in again)
    assert all(torch.equal(value, pair.theirs.state_dict()[name]) for name, value in again.items())


@pytest.mark.parametrize(("intermediate", "ambiguous"), [(32, "gate_up_proj"), (64, "down_proj")])
def test_square_experts_need_to_be_told_how_they_are_stored(tmp_path, intermediate, ambiguous):
    config = random_config(np.random.default_rng(3), moe=True)
    config.text_config.moe_intermediate_size, config.text_config.mlp_only_layers = intermediate, []
    config.text_config.hidden_size = config.vision_config.out_hidden_size = 64
    theirs = Qwen3VLMoeForConditionalGeneration(config)
    theirs.save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=rf"{ambiguous} is square.*Set the option\n? *expert_layout"):
        from_pretrained(str(tmp_path))
    loaded = from_pretrained(str(tmp_path), dtype=torch.float32, expert_layout="transformers").state_dict()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in loaded.items())
    rewrite(tmp_path, as_official)
    loaded = from_pretrained(str(tmp_path), dtype=torch.float32, expert_layout="official").state_dict()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in loaded.items())


def test_an_error_names_the_first_ten_tensors(tmp_path):
    pair = random_pair(1, tmp_path, moe=True)
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in sorted(tensors)[:12]])

    with pytest.raises(ValueError, match="12 missing") as caught:
        from_pretrained(str(tmp_path))

    named = str(caught.value).split("12 missing (")[1].split(", ...)")[0].split(", ")
    assert named == sorted(pair.ours.state_dict())[:10]


def test_neither_a_folder_nor_a_hub_id_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        from_pretrained(str(tmp_path / "not there"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        from_pretrained(str(tmp_path))


@pytest.mark.parametrize("seed", [0, 4])
def test_what_we_save_transformers_loads_without_a_missing_or_unexpected_key(tmp_path, seed):
    pair = random_pair(seed, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_weights(pair.ours, tmp_path / "ours", torch.float32)
    (tmp_path / "ours" / "config.json").write_text((tmp_path / "theirs" / "config.json").read_text())

    again, report = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.equal(value, pair.theirs.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_older_spelling_of_rotary_settings_reads_the_same(tmp_path):
    pair = random_pair(6, tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    rope = raw["text_config"].pop("rope_parameters")
    raw["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    path.write_text(json.dumps(raw))

    assert from_pretrained(str(tmp_path)).config == pair.config


def test_transformers_loads_the_demo_checkpoint_without_a_missing_or_unexpected_key():
    _, report = Qwen3VLForConditionalGeneration.from_pretrained(DEMO, output_loading_info=True)

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def drawn_pair(folder, *, tied):
    """A random pair whose head is that of the embedding, or a matrix of its own as that of 8B and larger."""
    seed = 0
    while (pair := random_pair(seed, folder)).config.tie_word_embeddings != tied:
        seed += 1
    return pair


def test_an_untied_head_that_is_packed_for_a_cpu_gives_the_logits_of_transformers(tmp_path):
    pair = drawn_pair(tmp_path, tied=False)
    ids = torch.arange(5, 25)
    with torch.inference_mode():
        pack_weights(pair.ours)
        hidden = pair.ours(ids, ids.expand(3, -1) - 5, PackedCausal([20]))
        theirs = pair.theirs(input_ids=ids[None], mm_token_type_ids=torch.zeros(1, 20, dtype=torch.int)).logits[0]
        torch.testing.assert_close(pair.ours.logits(hidden), theirs, atol=1e-4, rtol=1e-4)


def test_a_tied_checkpoint_may_store_its_head_besides_and_an_untied_one_must(tmp_path):
    drawn_pair(tmp_path / "tied", tied=True)
    embedding = "model.language_model.embed_tokens.weight"
    rewrite(tmp_path / "tied", lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    assert from_pretrained(str(tmp_path / "tied")).config.tie_word_embeddings
    drawn_pair(tmp_path / "untied", tied=False)
    rewrite(tmp_path / "untied", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"1 missing \(lm_head.weight\)"):
        from_pretrained(str(tmp_path / "untied"))
