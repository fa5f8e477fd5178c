"""The keys under which blocks of the cache are found again: what they hold, and everything before it. No torch.

The key of a block is a hash of the key before it, its tokens with their positions, and the content of the images it
touches: all pages have the same tokens where their images are. (vLLM's automatic prefix caching does the same.)
"""

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from model.grids import PlacedGrid
from model.request import Prompt


class BlockKeys:
    """The keys of one request's blocks, each worked out when it is asked for first."""

    def __init__(self, prompt: Prompt, places: Sequence[PlacedGrid], block_size: int) -> None:
        self._prompt = prompt
        self._places = places
        self._ends = [place.end for place in places]
        self._block_size = block_size
        self._contents: dict[int, bytes] = {}  # of the images, by their number
        self._keys: list[bytes] = []

    def first(self, count: int, new_token_ids: Sequence[int]) -> list[bytes]:
        """Of the first `count` blocks, whose tokens are all known: those of the prompt and `new_token_ids` behind."""
        while len(self._keys) < count:
            self._keys.append(self._next(new_token_ids))
        return self._keys[:count]

    def _next(self, new_token_ids: Sequence[int]) -> bytes:
        start = len(self._keys) * self._block_size
        end = start + self._block_size
        length = len(self._prompt.token_ids_T)
        key = sha256(self._keys[-1] if self._keys else b"")
        key.update(np.ascontiguousarray(self._prompt.token_ids_T[start:end]).tobytes())
        key.update(np.ascontiguousarray(self._prompt.positions_3T[:, start:end]).tobytes())
        if end > length:  # positions count up behind the prompt
            new_ids = new_token_ids[max(start - length, 0) : end - length]
            key.update(np.array([self._prompt.next_position, *new_ids], dtype=np.int64).tobytes())
        number = bisect_right(self._ends, start)  # a long video has thousands of them, and as many blocks
        while number < len(self._places) and self._places[number].start < end:
            key.update(self._content(number, self._places[number]))
            number += 1
        return key.digest()

    def _content(self, number: int, place: PlacedGrid) -> bytes:
        if number not in self._contents:
            content = sha256(str(place.grid).encode())
            content.update(np.ascontiguousarray(self._prompt.patches_PC[place.first_patch : place.last_patch]).data)
            self._contents[number] = content.digest()
        return self._contents[number]
