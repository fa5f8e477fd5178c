"""The official checkpoints, as far as their small files and lists of tensors go: see tests/official.py."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from model.checkpoint import checkpoint_folder, read_sampling, refuse_other_uses
from model.config import read_config
from model.preprocessing import read_image_sizes, read_video_sizes
from model.processor import Processor
from model.request import Sampling
from tests.official import BESIDE, build_tokenizer, checks_of, folder_of
from tests.official_files import SIZES, write_small_files


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(BESIDE, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", SIZES)
def test_an_official_checkpoint_opens_and_its_tensors_fit(name, tmp_path, tokenizer):
    with_prompts = tokenizer if name in ("8B-Instruct", "2B-Thinking-FP8") else None  # others have the same text
    folder = folder_of(name, BESIDE, with_prompts, tmp_path)
    for _, check in checks_of(name, folder, BESIDE):
        check()


def change(folder, file, **keys):
    path = folder / file
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "missing"}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_mean": [0.48, 0.46, 0.41]}, r"image_mean is \[0.48, 0.46, 0.41\]; this version runs"),
        ({"image_std": "missing"}, "image_std is missing, and by default"),
        ({"patch_size": 14}, "patch_size is 14; config.json says 16"),
        ({"patch_size": "missing"}, "patch_size is missing, and by default 14; config.json says 16"),
        ({"merge_size": 4}, "merge_size is 4; config.json says 2"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1; config.json says 2"),
        ({"resample": 2}, "resample is 2; this version runs 3"),
        ({"do_normalize": False}, "do_normalize is False; this version runs True"),
        ({"rescale_factor": 0.5}, "rescale_factor is 0.5"),
        ({"size": {"shortest_edge": 65536}}, "size has no longest_edge"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "shortest_edge is 9, more than longest_edge, 8"),
        ({"size": {"shortest_edge": "a", "longest_edge": 8}}, "shortest_edge is 'a', not a whole number"),
        ({"size": 448}, "size is 448, not an object"),
    ],
)
@pytest.mark.parametrize(
    ("file", "read"),
    [("preprocessor_config.json", read_image_sizes), ("video_preprocessor_config.json", read_video_sizes)],
)
def test_a_setting_that_is_not_ours_is_refused_by_file_and_key(tmp_path, file, read, keys, message):
    if "missing" in keys.values() and read is read_video_sizes:
        pytest.skip("the class of videos has the value that the network has")
    write_small_files(tmp_path, "8B-Instruct")
    change(tmp_path, file, **keys)
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        read(tmp_path, read_config(tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fps": 0}, "fps is 0, not a number above 0"),
        ({"max_frames": 2.5}, "max_frames is 2.5, not a whole number"),
        ({"min_frames": 800}, "min_frames is 800, more than max_frames, 768"),
    ],
)
def test_what_a_file_says_of_frames_is_checked(tmp_path, keys, message):
    write_small_files(tmp_path, "8B-Instruct")
    change(tmp_path, "video_preprocessor_config.json", **keys)
    with pytest.raises(ValueError, match=message):
        read_video_sizes(tmp_path, read_config(tmp_path))


def test_settings_are_read_from_all_the_places_they_are_kept_in(tmp_path):
    write_small_files(tmp_path, "8B-Instruct")
    config = read_config(tmp_path)
    change(tmp_path, "preprocessor_config.json", min_pixels=1024, max_pixels=2048)  # older files
    assert dataclasses.astuple(read_image_sizes(tmp_path, config)) == (1024, 2048)
    parts = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    whole = {part: json.loads((tmp_path / file).read_text()) for part, file in parts.items()}
    whole["video_processor"]["fps"] = 4
    for file in parts.values():
        (tmp_path / file).unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))  # as transformers 5 saves a processor
    assert dataclasses.astuple(read_image_sizes(tmp_path, config)) == (1024, 2048)
    sizes = read_video_sizes(tmp_path, config)
    assert sizes is not None
    assert (sizes.fps, sizes.max_frames) == (4.0, 768)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\x00"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "generation_config.json"])
def test_a_file_that_holds_no_object_is_refused_by_its_name(tmp_path, file, content):
    write_small_files(tmp_path, "8B-Instruct")
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=file):
        (read_image_sizes(tmp_path, read_config(tmp_path)), read_sampling(tmp_path))


def test_a_setting_of_sampling_that_is_not_ours_is_refused_when_it_would_be_used(tmp_path):
    write_small_files(tmp_path, "2B-Thinking-FP8")
    change(tmp_path, "generation_config.json", repetition_penalty=1.1)
    with pytest.raises(ValueError, match=r"repetition_penalty is 1.1.*--temperature"):
        read_sampling(tmp_path)
    change(tmp_path, "generation_config.json", do_sample=False)
    assert read_sampling(tmp_path) == Sampling()


@pytest.mark.parametrize(
    "name", ["Qwen3-VL-Embedding-2B", "qwen3-vl-reranker-8b", "models--Qwen--Qwen3-VL-Reranker-2B"]
)
def test_embedding_and_reranker_are_refused_by_name(tmp_path, name):
    write_small_files(tmp_path / name, "2B-Instruct")
    with pytest.raises(ValueError, match=r"(Embedding|Reranker) checkpoint: .*Instruct or Thinking"):
        Processor.from_pretrained(str(tmp_path / name))


def test_an_embedding_checkpoint_by_another_name_is_refused_by_its_files(tmp_path):
    write_small_files(tmp_path, "2B-Instruct")
    refuse_other_uses(str(tmp_path), tmp_path)
    template = {"type": "TemplateProcessing", "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>"}}}
    post = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"post_processor": post}))
    with pytest.raises(ValueError, match="behind every text"):
        refuse_other_uses(str(tmp_path), tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ValueError, match=r"modules\.json"):
        refuse_other_uses(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "neither a folder nor a hub id .*no such folder"),
        ("./mine", "neither a folder nor a hub id"),
        ("checkpoints/mine", "there is no such folder here .*the hub did not give it"),
        (__file__, "is a file: give the folder"),
    ],
)
def test_a_model_that_is_not_there_says_so(monkeypatch, model, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        checkpoint_folder(model)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3", "qwen3_5", "qwen3_5_moe", None])
def test_other_families_are_refused_by_name(tmp_path, kind):
    write_small_files(tmp_path, "2B-Instruct")
    change(tmp_path, "config.json", model_type=kind)
    with pytest.raises(ValueError, match=f"model_type is {kind!r}; this version runs Qwen3-VL checkpoints only"):
        read_config(tmp_path)


def test_added_tokens_of_any_kind_are_characters_in_a_text(tmp_path):
    """As the official tokenizer has them and that of the demonstration checkpoint has not."""
    demo = checkpoint_folder("model/demo")
    for file in demo.glob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in demo.glob("*.jinja"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"].append({"id": 448, "content": "<tool_call>", **plain})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.from_str(json.dumps(content)).encode("<tool_call>").ids == [448]
    ids = Processor.from_pretrained(str(tmp_path)).encode("", ["a <tool_call> b"], Sampling()).token_ids_T
    assert 448 not in ids
    image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    assert Processor.from_pretrained(str(tmp_path)).fit_image(image).pixels_THWC.dtype == np.uint8
