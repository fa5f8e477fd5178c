"""A video through PyAV: opened so that it can open nothing else, its best track, its frames by presentation time.

All times are microseconds on the video's clock, whose 0 is the first instant of the video track. The rules about what
FFmpeg does with timestamps are measured, not documented: each stands where it is used.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL
from fractions import Fraction
from io import SEEK_END
from itertools import islice
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.media_types import HEAD_BYTES, still_or_sound, what_it_is
from pipeline.records import BadInput, ErrorCode, Stage
from pipeline.video_clock import BACK_US, Clock

# Only containers that hold their media themselves: no playlists, no concat, no SDP, no devices, no pictures.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg"),
    *("mxf", "ivf", "obu", "h264", "hevc", "m4v", "mpegvideo"),
)
_RAW = frozenset({"h264", "hevc", "m4v", "mpegvideo", "obu"})  # streams without a container: they have no timestamps
MOST_FRAMES_OF_A_STILL = 2
MAX_FRAME_PIXELS = 8192 * 4608  # of one coded frame: 8K and somewhat more
_STEPS_BACK_US = (2_000_000, 10_000_000, 60_000_000)  # where a seek lands late, as in MPEG-TS, it starts again earlier
_BEFORE_START_US = 60_000_000
# Without a packet for longer there is a hole and not a still: broadcasts repeat what does not move, files need not.
_LONGEST_GAP_US, _LONGEST_GAPS_US = 600_000_000, {"mpegts": 60_000_000, "mpeg": 60_000_000, "flv": 60_000_000}
_FAR_US, _MOST_PTS = 10**15, 1 << 53
_LOOKS, _SOUGHT_LOOKS, _FRAMES_OF_A_LOOK = 64, 8, 48  # at the times of frames: by an index, by seeking
_REORDERED = 5  # frames at most that come in another order than they show
_SEGMENT = b"\x18\x53\x80\x67"  # of Matroska
_TRACKS_BYTES = 1 << 20  # the tracks of a Matroska file stand before its clusters
_SIGNATURES = (b"ftyp", b"moov", b"\x1aE\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"DKIF")


@contextmanager
def open_video(file: BinaryIO, *, restarts: bool = False) -> Iterator["VideoFile"]:
    """`restarts`: whether its timestamps start again, so that it has to be read from the start to know the time.

    Raises BadInput (stage open), and whatever reading from `file` raises.
    """
    video = VideoFile(file, restarts=restarts)
    try:
        yield video
    finally:
        video.container.close()


def _open(file: BinaryIO) -> InputContainer:
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise BadInput(Stage.OPEN, ErrorCode.EMPTY_FILE, "the file has 0 bytes")
    if other := still_or_sound(head):
        code, what = other
        raise BadInput(Stage.OPEN, code, f"this is {what}, not a video")
    try:
        container = av.open(
            file,
            mode="r",
            options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"},
            io_open=_refuse,
            metadata_errors="replace",  # a title in Latin-1 is no reason to refuse a video
        )
        assert isinstance(container, InputContainer)
        return container
    except av.error.FFmpegError as error:
        is_video = any(sign in head[:64] for sign in _SIGNATURES)
        code = ErrorCode.CORRUPT if is_video else ErrorCode.UNSUPPORTED_TYPE
        message = f"not a video that can be opened: {error.strerror or error}; it begins {head[:8]!r}"
        if not is_video and (what := what_it_is(head)):
            message = f"this is {what}, not a video"
        raise BadInput(Stage.OPEN, code, message) from error


def _best_track(container: InputContainer) -> VideoStream | None:
    """FFmpeg's choice, for the first or the largest is often a still; but in a motion photo, whose tracks all say that
    they are the default, FFmpeg takes the still as well: then the track with the most frames. Cover art is no video."""
    tracks = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    if best in tracks:
        assert isinstance(best, VideoStream)
        if not 0 < best.frames <= MOST_FRAMES_OF_A_STILL:
            return best
    return max(tracks, key=lambda stream: stream.frames, default=None)


def _refuse(url: str, flags: int, options: dict[str, Any]) -> Any:
    raise PermissionError("a video may open nothing else")


def is_encrypted_matroska(file: BinaryIO) -> bool:
    """Whether the tracks of a Matroska or WebM file say that their content is encrypted, which FFmpeg passes over."""
    file.seek(0)
    head = file.read(_TRACKS_BYTES)
    tracks = head.partition(b"\x1f\x43\xb6\x75")[0]  # before the first cluster
    return head.startswith(b"\x1a\x45\xdf\xa3") and b"\x50\x35" in tracks and b"\x47\xe1" in tracks


class VideoFile:
    """The best video track of an open container: what is known without decoding, and its frames from any time on."""

    def __init__(self, file: BinaryIO, *, restarts: bool = False) -> None:
        """Raises BadInput (stage open) where there is no track that can be decoded."""
        self._file = file
        self._restarts = restarts
        self.errors_us: list[int] = []  # when packets would have shown that could not be decoded
        self.corrupt_us: list[int] = []  # when frames show that are marked as damaged
        self.is_encrypted = False  # whether a packet was met that is
        self.end_us = 0  # where the last packet that was read ends
        self._open()

    def _open(self) -> None:
        self.container = container = _open(self._file)
        self._is_fresh = True
        stream = _best_track(container)
        if stream is None:
            raise BadInput(Stage.OPEN, ErrorCode.NO_VIDEO, "the file has no video track")
        context = stream.codec_context
        if context is None:
            raise BadInput(Stage.OPEN, ErrorCode.NO_DECODER, "its video cannot be decoded here")
        self.stream = stream
        width, height = context.width, context.height
        if min(width, height) < 1 or width * height > MAX_FRAME_PIXELS:
            message = f"frames of {width} x {height} pixels; at most {MAX_FRAME_PIXELS:,} pixels are decoded"
            raise BadInput(Stage.OPEN, ErrorCode.BAD_DIMENSIONS, message)
        # With more threads the decoder is no faster on one core, and may hang when it is left before the end.
        context.thread_type = "NONE"
        context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        self.is_raw = container.format.name in _RAW
        # AVI knows only when a frame is to be decoded. Frames come out in the order they are shown: the first of them
        # shows at the first of these times, the second at the second, and so on.
        self.is_in_decode_order = container.format.name == "avi"
        self.time_base = Fraction(stream.time_base or Fraction(1, 1000))
        self.start_pts = stream.start_time or 0
        rate = (context.framerate if self.is_raw else None) or stream.guessed_rate or stream.average_rate or 25
        self._interval_us = 1_000_000 / Fraction(rate)  # exactly: rounded, raw streams would drift by 36 ms an hour
        self.frame_us = max(1, round(self._interval_us))
        self._clock = self._new_clock() if self._restarts else None

    def _new_clock(self) -> Clock:
        name = self.container.format.name
        gap_us = _LONGEST_GAPS_US.get(name, _LONGEST_GAP_US)
        return Clock(gap_us, can_wrap=name in ("mpegts", "mpeg"), least_back_us=max(BACK_US, 16 * self.frame_us))

    @property
    def file_bytes(self) -> int:
        """How large the file is."""
        place = self._file.tell()
        size = self._file.seek(0, SEEK_END)
        self._file.seek(place)
        return size

    @property
    def start_offset_us(self) -> int:
        """How much later than a player's clock, which begins with the first track, the video's begins."""
        first_us = self.container.start_time
        return 0 if first_us is None or self.is_raw else round(self.start_pts * self.time_base * 1_000_000) - first_us

    @property
    def says_nonsense(self) -> bool:
        """Whether the header has a length of less than nothing."""
        return (self.stream.duration or 0) < 0

    @property
    def duration_us(self) -> int:
        """By the headers: of the track, otherwise of the container; 0 when neither says."""
        stream = self.stream
        if stream.duration and stream.duration > 0:
            # FFmpeg guesses anew how long an AVI is that was cut off: its header still says how long it was to be.
            is_short = self.is_in_decode_order and self._first_part_ends() > self.file_bytes
            said_us = self._avi_header_us() if is_short else 0
            return max(said_us, round(stream.duration * self.time_base * 1_000_000))
        tag = stream.metadata.get("DURATION", "")  # Matroska's only word on the length of one track
        parts = tag.split(":")
        if len(parts) == 3 and all(part.isdecimal() for part in (*parts[:2], parts[2].replace(".", "", 1))):
            hours, minutes, seconds = parts
            end_us = round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1e6)
            return max(0, end_us + self._us(0))  # the tag counts from the container's 0, tracks may begin later
        return 0 if self.is_raw else max(0, self.container.duration or 0)

    def count_duration_us(self) -> int:
        """By reading every packet, for files whose headers do not say; the file is at its end afterwards."""
        self._rewind()
        packets = 0
        for packet in self._packets():
            packets += packet.size > 0
        return round(packets * self._interval_us) if self.is_raw else self.end_us

    def read_through(self) -> Clock:
        """The times of all packets, none of them decoded."""
        self._reopen()  # a seek to before the start may land in the second of joined files
        return self._timed(self._packets())

    def last_stretches(self) -> Clock | None:
        """The times of the packets behind the last key frame that can be found, or of some more; None without any."""
        for target_us in (_FAR_US, self.duration_us):
            target = self.start_pts + int(target_us / 1_000_000 / self.time_base)
            with suppress(av.error.FFmpegError):
                self._is_fresh = False
                self.container.seek(min(target, _MOST_PTS), stream=self.stream, backward=True)
                clock = self._timed(self._packets())
                if clock.stretches:
                    return clock
        return None

    def spread_times(self, length_us: int) -> list[list[int]]:
        """Times of frames that follow each other, in microseconds, at places spread over the file; none is decoded."""
        if self.is_raw:
            return []
        entries = self.stream.index_entries
        has_all = self.container.format.name.startswith(("mov", "avi")) and len(entries) > _LOOKS  # others: key frames
        if has_all and self._us(entries[-1].timestamp) > 0.9 * length_us:  # of a fragmented file, the first are known
            begins = range(0, len(entries) - 1, max(_FRAMES_OF_A_LOOK, len(entries) // _LOOKS))
            ends = (min(begin + _FRAMES_OF_A_LOOK, len(entries)) for begin in begins)
            looks = [map(entries.__getitem__, range(*place)) for place in zip(begins, ends, strict=True)]
            # When they are to be decoded, which is as evenly as they show.
            return [[self._us(entry.timestamp) for entry in look if entry.size] for look in looks]
        runs = []
        for look in range(_SOUGHT_LOOKS):
            target = self.start_pts + int(length_us * look / _SOUGHT_LOOKS / 1_000_000 / self.time_base)
            with suppress(av.error.FFmpegError):
                self._is_fresh = False
                self.container.seek(target, stream=self.stream, backward=True)
                packets = list(islice((packet for packet in self._packets() if packet.size), _FRAMES_OF_A_LOOK))
                times = sorted(self._us(packet.pts) for packet in packets if packet.pts is not None)
                is_end = len(packets) < _FRAMES_OF_A_LOOK  # elsewhere, neighbours of the last are still to come
                runs.append(times[_REORDERED if look else 0 : None if is_end else -_REORDERED])
        return runs

    def time_at_byte(self, offset: int) -> int | None:
        """When the first packet from there on shows, in microseconds."""
        self._is_fresh = False
        with suppress(av.error.FFmpegError):
            self.container.seek(offset, stream=self.stream, unsupported_byte_offset=True)
            return next((self._us(packet.pts) for packet in self._packets() if packet.pts is not None), None)
        return None

    def is_cut_off(self) -> bool:
        """Whether the file is shorter than its own structure says."""
        entries = self.stream.index_entries
        last = entries[-1].pos + entries[-1].size if len(entries) else 0
        return max(self._first_part_ends(), last) > self.file_bytes

    def _head(self) -> bytes:
        """The first bytes; the file stays where FFmpeg believes it to be."""
        place = self._file.tell()
        self._file.seek(0)
        head = self._file.read(4096)
        self._file.seek(place)
        return head

    def _avi_header_us(self) -> int:
        """The number of frames in the main header, at the interval that stands there."""
        head = self._head()
        if head[24:28] != b"avih":
            return 0
        return int.from_bytes(head[32:36], "little") * int.from_bytes(head[48:52], "little")

    def last_of_all_us(self) -> int:
        """Where the last packet of any track ends, sound included."""
        last_us, start_us = 0, round(self.start_pts * self.time_base * 1_000_000)
        for from_us in (self.end_us, 0):  # behind its last key frame, FLV cannot be sought in
            target = self.start_pts + int(from_us / 1_000_000 / self.time_base)
            with suppress(av.error.FFmpegError, IndexError):
                self._is_fresh = False
                self.container.seek(target, stream=self.stream, backward=True)
                for packet in self.container.demux():
                    if packet.pts is not None and packet.time_base:
                        end_us = round((packet.pts + (packet.duration or 0)) * packet.time_base * 1_000_000)
                        last_us = max(last_us, end_us - start_us)
            if last_us:
                break
        return last_us

    def _first_part_ends(self) -> int:
        """By the header of AVI and Matroska, in bytes from the start; 0 where it does not say."""
        head = self._head()
        if head.startswith(b"RIFF"):
            return int.from_bytes(head[4:8], "little") + 8
        place = head.find(_SEGMENT) + len(_SEGMENT)
        if self.container.format.name != "matroska,webm" or place < len(_SEGMENT) or place >= len(head):
            return 0
        width = 9 - head[place].bit_length()
        unknown = (1 << 7 * width) - 1
        said = int.from_bytes(head[place : place + width], "big") & unknown
        return 0 if said == unknown else place + width + said

    def _timed(self, packets: "Iterator[Packet[VideoStream]]") -> Clock:
        clock = self._new_clock()
        for packet in packets:
            if packet.size:
                self._place(clock, packet)
        return clock

    def _place(self, clock: Clock, packet: "Packet[VideoStream]") -> int:
        """What to add to its times, in units of time_base."""
        show = packet.dts if packet.pts is None or self.is_in_decode_order else packet.pts
        duration_us = round((packet.duration or 0) * self.time_base * 1_000_000) or self.frame_us
        if show is None:
            shift_us = clock.place_next(duration_us)
        else:
            decode = show if packet.dts is None else packet.dts
            shift_us = clock.place(self._us(decode), self._us(show), duration_us)
        return round(shift_us / 1_000_000 / self.time_base)

    def frames(self, from_us: int = 0) -> Iterator[tuple[int, VideoFrame]]:
        """(time, frame) as they are shown, from the last key frame at or before `from_us` or a little earlier.

        Damaged packets and frames are left out and noted. Ends where the file does, or where it is cut off.
        """
        if self.is_raw or self._restarts or from_us <= 0:
            self._rewind()
            yield from self._decoded(from_us if self._restarts else 0)
            return
        for step_back in (0, *_STEPS_BACK_US):
            if from_us <= step_back:
                break
            target = self.start_pts + int((from_us - step_back) / 1_000_000 / self.time_base)
            try:
                self.container.seek(target, stream=self.stream, backward=True)
            except av.error.FFmpegError:  # cannot be sought in
                break
            decoded = self._decoded()
            first = next(decoded, None)
            if first is not None and first[0] <= from_us:
                yield first
                yield from decoded
                return
        self._rewind()
        yield from self._decoded()

    def _rewind(self) -> None:
        """To the first packet. Where that cannot be sought, the file is opened again."""
        if self._is_fresh:
            return
        if not self.is_raw and not self._restarts:
            # To well before the start: with an edit list, a seek to 0 lands on the second key frame.
            before = self.start_pts - int(_BEFORE_START_US / 1_000_000 / self.time_base)
            with suppress(av.error.FFmpegError):
                self.container.seek(before, stream=self.stream, backward=True)
                return
        self._reopen()

    def _reopen(self) -> None:
        self.container.close()
        self._open()

    def _packets(self) -> "Iterator[Packet[VideoStream]]":
        self._is_fresh = False
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:  # the container is damaged here, or cut off: what came is what there is
                return
            except IndexError:  # PyAV meets a packet of a track that was not there at the start, as FLV may have
                packets = self.container.demux(self.stream)
                continue
            if packet is None:
                return
            if self._clock is not None and packet.size:
                shift = self._place(self._clock, packet)
                packet.pts = None if packet.pts is None else packet.pts + shift
                packet.dts = None if packet.dts is None else packet.dts + shift
            if packet.pts is not None and packet.size:
                self.end_us = max(self.end_us, self._us(packet.pts + (packet.duration or 0)))
            yield packet

    def _packets_from(self, from_us: int) -> "Iterator[Packet[VideoStream]]":
        """All that come, but for those before the last key frame that is not later than `from_us`."""
        held: list[Packet[VideoStream]] = []
        packets = self._packets()
        for packet in packets:
            time_us = None if packet.pts is None else self._us(packet.pts)
            if packet.is_keyframe and time_us is not None and time_us <= from_us:
                held.clear()
            held.append(packet)
            if time_us is not None and time_us >= from_us:
                break
        yield from held
        yield from packets

    def _decoded(self, from_us: int = 0) -> Iterator[tuple[int, VideoFrame]]:
        self.stream.codec_context.flush_buffers()
        decode_times: deque[int] = deque()
        count, last_us = 0, -self.frame_us
        for packet in self._packets_from(from_us) if from_us > 0 else self._packets():
            if self.is_in_decode_order and packet.dts is not None and packet.size:
                decode_times.append(self._us(packet.dts))
            try:
                frames = self._decode(packet)
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                lost_us = round(count * self._interval_us) if self.is_raw else last_us + self.frame_us
                known_us = self._us(packet.pts) if packet.pts is not None else lost_us
                self.errors_us.append(known_us)
                count += 1
                if decode_times:
                    decode_times.popleft()
                continue
            for frame in frames:
                assert isinstance(frame, VideoFrame)
                if self.is_raw:
                    time_us = round(count * self._interval_us)
                elif decode_times:
                    time_us = decode_times.popleft()
                else:
                    time_us = self._us(frame.pts) if frame.pts is not None else last_us + self.frame_us
                count, last_us = count + 1, time_us
                if frame.is_corrupt:
                    self.corrupt_us.append(time_us)
                else:
                    yield time_us, frame

    def _decode(self, packet: "Packet[VideoStream]") -> list[VideoFrame]:
        """Raises InvalidDataError for what is encrypted: some of it decodes, to noise."""
        if packet.has_sidedata("encryption_info"):
            self.is_encrypted = True
            raise av.error.InvalidDataError(EINVAL, "encrypted")
        return packet.decode()

    def _us(self, pts: int) -> int:
        return round((pts - self.start_pts) * self.time_base * 1_000_000)
