"""A job is checked before anything starts, and its hash follows what changes the answers and nothing else."""

import dataclasses
import shutil

import pytest

from model.request import Sampling
from pipeline.job import (
    CHECKOUT,
    IndexJob,
    ParseJob,
    answer_settings,
    config_hash,
    fingerprint,
    job_record,
    redacted,
    resolve_model,
)
from pipeline.prompts import VideoPrompt, page_prompt


def job(**changes) -> ParseJob:
    return ParseJob(**({"input": "in", "output": "out"} | changes))


def settings(**changes) -> dict[str, str]:
    changed = job(**changes)
    return answer_settings(changed, page_prompt(changed.prompt), changed.sampling(Sampling()))


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("replicas", "4,2", "MIN <= MAX"),
        ("replicas", "0", "1 <= MIN"),
        ("replicas", "two", "N or MIN,MAX"),
        ("pages", "3-1", "pages"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("dtype", "int8", "bfloat16"),
        ("tensor_parallel", 0, "at least 1"),
        ("max_new_tokens", 0, "at least 1"),
        ("max_context", -1, "0 (automatic) or more, not -1"),
        ("rope_scaling", -2.0, "or more, not -2.0"),
        ("quantization", "int4", "quantization must be fp8 or left out, not 'int4'"),
        ("kv_cache_dtype", "fp4", "kv_cache_dtype must be fp8 or left out"),
        ("max_tokens_per_page", 8, "min_tokens_per_page"),
        ("max_failure_rate", 1.5, "0 to 1"),
        ("decoder_memory_mb", 10, "at least 1024"),
        ("page_timeout_seconds", 0.0, "more than 0"),
        ("decoders", -1, "0 (automatic)"),
        ("input", "", "empty"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_a_remedy(option, value, remedy):
    with pytest.raises(ValueError, match=option) as caught:
        job(**{option: value})
    assert remedy in str(caught.value)
    assert str(value) in str(caught.value) or value == ""


def test_replicas_are_a_number_or_a_range():
    assert job(replicas="3").replica_range == (3, 3)
    assert job(replicas="2,8").replica_range == (2, 8)


# One other value for every option of the job: a new option must say here on which side it stands.
CHANGES_ANSWERS = {
    "prompt": "html",
    "pages": "1-3",
    "max_pages": 7,
    "max_image_megapixels": 500,
    "min_tokens_per_page": 300,
    "max_tokens_per_page": 999,
    "max_new_tokens": 99,
    "max_reasoning_tokens": 50,
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "max_context": 9000,
    "rope_scaling": 2.0,
    "dtype": "bfloat16",
    "keep_raw": True,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 3,
}
CHANGES_NOTHING = {
    "input": "elsewhere",
    "output": "elsewhere",
    "password": ("secret",),
    "device": "cuda",
    "replicas": "1,4",
    "tensor_parallel": 1,
    "cuda_graphs": True,
    "overlap": True,
    "batch_size": 3,
    "tokens_per_second": 12.0,
    "decoders": 3,
    "decoder_memory_mb": 4096,
    "step_timeout_seconds": 3.0,
    "page_timeout_seconds": 1.0,
    "max_failure_rate": 0.1,
    "endpoint_url": "http://127.0.0.1:1",
    "profile": "p",
    "region": "r",
}


def test_the_hash_follows_what_changes_the_answers_and_nothing_else():
    options = {field.name for field in dataclasses.fields(ParseJob)}
    assert options == CHANGES_ANSWERS.keys() | CHANGES_NOTHING.keys() | {"model"}
    plain = config_hash(settings())
    assert {name: config_hash(settings(**{name: value})) == plain for name, value in CHANGES_NOTHING.items()} == (
        dict.fromkeys(CHANGES_NOTHING, True)
    )
    hashes = {plain} | {config_hash(settings(**{name: value})) for name, value in CHANGES_ANSWERS.items()}
    assert len(hashes) == 1 + len(CHANGES_ANSWERS)


def test_the_hash_follows_the_words_of_a_prompt_file(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("List the totals.")
    before = config_hash(settings(prompt=str(prompt)))
    prompt.write_text("List the dates.")
    assert config_hash(settings(prompt=str(prompt))) != before


def test_the_fingerprint_follows_the_weights_wherever_they_lie(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(resolve_model("model/demo"), one)
    shutil.copytree(one, two)
    assert fingerprint(one) == fingerprint(two)
    weights = two / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(one) != fingerprint(two)


def test_the_fingerprint_of_a_huge_file_samples_all_of_it(tmp_path):
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(200 * 2**20)  # a hole: no bytes on disk
    before = fingerprint(tmp_path)
    with weights.open("r+b") as file:
        for megabyte in range(1, 200, 4):
            file.seek(megabyte * 2**20)
            file.write(b"x" * 2**20)
    assert fingerprint(tmp_path) != before


def test_a_password_is_never_written():
    secret = job(password=("hunter2", "hunter3"))
    written = f"{redacted(secret)} {job_record(secret, answer_settings(secret, page_prompt('text'), Sampling()))}"
    assert "hunter" not in written
    assert redacted(secret)["password"] == "2 given"


def test_a_model_of_the_checkout_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model/demo") == str(CHECKOUT / "model" / "demo")
    assert resolve_model("Qwen/Qwen3-VL-8B-Instruct") == "Qwen/Qwen3-VL-8B-Instruct"


def test_what_an_output_was_begun_with_before_an_option_existed_stays_the_same():
    video = IndexJob(input="in", output="out")
    recorded = answer_settings(video, VideoPrompt(("what",), ("",), "events"), video.sampling(Sampling()))
    assert not recorded.keys() & {"video_marks", "temperature", "top_p", "top_k", "seed"}
    pairs = dataclasses.replace(video, video_marks="pairs")
    assert answer_settings(pairs, VideoPrompt(("what",), ("",), "events"), Sampling())["video_marks"] == "pairs"


def test_the_options_win_over_what_a_checkpoint_wants_and_greedy_is_greedy():
    wanted = Sampling(temperature=1.0, top_p=0.95, top_k=20)
    assert job(max_new_tokens=9).sampling(wanted) == dataclasses.replace(wanted, max_new_tokens=9)
    assert job(top_k=3, seed=5).sampling(wanted) == dataclasses.replace(wanted, max_new_tokens=4096, top_k=3, seed=5)
    assert job(temperature=0.0).sampling(wanted) == Sampling()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_k": -2}, "top_k must be 0"),
        ({"seed": -1}, "seed must be 0"),
    ],
)
def test_sampling_that_cannot_be_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        job(**option)
