"""Interleaved M-RoPE positions against transformers' get_rope_index, and the worked example of the paper's layout."""

import numpy as np
import pytest
import torch
from tiny import END, IMAGE, START, VIDEO, random_config, random_frames, random_prompt, their_inputs
from transformers import Qwen3VLForConditionalGeneration

from model.positions import mrope_positions


@pytest.fixture(scope="module")
def their_model():
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(random_config(np.random.default_rng(0))).model


@pytest.mark.parametrize("seed", range(200))
def test_positions_equal_those_of_transformers(their_model, seed):
    rng = np.random.default_rng(seed)
    makers = [
        lambda: int(rng.integers(1, 9)),
        lambda: random_frames(rng, largest=6),
        lambda: random_frames(rng, pairs=int(rng.integers(1, 4)), largest=5),
    ]
    content = [makers[int(rng.integers(3))]() for _ in range(int(rng.integers(1, 6)))]
    prompt = random_prompt(rng, content)
    inputs = their_inputs([prompt], [content])
    wanted = {name: inputs.get(name) for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    positions, delta = their_model.get_rope_index(**wanted, **grids)

    assert np.array_equal(prompt.positions_3T, positions[-3:, 0].numpy())
    assert prompt.next_position == len(prompt.token_ids_T) + int(delta)


def test_text_image_and_two_frame_pairs():
    pair = [START, *[VIDEO] * 4, END]
    ids = np.array([1, 2, START, *[IMAGE] * 6, END, 3, 4, 5, *pair, 6, 7, *pair, 8, 9])
    grids = np.array([[1, 4, 6], [2, 4, 4], [2, 4, 4]])
    positions, following = mrope_positions(ids, grids, visual_token_ids=(IMAGE, VIDEO), merge_size=2)

    assert positions[0].tolist() == [
        *[0, 1, 2], *[3] * 6, *[6, 7, 8, 9, 10], *[11] * 4, *[13, 14, 15, 16], *[17] * 4, *[19, 20, 21],
    ]  # fmt: skip
    assert positions[1, 3:9].tolist() == [3, 3, 3, 4, 4, 4]
    assert positions[2, 3:9].tolist() == [3, 4, 5, 3, 4, 5]
    assert following == 22


@pytest.mark.parametrize("grids", [[], [[1, 2, 2], [1, 2, 2]], [[1, 4, 2]]])
def test_grids_that_do_not_match_the_tokens_are_refused(grids):
    ids = np.array([1, START, IMAGE, END])
    with pytest.raises(ValueError, match="visual tokens"):
        mrope_positions(ids, np.array(grids).reshape(-1, 3), visual_token_ids=(IMAGE, VIDEO), merge_size=2)
