"""Where to look in a window of a clip while its answer is written, and what is to be seen there.

Each time is found in two steps: first the sight, then the time written before it. That something begins is to be seen
where it does; that it ends, only a pair later: a causal decoder's tokens know what came before them, never what comes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.sample_truth import Glyph
from jobs.sample_videos import COLORS, DIRECTIONS, SHAPES, MovingShape, SampleClip, SampleEvent, shown_events

Pair = tuple[float, float]
STILL = "stays"
SIGHTS = (*COLORS, *SHAPES, STILL, *DIRECTIONS)  # what a shape can be called


@dataclass(frozen=True, slots=True)
class Look:
    """Where one character of the answer is read: at a point of a frame pair, and if of a time, in a pair's text."""

    pair: int
    x: float
    y: float
    time_pair: int | None = None  # None: read at the point itself
    digit: int = 0


def looks(clip: SampleClip, pair_seconds: Sequence[Pair], answer: str) -> dict[int, Look]:
    """For characters of the answer by their index; what only JSON writes is read nowhere."""
    found: dict[int, Look] = {}
    cursor = 0
    for (event, shown), told in zip(shown_events(clip, pair_seconds), json.loads(answer or "[]"), strict=True):
        whole = [index for index in shown if all(map(event.is_seen, pair_seconds[index]))]
        for key, pair in (("start", shown[0]), ("description", (whole or shown)[0]), ("end", shown[-1])):
            written = json.dumps(told[key])
            cursor = answer.index(f'"{key}": {written}', cursor) + len(f'"{key}": ')
            x, y = _middle(clip, event, pair_seconds[pair])
            if key == "description":
                found |= _looks_of_description(clip, event, Look(pair, x, y), written[1:-1], cursor + 1)
            else:
                seen = min(pair + 1, len(pair_seconds) - 1) if key == "end" else pair
                found |= {cursor + digit: Look(seen, x, y, pair, digit) for digit in range(len(written))}
    return found


def _looks_of_description(
    clip: SampleClip, event: SampleEvent, middle: Look, written: str, start: int
) -> dict[int, Look]:
    """`written`: the description as the answer has it, from its character `start` on; of a card letter by letter."""
    cursor = len(written) if _shape_of(clip, event) else written.index('\\"') + 2
    found = {start + index: middle for index in range(cursor)}
    for glyph in () if _shape_of(clip, event) else clip.scene(event.start_seconds).glyphs:
        cursor = written.index(glyph.character, cursor)
        found[start + cursor] = Look(middle.pair, glyph.x, glyph.y)
        cursor += 1
    return found


def sights(clip: SampleClip, pair_seconds: Sequence[Pair]) -> list[list[Glyph]]:
    """What each frame pair shows and where: the letters of cards, and the words for shapes; which way a shape moves
    only where both frames show it."""
    found: list[list[Glyph]] = []
    for pair in pair_seconds:
        seen: list[Glyph] = []
        for event in clip.events:
            if not any(map(event.is_seen, pair)):
                continue
            if shape := _shape_of(clip, event):
                x, y = _middle(clip, event, pair)
                _, color, name, *motion = event.description.split()
                words = [color, name, motion[-1]] if all(map(event.is_seen, pair)) else [color, name]
                assert shape.color == COLORS[color]
                seen += [Glyph(word, x, y) for word in words]
            else:
                seen += clip.scene(event.start_seconds).glyphs
        found.append(seen)
    return found


def _shape_of(clip: SampleClip, event: SampleEvent) -> MovingShape | None:
    return next((shape for shape in clip.scene(event.start_seconds).shapes if shape.event is event), None)


def _middle(clip: SampleClip, event: SampleEvent, pair: Pair) -> tuple[float, float]:
    """Of what is seen of an event in a pair: the shape, or a card's first letter."""
    shape = _shape_of(clip, event)
    if shape is None:
        first = clip.scene(event.start_seconds).glyphs[0]
        return first.x, first.y
    height, width = shape.mask_HW.shape
    corners = [shape.corner(instant) for instant in pair if event.is_seen(instant)]
    left, top = np.mean(corners, axis=0).tolist()
    return left + width / 2, top + height / 2
