"""Videos that went wrong on other people's machines: files that are handed out where they are there, and like ones."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.records import BadInput
from pipeline.video_frames import Orientation, orientation_of
from pipeline.videos import inspect_video
from tests.pipeline.video_files import options, read_all, write_frames

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
