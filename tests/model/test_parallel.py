"""A model spread over ranks is the same model: its logits and answers in fp32 equal those of one rank, which other
tests compare with transformers."""

import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from spread import on_ranks
from test_weights import as_official, as_split, rewrite
from tiny import Pair, random_config, random_frames, random_pair, random_prompt

from model.attention import PackedCausal
from model.config import ModelConfig, read_config
from model.engine import Engine
from model.engine_options import EngineOptions
from model.parallel import ALONE, Group, cuts_of, share_out
from model.qwen3_vl import Qwen3VL, empty_model
from model.request import Completion, Frames, Prompt
from model.weights import from_pretrained, save_weights

ROOT = Path(__file__).parents[2]
STOP = 7
SAMPLED = {"temperature": 1.2, "top_k": 40, "top_p": 0.95}
CUTTABLE = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
}
CUTTABLE["rope_parameters"] = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [4, 2, 2],
    "mrope_interleaved": True,
}


@pytest.fixture(scope="module", params=["dense", "experts"])
def pair(request, tmp_path_factory) -> Pair:
    """Two key heads: fewer than the ranks when there are four."""
    moe = request.param == "experts"
    experts = {"moe_intermediate_size": 16, "num_experts": 9, "num_experts_per_tok": 3} if moe else {}
    return random_pair(5, tmp_path_factory.mktemp("checkpoint"), moe=moe, **CUTTABLE, **experts)


class Numbers:
    def decode(self, token_ids, skip_special_tokens) -> str:
        return " ".join(map(str, token_ids))


def share(pair: Pair, group: Group) -> Qwen3VL:
    return from_pretrained(str(pair.folder), dtype=torch.float32, group=group)


@torch.inference_mode()
def logits_of(network: Qwen3VL, prompt: Prompt) -> torch.Tensor:
    """Of every token of the prompt, the shares of all ranks side by side."""
    grids = [tuple(grid) for grid in prompt.grids_G3.tolist()]
    visual = network.look(torch.from_numpy(prompt.patches_PC), grids) if grids else None
    token_ids_N, positions_3N = (torch.from_numpy(part).long() for part in (prompt.token_ids_T, prompt.positions_3T))
    hidden_NE = network(token_ids_N, positions_3N, PackedCausal([len(token_ids_N)]), visual)
    return network.group.gather(network.logits(hidden_NE)).movedim(0, 1).flatten(1)


def contents(rng: np.random.Generator) -> list[list[int | Frames]]:
    """No image, one (fewer than ranks), a video alone, and several of both."""
    return [
        [9],
        [2, random_frames(rng), 3],
        [random_frames(rng, pairs=5, largest=2), 2],
        [1, random_frames(rng), random_frames(rng, pairs=2), 2, random_frames(rng), 4],
    ]


@pytest.mark.parametrize("size", [2, 4])
def test_the_logits_of_every_rank_are_those_of_one_alone(pair, size):
    rng = np.random.default_rng(1)
    prompts = [random_prompt(rng, content) for content in contents(rng)]
    expected = [logits_of(pair.ours, prompt) for prompt in prompts]

    def answer(group: Group) -> list[torch.Tensor]:
        network = share(pair, group)
        return [logits_of(network, prompt) for prompt in prompts]

    first, *others = on_ranks(size, answer)
    for ours, alone in zip(first, expected, strict=True):
        torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(*both) for other in others for both in zip(first, other, strict=True))


def run(network: Qwen3VL, prompts: list[Prompt], **options) -> tuple[list[Completion], Engine]:
    engine = Engine(network, Numbers(), EngineOptions(**options), frozenset([STOP]))
    for prompt in prompts:
        engine.add(prompt)
    completions = {completion.key: completion for completion in engine.drain()}
    return [completions[prompt.key] for prompt in prompts], engine


@pytest.mark.parametrize(("size", "overlap"), [(2, False), (2, True), (4, False)])
def test_ranks_in_step_answer_as_one_through_chunks_and_preemptions(pair, size, overlap):
    """Greedy and sampled in one batch."""
    rng = np.random.default_rng(2)
    prompts = [
        random_prompt(rng, content, key=f"{number}", max_new_tokens=(8, 4, 6, 9)[number], **sampling)
        for number, (content, sampling) in enumerate(zip(contents(rng), [{}, SAMPLED, {}, SAMPLED], strict=True))
    ]
    expected, _ = run(pair.ours, prompts, kv_cache_tokens=4096, max_step_tokens=4096)
    largest = max(len(prompt.token_ids_T) + prompt.sampling.max_new_tokens for prompt in prompts)
    cramped = {"kv_cache_tokens": largest + 4, "block_size": 1, "max_step_tokens": 33, "overlap": overlap}

    def answer(group: Group) -> tuple[list[Completion], tuple[int, ...]]:
        completions, engine = run(share(pair, group), prompts, **cramped)
        return completions, engine.progress

    answers = on_ranks(size, answer)
    for completions, progress in answers:
        assert [completion.token_ids for completion in completions] == [one.token_ids for one in expected]
        logprobs = [completion.mean_logprob for completion in completions]
        assert logprobs == pytest.approx([one.mean_logprob for one in expected], abs=1e-4)
        assert progress == answers[0][1]
        assert progress[-1] > 0, "nobody was preempted"


