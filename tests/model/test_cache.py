"""The bookkeeping of the key/value cache under arbitrary sequences of growing and releasing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.cache import BlockPool

OPERATIONS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=80)


@given(num_blocks=st.integers(1, 20), block_size=st.integers(1, 8), operations=OPERATIONS)
def test_every_block_has_one_owner_and_none_is_lost(num_blocks, block_size, operations):
    pool = BlockPool(num_blocks, block_size)
    tables: list[list[int]] = [[] for _ in range(6)]
    for owner, num_tokens, releases in operations:
        before = [list(table) for table in tables]
        if releases:
            pool.release(tables[owner])
            assert tables[owner] == []
        elif pool.grow(tables[owner], num_tokens):
            assert len(tables[owner]) * block_size >= num_tokens
            assert tables[owner][: len(before[owner])] == before[owner]
        else:
            assert tables == before
            assert (len(tables[owner]) + pool.num_free) * block_size < num_tokens
        owned = [block for table in tables for block in table]
        assert len(owned) == len(set(owned))
        assert set(owned) <= set(range(num_blocks))
        assert len(owned) + pool.num_free == num_blocks
    for table in tables:
        pool.release(table)
    assert pool.num_free == num_blocks


@given(num_tokens=st.integers(0, 1000), block_size=st.integers(1, 64))
def test_a_table_grows_by_no_block_more_than_it_needs(num_tokens, block_size):
    pool = BlockPool(1000, block_size)
    table: list[int] = []
    assert pool.grow(table, num_tokens)
    assert (len(table) - 1) * block_size < num_tokens <= len(table) * block_size or num_tokens == len(table) == 0


def test_a_block_cannot_be_released_twice():
    pool = BlockPool(4, 2)
    table: list[int] = []
    pool.grow(table, 3)
    copy = list(table)
    pool.release(table)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(copy)
