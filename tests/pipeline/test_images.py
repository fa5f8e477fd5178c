"""Images of every kind Pillow reads become the upright RGB picture on white that a person sees."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from pipeline.boxes import tile_to_page
from pipeline.images import ImageFile
from pipeline.pixels import PixelBudget
from pipeline.records import BadInput, ErrorCode, Page, Stage
from tests.pipeline.document_files import ink_box, largest_difference

BUDGET = PixelBudget(min_tokens=4, max_tokens=256, multiple=32, tile_aspect=4.0)
ORIENTATION = 0x0112
# How to store an upright picture so that a viewer that follows the EXIF orientation shows it upright.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def saved(image: Image.Image, pillow_format: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **how)
    return buffer.getvalue()


def opened(data: bytes, media_type: str, **limits: int) -> ImageFile:
    return ImageFile(io.BytesIO(data), media_type, **limits)


def read(data: bytes, media_type: str = "image/png", page_no: int = 1) -> Page:
    return opened(data, media_type).read_page(page_no, BUDGET)


def middle(page: Page) -> tuple[int, ...]:
    height, width, _ = page.tiles[0].shape
    return tuple(int(value) for value in page.tiles[0][height // 2, width // 2])


def picture_with_marks(width: int, height: int) -> tuple[Image.Image, dict[str, tuple[float, float, float, float]]]:
    image = Image.new("RGB", (width, height), "white")
    places = {"red": (0.1, 0.05, 0.3, 0.15), "green": (0.55, 0.4, 0.9, 0.47), "blue": (0.2, 0.8, 0.5, 0.95)}
    colours = {"red": "#f00", "green": "#0f0", "blue": "#00f"}
    for colour, (left, top, right, bottom) in places.items():
        box = (left * width, top * height, right * width - 1, bottom * height - 1)
        ImageDraw.Draw(image).rectangle(box, fill=colours[colour])
    return image, places


@pytest.mark.parametrize("pillow_format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("size", [(400, 600), (240, 2400), (2400, 240)], ids=["page", "strip", "panorama"])
def test_marks_are_where_the_upright_picture_has_them(
    size: tuple[int, int], orientation: int, pillow_format: str
) -> None:
    upright, places = picture_with_marks(*size)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    transpose = STORED[orientation]
    stored = upright if transpose is None else upright.transpose(transpose)
    data = saved(stored, pillow_format, exif=exif, quality=95)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == size, "the file is what it should be"

    image = opened(data, f"image/{pillow_format.lower()}")
    assert image.page_sizes() == (size,)
    page = image.read_page(1, BUDGET)
    assert (page.facts.width_pt, page.facts.height_pt) == size
    assert len(page.tiles) == len(page.facts.tile_boxes) == (1 if size == (400, 600) else 3)
    for colour, place in places.items():
        found = [
            tile_to_page(ink_box(tile, colour), tile_box)
            for tile, tile_box in zip(page.tiles, page.facts.tile_boxes, strict=True)
            if (np.abs(tile.astype(int) - _rgb(colour)).max(axis=-1) < 60).any()
        ]
        joined = tuple(
            pick(box[side] for box in found) for side, pick in zip(range(4), (min, min, max, max), strict=True)
        )
        assert largest_difference(joined, place) < 0.01


def _rgb(colour: str) -> np.ndarray:
    return np.array({"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}[colour])


def test_the_rotation_that_was_applied_is_told_in_degrees_clockwise() -> None:
    turned = {}
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        turned[orientation] = read(saved(Image.new("RGB", (90, 60)), "JPEG", exif=exif), "image/jpeg").facts.rotation
    assert turned == {1: 0, 3: 180, 6: 90, 8: 270}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PNG tRNS grey"])
def test_what_is_transparent_shows_white_paper_and_not_the_hidden_colour(mode: str) -> None:
    rgba = Image.new("RGBA", (128, 128), (0, 0, 0, 0))  # black, if alpha were dropped
    rgba.paste((60, 60, 60, 255), (0, 0, 64, 128))
    if mode == "P":
        palette = Image.new("P", (128, 128), 0)
        palette.putpalette([0, 0, 0, 60, 60, 60])
        palette.paste(1, (0, 0, 64, 128))
        data = saved(palette, "PNG", transparency=0)
    elif mode == "PNG tRNS grey":
        grey = Image.new("L", (128, 128), 0)
        grey.paste(60, (0, 0, 64, 128))
        data = saved(grey, "PNG", transparency=0)
    else:
        data = saved(rgba.convert(mode), "PNG")
    tile = read(data).tiles[0]
    assert tuple(tile[64, 120]) == (255, 255, 255)
    assert tuple(tile[64, 8]) == (60, 60, 60)


def test_half_transparent_ink_is_mixed_with_white() -> None:
    assert middle(read(saved(Image.new("RGBA", (64, 64), (255, 0, 0, 128)), "PNG"))) == (255, 127, 127)


@pytest.mark.parametrize("pillow_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_saturated(pillow_format: str) -> None:
    ramp_HW = np.broadcast_to(np.linspace(0, 65535, 256).astype(np.uint16), (256, 256)).copy()
    data = saved(Image.fromarray(ramp_HW), pillow_format)
    tile = read(data, f"image/{pillow_format.lower()}").tiles[0]
    assert np.abs(tile[128, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_floating_point_grey_uses_the_least_white_that_holds_it() -> None:
    for white in (1.0, 255.0):
        ramp_HW = np.broadcast_to(np.linspace(0, white, 256).astype(np.float32), (256, 256)).copy()
        tile = read(saved(Image.fromarray(ramp_HW), "TIFF"), "image/tiff").tiles[0]
        assert np.abs(tile[128, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "pillow_format", "seen"),
    [
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("P", 2, "GIF", (10, 200, 30)),
        ("P", 2, "BMP", (10, 200, 30)),
        ("1", 1, "TIFF", (255, 255, 255)),
        ("1", 0, "PNG", (0, 0, 0)),
        ("L", 77, "JPEG", (77, 77, 77)),
        ("RGB", (1, 2, 250), "BMP", (1, 2, 250)),
        ("RGB", (40, 90, 200), "WEBP", (40, 90, 200)),
    ],
)
def test_every_colour_mode_becomes_rgb(
    mode: str, colour: object, pillow_format: str, seen: tuple[int, int, int]
) -> None:
    image = Image.new(mode, (96, 64), colour)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9, 10, 200, 30])
    found = middle(read(saved(image, pillow_format), f"image/{pillow_format.lower()}"))
    assert max(abs(a - b) for a, b in zip(found, seen, strict=True)) <= 4


def test_every_frame_of_a_tiff_is_a_page_of_its_own_size() -> None:
    frames = [Image.new("RGB", (64 * i, 64), (80 * i, 0, 0)) for i in (1, 2, 3)]
    image = opened(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "image/tiff")
    assert image.page_sizes() == ((64, 64), (128, 64), (192, 64))
    assert [middle(image.read_page(page_no, BUDGET))[0] for page_no in (3, 1, 2)] == [240, 80, 160]


@pytest.mark.parametrize("pillow_format", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_one_page_its_first_frame(pillow_format: str) -> None:
    first, second = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 200))
    data = saved(first, pillow_format, save_all=True, append_images=[second], lossless=True)
    image = opened(data, f"image/{pillow_format.lower()}")
    assert len(image) == 1
    assert middle(image.read_page(1, BUDGET)) == (200, 0, 0)


def test_a_broken_frame_leaves_the_others_alone() -> None:
    frames = [Image.new("RGB", (64, 64), (80 * i, 0, 0)) for i in (1, 2, 3)]
    data = bytearray(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:], compression="tiff_lzw"))
    strips = [int(Image.open(io.BytesIO(data)).tag_v2[273][0])]
    tiff = Image.open(io.BytesIO(data))
    for number in (1, 2):
        tiff.seek(number)
        strips.append(int(tiff.tag_v2[273][0]))
    data[strips[1] : strips[1] + 8] = b"\xff" * 8
    image = opened(bytes(data), "image/tiff")
    with pytest.raises(BadInput) as caught:
        image.read_page(2, BUDGET)
    assert (caught.value.failure.stage, caught.value.failure.code) == (Stage.RENDER, ErrorCode.CORRUPT)
    assert [middle(image.read_page(page_no, BUDGET))[0] for page_no in (1, 3)] == [80, 240]


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that size, with the data of a few pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (12_000, 12_000)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(BadInput) as caught:
        opened(png_of(width, height), "image/png", max_pixels=100_000_000)
    assert caught.value.failure.code == ErrorCode.IMAGE_BOMB


def test_a_bomb_among_the_frames_of_a_tiff_fails_alone() -> None:
    frames = [Image.new("RGB", (64, 64), (80 * i, 0, 0)) for i in (1, 2)]
    data = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    for tag in (256, 257):  # width and height, of the first frame only
        small, huge = struct.pack("<HHII", tag, 4, 1, 64), struct.pack("<HHII", tag, 4, 1, 60_000)
        assert data.count(small) == 2
        data = data.replace(small, huge, 1)
    image = opened(data, "image/tiff")
    assert image.page_sizes() == ((60_000, 60_000), (64, 64))
    with pytest.raises(BadInput) as caught:
        image.read_page(1, BUDGET)
    assert caught.value.failure.code == ErrorCode.IMAGE_BOMB
    assert middle(image.read_page(2, BUDGET)) == (160, 0, 0)


@pytest.mark.parametrize("pillow_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_truncated_image_is_corrupt(pillow_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8))
    data = saved(noise.convert("P") if pillow_format == "GIF" else noise, pillow_format)
    with pytest.raises(BadInput) as caught:
        read(data[: len(data) // 2], f"image/{pillow_format.lower()}")
    assert caught.value.failure.code == ErrorCode.CORRUPT


def test_shrinking_is_antialiased() -> None:
    stripes_HW = np.tile(np.array([[0, 255]], dtype=np.uint8), (1024, 512))  # one pixel wide: grey from afar
    for pillow_format in ("PNG", "JPEG"):
        data = saved(Image.fromarray(stripes_HW), pillow_format, quality=100)
        tile = read(data, f"image/{pillow_format.lower()}").tiles[0]
        assert tile.shape == (512, 512, 3)
        assert np.abs(tile[8:-8, 8:-8].astype(int) - 127).max() <= 6


def test_a_large_jpeg_decoded_at_a_fraction_looks_as_if_decoded_whole() -> None:
    noise_HWC = np.random.default_rng(1).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise_HWC).resize((2999, 4001), Image.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", quality=95)
    tile = read(data, "image/jpeg").tiles[0]
    whole = Image.open(io.BytesIO(data)).resize((tile.shape[1], tile.shape[0]), Image.Resampling.BICUBIC)
    difference = np.abs(tile.astype(int) - np.asarray(whole).astype(int))
    assert difference.mean() < 1
    assert difference.max() < 12
