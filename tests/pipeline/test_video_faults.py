"""Videos that went wrong on other people's machines: files that are handed out where they are there, and like ones."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.records import BadInput
from pipeline.video_file import open_video
from pipeline.video_frames import Orientation, orientation_of
from pipeline.videos import inspect_video, read_windows
from tests.pipeline.video_files import level, options, read_all, write_frames

FAULTS = Path(__file__).parents[3] / "shared" / "data" / "faults" / "videos"
needs_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="the faulty files are not here")


def code_of(path: Path) -> str:
    """Why the video cannot be read; "" where it can."""
    with path.open("rb") as file:
        try:
            inspect_video(file, options())
        except BadInput as error:
            return error.failure.code.value
    return ""


def write_sound(path: Path, codec: str, *, art: bool, rate: int = 48_000) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=rate)
        cover = container.add_stream("mjpeg", rate=1) if art else None
        if cover is not None:
            cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(cover.encode(frame.reformat(format="yuvj420p")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = rate, 0
        for frame in av.AudioResampler(sound.format, sound.layout, rate).resample(silence):
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


@needs_faults
@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(("camera.avi", ""), ("spatial.mov", ""), ("duration_tag.mkv", "")),
        *(("podcast.ogg", "no_video"), ("cenc.mp4", "encrypted")),
    ],
)
def test_a_faulty_file_is_what_its_manifest_says(name, code):
    assert code_of(FAULTS / name) == code


@needs_faults
@pytest.mark.parametrize(
    ("name", "seconds", "windows", "flags"),
    [
        ("duration_tag.mkv", 20, 1, ()),
        ("cat_10_20.ts", 30, 1, ("timestamps_restart",)),
        ("jump_1h.ts", 3619.8, 2, ("timestamps_jump",)),
        ("says_5s.mkv", 60, 1, ("duration_wrong",)),
        ("no_duration.wmv", 60, 1, ("duration_wrong",)),
        ("says_11_days.mkv", 20, 1, ("duration_wrong",)),
        ("says_1e9s.flv", 20, 1, ("duration_wrong",)),
    ],
)
def test_of_a_faulty_file_what_is_there_is_read(name, seconds, windows, flags):
    info, read = read_all(FAULTS / name, options())
    assert info.duration_us == pytest.approx(seconds * 1e6, abs=110_000)
    assert info.flags == flags
    assert [window.facts.flags for window in read] == [()] * windows


def write_part(path: Path, seconds: int, start: int = 0) -> bytes:
    if path.suffix == ".vob":
        write_frames(path, [25 * start + number for number in range(25 * seconds)], Fraction(1, 25), codec="mpeg2video")
    else:
        pts = [start * 1000 + 100 * number for number in range(10 * seconds)]
        write_frames(path, pts, Fraction(1, 1000), codec_options={"bf": "2", "g": "20"})
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["ts", "vob", "mkv", "mp4", "mov", "flv"])
@pytest.mark.parametrize(
    "parts", [[(10, 0), (20, 0)], [(20, 5), (10, 0)], [(7, 0), (9, 0), (6, 0)], [(8, 900), (6, 0)]]
)
def test_joined_parts_are_on_one_clock_that_goes_on(suffix, parts, tmp_path):
    data = [write_part(tmp_path / f"{n}.{suffix}", seconds, at) for n, (seconds, at) in enumerate(parts)]
    (tmp_path / f"all.{suffix}").write_bytes(b"".join(data))
    wanted = options(window_seconds=4, overlap_seconds=0, shot_cuts=False)
    info, windows = read_all(tmp_path / f"all.{suffix}", wanted)
    seconds = sum(part[0] for part in parts)
    assert info.duration_us == pytest.approx(seconds * 1e6, abs=250_000)
    assert "timestamps_restart" in info.flags
    shades = []
    for window in windows:
        assert not window.facts.flags
        for time_us, frame in zip(window.facts.span.frame_us, window.frames_THWC, strict=True):
            shades.append((time_us, int(frame.mean())))
    ends_us = np.cumsum([part[0] for part in parts]) * 1_000_000
    for time_us, shade in shades:
        part = int(np.searchsorted(ends_us, time_us, side="right"))
        began_us = ends_us[part - 1] if part else 0
        numbers = [round((time_us - began_us) / (4e4 if suffix == "vob" else 1e5)) + near for near in (-1, 0, 1)]
        assert any(abs(shade - level(number)) < 8 for number in numbers), (time_us, shade)
    with (tmp_path / f"all.{suffix}").open("rb") as file:
        again = list(read_windows(file, [2, 4], info))
    for one, other in zip(again, (windows[1], windows[3]), strict=True):
        assert one.facts.span == other.facts.span
        np.testing.assert_array_equal(one.frames_THWC, other.frames_THWC)


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize(
    ("suffix", "codec", "wanted"),
    [
        *(("avi", "mpeg4", {}), ("wmv", "wmv2", {}), ("webm", "libvpx-vp9", {}), ("ivf", "libvpx", {})),
        *(("flv", "flv", {}), ("mp4", "libx264", FRAGMENTED), ("ts", "mpeg2video", {})),
    ],
)
def test_joined_files_of_any_container_are_read_to_the_end(suffix, codec, wanted, tmp_path):
    data = b""
    for seconds in (4, 6, 3):
        path = tmp_path / f"part.{suffix}"
        write_frames(path, list(range(25 * seconds)), Fraction(1, 25), codec=codec, container_options=wanted)
        data += path.read_bytes()
    (tmp_path / f"all.{suffix}").write_bytes(data)
    info, windows = read_all(tmp_path / f"all.{suffix}", options(window_seconds=5, overlap_seconds=0))
    assert info.duration_us == pytest.approx(13e6, abs=150_000)
    assert info.flags == ("timestamps_restart",)
    assert [len(window.frames_THWC) for window in windows] == [10, 10, 6]


def test_a_joined_part_that_cannot_be_opened_is_said(tmp_path):
    data = write_part(tmp_path / "a.mp4", 5)
    (tmp_path / "all.mp4").write_bytes(data + data[:32] + bytes(100) + data[32:3000])
    info, windows = read_all(tmp_path / "all.mp4", options())
    assert info.flags == ("timestamps_restart", "part_unreadable")
    assert len(windows[0].frames_THWC) == 10


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4", "avi", "webm"])
def test_a_sane_file_has_no_flags(suffix, tmp_path):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    write_frames(tmp_path / f"a.{suffix}", [number * 100 for number in range(100)], Fraction(1, 1000), codec=codec)
    info, windows = read_all(tmp_path / f"a.{suffix}", options())
    assert (info.flags, len(windows)) == ((), 1)
    assert info.duration_us == pytest.approx(10e6, abs=110_000)


@pytest.mark.parametrize("said", [1e3, 5e7, 1e12])
def test_a_header_that_says_too_little_or_too_much_is_not_believed(said, tmp_path):
    data = write_part(tmp_path / "a.mkv", 20).replace(b"DURATION", b"DURATIOM")
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes, in milliseconds
    (tmp_path / "a.mkv").write_bytes(data[:place] + struct.pack(">d", said) + data[place + 8 :])
    info, windows = read_all(tmp_path / "a.mkv", options())
    assert info.duration_us == pytest.approx(20e6, abs=110_000)
    assert info.flags == ("duration_wrong",)
    assert [window.facts.flags for window in windows] == [()]


@pytest.mark.parametrize("suffix", ["ts", "flv"])
def test_what_a_clock_jumps_over_has_no_windows(suffix, tmp_path):
    pts = [100 * number + (3_600_000 if number >= 100 else 0) for number in range(200)]
    write_frames(tmp_path / f"a.{suffix}", pts, Fraction(1, 1000), codec_options={"bf": "0", "g": "10"})
    info, windows = read_all(tmp_path / f"a.{suffix}", options())
    assert info.flags == ("timestamps_jump",)
    assert [len(window.frames_THWC) for window in windows] == [20, 20]
    assert windows[1].facts.span.start_us == pytest.approx(3610e6, abs=110_000)


def test_a_raw_stream_does_not_drift(tmp_path):
    write_frames(tmp_path / "a.h264", list(range(3000)), Fraction(1001, 30000), codec_options={"preset": "ultrafast"})
    with (tmp_path / "a.h264").open("rb") as file, open_video(file) as video:
        times = [time_us for time_us, _ in video.frames()]
    assert times[-1] == round(2999 * 1_000_000 / Fraction(30000, 1001))


EVEN = [40 * number for number in range(1500)]  # a minute at 25 frames a second
LATER = [time if time < 40_000 else time + 15 * (time % 120 == 0) for time in EVEN]
LOST = [time for time in EVEN if time not in (2000, 30_040)]
FILM = [round(number * 1001 / 24) for number in range(1400)]  # 23.976 a second, in milliseconds
STILL = [40 * number for number in range(100)] + [4_000 + 9_000 * number for number in range(4)] + [45_000, 45_500]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
@pytest.mark.parametrize(("times", "expected"), [(EVEN, False), (LATER, True), (LOST, False), (FILM, False)])
def test_the_rate_is_variable_where_it_is_so_anywhere(suffix, times, expected, tmp_path):
    write_frames(tmp_path / f"a.{suffix}", times, Fraction(1, 1000), codec_options={"preset": "ultrafast"})
    with (tmp_path / f"a.{suffix}").open("rb") as file:
        assert inspect_video(file, options()).is_vfr is expected


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts"])
@pytest.mark.parametrize("seconds", [2, 8, 20])
def test_a_hole_in_a_video_is_said(suffix, seconds, tmp_path):
    times = [time for time in EVEN if not 10_000 <= time < 10_000 + 1000 * seconds]
    write_frames(tmp_path / f"a.{suffix}", times, Fraction(1, 1000), codec_options={"preset": "ultrafast"})
    _, (window,) = read_all(tmp_path / f"a.{suffix}", options())
    assert window.facts.flags == ("frames_missing",)
    assert len(window.frames_THWC) == pytest.approx(120 - 2 * seconds, abs=1)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_a_stretch_that_cannot_be_decoded_is_a_hole(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    noise = {"preset": "ultrafast", "g": "25", "qp": "10"}
    write_frames(path, EVEN[:500], Fraction(1, 1000), codec_options=noise, size=(128, 128))
    data = bytearray(path.read_bytes())
    begin, end = len(data) // 3, len(data) // 3 + len(data) // 4
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    _, (window,) = read_all(path, options())
    assert "frames_missing" in window.facts.flags


def test_a_still_in_a_video_of_variable_rate_is_no_hole(tmp_path):
    write_frames(tmp_path / "a.mkv", STILL, Fraction(1, 1000))
    info, (window,) = read_all(tmp_path / "a.mkv", options())
    assert info.is_vfr
    assert window.facts.flags == ()


@pytest.mark.parametrize(
    ("suffix", "codec"), [("m1v", "mpeg1video"), ("m2v", "mpeg2video"), ("h264", "libx264"), ("obu", "libsvtav1")]
)
def test_the_frames_of_a_raw_stream_are_counted(suffix, codec, tmp_path):
    write_frames(tmp_path / f"a.{suffix}", list(range(300)), Fraction(1, 25), codec=codec)
    info, (window,) = read_all(tmp_path / f"a.{suffix}", options())
    assert (info.duration_us, len(window.frames_THWC)) == (12_000_000, 24)


def test_a_video_with_more_windows_than_allowed_says_so(tmp_path):
    write_part(tmp_path / "a.mkv", 20)
    with pytest.raises(BadInput, match="max_windows 3") as caught:
        read_all(tmp_path / "a.mkv", options(window_seconds=4, max_windows=3))
    assert caught.value.failure.code == "too_many_windows"


@pytest.mark.parametrize(
    ("suffix", "codec"), [("m4a", "aac"), ("mka", "aac"), ("mp3", "libmp3lame"), ("flac", "flac"), ("wma", "wmav2")]
)
@pytest.mark.parametrize("art", [True, False])
def test_sound_is_no_video_with_a_cover_or_without(suffix, codec, art, tmp_path):
    try:
        write_sound(tmp_path / f"a.{suffix}", codec, art=art)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg writes none: {error}")
    assert code_of(tmp_path / f"a.{suffix}") == "no_video"


@pytest.mark.parametrize(
    ("head", "code", "word"),
    [
        (b"RIFF\x10\0\0\0WEBPVP8 ", "unsupported_type", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "no_video", "sound"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "unsupported_type", "HEIF"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1", "unsupported_type", "AVIF"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "unsupported_type", "image/jpeg"),
        (b"GIF89a", "unsupported_type", "image/gif"),
        (b"ID3\x04\0\0", "no_video", "sound"),
        (b"%PDF-1.7\n", "unsupported_type", "PDF"),
        (b"PK\x03\x04", "unsupported_type", "zip"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nhello\n", "unsupported_type", "text"),
    ],
)
def test_another_file_among_videos_is_named(head, code, word):
    with pytest.raises(BadInput, match=word) as caught:
        inspect_video(io.BytesIO(head + b"\0" * (0 if word == "text" else 600)), options())
    assert caught.value.failure.code == code


def test_side_data_that_pyav_does_not_know_is_no_reason_to_refuse_a_frame():
    class Unknown:
        rotation = -90  # counter-clockwise, as FFmpeg counts

        @property
        def side_data(self):
            raise ValueError("31 is not a valid Type")

    assert orientation_of(Unknown()).rotation == 90
    assert not orientation_of(Unknown()).flip_y
    assert isinstance(orientation_of(Unknown()), Orientation)


@pytest.mark.parametrize(
    "tag", ["0.:00:20.0", "::", "a:b:c", "00:00:", "-1:00:00", "00:00:.", "1:2:3:4", "00:00:1.2.3"]
)
def test_a_malformed_duration_tag_is_read_past(tag, tmp_path):
    write_frames(tmp_path / "a.mkv", [100 * number for number in range(50)], Fraction(1, 1000))
    data = (tmp_path / "a.mkv").read_bytes()
    assert data.count(b"00:00:05.000000000") == 1
    (tmp_path / "a.mkv").write_bytes(data.replace(b"00:00:05.000000000", tag.encode().ljust(18, b"\0")))
    info, windows = read_all(tmp_path / "a.mkv", options())
    assert len(windows) == 1
    assert info.duration_us == 5_000_000


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts"])
def test_a_video_that_begins_after_its_sound_says_by_how_much(suffix, tmp_path):
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        sound, video = container.add_stream("aac", rate=48_000), container.add_stream("libx264", rate=10)
        video.width = video.height = 64
        video.codec_context.time_base = Fraction(1, 10)
        packets = []
        for number in range(470):  # ten seconds
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 1024 * number, Fraction(1, 48_000)
            packets += sound.encode(frame)
        for number in range(50, 100):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += video.encode(frame)
        packets += sound.encode() + video.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    info, windows = read_all(tmp_path / f"a.{suffix}", options())
    assert info.start_offset_us == pytest.approx(5e6, abs=60_000)  # an encoder's delay is part of the sound
    assert info.duration_us == pytest.approx(5e6, abs=250_000)
    assert windows[0].facts.span.frame_us[0] == 0


@needs_faults
def test_the_handed_video_that_begins_late_says_by_how_much():
    with (FAULTS / "late.mp4").open("rb") as file:
        assert inspect_video(file, options()).start_offset_us == 5_000_000


def write_with_sound(path: Path, video_seconds: int, sound_seconds: int) -> None:
    codecs = {"avi": ("mpeg4", "libmp3lame"), "webm": ("libvpx-vp9", "libopus"), "mpg": ("mpeg2video", "mp2")}
    video_codec, sound_codec = codecs.get(path.suffix[1:], ("libx264", "aac"))
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream(video_codec, rate=25), container.add_stream(sound_codec, rate=48_000)
        video.width = video.height = 64
        packets = []
        for number in range(video_seconds * 25):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level(number), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += video.encode(frame)
        resampler = av.AudioResampler(sound.format, sound.layout, 48_000, frame_size=sound.frame_size or None)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 48_000), np.float32), format="fltp", layout="stereo")
        for number in range(sound_seconds):
            silence.sample_rate, silence.pts, silence.time_base = 48_000, 48_000 * number, Fraction(1, 48_000)
            for frame in resampler.resample(silence):
                packets += sound.encode(frame)
        packets += video.encode() + sound.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "flv", "avi", "webm", "mpg"])
@pytest.mark.parametrize("sound_seconds", [4, 20])
def test_sound_that_is_longer_or_shorter_than_its_video_is_no_fault(suffix, sound_seconds, tmp_path):
    write_with_sound(tmp_path / f"a.{suffix}", 10, sound_seconds)
    info, windows = read_all(tmp_path / f"a.{suffix}", options(window_seconds=5, overlap_seconds=0))
    assert info.duration_us == pytest.approx(10e6, abs=150_000)
    assert info.flags == ()
    assert {flag for window in windows for flag in window.facts.flags} == set()


@pytest.mark.parametrize("suffix", ["mkv", "avi", "webm"])
def test_of_a_file_that_was_cut_off_the_rest_is_said_to_be_missing(suffix, tmp_path):
    write_with_sound(tmp_path / f"a.{suffix}", 20, 20)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
    _, windows = read_all(tmp_path / f"a.{suffix}", options(window_seconds=5, overlap_seconds=0))
    assert len(windows) == 4 + (suffix == "avi")  # FFmpeg's AVI has a frame more in its header
    assert windows[-1][1].code == "truncated_file"
    assert windows[0].facts.flags == ()


def test_a_file_that_ends_before_its_first_frame_is_cut_off(tmp_path):
    write_part(tmp_path / "a.mp4", 5)
    data = (tmp_path / "a.mp4").read_bytes()
    movie = data.index(b"moov") - 4
    head, body, tail = data[: data.index(b"mdat") - 4], data[data.index(b"mdat") - 4 : movie], data[movie:]
    (tmp_path / "a.mp4").write_bytes(head + tail)  # what a player fetches first, and the frames never came
    assert code_of(tmp_path / "a.mp4") == "truncated_file"
    assert body


def write_two_sizes(path: Path, *sizes: tuple[int, int]) -> None:
    """White pictures, 5 s of each size (width, height), in one stream."""
    parts = []
    for number, (width, height) in enumerate(sizes):
        part = path.with_name(f"{number}.{path.suffix[1:]}")
        with av.open(str(part), "w") as container:
            video = container.add_stream("libx264", rate=10)
            video.width, video.height = width, height
            for _ in range(50):
                white = np.full((height, width, 3), 255, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(white, format="rgb24")))
            container.mux(video.encode())
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize("suffix", ["ts", "h264"])
@pytest.mark.parametrize("sizes", [((320, 240), (240, 320)), ((240, 320), (320, 240)), ((320, 320), (320, 160))])
def test_where_the_size_changes_every_part_keeps_its_aspect(suffix, sizes, tmp_path):
    write_two_sizes(tmp_path / f"a.{suffix}", *sizes)
    _, windows = read_all(tmp_path / f"a.{suffix}", options())
    assert ["size_change" in window.facts.flags for window in windows] == [True] * len(windows)
    last = windows[-1].frames_THWC[-1].mean(axis=2) > 128
    height, width = int(last.any(axis=1).sum()), int(last.any(axis=0).sum())
    assert width / height == pytest.approx(sizes[1][0] / sizes[1][1], rel=0.1)  # sides are multiples of 32
    assert (windows[0].frames_THWC[0] > 128).all()


@needs_faults
def test_both_parts_of_the_handed_change_of_size_keep_their_aspect():
    _, (window,) = read_all(FAULTS / "size_change.mkv", options())
    assert window.facts.flags == ("size_change",)
    bars = window.frames_THWC[-1][:, 0]
    assert bars.max() == 0
