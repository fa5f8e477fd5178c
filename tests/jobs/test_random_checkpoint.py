"""Checkpoints of random weights under official files: of their true widths, read by us as transformers reads them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_fp8 import hopper_stand_in
from tiny import their_pixels
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

import model.fp8
import model.weights
from jobs.gpu_answers import whole_logits
from jobs.random_checkpoint import main, thinned
from model.config import parse_config, read_config
from model.layers import pack_weights
from model.processor import Processor
from model.request import Frames, Sampling
from model.weights import from_pretrained
from pipeline.flow import prepare, run
from pipeline.job import IndexJob, ParseJob
from tests.drive import SMALL
from tests.official import BESIDE, DEMO, build_tokenizer, folder_of, stand_in_tokenizer
from tests.official_files import SIZES, config_json, write_small_files
from tests.pipeline.video_files import write_lights

ROOT = Path(__file__).parents[2]
THIN = ["--layers", "3", "--vision-layers", "4"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    return build_tokenizer(BESIDE, place) or stand_in_tokenizer(place)


def small_files(name, place):
    """With a template in any case: the demonstration's where the official one is not beside the checkout."""
    official = folder_of(name, BESIDE, None, place)
    if not (official / "tokenizer_config.json").exists():
        shutil.copy(DEMO / "chat_template.jinja", official)
    return official


def write(name, like, folder, tokenizer, *more):
    small_files(name, like)
    assert main([str(folder), "--like", str(like / name), "--tokenizer", str(tokenizer), *THIN, *more]) == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer):
    """2B-Instruct of its true widths."""
    place = tmp_path_factory.mktemp("random")
    write("2B-Instruct", place, place / "thin", tokenizer)
    return place / "thin"


def conversation(processor):
    """An image, two images and a video in prompts of their own, with what each shows."""
    rng = np.random.default_rng(5)

    def frames(count, height, width):
        pixels = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        return Frames(pixels, tuple(0.5 * number for number in range(count)) if count > 1 else None)

    contents = [
        [frames(1, 128, 96), "qwenvl markdown"],
        [frames(1, 64, 64), "and", frames(1, 32, 160), "differ?"],
        [frames(4, 64, 96), "What happens?"],
    ]
    return [(content, processor.encode("", content, Sampling())) for content in contents]


def their_logits(network, content, prompt, config):
    ids = torch.from_numpy(prompt.token_ids_T.astype(np.int64))[None]
    inputs = {"mm_token_type_ids": (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()}
    for suffix, kind, is_video in (("", "image", False), ("_videos", "video", True)):
        shown = [their_pixels(part) for part in content if isinstance(part, Frames) and bool(part.seconds) == is_video]
        if shown:
            inputs[f"pixel_values{suffix}"] = torch.cat([pixels for pixels, _ in shown])
            inputs[f"{kind}_grid_thw"] = torch.tensor([grid for _, grid in shown])
    return network(input_ids=ids, **inputs).logits[0].float()


@torch.inference_mode()
def compare(folder, dtype, bound, theirs_in=None):
    """The largest difference of a logit, in parts of how far the logits of a token are spread. `theirs_in`: where
    transformers finds the weights, if elsewhere."""
    processor, config = Processor.from_pretrained(str(folder)), read_config(folder)
    cases = conversation(processor)
    theirs = Qwen3VLMoeForConditionalGeneration if config.text.moe else Qwen3VLForConditionalGeneration
    network = theirs.from_pretrained(theirs_in or folder, dtype=dtype).eval()
    expected = [their_logits(network, content, prompt, config) for content, prompt in cases]
    del network
    ours = from_pretrained(str(folder), dtype=dtype)
    pack_weights(ours)
    for (_, prompt), logits in zip(cases, expected, strict=True):
        difference = float((whole_logits(ours, prompt) - logits).abs().max() / logits.std())
        print(f"{folder.name} {dtype}: {difference:.1e} of the spread of the logits")
        assert difference <= bound


def test_true_widths_give_the_logits_of_transformers(small):
    compare(small, torch.float32, 1e-4)


def test_in_bfloat16_they_differ_as_two_orders_of_summation_do(small):
    """A rounding to eight bits in each of some twenty maps: measured at 7 to 8 % of the spread in the worst logit of a
    prompt, on a Xeon with AMX."""
    compare(small, torch.bfloat16, 0.15)


def write_dequantised(folder, place):
    """The FP8 checkpoint in float32, by the definition: every number times the scale of its 128 x 128 block. (What
    transformers has for FP8 wants a GPU, or accelerate.)"""
    place.mkdir()
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (place / "config.json").write_text(json.dumps(config))
    stored = {name: part for path in folder.glob("*.safetensors") for name, part in load_file(path).items()}
    whole = {}
    for name, part in stored.items():
        if f"{name}_scale_inv" in stored:
            scales = torch.kron(stored[f"{name}_scale_inv"].float(), torch.ones(128, 128))
            part = part.float() * scales[: part.shape[0], : part.shape[1]]
        if not name.endswith("_scale_inv") and name != "lm_head.weight":  # the head is tied
            whole[name] = part.float()
    save_file(whole, place / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def narrow_fp8(tmp_path, tokenizer):
    """A 2B-FP8 of a quarter of its widths."""
    like = small_files("2B-Thinking-FP8", tmp_path / "like")
    config = json.loads((like / "config.json").read_text())
    (like / "config.json").unlink()
    config["text_config"] |= {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 4}
    config["text_config"]["num_key_value_heads"] = 2
    config["vision_config"] |= {"out_hidden_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_heads": 2}
    (like / "config.json").write_text(json.dumps(config))
    assert main([str(tmp_path / "fp8"), "--like", str(like), "--tokenizer", str(tokenizer), *THIN]) == 0
    write_dequantised(tmp_path / "fp8", tmp_path / "float32")
    return tmp_path / "fp8"


def test_fp8_gives_the_logits_of_transformers_on_what_its_blocks_say(narrow_fp8):
    compare(narrow_fp8, torch.float32, 1e-4, theirs_in=narrow_fp8.parent / "float32")


def test_fp8_that_is_multiplied_as_fp8_is_as_far_from_them_as_rounded_tokens_are(narrow_fp8, monkeypatch):
    """By the stand-in for Hopper's product: tokens too are rounded, to four bits in front of each of some twenty maps.
    Measured at 37 % of the spread in the worst of millions of logits."""
    monkeypatch.setattr(model.weights, "multiplies_fp8_blocks", lambda device: True)
    monkeypatch.setattr(model.fp8, "scaled_mm", hopper_stand_in)
    compare(narrow_fp8, torch.float32, 0.6, theirs_in=narrow_fp8.parent / "float32")


@pytest.mark.heavy
def test_fp8_of_true_widths_gives_the_logits_of_transformers(tmp_path, tokenizer):
    write("2B-Thinking-FP8", tmp_path, tmp_path / "thin", tokenizer)
    write_dequantised(tmp_path / "thin", tmp_path / "float32")
    compare(tmp_path / "thin", torch.float32, 1e-4, theirs_in=tmp_path / "float32")


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "more"), [("8B-Instruct", []), ("30B-A3B-Instruct", ["--experts", "8"])])
def test_larger_ones_give_the_logits_of_transformers(tmp_path, tokenizer, name, more):
    write(name, tmp_path, tmp_path / "thin", tokenizer, *more)
    compare(tmp_path / "thin", torch.float32, 1e-4)
    compare(tmp_path / "thin", torch.bfloat16, 0.15)


