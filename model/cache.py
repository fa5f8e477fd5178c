"""Which blocks of the key/value cache belong to whom. Pure bookkeeping: the tensors are the runner's."""

import numpy as np


class BlockPool:
    """The `num_blocks` blocks of the cache, each with room for `block_size` tokens.

    A request keeps its own block table, a list of block numbers: token t lies in slot t % block_size of block
    table[t // block_size]. A block belongs to one table at a time. (Kwon et al., PagedAttention, arXiv 2309.06180.)

    A table takes the block behind its last one while that is free, and a new one begins where most room is left to grow
    into: blocks that follow each other are read in place, others are gathered first. Any order is correct.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks
        self._is_free = np.ones(num_blocks, dtype=bool)

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
            following = table[-1] + 1 if table else self.num_blocks
            is_following_free = following < self.num_blocks and self._is_free[following]
            block = following if is_following_free else self._roomiest(left)
            self._is_free[block] = False
            self.num_free -= 1
            table.append(block)
        return True

    def release(self, table: list[int]) -> None:
        """Takes every block of `table` back and empties it."""
        for block in table:
            assert not self._is_free[block], f"block {block} was released twice"
            self._is_free[block] = True
        self.num_free += len(table)
        table.clear()

    def _roomiest(self, wanted: int) -> int:
        """Where `wanted` blocks, and more later, go best: into the middle of the longest free run, so that the table in
        front of it can grow too, or as far to the left of the middle as they need."""
        edges = np.flatnonzero(np.diff(self._is_free, prepend=False, append=False))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.argmax())
        start, length = int(starts[longest]), int(lengths[longest])
        return start + (min(length // 2, max(length - wanted, 0)) if start else 0)
