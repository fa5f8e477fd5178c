"""Which blocks of the key/value cache belong to whom, and what they hold. The tensors themselves are the runner's."""

from collections.abc import Sequence

import numpy as np


class BlockPool:
    """The `num_blocks` blocks of the cache, each with room for `block_size` tokens.

    A request keeps its own block table, a list of block numbers: token t lies in slot t % block_size of block
    table[t // block_size]. A block that is written may be published under a key of its content; requests that begin
    alike then hold the same blocks. One that nobody holds any more keeps its content until its room is needed, the
    longest unused first. (Kwon et al., PagedAttention, arXiv 2309.06180.)

    A table takes the block behind its last one while that is empty (or kept, in a full cache), and a new one begins
    where most room is left to grow into: blocks that follow each other are read in place, others are gathered first.
    Any order is correct.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._holders = [0] * num_blocks
        self._is_empty = np.ones(num_blocks, dtype=bool)  # neither held nor kept
        self._num_empty = num_blocks
        self._kept: dict[int, None] = {}  # published blocks that nobody holds, the longest unused first
        self._keys: dict[int, bytes] = {}
        self._published: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return self._num_empty + len(self._kept)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens fill."""
        return -(-num_tokens // self.block_size)

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Appends free blocks until `table` has room for `num_tokens` tokens; False, and nothing changed, when there
        are not enough of them."""
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > self.num_free:
            return False
        for left in range(missing, 0, -1):
            block = table[-1] + 1 if table else self.num_blocks
            if block >= self.num_blocks or not (self._is_empty[block] or (block in self._kept and not self._num_empty)):
                while self._num_empty < left:
                    self._forget(next(iter(self._kept)))
                block = self._roomiest(left)
            self._hold(block)
            table.append(block)
        return True

    def share(self, keys: Sequence[bytes]) -> list[int]:
        """The table of as many of the first `keys` as are published."""
        table = []
        for key in keys:
            if (block := self._published.get(key)) is None:
                break
            self._holders[block] += 1
            self._kept.pop(block, None)
            table.append(block)
        return table

    def publish(self, block: int, key: bytes) -> None:
        """From now on the content of `block`, which is written and held, is found under `key`; the first one counts."""
        assert self._holders[block], f"block {block} is published and not held"
        if block not in self._keys and key not in self._published:
            self._keys[block] = key
            self._published[key] = block

    def release(self, table: list[int]) -> None:
        """Takes every block of `table` back and empties it. The last blocks are forgotten first: without those in front
        of them nobody finds them."""
        for block in reversed(table):
            assert self._holders[block], f"block {block} was released twice"
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._keys:
                self._kept[block] = None
            else:
                self._set_empty(block, True)
        table.clear()

    def _hold(self, block: int) -> None:
        """Gives a block that nobody holds a new owner, who will write over it."""
        if block in self._kept:
            self._forget(block)
        self._set_empty(block, False)
        self._holders[block] = 1

    def _forget(self, block: int) -> None:
        del self._kept[block]
        del self._published[self._keys.pop(block)]
        self._set_empty(block, True)

    def _set_empty(self, block: int, empty: bool) -> None:
        self._num_empty += 1 if empty else -1
        self._is_empty[block] = empty

    def _roomiest(self, wanted: int) -> int:
        """Where `wanted` blocks, and more later, go best: into the middle of the longest empty run, so that the table
        in front of it can grow too, or as far to the left of the middle as they need."""
        edges = np.flatnonzero(np.diff(self._is_empty, prepend=False, append=False))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.argmax())
        start, length = int(starts[longest]), int(lengths[longest])
        return start + (min(length // 2, max(length - wanted, 0)) if start else 0)
