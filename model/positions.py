"""Interleaved M-RoPE: a (time, row, column) position for every token of a prompt. Numpy only.

Qwen3-VL technical report (arXiv 2511.21631); `get_rope_index` of transformers' qwen3_vl is the reference the tests use.
"""

import numpy as np
from numpy.typing import NDArray


def mrope_positions(
    token_ids_T: NDArray[np.int32], grids_G3: NDArray[np.int32], *, visual_token_ids: tuple[int, ...], merge_size: int
) -> tuple[NDArray[np.int32], int]:
    """Positions int32 [3, T] (time, row, column) and the position the first generated token takes on all three axes.

    A run of visual tokens belongs to the next grid (frames, rows, columns in patches): its time is the position where
    the run starts, rows and columns count up from there, and the text behind it goes on after the longer side. Text has
    one position on all three axes. Raises ValueError when runs and grids do not match one to one.
    """
    is_visual_T = np.isin(token_ids_T, visual_token_ids)
    edges = np.flatnonzero(np.diff(is_visual_T)) + 1
    starts = [0, *edges.tolist()] if len(token_ids_T) else []
    ends = [*edges.tolist(), len(token_ids_T)]
    visual_runs = sum(bool(is_visual_T[start]) for start in starts)
    if visual_runs != len(grids_G3):
        raise ValueError(f"the prompt has {visual_runs} runs of visual tokens, but {len(grids_G3)} grids")

    positions_3T = np.empty((3, len(token_ids_T)), dtype=np.int32)
    grids = iter(grids_G3.tolist())
    current = 0
    for start, end in zip(starts, ends, strict=False):
        length = end - start
        if not is_visual_T[start]:
            positions_3T[:, start:end] = np.arange(current, current + length)
            current += length
            continue
        _, rows, columns = next(grids)
        rows, columns = rows // merge_size, columns // merge_size
        if rows * columns != length:
            raise ValueError(f"a run of {length} visual tokens does not fit a grid of {rows} x {columns}")
        positions_3T[0, start:end] = current
        positions_3T[1, start:end] = current + np.repeat(np.arange(rows), columns)
        positions_3T[2, start:end] = current + np.tile(np.arange(columns), rows)
        current += max(rows, columns)
    return positions_3T, current
