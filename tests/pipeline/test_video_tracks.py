"""What a file says about its tracks: how a picture is to be turned, and which of several tracks is the video."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.pipeline.video_files import options, read_all

TICK = Fraction(1, 1000)
# Grey levels of the quarters of a stored frame: top left, top right, bottom left, bottom right.
QUARTERS = np.array([[40, 100], [160, 220]], np.uint8)
# (a, b, c, d) of ISO 14496-12: a pixel at (x, y) is shown at (a x + c y, b x + d y).
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "90 clockwise": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "90 counter-clockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}
ROTATIONS = {"90 clockwise": 90, "180": 180, "90 counter-clockwise": 270}


def write_track(path: Path, *tracks: tuple[np.ndarray, int, int]) -> None:
    """A track for each (picture, frames, milliseconds from frame to frame)."""
    with av.open(str(path), "w") as container:
        streams = []
        for picture, _, step in tracks:
            stream = container.add_stream("libx264", rate=Fraction(1000, step), options={"bf": "0", "crf": "10"})
            stream.height, stream.width = picture.shape[:2]
            stream.time_base = stream.codec_context.time_base = TICK
            streams.append(stream)
        for stream, (picture, frames, step) in zip(streams, tracks, strict=True):
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number * step, TICK
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def turned_by(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes the matrix into the header of the file's only track, as cameras do."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    assert data[header] == 0, "a header of version 0 is expected"
    a, b, c, d = (value << 16 for value in matrix)
    data[header + 40 : header + 76] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def as_shown(matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The quarters where the matrix puts them, by its definition."""
    a, b, c, d = matrix
    places = {(a * x + c * y, b * x + d * y): QUARTERS[y, x] for y in (0, 1) for x in (0, 1)}
    columns, rows = sorted({x for x, _ in places}), sorted({y for _, y in places})
    return np.array([[places[x, y] for x in columns] for y in rows], int)


@pytest.mark.parametrize("name", MATRICES)
def test_pictures_are_turned_and_mirrored_as_the_matrix_of_their_track_says(name, tmp_path):
    picture = np.repeat(np.kron(QUARTERS, np.ones((48, 80), np.uint8))[..., None], 3, axis=2)  # 160 wide, 96 high
    write_track(tmp_path / "a.mp4", (picture, 6, 500))
    turned_by(tmp_path / "a.mp4", MATRICES[name])
    info, (window,) = read_all(tmp_path / "a.mp4", options())
    a, b, c, d = MATRICES[name]
    is_upright = a != 0
    assert (info.width, info.height) == ((160, 96) if is_upright else (96, 160))
    assert (info.coded_width, info.coded_height) == (160, 96)
    assert info.is_mirrored == (a * d - b * c < 0)
    if not info.is_mirrored:
        assert info.rotation == ROTATIONS.get(name, 0)
    frame = window.frames_THWC[0]
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    assert (width > height) == is_upright
    middles = [[frame[y * height + height // 2, x * width + width // 2].mean() for x in (0, 1)] for y in (0, 1)]
    np.testing.assert_allclose(middles, as_shown(MATRICES[name]), atol=4)


def grey(level: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_of_several_tracks_the_video_is_read_and_not_the_still_before_it(suffix, tmp_path):
    """A motion photo: a large still comes first, the video after it."""
    write_track(tmp_path / f"a{suffix}", (grey(30, 320, 480), 1, 500), (grey(200, 96, 160), 60, 100))
    info, (window,) = read_all(tmp_path / f"a{suffix}", options())
    assert info.video_tracks == 2
    assert (info.width, info.height) == (160, 96)
    assert len(window.facts.span.frame_us) == 12
    assert abs(window.frames_THWC.mean() - 200) < 4


def test_of_two_videos_the_one_marked_as_default_is_read(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=10, options={"bf": "0"}) for _ in range(2)]
        for stream in streams:
            stream.width = stream.height = 96
        streams[0].disposition, streams[1].disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for number in range(40):
            for stream, level in zip(streams, (30, 200), strict=True):
                frame = av.VideoFrame.from_ndarray(grey(level, 96, 96), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    info, (window,) = read_all(tmp_path / "a.mkv", options())
    assert info.video_tracks == 2
    assert abs(window.frames_THWC.mean() - 200) < 4
