"""A RangedFile reads like a file of the same bytes, and fetches little."""

import io
import random

import pytest

from pipeline.ranged import CHUNK_BYTES, CHUNKS_KEPT, RangedFile


def test_it_reads_like_bytes_in_memory_wherever_one_seeks() -> None:
    rng = random.Random(0)
    data = rng.randbytes(2 * CHUNK_BYTES + 12345)
    file = io.BufferedReader(RangedFile(len(data), lambda start, stop: data[start:stop]))
    truth = io.BytesIO(data)
    for _ in range(300):
        whence = rng.choice([io.SEEK_SET, io.SEEK_END])
        offset = rng.randrange(len(data) + 10) if whence == io.SEEK_SET else -rng.randrange(len(data))
        size = rng.choice([0, 1, 100, 9000, CHUNK_BYTES, len(data)])
        assert file.seek(offset, whence) == truth.seek(offset, whence)
        assert file.read(size) == truth.read(size)
        assert file.tell() == truth.tell()
    file.seek(77)
    assert file.read() == data[77:]
    assert file.read() == b""


def test_the_ends_of_a_huge_object_cost_two_fetches_and_memory_stays_bounded() -> None:
    size = 1 << 40
    fetched: list[tuple[int, int]] = []

    def fetch(start: int, stop: int) -> bytes:
        fetched.append((start, stop))
        return bytes(stop - start)

    file = io.BufferedReader(RangedFile(size, fetch))
    for _ in range(5):
        file.seek(0)
        file.read(1000)
        file.seek(-1000, io.SEEK_END)
        assert len(file.read(5000)) == 1000
    assert fetched == [(0, CHUNK_BYTES), (size - CHUNK_BYTES, size)]

    for chunk in range(1, CHUNKS_KEPT + 1):
        for position in (chunk * CHUNK_BYTES, 0):
            file.seek(position)
            file.read(1)
    assert fetched.count((0, CHUNK_BYTES)) == 1  # in use all the time, so it was kept
    file.seek(-1, io.SEEK_END)
    file.read(1)
    assert fetched.count((size - CHUNK_BYTES, size)) == 2  # had been dropped for newer ones


def test_a_whole_read_is_one_fetch() -> None:
    fetched: list[tuple[int, int]] = []

    def fetch(start: int, stop: int) -> bytes:
        fetched.append((start, stop))
        return bytes(stop - start)

    for size in (0, 1, CHUNK_BYTES, 5 * CHUNK_BYTES + 1):
        fetched.clear()
        assert len(io.BufferedReader(RangedFile(size, fetch)).read()) == size
        assert fetched == ([(0, size)] if size else [])


def test_seeking_before_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        RangedFile(10, lambda start, stop: bytes(stop - start)).seek(-1)
