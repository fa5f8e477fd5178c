"""YaRN and contexts of up to a million positions, against transformers' functions and a full-attention pass."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import END, IMAGE, START, VIDEO, Pair, every_row, random_frames, random_pair, random_prompt, their_inputs
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from model.attention import PackedCausal
from model.config import ModelConfig, TextConfig, VisionConfig, YarnConfig, extended
from model.engine import Engine
from model.engine_options import EngineOptions
from model.positions import mrope_positions
from model.qwen3_vl import Qwen3VL
from model.request import Prompt, Sampling
from model.text import rotary, rotary_frequencies
from model.weights import from_pretrained
from tests.memory import resident

NATIVE = 262_144
OFFICIAL = {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}


def their_rotary(yarn: dict | None) -> Qwen3VLTextRotaryEmbedding:
    kind = {"rope_type": "yarn", **yarn} if yarn else {"rope_type": "default"}
    config = Qwen3VLTextConfig(head_dim=128, max_position_embeddings=1_000_000, rope_parameters={**OFFICIAL, **kind})
    return Qwen3VLTextRotaryEmbedding(config)


def our_config(yarn: YarnConfig | None) -> TextConfig:
    return TextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=128, rms_norm_eps=1e-6, rope_theta=5e6, mrope_section=(24, 20, 20),
        max_position_embeddings=1_000_000, yarn=yarn, moe=None,
    )  # fmt: skip


SCALINGS = [
    None,
    {"factor": 2.0, "original_max_position_embeddings": NATIVE},
    {"factor": 3.0, "original_max_position_embeddings": NATIVE},
    {"factor": 4.0, "original_max_position_embeddings": 32_768, "beta_fast": 16.0, "beta_slow": 2.0},
    {"factor": 3.0, "original_max_position_embeddings": NATIVE, "attention_factor": 1.5},
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_cos_and_sin_equal_the_reference_up_to_a_million_positions(scaling):
    theirs = their_rotary(scaling)
    config = our_config(YarnConfig(**scaling) if scaling else None)
    frequencies, scale = rotary_frequencies(config, torch.device("cpu"))
    assert torch.equal(frequencies, theirs.inv_freq)
    assert scale == theirs.attention_scaling
    rng = np.random.default_rng(0)
    everywhere = np.concatenate([np.arange(64), rng.integers(0, 1_000_001, (3 * 1000)), [1_000_000] * 2])
    positions = torch.from_numpy(everywhere.reshape(3, -1))
    cos, sin = rotary(positions, config)
    their_cos, their_sin = theirs(torch.empty(1), positions[:, None])
    torch.testing.assert_close(cos, their_cos[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, their_sin[0], atol=1e-6, rtol=0)


def test_yarn_keeps_fast_frequencies_and_slows_the_rest_by_its_factor():
    """The bounds and factors the official configuration leads to, computed by hand."""
    plain, _ = rotary_frequencies(our_config(None), torch.device("cpu"))
    slowed, scale = rotary_frequencies(our_config(YarnConfig(3.0, NATIVE)), torch.device("cpu"))
    ratio = plain / slowed
    assert torch.equal(ratio[:30], torch.ones(30))
    torch.testing.assert_close(ratio[45:], torch.full((19,), 3.0))
    assert (ratio[30:45].diff() > 0).all()
    assert scale == pytest.approx(0.1 * math.log(3) + 1)


def edited(folder: Path, change) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw["text_config"])
    path.write_text(json.dumps(raw))


@torch.no_grad()
def test_a_network_with_yarn_answers_as_transformers_does(tmp_path):
    """The setting of the README of Qwen3-VL: in the file, and by option over a file without it."""
    pair = random_pair(3, tmp_path)
    rng = np.random.default_rng(1)
    content = [5, random_frames(rng, pairs=2), 3, random_frames(rng), 40]
    prompt = random_prompt(rng, content)
    option = from_pretrained(str(tmp_path), dtype=torch.float32, max_context=12_000, rope_scaling_factor=3.0)
    yarn = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 4096}
    edited(tmp_path, lambda text: text["rope_parameters"].update(yarn))
    edited(tmp_path, lambda text: text.update(max_position_embeddings=12_000))
    file = from_pretrained(str(tmp_path), dtype=torch.float32)
    assert file.config == option.config
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected = theirs(**their_inputs([prompt], [content])).logits[0]
    for network in (file, option):
        visual = network.look(torch.from_numpy(prompt.patches_PC), [tuple(g) for g in prompt.grids_G3.tolist()])
        positions = torch.from_numpy(prompt.positions_3T)
        attention = PackedCausal([len(prompt.token_ids_T)])
        hidden = network(torch.from_numpy(prompt.token_ids_T).long(), positions, attention, visual)
        torch.testing.assert_close(network.logits(hidden), expected, atol=1e-4, rtol=1e-4)
    assert (pair.theirs(**their_inputs([prompt], [content])).logits[0] - expected).abs().max() > 1e-2


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(3, tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(
    ("max_context", "factor", "message"),
    [
        (None, 2.0, "silently change the answers to all prompts, short ones too.*longest is 4096 tokens"),
        (4096, 2.0, "trained on 4096"),
        (5000, None, "max_context is 5000, but the model was trained on 4096"),
        (5000, 1.0, "rope_scaling_factor must be more than 1, not 1.0"),
        (0, None, "max_context must be at least 1, not 0"),
    ],
)
def test_scaling_is_refused_where_it_would_change_short_prompts_only(pair, max_context, factor, message):
    with pytest.raises(ValueError, match=message):
        Engine.from_pretrained(str(pair.folder), EngineOptions(max_context=max_context, rope_scaling_factor=factor))


def test_a_checkpoint_that_scales_by_itself_may_not_serve_a_short_context(pair):
    text = replace(pair.config.text, max_position_embeddings=9000, yarn=YarnConfig(2.0, 4096))
    config: ModelConfig = replace(pair.config, text=text)
    assert extended(config, None, None) == config
    with pytest.raises(ValueError, match="silently"):
        extended(config, 3000, None)


class Silent:
    def decode(self, token_ids, skip_special_tokens):
        return ""


def test_a_scaled_context_is_bounded_by_positions_and_tokens(pair):
    """Visual tokens take fewer positions than places, so a context may have more tokens than YaRN has positions."""
    config = extended(pair.config, 20_000, 2.0)
    assert config.text.yarn.max_position == 8192
    network = from_pretrained(str(pair.folder), dtype=torch.float32, max_context=20_000, rope_scaling_factor=2.0)
    engine = Engine(network, Silent(), EngineOptions(kv_cache_tokens=30_000), frozenset())
    rng = np.random.default_rng(0)
    engine.add(random_prompt(rng, [8191], "fits"))
    with pytest.raises(ValueError, match=r"8192 tokens.*positions reach 8192"):
        engine.add(random_prompt(rng, [8192], "too far"))


def probed_logits(pair: Pair, prompt, probes: list[int], **options) -> torch.Tensor:
    """Logits at some tokens of a prompt that the engine reads in chunks."""
    engine = Engine(pair.ours, Silent(), EngineOptions(**options), frozenset())
    engine.add(replace(prompt, sampling=Sampling(max_new_tokens=1)))
    with every_row(pair.ours) as chunks:
        list(engine.drain())
    assert len(chunks) == math.ceil(len(prompt.token_ids_T) / options["max_step_tokens"])
    return pair.ours.logits(torch.cat(chunks)[probes])


@torch.inference_mode()
def test_sixteen_thousand_tokens_in_chunks_equal_full_attention(tmp_path):
    """Past the largest mask: late chunks are attended a few rows at a time."""
    pair = random_pair(3, tmp_path)
    pair.ours.config = extended(pair.config, 2**14 + 64, 5.0)
    pair.ours.model.language_model.config = pair.ours.config.text
    pair.theirs = from_their_config(pair, 5.0)
    rng = np.random.default_rng(5)
    content = [2000, random_frames(rng, pairs=3), 7000, random_frames(rng), 7000]
    prompt = random_prompt(rng, content)
    length = len(prompt.token_ids_T)
    assert 16_000 < length < 2**14
    probes = [0, 1, 2003, 2050, 4095, 4096, 9030, *rng.integers(9100, length, 20).tolist(), length - 1]
    ours = probed_logits(pair, prompt, probes, max_step_tokens=1000, kv_cache_tokens=2**14 + 64, block_size=16)
    hidden = pair.theirs.model(**their_inputs([prompt], [content]), use_cache=False).last_hidden_state[0, probes]
    torch.testing.assert_close(ours, pair.theirs.lm_head(hidden), atol=1e-4, rtol=1e-4)


def from_their_config(pair: Pair, factor: float) -> Qwen3VLForConditionalGeneration:
    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 4096}
    edited(pair.folder, lambda text: text["rope_parameters"].update(yarn))
    return Qwen3VLForConditionalGeneration.from_pretrained(pair.folder).eval()


LAYERS, KEY_HEADS, HEAD_DIM = 2, 1, 32
FRAME_TOKENS = 640


def video_memory(num_frames: int) -> tuple[int, int]:
    """Reads a prompt of a video of equal frames in chunks -> its tokens, and by how many bytes memory grew."""
    text = our_config(None)
    text = replace(
        text, vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=LAYERS, head_dim=HEAD_DIM,
        num_key_value_heads=KEY_HEADS, mrope_section=(6, 5, 5), max_position_embeddings=NATIVE,
    )  # fmt: skip
    vision = VisionConfig(
        depth=1, hidden_size=32, intermediate_size=32, num_heads=2, in_channels=3, patch_size=16, temporal_patch_size=2,
        spatial_merge_size=2, num_position_embeddings=16, out_hidden_size=64, deepstack_visual_indexes=(0,),
    )  # fmt: skip
    torch.manual_seed(0)
    config = ModelConfig(vision, text, True, IMAGE, VIDEO, START, END, "float32")
    network = Qwen3VL(config).eval().requires_grad_(False)
    frame = [1, 2, 3, START, *[VIDEO] * FRAME_TOKENS, END]  # the time takes three tokens here
    ids = np.array([*frame * num_frames, *range(64)], dtype=np.int32)
    grids = np.array([[2, 40, 64]] * num_frames, dtype=np.int32)
    positions, following = mrope_positions(ids, grids, visual_token_ids=(IMAGE, VIDEO), merge_size=2)
    frame_PC = np.random.default_rng(0).integers(0, 256, (40 * 64, 768), dtype=np.uint8)
    patches = np.tile(frame_PC, (2 * num_frames, 1))
    prompt = Prompt("video", ids, positions, following, patches, grids, Sampling(max_new_tokens=1))
    before = resident("VmRSS")
    options = EngineOptions(max_step_tokens=2048, kv_cache_tokens=len(ids) + 64)
    engine = Engine(network, Silent(), options, frozenset())
    engine.add(prompt)
    (completion,) = engine.drain()
    assert math.isfinite(completion.mean_logprob)
    return completion.prompt_tokens, resident("VmHWM") - before


@pytest.mark.heavy
def test_memory_of_a_video_of_256k_tokens_grows_as_the_cache_formula_says():
    """Each length in a process of its own. The formula: keys and values of every layer, and one layer's once more,
    gathered. A mask or scores of chunk x context would add 8 KiB and more a token."""
    grown: dict[int, int] = {}
    for frames in (100, 200, 406):
        code = f"import test_long_context as here; print(*here.video_memory({frames}), here.resident('VmHWM'))"
        began = time.monotonic()
        output = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        tokens, growth, peak = map(int, output.split())
        grown[tokens] = growth
        seconds = time.monotonic() - began
        print(f"{tokens} tokens: {growth / 2**20:.0f} MiB more, {peak / 2**20:.0f} MiB in all, {seconds:.0f} s")
        assert peak < 8 * 2**30
    (first, least), _, (last, most) = sorted(grown.items())
    assert last > 261_000
    layer_bytes = 2 * KEY_HEADS * HEAD_DIM * 4
    per_token = (most - least) / (last - first)
    assert LAYERS * layer_bytes <= per_token < 1.15 * (LAYERS + 1) * layer_bytes
