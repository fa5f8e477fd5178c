"""Videos that were joined byte by byte: where in a file another whole one begins, which FFmpeg does not look for.

Transport and program streams and raw ones need none of this: FFmpeg reads on in them, and `video_clock` sets times.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from av.video.frame import VideoFrame

from pipeline.video_file import VideoFile, open_video

_MOST_BOXES = 512  # that are stepped over: each is a read of the store, and a fragmented file has thousands
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


class _Slice(io.RawIOBase):
    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._size, self._place = file, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override] # what reads is a memoryview
        self._file.seek(self._start + self._place)
        data = self._file.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def part_of(file: BinaryIO, start: int, end: int) -> BinaryIO:
    """Bytes `start` to `end` of a file as a file of their own, which leaves the other open."""
    return io.BufferedReader(_Slice(file, start, end))


def split_parts(file: BinaryIO) -> list[tuple[int, int]]:
    """(first byte, end) of each whole file of those that lie behind each other in `file`: of one, mostly."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    walk = _walk_of(file.read(64))
    starts = [0, *(place for place in (walk(file, size) if walk else ()) if 0 < place < size)]
    return list(zip(starts, [*starts[1:], size], strict=True))


def _walk_of(head: bytes) -> Callable[[BinaryIO, int], Iterator[int]] | None:
    if head[4:8] == b"ftyp":
        return _walk_mp4
    signs = ((_EBML, _walk_matroska), (b"RIFF", _walk_avi), (b"FLV\x01", _walk_flv), (_ASF, _walk_asf))
    return next((walk for sign, walk in (*signs, (b"DKIF", _walk_ivf)) if head.startswith(sign)), None)


def _read_at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _walk_mp4(file: BinaryIO, size: int) -> Iterator[int]:
    place, has_movie = 0, False
    for _ in range(_MOST_BOXES):
        head = _read_at(file, place, 16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if kind == b"ftyp" and has_movie:
            yield place
            has_movie = False
        has_movie |= kind in (b"moov", b"mdat")
        place += length
        if length < 8 or place >= size:
            return


def _walk_matroska(file: BinaryIO, size: int) -> Iterator[int]:
    place = 0
    while place < size:
        if place:
            yield place
        head = _read_at(file, place, 4096)
        within = head.find(_SEGMENT) + 4
        if not head.startswith(_EBML) or within < 4 or within >= len(head):
            return
        width = 9 - head[within].bit_length()
        length = int.from_bytes(head[within : within + width], "big") & ((1 << 7 * width) - 1)
        place += within + width + length
        if length == (1 << 7 * width) - 1 or _read_at(file, place, 4) != _EBML:  # of unknown length, as of a live one
            return


def _walk_avi(file: BinaryIO, size: int) -> Iterator[int]:
    place = 0
    while place < size:
        head = _read_at(file, place, 12)
        if not head.startswith(b"RIFF"):
            return
        if head[8:] == b"AVI " and place:  # and AVIX where a long file goes on
            yield place
        length = int.from_bytes(head[4:8], "little") + 8
        place += length + length % 2


def _walk_flv(file: BinaryIO, size: int) -> Iterator[int]:
    place = 13
    while place < size:
        head = _read_at(file, place, 11)
        if head.startswith(b"FLV\x01"):
            yield place
            place += 13
        elif len(head) < 11 or head[0] & 0x1F not in (8, 9, 18):
            return
        else:
            place += 11 + int.from_bytes(head[1:4], "big") + 4


def _walk_asf(file: BinaryIO, size: int) -> Iterator[int]:
    place = 0
    for _ in range(_MOST_BOXES):
        head = _read_at(file, place, 24)
        length = int.from_bytes(head[16:], "little")
        if place and head.startswith(_ASF):
            yield place
        place += length
        if length < 24 or place >= size:
            return


def _walk_ivf(file: BinaryIO, size: int) -> Iterator[int]:
    place = 0
    while place < size:
        head = _read_at(file, place, 12)
        if head.startswith(b"DKIF"):
            if place:
                yield place
            place += 32
        elif len(head) < 12:
            return
        else:
            place += 12 + int.from_bytes(head[:4], "little")


class JoinedVideo:
    """Several videos, one behind the other on one clock; it is read as a `VideoFile` is."""

    def __init__(self, parts: Sequence[tuple[BinaryIO, int]]) -> None:
        """`parts`: each with its length in microseconds."""
        self._parts = parts
        self._errors_us: list[int] = []
        self._corrupt_us: list[int] = []
        self._open: tuple[VideoFile, int] | None = None  # the part that is read, and where it begins
        self._end_us = 0

    @property
    def errors_us(self) -> list[int]:
        video, begin_us = self._open or (None, 0)
        return self._errors_us + [begin_us + time_us for time_us in (video.errors_us if video else ())]

    @property
    def corrupt_us(self) -> list[int]:
        video, begin_us = self._open or (None, 0)
        return self._corrupt_us + [begin_us + time_us for time_us in (video.corrupt_us if video else ())]

    @property
    def end_us(self) -> int:
        video, begin_us = self._open or (None, 0)
        return max(self._end_us, begin_us + video.end_us if video else 0)

    def frames(self, from_us: int = 0) -> Iterator[tuple[int, VideoFrame]]:
        """As `VideoFile.frames`: also of the parts behind the one that `from_us` lies in."""
        begin_us = 0
        for file, length_us in self._parts:
            if begin_us + length_us > from_us:
                with open_video(file) as video:
                    self._open = video, begin_us
                    try:
                        for time_us, frame in video.frames(max(0, from_us - begin_us)):
                            if time_us < length_us:
                                yield begin_us + time_us, frame
                    finally:
                        self._errors_us, self._corrupt_us, self._end_us = self.errors_us, self.corrupt_us, self.end_us
                        self._open = None
            begin_us += length_us