def test_a_page_and_a_window_of_true_widths_end_in_rows_that_say_truncated(small, ray_address, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    write_lights(tmp_path / "b.mp4", 2, [(0.5, 1.0)])
    shared = {"model": str(small), "dtype": "bfloat16", "max_new_tokens": 8}
    tokens = {"max_tokens_per_page": 64, "min_tokens_per_page": 16}
    page = ParseJob(input=str(tmp_path / "a.png"), output=str(tmp_path / "pages"), **tokens, **shared)
    index = IndexJob(input=str(tmp_path / "b.mp4"), output=str(tmp_path / "index"), max_tokens_per_window=64, **shared)
    for job, table in ((page, "pages"), (index, "windows")):
        setup = prepare(job)
        run(setup, SMALL, sys.stderr)
        (row,) = pq.read_table(tmp_path / job.output / table).to_pylist()
        assert (row["status"], row["tokens_out"]) == ("truncated", 8)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["2B-Instruct", "8B-Instruct", "30B-A3B-Instruct", "2B-Thinking-FP8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_job_with_true_widths_ends_in_rows_that_say_truncated(tmp_path, tokenizer, name, dtype):
    more = ["--experts", "8"] if SIZES[name].is_moe else []
    write(name, tmp_path, tmp_path / "thin", tokenizer, *more)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    small = ["--max-tokens-per-page", "64", "--min-tokens-per-page", "16", "--max-new-tokens", "8", "--dtype", dtype]
    command = [sys.executable, "-m", "jobs.parse_documents", str(tmp_path / "a.png"), str(tmp_path / "out")]
    done = subprocess.run([*command, "--model", str(tmp_path / "thin"), *small], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert pq.read_table(tmp_path / "out" / "pages")["status"].to_pylist() == ["truncated"]


def test_the_same_seed_writes_the_same_bytes_and_another_one_others(tmp_path):
    write_small_files(tmp_path / "like", "2B-Thinking-FP8")
    config = json.loads((tmp_path / "like" / "config.json").read_text())
    config["text_config"] |= {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 384}
    config["vision_config"] |= {"out_hidden_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4}
    (tmp_path / "like" / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = {}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        flags = [str(tmp_path / name), "--like", str(tmp_path / "like"), "--tokenizer", str(tmp_path), *THIN]
        assert main([*flags, "--seed", seed, "--shard-gb", "0.002"]) == 0
        weights[name] = b"".join(path.read_bytes() for path in sorted((tmp_path / name).glob("*.safetensors")))
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
    assert weights["a"] == weights["b"] != weights["c"]
    from_pretrained(str(tmp_path / "a"), dtype=torch.float32)
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" in index["weight_map"]  # as tied FP8 checkpoints have it


@pytest.mark.parametrize("name", SIZES)
def test_thinned_configurations_are_configurations(name):
    experts = 8 if SIZES[name].is_moe else None
    config = parse_config(thinned(config_json(SIZES[name]), 3, 5, experts))
    assert (config.text.num_hidden_layers, config.vision.depth) == (3, 5)
    assert len(set(config.vision.deepstack_visual_indexes)) == 3
    assert max(config.vision.deepstack_visual_indexes) < 5


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((2, None, None), "num_hidden_layers must lie between 3 and the 28 there are, not 2"),
        ((None, 99, None), "depth must lie between 3 and the 24"),
        ((None, None, 4), "num_experts 4: the checkpoint has no experts"),
    ],
)
def test_what_cannot_be_thinned_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        thinned(config_json(SIZES["2B-Instruct"]), *numbers)


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    write_small_files(tmp_path / "like", "2B-Instruct")
    assert main([str(tmp_path), "--like", str(tmp_path / "like")]) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    assert main([str(tmp_path / "new"), "--like", str(tmp_path / "like")]) == 2
    assert "give --tokenizer" in capsys.readouterr().err
