"""A seekable file over bytes that lie elsewhere and are fetched when they are needed."""

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

CHUNK_BYTES = 4 << 20  # fetched at once, when nothing else is said
CHUNKS_KEPT = 4  # the end (where a PDF's table of contents lies), the start, and where reading goes on


class RangedFile(io.RawIOBase):
    """Bytes [0, size) of `fetch(start, stop)`, the last few chunks kept. `readall` from anywhere is one fetch.

    What `fetch` raises, reading raises. Wrap it in io.BufferedReader for small reads and for threads.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes], *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._size = size
        self._fetch = fetch
        self._chunk_bytes = chunk_bytes
        self._chunks_kept = CHUNKS_KEPT * CHUNK_BYTES // chunk_bytes
        self._position = 0
        self._chunks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"cannot seek to {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        index, within = divmod(self._position, self._chunk_bytes)
        piece = memoryview(self._chunk(index))[within : within + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        if self._size <= self._chunk_bytes or self._position >= self._size:
            return super().readall()  # of the one chunk, which is often here already
        data = self._fetch(self._position, self._size)
        self._position = self._size
        return data

    def _chunk(self, index: int) -> bytes:
        if index not in self._chunks:
            start = index * self._chunk_bytes
            self._chunks[index] = self._fetch(start, min(start + self._chunk_bytes, self._size))
        self._chunks.move_to_end(index)
        if len(self._chunks) > self._chunks_kept:
            self._chunks.popitem(last=False)
        return self._chunks[index]
