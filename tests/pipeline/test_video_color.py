"""HDR and wide gamut through an encoder and back: colours sRGB knows come out as they are, brighter ones fit in."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc

from pipeline.video_color import to_srgb
from tests.pipeline.video_files import options, read_all

SIZE = (128, 64)
CELL = 32
# sRGB, none brighter than half of paper white
COLORS = np.array(
    [
        (180, 20, 30),
        (20, 170, 40),
        (30, 40, 180),
        (170, 160, 20),
        (128, 128, 128),
        (20, 20, 20),
        (90, 60, 40),
        (30, 180, 180),
    ]
)


def rgb_to_xyz(primaries: list[tuple[float, float]]) -> np.ndarray:
    """From the chromaticities of red, green and blue, and of white D65."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    x, y = 0.3127, 0.3290
    return columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))


BT709 = rgb_to_xyz([(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)])
BT2020 = rgb_to_xyz([(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)])


def linear(srgb: np.ndarray) -> np.ndarray:
    code = srgb / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def pq(nits: np.ndarray) -> np.ndarray:
    power = (np.maximum(nits, 0) / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(nits: np.ndarray) -> np.ndarray:
    """For a display of 1000 candela per square metre: its system gamma is 1.2."""
    display = np.maximum(nits, 0) / 1000
    luma = np.maximum(display @ [0.2627, 0.6780, 0.0593], 1e-12)[..., None]
    scene = display * luma ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


def write_colors(path: Path, codes: np.ndarray, trc: ColorTrc) -> None:
    """Cells of one colour each, R'G'B' codes of BT.2020 from 0 to 1, as 10 bits of limited range."""
    red, green, blue = codes.T
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    planes = 64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746
    cells = [np.round(plane).astype(np.uint16).reshape(2, 4) for plane in planes]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=10, options={"crf": "0", "x265-params": "log-level=none"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = ColorPrimaries.BT2020, trc, 9
        context.color_range = 1
        for number in range(10):
            frame = av.VideoFrame(*SIZE, "yuv420p10le")
            for plane, values, side in zip(frame.planes, cells, (CELL, CELL // 2, CELL // 2), strict=True):
                pixels = np.kron(values, np.ones((side, side), np.uint16))
                lines = np.zeros((pixels.shape[0], plane.line_size // 2), np.uint16)
                lines[:, : pixels.shape[1]] = pixels
                plane.update(lines.tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 10)
            frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = 9, trc, 9, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def colors_read(path: Path) -> np.ndarray:
    """The middle of each cell as the model sees it."""
    info, (window,) = read_all(path, options())
    assert info.is_hdr == (b"sdr" not in path.name.encode())
    frame = window.frames_THWC[0]
    height, width = frame.shape[0] // 2, frame.shape[1] // 4
    return np.array(
        [frame[(2 * row + 1) * height // 2, (2 * column + 1) * width // 2] for row in (0, 1) for column in range(4)]
    )


@pytest.mark.parametrize(
    ("name", "trc", "encode"),
    [
        ("pq", ColorTrc.SMPTE2084, lambda light: pq(203 * light)),
        ("hlg", ColorTrc.ARIB_STD_B67, lambda light: hlg(203 * light)),
        (
            "sdr",
            ColorTrc.BT2020_10,
            lambda light: np.where(
                light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055
            ),
        ),
    ],
)
def test_colors_that_srgb_knows_come_out_as_they_are(name, trc, encode, tmp_path):
    wide = linear(COLORS) @ (np.linalg.solve(BT2020, BT709)).T
    write_colors(tmp_path / f"{name}.mkv", encode(wide), trc)
    found = colors_read(tmp_path / f"{name}.mkv").astype(int)
    assert np.abs(found - COLORS).max() <= 4, found


def coded(codes: np.ndarray) -> np.ndarray:
    return np.round(65535 * codes).astype(np.uint16)[None]


@pytest.mark.parametrize(("trc", "encode"), [(ColorTrc.SMPTE2084, pq), (ColorTrc.ARIB_STD_B67, hlg)])
def test_bright_light_is_rolled_off_in_order_and_grey_stays_grey(trc, encode):
    nits = np.array([0, 1, 10, 50, 101, 150, 203, 400, 700, 1000])
    grey = to_srgb(coded(encode(np.repeat(nits[:, None], 3, axis=1))), trc, ColorPrimaries.BT2020)[0].astype(int)
    assert np.ptp(grey, axis=1).max() <= 1
    assert (np.diff(grey[:, 1]) > 0).all()
    assert grey[0, 1] == 0
    assert grey[-1, 1] >= 254
    assert 215 <= grey[6, 1] <= 240  # paper white, with room for what shines


def test_colors_outside_of_the_gamut_keep_their_hue():
    """Red, green and blue of BT.2020, which sRGB does not have."""
    found = to_srgb(coded(pq(100 * np.eye(3))), ColorTrc.SMPTE2084, ColorPrimaries.BT2020)[0].astype(int)
    assert found.argmax(axis=1).tolist() == [0, 1, 2]
    assert (found.min(axis=1) <= 1).all()
    assert (found.max(axis=1) > 120).all()
    assert (np.sort(found, axis=1)[:, 1] < 0.6 * found.max(axis=1)).all()
