"""Which blocks of the key/value cache belong to whom. Pure bookkeeping: the tensors are the runner's."""


class BlockPool:
    """A free list over the `num_blocks` blocks of the cache, each with room for `block_size` tokens.

    A request keeps its own block table, a list of block numbers: token t lies in slot t % block_size of block
    table[t // block_size]. A block belongs to one table at a time. (Kwon et al., PagedAttention, arXiv 2309.06180.)
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(reversed(range(num_blocks)))
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens fill."""
        return -(-num_tokens // self.block_size)

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Appends free blocks until `table` has room for `num_tokens` tokens; False, and nothing changed, when there
        are not enough of them."""
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.pop()
            self._taken.add(block)
            table.append(block)
        return True

    def release(self, table: list[int]) -> None:
        """Takes every block of `table` back and empties it."""
        for block in table:
            assert block in self._taken, f"block {block} was released twice"
            self._taken.remove(block)
        self._free += reversed(table)
        table.clear()
