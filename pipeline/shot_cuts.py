"""Shot cuts as sampled frames show them: where a picture differs from the one before more than motion explains.

A transition, however long, is one cut at most: changes that lead on from picture to picture in one direction, as those
of a fade or a dissolve do, belong together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 8  # pixels; means of blocks change little with noise and fine detail
_STEP = 4  # of the pixels of a block every fourth row and column are looked at, which is enough and costs a tenth
_LEAST_CHANGE = 30.0  # of 255, mean over blocks and colours
_LEAST_RATIO = 2.5  # to the usual change around it: pans and shaking cameras change every frame
_NEIGHBOURS = 4  # changes on either side that tell what is usual
_LEAST_STEP = 3.0  # of 255: less from frame to frame is noise, and no part of a transition
_ONE_WAY = 0.85  # of a sum of changes that is left when the first and the last picture alone are compared
_ABRUPT = 0.7  # of a transition that lies between two frames: it is a cut, and the rest motion
_PLAIN = 8.0  # standard deviation of a picture that shows nothing, such as black between fades
_SAME = 0.9  # correlation of two pictures that are one, brighter or darker


def shot_cuts(frames_THWC: NDArray[np.uint8]) -> list[int]:
    """The indexes of the uint8 RGB frames [T, H, W, 3] that begin another shot; sides are multiples of 8.

    A dissolve counts where its second half begins. A fade from or to a plain picture is none where it takes longer than
    from frame to frame, unless another shot came before; nor is a flash, or light that grows or fades over one picture.
    """
    frames, height, width, colors = frames_THWC.shape
    side = _BLOCK // _STEP
    seen = frames_THWC[:, ::_STEP, ::_STEP].reshape(frames, height // _BLOCK, side, width // _BLOCK, side, colors)
    pictures = seen.mean(axis=(2, 4), dtype=np.float32)
    is_plain = pictures.std(axis=(1, 2)).max(axis=1) < _PLAIN
    cuts: list[int] = []
    for change in _changes(pictures):
        if change.cut is None:
            continue
        came_before = not is_plain[: change.first + 1].all()
        if change.is_abrupt:
            island = change.first if is_plain[change.first] and cuts and cuts[-1] == change.first else None
            if island is not None:  # a single plain frame: a flash, or one cut by way of black
                cuts.pop()
                if _is_same(pictures[island - 1], pictures[change.cut]):
                    continue
            cuts.append(change.cut)
        elif not is_plain[change.last] and came_before and not _is_same(pictures[change.first], pictures[change.last]):
            cuts.append(change.cut)
    return cuts


@dataclass(frozen=True, slots=True)
class _Change:
    """Pictures `first` to `last` lead from one to the other."""

    first: int
    last: int
    cut: int | None  # the first picture of the new shot; None where there is too little change for one
    is_abrupt: bool


def _changes(pictures: NDArray[np.float32]) -> Iterator[_Change]:
    """All changes one after the other, each as long as it leads on in one direction."""
    steps = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2, 3))
    first = 0
    while first < len(steps):
        last, total = first + 1, float(steps[first])
        while last < len(steps) and steps[last] >= _LEAST_STEP and steps[first] >= _LEAST_STEP:
            onward = _difference(pictures[first], pictures[last + 1])
            if onward < _ONE_WAY * float(steps[first : last + 1].sum()):
                break
            last, total = last + 1, onward
        yield _judged(steps, first, last, total)
        first = last


def _judged(steps: NDArray[np.float32], first: int, last: int, total: float) -> _Change:
    within = steps[first:last]
    largest = first + int(np.argmax(within))
    is_abrupt = steps[largest] >= _ABRUPT * total
    begin, end = (largest, largest + 1) if is_abrupt else (first, last)
    before, after = steps[max(begin - _NEIGHBOURS, 0) : begin], steps[end : end + _NEIGHBOURS]
    # Beside a fade stands another one, or none of it: the calmer side says what is usual there.
    usual = _median(before, after) if is_abrupt else min(_median(before), _median(after))
    is_cut = total >= _LEAST_CHANGE and float(steps[begin:end].mean()) >= _LEAST_RATIO * usual
    if is_abrupt:
        is_cut = is_cut and steps[largest] >= _LEAST_CHANGE
    middle = largest if is_abrupt else first + int(np.searchsorted(np.cumsum(within), within.sum() / 2))
    return _Change(begin, end, middle + 1 if is_cut else None, is_abrupt)


def _difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(other - one).mean())


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two pictures differ in brightness and contrast alone."""
    spread = float(one.std() * other.std())
    return spread > 0 and float(((one - one.mean()) * (other - other.mean())).mean()) >= _SAME * spread


def _median(*changes: NDArray[np.float32]) -> float:
    together = np.concatenate(changes)
    return float(np.median(together)) if len(together) else 0.0
