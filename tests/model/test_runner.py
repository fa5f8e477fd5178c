"""When images are encoded, how long their features stay, and where they go."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import Pair, random_pair, random_prompt

from model.capacity import rehearse
from model.grids import placed_grids
from model.request import Frames, Prompt
from model.runner import Runner, Sight
from model.scheduler import Chunk, Request


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return random_pair(3, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def prompt() -> Prompt:
    """Tokens 3-8 are an image, 14-15 and 21-22 two frame pairs of a video."""
    rng = np.random.default_rng(1)
    image = Frames(rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8))
    video = Frames(rng.integers(0, 256, (4, 32, 64, 3), dtype=np.uint8), (0.0, 0.5, 1.0, 1.5))
    return random_prompt(rng, [2, image, video, 3], "page")


def chunk_of(pair: Pair, prompt: Prompt, start: int, end: int) -> Chunk:
    return Chunk(Request(prompt, 1, placed_grids(prompt, pair.config)), start, end, samples=False)


def test_grids_are_found_among_tokens_and_patches(pair, prompt):
    places = placed_grids(prompt, pair.config)
    assert [(place.start, place.end) for place in places] == [(3, 9), (14, 16), (21, 23)]
    assert [(place.first_patch, place.last_patch) for place in places] == [(0, 24), (24, 40), (40, 56)]
    assert [place.grid for place in places] == [tuple(grid) for grid in prompt.grids_G3.tolist()]


@torch.inference_mode()
def test_an_image_is_encoded_once_and_given_up_with_its_last_token(pair, prompt):
    packs: list[list[tuple[int, int, int]]] = []
    hook = pair.ours.model.visual.register_forward_hook(lambda _, args, output: packs.append(args[1]))
    sight = Sight(pair.ours, "sdpa")
    whole, rows = Sight(pair.ours, "sdpa").features((chunk_of(pair, prompt, 0, 27),))
    assert rows.tolist() == [*range(3, 9), 14, 15, 21, 22]
    assert packs.pop() == [tuple(grid) for grid in prompt.grids_G3.tolist()]
    grids = prompt.grids_G3.tolist()
    history = []
    parts = []
    for start, end in ((0, 3), (3, 5), (5, 15), (15, 18), (18, 27)):
        before = len(packs)
        visual, rows = sight.features((chunk_of(pair, prompt, start, end),))
        history.append(
            ([list(grid) for pack in packs[before:] for grid in pack], (rows + start).tolist(), sight.num_held)
        )
        parts += [visual] if visual else []
    hook.remove()
    assert history == [
        ([], [], 0),
        ([grids[0]], [3, 4], 1),
        ([grids[1]], [5, 6, 7, 8, 14], 1),
        ([], [15], 0),
        ([grids[2]], [21, 22], 0),
    ]
    torch.testing.assert_close(torch.cat([part.embeddings_MO for part in parts]), whole.embeddings_MO)
    torch.testing.assert_close(torch.cat([part.deepstack_LMO for part in parts], dim=1), whole.deepstack_LMO)


@torch.inference_mode()
def test_a_preempted_request_leaves_nothing_behind(pair, prompt):
    sight = Sight(pair.ours, "sdpa")
    sight.features((chunk_of(pair, prompt, 0, 5),))
    assert sight.num_held == 1
    sight.forget("page")
    assert sight.num_held == 0
    again, rows = sight.features((chunk_of(pair, prompt, 0, 5),))
    assert len(again.embeddings_MO) == len(rows) == 2


def test_a_rehearsal_is_as_large_as_a_pass_can_be(pair):
    sizes = []
    visual, decoder = pair.ours.model.visual, pair.ours.model.language_model
    hooks = [
        visual.register_forward_hook(lambda _, args, output: sizes.append(len(output.embeddings_MO))),
        decoder.norm.register_forward_hook(lambda _, args, output: sizes.append(len(output))),
    ]
    rehearse(pair.ours, num_tokens=50, image_tokens=70, num_rows=4, implementation="sdpa")
    for hook in hooks:
        hook.remove()
    assert sizes == [140, 50]


def test_everything_is_launched_with_the_runners_own_device_as_the_current_one(pair, prompt, monkeypatch):
    """The current device is per thread, and an engine steps in a thread of its own, which begins with GPU 0."""
    current, seen = [0], []

    @contextmanager
    def fake_device(device):
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", fake_device)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: seen.append(current[-1])))
    for module in ("model.runner", "model.attention", "model.sampler"):
        monkeypatch.setattr(f"{module}.device_tensor", lambda values, device: torch.from_numpy(values))
    runner = Runner(pair.ours, num_blocks=8, block_size=16, implementation="sdpa")
    runner._device = torch.device("cuda", 1)
    hooks = [module.register_forward_hook(lambda *_: seen.append(current[-1])) for module in pair.ours.modules()]
    monkeypatch.setattr("model.runner.PACK_PATCHES", {"cpu": 4096, "cuda": 4096})
    request = Request(prompt, 1, placed_grids(prompt, pair.config))
    request.blocks.extend([0, 1])
    runner.launch((Chunk(request, 0, len(prompt.token_ids_T), samples=True),))
    for hook in hooks:
        hook.remove()
    assert len(seen) > 10
    assert set(seen) == {1}
    assert current == [0]
