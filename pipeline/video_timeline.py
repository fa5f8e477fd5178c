"""How long a video is and where it has holes: by its headers where a look at the end agrees, otherwise by packets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from pipeline.video_file import VideoFile

_CAN_JOIN = ("mpegts", "mpeg")  # without headers of their own: joined files are one
_LOOKS = 32  # at the clock, spread over such a file
_READ_WHOLE_BYTES = 16 << 20  # it is read through when it is smaller
_WRONG_US, _WRONG_SHARE = 1_000_000, 0.02  # how far headers may be off: they are rarely exact


@dataclass(frozen=True, slots=True)
class Timeline:
    """[start, end) of each stretch of a video, in microseconds on its clock, and what is odd about its times."""

    stretches: tuple[tuple[int, int], ...]
    flags: tuple[str, ...] = ()  # of timestamps_restart, timestamps_jump, duration_wrong

    @property
    def end_us(self) -> int:
        """Where the last one ends."""
        return self.stretches[-1][1]


def measure(video: VideoFile) -> Timeline:
    """Reads packets and decodes none: a few where the headers are right, all of them otherwise."""
    if video.is_raw:  # what FFmpeg says of their length is a guess by the bit rate
        return _of_length(video.count_duration_us())
    said_us = video.duration_us
    name = video.container.format.name
    if name in _CAN_JOIN:
        return _of_length(said_us) if said_us and _is_steady(video) else _read_through(video, 0)
    last = video.last_stretches() if said_us else None
    if last is None or len(last.stretches) > 1 or last.has_restarted:
        return _read_through(video, said_us)
    end_us = last.stretches[-1][1]
    if not _is_wrong(said_us, end_us) or (said_us > end_us and video.is_cut_off()):
        return _of_length(said_us)
    return Timeline(((0, max(1, end_us)),), () if _is_sound_longer(video, said_us, end_us) else ("duration_wrong",))


def joined(timelines: Sequence[Timeline]) -> Timeline:
    """One behind the other."""
    stretches: list[tuple[int, int]] = []
    begin_us = 0
    for timeline in timelines:
        for start_us, end_us in timeline.stretches:
            if stretches and stretches[-1][1] == begin_us + start_us:
                start_us = stretches.pop()[0] - begin_us
            stretches.append((begin_us + start_us, begin_us + end_us))
        begin_us += timeline.end_us
    flags = dict.fromkeys(flag for timeline in timelines for flag in timeline.flags)
    return Timeline(tuple(stretches), ("timestamps_restart", *flags))


def _read_through(video: VideoFile, said_us: int) -> Timeline:
    clock = video.read_through()
    stretches = tuple(clock.stretches)
    if not stretches:
        return _of_length(said_us)
    if stretches[-1][1] < said_us and video.is_cut_off():
        stretches = (*stretches[:-1], (stretches[-1][0], said_us))
    if len(stretches) == 1:
        stretches = ((0, stretches[0][1]),)
    end_us = stretches[-1][1]
    is_wrong = (said_us > 0 or video.says_nonsense) and not clock.has_restarted and _is_wrong(said_us, end_us)
    is_wrong = is_wrong and not _is_sound_longer(video, said_us, end_us)
    odd = (
        ("timestamps_restart", clock.has_restarted),
        ("timestamps_jump", len(stretches) > 1),
        ("duration_wrong", is_wrong),
    )
    return Timeline(stretches, tuple(name for name, holds in odd if holds))


def _of_length(duration_us: int) -> Timeline:
    return Timeline(((0, max(1, duration_us)),))


def _is_wrong(said_us: int, end_us: int) -> bool:
    return abs(said_us - end_us) > max(_WRONG_US, _WRONG_SHARE * end_us)


def _is_sound_longer(video: VideoFile, said_us: int, end_us: int) -> bool:
    """Whether a length that is more than the video's is that of the sound beside it."""
    has_sound = said_us > end_us and bool(video.container.streams.audio)
    return has_sound and not _is_wrong(said_us, video.last_of_all_us())


def _is_steady(video: VideoFile) -> bool:
    """Whether the clock goes on evenly, as far as looks at places all over the file show."""
    size = video.file_bytes
    if size <= _READ_WHOLE_BYTES:
        return False
    times = [video.time_at_byte(size * number // _LOOKS) for number in range(_LOOKS)]
    known = [time for time in times if time is not None]
    steps = [later - earlier for earlier, later in pairwise(known)]
    if len(steps) < _LOOKS // 2:
        return False
    return min(steps) >= 0 and max(steps) <= 8 * median(steps) + 10_000_000