@torch.inference_mode()
def test_one_video_is_seen_by_all_ranks_and_one_image_by_one(pair):
    rng = np.random.default_rng(3)
    video = random_prompt(rng, [random_frames(rng, pairs=8)])
    image = random_prompt(rng, [random_frames(rng)])

    def count(group: Group) -> list[int]:
        network = share(pair, group)
        seen: list[int] = []
        network.model.visual.register_forward_hook(lambda _, args, output: seen.append(len(args[1])))
        for prompt in (video, image):
            network.look(torch.from_numpy(prompt.patches_PC), [tuple(grid) for grid in prompt.grids_G3.tolist()])
        return seen

    assert sorted(on_ranks(4, count)) == [[2], [2], [2], [2, 1]]


def test_shares_of_the_tower_are_near_the_best_split():
    rng = np.random.default_rng(4)
    for size in (1, 2, 3):
        for _ in range(20):
            costs = rng.integers(1, 50, 7).tolist()
            shares = share_out(costs, size)
            assert sorted(itertools.chain(*shares)) == list(range(7))
            loads = [sum(costs[item] for item in items) for items in shares]
            best = min(
                max(sum(cost for cost, rank in zip(costs, ranks, strict=True) if rank == one) for one in range(size))
                for ranks in itertools.product(range(size), repeat=7)
            )
            assert max(loads) <= 4 / 3 * best
    assert share_out([5], 3) == [[0], [], []]


@pytest.mark.parametrize("layout", [as_official, as_split])
def test_every_layout_on_disk_gives_the_same_shares(pair, layout, tmp_path):
    shutil.copytree(pair.folder, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, layout)
    for rank in range(2):
        group = Group(rank, 2)
        other = from_pretrained(str(tmp_path), dtype=torch.float32, group=group).state_dict()
        for name, value in share(pair, group).state_dict().items():
            assert torch.equal(value, other[name]), name


def test_the_shares_of_two_ranks_add_up_to_the_model(pair):
    shares = [share(pair, Group(rank, 2)) for rank in range(2)]
    cuts = [cuts_of(network) for network in shares]
    for name, whole in pair.ours.state_dict().items():
        parts = [network.state_dict()[name] for network in shares]
        if name not in cuts[0]:
            assert all(torch.equal(part, whole) for part in parts)
            continue
        blocks = cuts[0][name].blocks
        chunks = [part.chunk(blocks, cuts[0][name].dim) for part in parts]
        rebuilt = [chunks[rank][block] for block in range(blocks) for rank in range(2)]
        assert torch.equal(torch.cat(rebuilt, cuts[0][name].dim), whole), name


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (4, {"num_key_value_heads": 6}, "neither it nor num_key_value_heads, 6"),
        (2, {"num_attention_heads": 7}, "num_attention_heads, 7"),
        (2, {"intermediate_size": 97}, "intermediate_size, 97"),
        (2, {"vocab_size": 301}, "vocab_size, 301"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(pair, size, changes, message):
    config: ModelConfig = replace(pair.config, text=replace(pair.config.text, **changes))
    with pytest.raises(ValueError, match=f"tensor_parallel {size}.*{message}"):
        Qwen3VL(config, Group(0, size))
    config.check_tensor_parallel(1)


def test_alone_nothing_is_sent_and_nothing_copied():
    value = torch.ones(3)
    assert ALONE.sum(value) is value
    assert ALONE.of_first(value) is value
    assert ALONE.gather(value).data_ptr() == value.data_ptr()
    assert ALONE.smallest(5, torch.device("cpu")) == 5


# Loads one rank's share; prints its bytes, and by how much the process grew at most (files it had mapped included).
# What torch imports and keeps for a first model of any size does not count: the embedded one is loaded before.
LOAD = """
import sys
from model.parallel import Group
from model.weights import from_pretrained, save_weights
from tests.memory import resident

from_pretrained("model/demo", group=Group(0, 2))
before = resident("VmRSS")
network = from_pretrained(sys.argv[1], group=Group(int(sys.argv[2]), 4))
print(sum(value.nbytes for value in network.state_dict().values()), resident("VmHWM") - before)
"""


@pytest.mark.heavy
def test_a_rank_needs_little_more_memory_than_its_share(tmp_path):
    """A decoder of 2.1 GB in bfloat16, a quarter for each rank."""
    config = random_config(
        np.random.default_rng(0),
        **CUTTABLE | {"hidden_size": 2048, "head_dim": 128, "intermediate_size": 8192, "num_hidden_layers": 16},
    )
    config.text_config.rope_parameters["mrope_section"] = [24, 20, 20]
    config.vision_config.out_hidden_size = 2048
    config.dtype = config.text_config.dtype = "bfloat16"
    config.save_pretrained(tmp_path)
    network = empty_model(read_config(tmp_path), device="cpu", dtype=torch.bfloat16)
    whole = sum(value.nbytes for value in network.state_dict().values())
    save_weights(network, tmp_path, torch.bfloat16)
    del network
    for rank in (0, 3):
        command = [sys.executable, "-c", LOAD, str(tmp_path), str(rank)]
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        share_bytes, grown = map(int, output.split())
        print(f"model {whole}, share {share_bytes}, grown by {grown}: {grown / share_bytes:.3f}")
        assert share_bytes < 0.3 * whole
        assert grown < 1.2 * share_bytes
