"""The engine against transformers' `generate` and against itself on tiny random checkpoints: in fp32, equal tokens."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import Pair, every_row, random_frames, random_pair, random_prompt, their_inputs, their_pixels
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from model.checkpoint import read_stop_token_ids
from model.engine import Engine
from model.engine_options import EngineOptions
from model.processor import Processor
from model.request import Completion, Frames, Prompt, Sampling
from model.runner import Pass, Runner

STOP = 7
REPOSITORY = Path(__file__).parents[2]
SAMPLED = {"temperature": 1.2, "top_k": 40, "top_p": 0.95}


class Numbers:
    """A tokenizer whose texts are the ids themselves."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, token_ids))

    def encode(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        return SimpleNamespace(ids=[int(word) for word in text.split()])


def make_engine(pair: Pair, **options) -> Engine:
    defaults = {"kv_cache_tokens": 4096, "block_size": 4, "prefix_cache": False}
    return Engine(pair.ours, Numbers(), EngineOptions(**defaults | options), frozenset([STOP]))


def run(engine: Engine, prompts: Sequence[Prompt]) -> list[Completion]:
    """The completions in the order of their prompts."""
    for prompt in prompts:
        engine.add(prompt)
    completions = {completion.key: completion for completion in engine.drain()}
    return [completions[prompt.key] for prompt in prompts]


def tokens(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


@dataclass(frozen=True)
class Truth:
    token_ids: tuple[int, ...]
    logprobs: list[float]


def transformers_answer(pair: Pair, prompt: Prompt, content: list[int | Frames]) -> Truth:
    """transformers' greedy answer to one prompt alone. Its choices must be clear, or equality would be luck."""
    output = pair.theirs.generate(
        **their_inputs([prompt], [content]),
        max_new_tokens=prompt.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=[STOP, *prompt.sampling.stop_token_ids],
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    scores = torch.cat(output.logits).log_softmax(-1)
    best = scores.topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 2e-4
    return Truth(tuple(output.sequences[0, len(prompt.token_ids_T) :].tolist()), best[:, 0].tolist())


def mixed_contents(rng: np.random.Generator) -> list[list[int | Frames]]:
    return [
        [4, random_frames(rng), 2],
        [9],
        [1, random_frames(rng, pairs=2), random_frames(rng), 6],
        [random_frames(rng), 1, random_frames(rng), random_frames(rng), 2],
        [30],
        [2, random_frames(rng, pairs=3), 4],
        [1],
    ]


def mixed_prompts(rng: np.random.Generator, contents: list[list[int | Frames]], **sampling) -> list[Prompt]:
    return [
        random_prompt(
            rng, content, key=f"prompt {number}", max_new_tokens=(17, 1, 24, 9, 30, 12, 20)[number], **sampling
        )
        for number, content in enumerate(contents)
    ]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(3, tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(
    ("seed", "moe"), [*((seed, False) for seed in range(6)), *((seed, True) for seed in (0, 3, 5))]
)
@torch.no_grad()
def test_a_mixed_batch_and_one_at_a_time_answer_as_transformers_does(seed, moe, tmp_path):
    pair = random_pair(seed, tmp_path, moe=moe)
    rng = np.random.default_rng(seed + 50)
    contents = mixed_contents(rng)
    prompts = mixed_prompts(rng, contents)
    truth = [transformers_answer(pair, *both) for both in zip(prompts, contents, strict=True)]
    expected = [answer.token_ids for answer in truth]
    batch = run(make_engine(pair, max_batch_size=4, max_step_tokens=25), prompts)
    assert tokens(batch) == expected
    assert tokens(run(make_engine(pair), prompts)) == expected
    assert tokens(run(make_engine(pair, max_batch_size=4, max_step_tokens=25, overlap=True), prompts)) == expected
    alone = make_engine(pair, max_batch_size=1)
    assert [run(alone, [prompt])[0].token_ids for prompt in prompts] == expected
    for completion, answer in zip(batch, truth, strict=True):
        assert completion.text == " ".join(
            map(str, answer.token_ids[:-1] if STOP in answer.token_ids else answer.token_ids)
        )
        assert completion.mean_logprob == pytest.approx(np.mean(answer.logprobs), abs=1e-4)
        assert completion.min_logprob == pytest.approx(min(answer.logprobs), abs=1e-4)


@torch.no_grad()
def test_a_prompt_cut_at_any_place_has_the_logits_of_the_whole(pair):
    """Two images, an answer, and every length of chunk: each token of the prompt is the last one of a chunk once."""
    rng = np.random.default_rng(11)
    images = [Frames(rng.integers(0, 256, (1, *size, 3), dtype=np.uint8)) for size in ((96, 96), (64, 128))]
    content = [2, images[0], 1, images[1], 2]
    prompt = random_prompt(rng, content, "cut", max_new_tokens=5)
    length = len(prompt.token_ids_T)
    truth = transformers_answer(pair, prompt, content)
    expected = pair.theirs(**their_inputs([prompt], [content])).logits[0]
    for cut in range(1, length + 1):
        with every_row(pair.ours) as hidden:
            completion = run(make_engine(pair, max_step_tokens=cut), [prompt])[0]
        assert [len(part) for part in hidden[:-4]] == [min(cut, length - start) for start in range(0, length, cut)]
        logits = pair.ours.logits(torch.cat(hidden)[:length])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4, msg=f"cut every {cut} tokens")
        assert completion.token_ids == truth.token_ids
        assert run(make_engine(pair, max_step_tokens=cut), [prompt])[0].token_ids == truth.token_ids


@torch.no_grad()
def test_chunks_of_several_prompts_in_one_pass_do_not_mix_their_images(pair):
    rng = np.random.default_rng(12)
    contents = [
        [1, random_frames(rng, largest=3), 1],
        [random_frames(rng, largest=3), random_frames(rng, pairs=2, largest=2)],
    ]
    prompts = [random_prompt(rng, content, str(n), max_new_tokens=6) for n, content in enumerate(contents)]
    expected = [transformers_answer(pair, *both).token_ids for both in zip(prompts, contents, strict=True)]
    for step_tokens in range(2, sum(len(prompt.token_ids_T) for prompt in prompts) + 1):
        assert tokens(run(make_engine(pair, max_step_tokens=step_tokens), prompts)) == expected


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("step_tokens", [9, 200])
@pytest.mark.parametrize("overlap", [False, True])
def test_preempted_requests_lose_nothing(pair, sampling, step_tokens, overlap):
    rng = np.random.default_rng(13)
    prompts = mixed_prompts(rng, mixed_contents(rng), **sampling)
    expected = run(make_engine(pair), prompts)
    largest = max(len(prompt.token_ids_T) + prompt.sampling.max_new_tokens for prompt in prompts)
    engine = make_engine(pair, kv_cache_tokens=largest + 8, block_size=1, max_step_tokens=step_tokens, overlap=overlap)
    cramped = run(engine, prompts)
    assert tokens(cramped) == tokens(expected)
    assert engine.stats.preemptions == sum(completion.preemptions for completion in cramped) > 0
    assert engine.stats.computed_tokens > sum(
        completion.prompt_tokens + len(completion.token_ids) - 1 for completion in cramped
    )
    for ours, theirs in zip(cramped, expected, strict=True):
        assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)
        assert ours.text == theirs.text


def test_a_request_preempted_inside_an_image_reads_it_again(pair):
    """The second prompt is on its way through its image when the first one needs its blocks."""
    rng = np.random.default_rng(14)
    first = random_prompt(rng, [3], "first", max_new_tokens=20)
    image = Frames(rng.integers(0, 256, (1, 128, 160, 3), dtype=np.uint8))
    second = random_prompt(rng, [1, image, 2], "second", max_new_tokens=5)
    expected = tokens(run(make_engine(pair), [first, second]))
    engine = make_engine(pair, kv_cache_tokens=30, block_size=1, max_step_tokens=4)
    completions = run(engine, [first, second])
    assert tokens(completions) == expected
    assert [completion.preemptions for completion in completions] == [0, 1]
    needed = sum(completion.prompt_tokens + len(completion.token_ids) - 1 for completion in completions)
    assert 2 < engine.stats.computed_tokens - needed < 22  # tokens 2 to 22 of the second prompt are its image


def test_two_passes_are_at_work_at_once_one_of_prompts_and_one_of_answers(pair, monkeypatch):
    events: list[tuple[str, set[str]]] = []
    launch, wait = Runner.launch, Pass.wait

    def launched(runner, chunks):
        events.append(("launched", {lane_of(chunk) for chunk in chunks}))
        return launch(runner, chunks)

    def lane_of(chunk) -> str:
        return "prompts" if chunk.start < len(chunk.request.prompt.token_ids_T) else "decoding"

    def waited(one):
        events.append(("waited", set()))
        return wait(one)

    monkeypatch.setattr(Runner, "launch", launched)
    monkeypatch.setattr(Pass, "wait", waited)
    rng = np.random.default_rng(16)
    prompts = mixed_prompts(rng, mixed_contents(rng))
    engine = make_engine(pair, max_step_tokens=25, max_batch_size=3, overlap=True)
    answers = tokens(run(engine, prompts))
    at_work = np.cumsum([1 if kind == "launched" else -1 for kind, _ in events])
    assert set(at_work.tolist()) == {0, 1, 2}
    assert [lanes for kind, lanes in events if kind == "launched" and len(lanes) > 1] == []
    # While prompts wait, each pass that is waited for leaves one of the other kind at work.
    assert sum(left == 1 for left, (kind, _) in zip(at_work, events, strict=True) if kind == "waited") > 5
    monkeypatch.undo()
    assert answers == tokens(run(make_engine(pair), prompts))


@pytest.mark.parametrize("overlap", [False, True])
def test_many_prompts_over_a_cache_for_one_all_finish(pair, overlap):
    rng = np.random.default_rng(15)
    prompts = [
        random_prompt(rng, [int(rng.integers(1, 9)), random_frames(rng, largest=2)], str(n), max_new_tokens=1 + n % 7)
        for n in range(40)
    ]
    largest = max(len(prompt.token_ids_T) + prompt.sampling.max_new_tokens for prompt in prompts)
    options = {"kv_cache_tokens": -(-largest // 4) * 4, "max_batch_size": 16, "max_step_tokens": 30}
    engine = make_engine(pair, **options, overlap=overlap)
    assert tokens(run(engine, prompts)) == tokens(run(make_engine(pair), prompts))
    assert not engine.has_work
    assert engine.stats.completions == 40


def test_a_prompt_too_large_for_cache_or_context_is_refused_with_the_numbers(pair):
    rng = np.random.default_rng(16)
    engine = make_engine(pair, kv_cache_tokens=64)
    with pytest.raises(ValueError, match=r"'large' has 64 tokens.* 4096 \(context\) and 64 \(key/value cache\)"):
        engine.add(random_prompt(rng, [64], "large"))
    with pytest.raises(ValueError, match="has 4096 tokens"):
        make_engine(pair, kv_cache_tokens=10_000).add(random_prompt(rng, [4096], "long"))
    with pytest.raises(ValueError, match="has 0 tokens"):
        engine.add(random_prompt(rng, [], "empty"))
    assert not engine.has_work


def test_an_answer_ends_where_the_context_ends_and_never_for_want_of_cache(pair):
    rng = np.random.default_rng(30)
    prompt = random_prompt(rng, [50], "page", max_new_tokens=14)
    cramped = make_engine(pair, kv_cache_tokens=64)
    assert run(cramped, [prompt])[0].token_ids == run(make_engine(pair), [prompt])[0].token_ids
    wishes = replace(prompt, sampling=Sampling(max_new_tokens=15))
    with pytest.raises(
        ValueError, match=r"50 tokens and may be answered with 15, and the .* room for 64: give less max_"
    ):
        cramped.add(wishes)
    full = random_prompt(rng, [4090], "full", max_new_tokens=1000)
    assert len(run(make_engine(pair, kv_cache_tokens=10_000), [full])[0].token_ids) == 6


def test_an_image_larger_than_memory_was_measured_with_is_refused(pair):
    rng = np.random.default_rng(31)
    frames = Frames(np.zeros((1, 64, 128, 3), np.uint8))
    prompt = random_prompt(rng, [5, frames], "page", max_new_tokens=3)
    assert run(make_engine(pair, max_image_tokens=8), [prompt])[0].token_ids
    with pytest.raises(ValueError, match="image of 8 visual tokens, and memory was measured with 7: give more"):
        make_engine(pair, max_image_tokens=7).add(prompt)


def test_a_key_is_refused_while_it_is_at_work_and_free_again_afterwards(pair):
    rng = np.random.default_rng(17)
    contents = [[1, random_frames(rng), 2], [8, random_frames(rng, pairs=2)]]
    first, second = (random_prompt(rng, content, "page", max_new_tokens=4) for content in contents)
    engine = make_engine(pair)
    engine.add(first)
    with pytest.raises(ValueError, match="'page' is already at work"):
        engine.add(second)
    assert tokens(list(engine.drain())) == tokens(run(make_engine(pair), [first]))
    assert tokens(run(engine, [second])) == tokens(run(make_engine(pair), [second]))


@torch.no_grad()
def test_stop_ids_of_the_checkpoint_and_of_the_request_end_the_answer(pair):
    rng = np.random.default_rng(18)
    contents = mixed_contents(rng)
    prompts = mixed_prompts(rng, contents)
    free = tokens(run(make_engine(pair), prompts))
    stopped = [
        replace(prompt, sampling=replace(prompt.sampling, stop_token_ids=(299, answer[len(answer) // 2])))
        for prompt, answer in zip(prompts, free, strict=True)
    ]
    completions = run(make_engine(pair), stopped)
    for prompt, content, answer, completion in zip(stopped, contents, free, completions, strict=True):
        stop = prompt.sampling.stop_token_ids[1]
        assert completion.token_ids == answer[: answer.index(stop) + 1]
        assert completion.finish_reason == "stop"
        assert completion.text == " ".join(map(str, completion.token_ids[:-1]))
        assert completion.token_ids == transformers_answer(pair, prompt, content).token_ids
    checkpoint_stop = frozenset(answer[len(answer) // 2] for answer in free)
    engine = Engine(pair.ours, Numbers(), EngineOptions(kv_cache_tokens=4096), checkpoint_stop)
    for completion, answer in zip(run(engine, prompts), free, strict=True):
        end = min(answer.index(stop) for stop in checkpoint_stop if stop in answer)
        assert completion.token_ids == answer[: end + 1]
        assert completion.finish_reason == "stop"


def test_sampled_answers_depend_on_their_seed_and_not_on_the_batch(pair):
    rng = np.random.default_rng(19)
    contents = mixed_contents(rng)
    prompts = [
        random_prompt(rng, content, str(n), max_new_tokens=15, seed=n, **SAMPLED) for n, content in enumerate(contents)
    ]
    alone = [run(make_engine(pair), [prompt])[0] for prompt in prompts]
    assert tokens(run(make_engine(pair, max_step_tokens=21), prompts[::-1])) == tokens(alone)[::-1]
    greedy = [replace(p, key=f"greedy {p.key}", sampling=Sampling(max_new_tokens=15)) for p in prompts]
    mixed = run(make_engine(pair), [prompt for both in zip(greedy, prompts, strict=True) for prompt in both])
    assert tokens(mixed[1::2]) == tokens(alone)
    assert tokens(mixed[::2]) == tokens(run(make_engine(pair), greedy))
    same_prompt = [replace(prompts[0], key=str(n), sampling=replace(prompts[0].sampling, seed=n)) for n in range(8)]
    assert len(set(tokens(run(make_engine(pair), same_prompt)))) > 4


def test_sampled_tokens_follow_the_distribution_of_the_network(pair):
    """The first token of 600 seeds against the softmax of transformers' logits, chi-square over likely tokens."""
    rng = np.random.default_rng(20)
    content = [2, random_frames(rng, largest=2), 2]
    prompt = random_prompt(rng, content, max_new_tokens=1)
    with torch.no_grad():
        logits = pair.theirs(**their_inputs([prompt], [content])).logits[0, -1]
    seeds = [
        replace(prompt, key=str(seed), sampling=Sampling(max_new_tokens=1, temperature=0.7, top_k=10, seed=seed))
        for seed in range(600)
    ]
    best = (logits / 0.7).topk(10)
    expected = 600 * best.values.softmax(-1)
    drawn = [token for (token,) in tokens(run(make_engine(pair, kv_cache_tokens=20_000), seeds))]
    counts = torch.tensor([drawn.count(token) for token in best.indices.tolist()])
    assert counts.sum() == 600
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # 9 degrees of freedom, p = 0.001


def test_completions_come_out_as_they_finish_and_the_books_are_kept(pair):
    rng = np.random.default_rng(21)
    prompts = [random_prompt(rng, [5], str(n), max_new_tokens=n, stop_token_ids=()) for n in (6, 1, 3)]
    engine = Engine(pair.ours, Numbers(), EngineOptions(max_batch_size=4, kv_cache_tokens=256), frozenset())
    for prompt in prompts:
        engine.add(prompt)
    seen = []
    for completion in engine.drain():
        seen.append((completion.key, engine.stats.steps, len(completion.token_ids), completion.finish_reason))
        assert completion.prompt_tokens == 5
        assert completion.seconds_queued >= 0
        assert completion.seconds_running > 0
        assert engine.has_work == (completion.key != "6")
    assert seen == [("1", 1, 1, "length"), ("3", 3, 3, "length"), ("6", 6, 6, "length")]
    stats = engine.stats
    assert (stats.steps, stats.running_sum, stats.occupancy) == (6, 10, 10 / 24)
    assert (stats.prompt_tokens, stats.new_tokens, stats.completions, stats.preemptions) == (15, 10, 3, 0)
    assert stats.computed_tokens == 15 + 10 - 3  # the last token of an answer is never computed
    assert stats.seconds > 0
    assert engine.step() == []


def test_prompts_added_while_others_run_join_the_batch(pair):
    rng = np.random.default_rng(22)
    prompts = mixed_prompts(rng, mixed_contents(rng))
    expected = tokens(run(make_engine(pair), prompts))
    engine = make_engine(pair, max_step_tokens=16)
    got: dict[str, tuple[int, ...]] = {}
    waiting: Iterator[Prompt] = iter(prompts)
    for prompt in waiting:
        engine.add(prompt)
        for _ in range(3):
            got |= {completion.key: completion.token_ids for completion in engine.step()}
    got |= {completion.key: completion.token_ids for completion in engine.drain()}
    assert [got[prompt.key] for prompt in prompts] == expected


def test_bfloat16_answers_with_nearly_the_same_probabilities(pair, tmp_path):
    rng = np.random.default_rng(23)
    prompts = [replace(p, sampling=Sampling(max_new_tokens=1)) for p in mixed_prompts(rng, mixed_contents(rng))]
    exact = run(make_engine(pair, max_step_tokens=30), prompts)
    copy = random_pair(3, tmp_path)
    copy.ours.to(torch.bfloat16)
    rounded = run(make_engine(copy, max_step_tokens=30), prompts)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=0.1)
        assert ours.mean_logprob != theirs.mean_logprob


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_answers_as_the_cpu_does(tmp_path):
    pair = random_pair(3, tmp_path)
    rng = np.random.default_rng(24)
    prompts = mixed_prompts(rng, mixed_contents(rng))
    expected = tokens(run(make_engine(pair), prompts))
    pair.ours.cuda()
    assert tokens(run(make_engine(pair, max_step_tokens=30, kv_cache_tokens=None), prompts)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, not 0"),
        ({"max_step_tokens": 0}, "max_step_tokens must be at least 1"),
        ({"kv_cache_tokens": 15}, "at least one block of 16, not 15"),
        ({"dtype": "int8"}, "dtype 'int8': choose float32"),
        ({"attn_implementation": "eager"}, "'eager': choose 'auto', 'sdpa', 'numba', 'triton' or 'flash_attention_2'"),
        ({"max_draft_tokens": -1}, "max_draft_tokens must be at least 0, not -1"),
        ({"device": "toaster:1"}, "device 'toaster:1': choose cpu or cuda"),
        ({"block_size": 16, "attn_implementation": "flash_attention_2"}, "flash"),
    ],
)
def test_bad_options_are_refused_with_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        Engine.from_pretrained(str(REPOSITORY / "model" / "demo"), EngineOptions(**options))


def test_stop_ids_come_from_the_generation_config_or_else_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 5}}))
    assert read_stop_token_ids(tmp_path) == {5}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert read_stop_token_ids(tmp_path) == {8, 9}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert read_stop_token_ids(tmp_path) == {0}
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {}}))
    with pytest.raises(ValueError, match="eos_token_id"):
        read_stop_token_ids(tmp_path)


def draw_page(path: Path) -> None:
    page = Image.new("RGB", (224, 160), "white")
    ImageDraw.Draw(page).text((20, 30), "A page of words", fill="black")
    page.save(path)


@torch.no_grad()
def test_the_demo_checkpoint_answers_a_page_as_transformers_does(tmp_path):
    """The door as users take it: checkpoint folder, its tokenizer and template, an image, text out."""
    folder = str(REPOSITORY / "model" / "demo")
    processor = Processor.from_pretrained(folder)
    draw_page(tmp_path / "page.png")
    frames = processor.fit_image(Image.open(tmp_path / "page.png"))
    prompt = processor.encode("page", [frames, "qwenvl markdown"], Sampling(max_new_tokens=24))
    completion = run(Engine.from_pretrained(folder), [prompt])[0]
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    pixels, grid = their_pixels(frames)
    ids = torch.from_numpy(prompt.token_ids_T.astype(np.int64))[None]
    output = theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == processor.config.image_token_id).int(),
        pixel_values=pixels,
        image_grid_thw=torch.tensor([grid]),
        max_new_tokens=24,
        do_sample=False,
    )
    answer = output[0, ids.shape[1] :]
    assert completion.token_ids == tuple(answer.tolist())
    assert completion.text == AutoTokenizer.from_pretrained(folder).decode(answer, skip_special_tokens=True)


@pytest.mark.skipif(not (REPOSITORY / "README.md").is_file(), reason="no README here")
def test_the_example_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "Engine.from_pretrained" in block]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "demo").symlink_to(REPOSITORY / "model" / "demo")
    for name in re.findall(r'"([\w-]+\.png)"', example):
        draw_page(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert len(re.findall(r"^page-\d\.png (?:stop|length)", capsys.readouterr().out, re.MULTILINE)) == 2
