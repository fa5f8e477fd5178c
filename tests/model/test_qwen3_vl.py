"""The network against transformers' Qwen3-VL: same weights from disk, same tokens and pixels, fp32."""

import numpy as np
import pytest
import torch
from tiny import Pair, random_frames, random_pair, random_prompt, their_inputs

from model.attention import PackedCausal
from model.config import parse_config
from model.qwen3_vl import empty_model
from model.request import Prompt

SEEDS = [*((seed, False) for seed in range(20)), *((seed, True) for seed in range(8))]


def our_hidden_states(pair: Pair, prompts: list[Prompt]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states after each decoder layer (DeepStack added) and the logits, of all prompts packed."""
    network = pair.ours
    ids = torch.from_numpy(np.concatenate([prompt.token_ids_T for prompt in prompts])).long()
    positions = torch.from_numpy(np.concatenate([prompt.positions_3T for prompt in prompts], axis=1))
    grids = [tuple(grid) for prompt in prompts for grid in prompt.grids_G3.tolist()]
    visual = None
    if grids:
        patches = torch.from_numpy(np.concatenate([prompt.patches_PC for prompt in prompts]))
        visual = network.look(patches, grids)
    inputs: list[torch.Tensor] = []
    decoder = network.model.language_model
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in decoder.layers]
    hooks.append(decoder.norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
    hidden = network(ids, positions, PackedCausal([len(prompt.token_ids_T) for prompt in prompts]), visual)
    for hook in hooks:
        hook.remove()
    return inputs[1:], network.logits(hidden)


def their_hidden_states(pair: Pair, inputs: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    states: list[torch.Tensor] = []
    decoder = pair.theirs.model.language_model
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: states.append(args[0]), with_kwargs=True)
        for layer in decoder.layers
    ]
    hooks.append(decoder.norm.register_forward_pre_hook(lambda _, args: states.append(args[0])))
    output = pair.theirs(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    real = inputs["attention_mask"].bool()
    return [state[real] for state in states[1:]], output.logits[real]


LAYOUTS = {
    "text": lambda rng: [[7]],
    "one image": lambda rng: [[3, random_frames(rng), 5]],
    "several images of different size": lambda rng: [
        [2, random_frames(rng), random_frames(rng), 3, random_frames(rng)]
    ],
    "video": lambda rng: [[2, random_frames(rng, pairs=3), 4]],
    "image and video": lambda rng: [[1, random_frames(rng), 2, random_frames(rng, pairs=2), 3]],
    "batch": lambda rng: [
        [4, random_frames(rng), 2],
        [9],
        [1, random_frames(rng, pairs=2), random_frames(rng), 6],
        [random_frames(rng), 2],
    ],
}


@pytest.mark.parametrize(("seed", "moe"), SEEDS)
@torch.no_grad()
def test_hidden_states_and_logits_equal_those_of_transformers(seed, moe, tmp_path):
    pair = random_pair(seed, tmp_path, moe=moe)
    rng = np.random.default_rng(1000 + seed)
    for name, layout in LAYOUTS.items():
        contents = layout(rng)
        prompts = [random_prompt(rng, content) for content in contents]
        our_states, our_logits = our_hidden_states(pair, prompts)
        their_states, their_logits = their_hidden_states(pair, their_inputs(prompts, contents))
        assert len(our_states) == len(their_states)
        for layer in range(len(our_states)):
            torch.testing.assert_close(
                our_states[layer], their_states[layer], atol=1e-4, rtol=1e-4, msg=f"{name}: layer {layer}"
            )
        torch.testing.assert_close(our_logits, their_logits, atol=1e-4, rtol=1e-4, msg=f"{name}: logits")


@pytest.mark.parametrize(("moe", "layers"), [(False, 3), (False, 5), (True, 4)])
@torch.no_grad()
def test_rows_that_are_asked_for_are_those_rows_of_all(moe, layers, tmp_path):
    """Seed 4 has three DeepStack levels: with three layers the last one's is added behind it."""
    network = random_pair(4, tmp_path, moe=moe, num_hidden_layers=layers).ours
    assert len(network.config.vision.deepstack_visual_indexes) == 3
    rng = np.random.default_rng(0)
    prompt = random_prompt(rng, [3, random_frames(rng), 5])
    ids, positions = torch.from_numpy(prompt.token_ids_T).long(), torch.from_numpy(prompt.positions_3T)
    visual = network.look(torch.from_numpy(prompt.patches_PC), [tuple(grid) for grid in prompt.grids_G3.tolist()])
    rows = torch.tensor([1, 4, len(ids) - 1])
    everything, some = (
        network(ids, positions, PackedCausal([len(ids)]), visual, rows_R=wanted) for wanted in (None, rows)
    )
    torch.testing.assert_close(some, everything[rows])


def test_every_decoder_layer_sees_its_deepstack_level(tmp_path):
    pair = random_pair(3, tmp_path)
    rng = np.random.default_rng(0)
    content = [3, random_frames(rng), 5]
    prompt = random_prompt(rng, content)
    patches, grids = torch.from_numpy(prompt.patches_PC), [tuple(grid) for grid in prompt.grids_G3.tolist()]
    with torch.no_grad():
        before = our_hidden_states(pair, [prompt])[1]
        for merger in pair.ours.model.visual.deepstack_merger_list:
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
        assert pair.ours.look(patches, grids).deepstack_LMO.abs().max() == 0
        after = our_hidden_states(pair, [prompt])[1]

    assert (before - after).abs().max() > 1e-2


def official_config(**text: object) -> dict:
    """The 8B's config.json as published; the other sizes differ in a few numbers."""
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": False,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "text_config": {
            "dtype": "bfloat16", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "hidden_act": "silu", "attention_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 5000000,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
            "max_position_embeddings": 262144, **text,
        },
        "vision_config": {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "in_channels": 3,
            "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 2304,
            "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24], "hidden_act": "gelu_pytorch_tanh",
        },
    }  # fmt: skip


SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
FAMILY = {  # hidden, layers, query and key heads, intermediate, experts' intermediate, tied; parameters
    "2B": (2048, 28, 16, 8, 6144, 0, True, 2_127_532_032),
    "4B": (2560, 36, 32, 8, 9728, 0, True, 4_437_815_808),
    "8B": (4096, 36, 32, 8, 12288, 0, False, 8_767_123_696),
    "32B": (5120, 64, 64, 8, 25600, 0, False, 33_357_390_064),
    "30B-A3B": (2048, 48, 32, 4, 6144, 768, False, 31_070_754_032),
    "235B-A22B": (4096, 94, 64, 4, 12288, 1536, False, 235_670_022_896),
}


@pytest.mark.parametrize("size", FAMILY)
def test_every_size_of_the_family_has_the_published_number_of_parameters(size):
    """8B: the number its publisher gives; the others as transformers counts them on its meta device."""
    hidden, layers, heads, key_heads, intermediate, of_expert, tied, parameters = FAMILY[size]
    experts = {
        "moe_intermediate_size": of_expert, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }  # fmt: skip
    raw = official_config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        intermediate_size=intermediate, **(experts if of_expert else {}),
    )  # fmt: skip
    raw |= {"tie_word_embeddings": tied, "model_type": "qwen3_vl_moe" if of_expert else "qwen3_vl"}
    raw["vision_config"] |= {"out_hidden_size": hidden} | (SMALL_TOWER if tied else {})
    network = empty_model(parse_config(raw), device="meta", dtype=torch.bfloat16)

    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "mrope_interleaved": True}}, "rope type is 'dynamic'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "mrope_interleaved": True, "mrope_section": [24, 20, 20]}},
            "'factor' is missing",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "mrope_interleaved": True, "mscale": 1}}, "mscale is 1"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": 2048}, "out_hidden_size 4096 is not the text hidden_size 2048"),
        ({"rope_scaling": {"mrope_interleaved": True, "mrope_section": [16, 24, 20]}}, "sum head_dim / 2"),
    ],
)
def test_a_configuration_the_code_would_run_wrongly_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_config(official_config(**text))


def test_a_missing_key_is_named():
    raw = official_config()
    del raw["text_config"]["head_dim"]

    with pytest.raises(ValueError, match="head_dim"):
        parse_config(raw)


@torch.no_grad()
def test_bfloat16_keeps_rotary_angles_in_full_precision(tmp_path):
    """Far out on the position axis, against transformers loaded in bfloat16 (its `.to` would round inv_freq too)."""
    pair = random_pair(5, tmp_path)
    from_disk = type(pair.theirs).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours = empty_model(pair.config, device="cpu", dtype=torch.bfloat16)
    ours.load_state_dict(pair.ours.state_dict())
    ids = torch.randint(0, 280, (1, 24), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(100_000, 100_024).expand(3, -1)
    theirs = from_disk(input_ids=ids, position_ids=positions[:, None], use_cache=False).logits[0]
    hidden = ours(ids[0], positions, PackedCausal([24]))

    spread = theirs.float().std()
    assert (ours.logits(hidden).float() - theirs.float()).abs().max() < 0.1 * spread
