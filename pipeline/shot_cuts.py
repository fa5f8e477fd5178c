"""Shot cuts as sampled frames show them: where a picture differs from the one before more than motion explains."""

import numpy as np
from numpy.typing import NDArray

_BLOCK = 8  # pixels; means of blocks change little with noise and fine detail
_STEP = 4  # of the pixels of a block every fourth row and column are looked at, which is enough and costs a tenth
_LEAST_CHANGE = 30.0  # of 255, mean over blocks and colours
_LEAST_RATIO = 2.5  # to the usual change around it: pans and shaking cameras change every frame
_NEIGHBOURS = 4  # changes on either side that tell what is usual


def shot_cuts(frames_THWC: NDArray[np.uint8]) -> list[int]:
    """The indexes of the uint8 RGB frames [T, H, W, 3] that begin another shot; sides are multiples of 8.

    Fades and dissolves count where they are over within the time between two frames.
    """
    frames, height, width, colors = frames_THWC.shape
    side = _BLOCK // _STEP
    seen = frames_THWC[:, ::_STEP, ::_STEP].reshape(frames, height // _BLOCK, side, width // _BLOCK, side, colors)
    means = seen.mean(axis=(2, 4), dtype=np.float32)
    changes = np.abs(np.diff(means, axis=0)).mean(axis=(1, 2, 3))
    return [
        index + 1
        for index in np.flatnonzero(changes >= _LEAST_CHANGE).tolist()
        if changes[index] >= _LEAST_RATIO * _usual_change(changes, index)
    ]


def _usual_change(changes: NDArray[np.float32], index: int) -> float:
    """The median of the changes around one."""
    around = [*changes[max(index - _NEIGHBOURS, 0) : index], *changes[index + 1 : index + 1 + _NEIGHBOURS]]
    return float(np.median(around)) if around else 0.0
