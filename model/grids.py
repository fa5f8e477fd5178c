"""Where the images and frame pairs of a prompt lie among its tokens and its patches. No torch."""

from dataclasses import dataclass

import numpy as np

from model.config import ModelConfig
from model.request import Prompt


@dataclass(frozen=True, slots=True)
class PlacedGrid:
    """One image or frame pair of a prompt: the tokens and the stored patches it takes, both half-open."""

    grid: tuple[int, int, int]
    start: int
    end: int
    first_patch: int
    last_patch: int


def placed_grids(prompt: Prompt, config: ModelConfig) -> list[PlacedGrid]:
    """Where each grid of a prompt lies among its tokens and its patches."""
    visual_T = np.flatnonzero(np.isin(prompt.token_ids_T, (config.image_token_id, config.video_token_id)))
    places = []
    tokens = patches = 0
    for frames, rows, columns in prompt.grids_G3.tolist():
        count = rows * columns // config.vision.spatial_merge_size**2
        start, end = int(visual_T[tokens]), int(visual_T[tokens + count - 1]) + 1
        assert end - start == count, f"{prompt.key}: the tokens of a grid of {rows} x {columns} are torn apart"
        places.append(PlacedGrid((frames, rows, columns), start, end, patches, patches + frames * rows * columns))
        tokens += count
        patches += frames * rows * columns
    return places
