"""Images whose samples are not eight bits with square pixels: text on them is as dark and as wide as it is meant."""

import io
import struct
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont

from pipeline.documents import DocumentOptions, inspect, read_pages
from pipeline.records import BadInput, Page

OPTIONS = DocumentOptions(max_tokens=256)
SIZE = (400, 300)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def page_of(data: bytes, options: DocumentOptions = OPTIONS) -> Page:
    (page,) = pages_of(data, options)
    return page


def pages_of(data: bytes, options: DocumentOptions = OPTIONS) -> list[Page]:
    info = inspect(io.BytesIO(data), options)
    pages = list(read_pages(io.BytesIO(data), range(1, len(info.page_sizes) + 1), options))
    assert all(isinstance(page, Page) for page in pages), pages
    return [page for page in pages if isinstance(page, Page)]


def drawn(size: tuple[int, int] = SIZE, paper: Any = 255, ink: Any = 0, mode: str = "L") -> Image.Image:
    image = Image.new(mode, size, paper)
    font = ImageFont.load_default(size=size[1] // 6)
    ImageDraw.Draw(image).text((size[0] // 8, size[1] // 3), "Twelve 123", fill=ink, font=font)
    return image


def saved(image: Image.Image, pillow_format: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, pillow_format, **how)
    return file.getvalue()


def white_share(page: Page) -> float:
    """Of all pixels."""
    return float(np.mean(page.tiles[0] > 200))


def assert_dark_on_light(page: Page, dark: int = 70, light: int = 180) -> None:
    assert not page.facts.is_blank
    grey_HW = page.tiles[0].mean(axis=-1)
    assert np.median(grey_HW) >= light
    assert grey_HW.min() <= dark


def tiff(order: str, frames: Sequence[tuple[dict[int, int | tuple[int, int]], bytes]]) -> bytes:
    """An uncompressed TIFF, big ("MM") or little ("II") endian; a pair is a rational number, tag 273 is filled in."""
    end = "<" if order == "II" else ">"
    out = order.encode() + struct.pack(end + "HI", 42, 0)
    link = 4
    for tags, pixels in frames:
        start = len(out)
        out += pixels + b"\0" * (len(pixels) % 2)
        entries = b""
        for tag, value in sorted((tags | {273: start}).items()):
            if isinstance(value, tuple):
                entries += struct.pack(end + "HHII", tag, 5, 1, len(out))
                out += struct.pack(end + "II", *value)
            else:
                entries += struct.pack(end + "HHII", tag, 4, 1, value)
        out = out[:link] + struct.pack(end + "I", len(out)) + out[link + 4 :]
        out += struct.pack(end + "H", len(tags) + 1) + entries
        link = len(out)
        out += bytes(4)
    return out


def grey_tiff(order: str, bits: int, kind: int, samples_HW: NDArray[Any], *, white_is_zero: bool = False) -> bytes:
    height, width = samples_HW.shape
    if bits == 12:
        pairs = samples_HW.reshape(-1, 2).astype(int)
        first, second = pairs[:, 0], pairs[:, 1]
        pixels = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    else:
        code = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[kind] + str(bits // 8)
        pixels = samples_HW.astype(("<" if order == "II" else ">") + code).tobytes()
    tags: dict[int, int | tuple[int, int]] = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 0 if white_is_zero else 1,
    }
    return tiff(order, [(tags | {277: 1, 278: height, 279: len(pixels), 339: kind}, pixels)])


GREY = np.asarray(drawn()).astype(np.float64) / 255  # 0 to 1
DEPTHS = {
    "12 bits": ("II", 12, UNSIGNED, 4095 * GREY),
    "12 bits, of which 8 are used": ("II", 12, UNSIGNED, 240 * GREY),
    "16 bits": ("II", 16, UNSIGNED, 65535 * GREY),
    "16 bits big endian": ("MM", 16, UNSIGNED, 65535 * GREY),
    "12 in 16 bits": ("II", 16, UNSIGNED, 4095 * GREY),
    "10 in 16 bits big endian": ("MM", 16, UNSIGNED, 1023 * GREY),
    "14 in 16 bits": ("II", 16, UNSIGNED, 16383 * GREY),
    "8 in 16 bits": ("II", 16, UNSIGNED, 255 * GREY),
    "1 in 16 bits": ("II", 16, UNSIGNED, 1 * GREY),
    "16 bits with a sign": ("II", 16, SIGNED, 32767 * GREY),
    "16 bits below zero": ("MM", 16, SIGNED, 65535 * GREY - 32768),
    "32 bits": ("II", 32, UNSIGNED, 4294967295 * GREY),
    "16 in 32 bits": ("II", 32, UNSIGNED, 65535 * GREY),
    "32 bits with a sign": ("MM", 32, SIGNED, 2147483647 * GREY),
    "float to 1": ("II", 32, FLOAT, GREY),
    "float to a little more than 1": ("MM", 32, FLOAT, 1.04 * GREY),
    "float to 255": ("II", 32, FLOAT, 255 * GREY),
    "float to 4095": ("MM", 32, FLOAT, 4095 * GREY),
    "float to 65535": ("II", 32, FLOAT, 65535 * GREY),
    "float to a hundredth": ("II", 32, FLOAT, 0.01 * GREY),
    "float to 10": ("II", 32, FLOAT, 10 * GREY),
    "float to 300": ("MM", 32, FLOAT, 300 * GREY),
    "float to 1e38": ("II", 32, FLOAT, 1e38 * GREY),
    "float from -1 to 1": ("II", 32, FLOAT, 2 * GREY - 1),
}


@pytest.mark.parametrize("case", DEPTHS)
def test_grey_of_any_depth_is_dark_on_light(case: str) -> None:
    order, bits, kind, samples_HW = DEPTHS[case]
    assert_dark_on_light(page_of(grey_tiff(order, bits, kind, samples_HW.round(8))))


@pytest.mark.parametrize(
    ("order", "bits", "kind", "white"),
    [("II", 8, UNSIGNED, 255), ("II", 16, UNSIGNED, 65535), ("II", 16, UNSIGNED, 4095), ("MM", 32, FLOAT, 1)],
)
def test_where_white_is_zero_it_is_white(order: str, bits: int, kind: int, white: float) -> None:
    assert_dark_on_light(page_of(grey_tiff(order, bits, kind, white - white * GREY, white_is_zero=True)))


def packed(order: str, bits: int, *, white_is_zero: bool) -> bytes:
    """Samples of any number of bits one behind the other, rows filled up to bytes."""
    samples_HW = ((1 - GREY if white_is_zero else GREY) * (2**bits - 1)).round().astype(np.uint32)
    bits_HWB = (samples_HW[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    pixels = np.packbits(bits_HWB.astype(np.uint8).reshape(len(samples_HW), -1), axis=1).tobytes()
    tags: dict[int, int | tuple[int, int]] = {256: SIZE[0], 257: SIZE[1], 258: bits, 259: 1, 277: 1, 278: SIZE[1]}
    return tiff(order, [(tags | {262: 0 if white_is_zero else 1, 279: len(pixels)}, pixels)])


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14])
def test_packed_samples_are_dark_on_light(order: str, bits: int, white_is_zero: bool) -> None:
    assert_dark_on_light(page_of(packed(order, bits, white_is_zero=white_is_zero)))


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("code", ["i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_samples_of_any_type_are_dark_on_light(order: str, code: str, white_is_zero: bool) -> None:
    white = 1.0 if code[0] == "f" else float(np.iinfo(code).max)
    samples_HW = (white * (1 - GREY if white_is_zero else GREY)).astype(("<" if order == "II" else ">") + code)
    kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[code[0]]
    tags = {256: SIZE[0], 257: SIZE[1], 258: 8 * int(code[1]), 259: 1, 262: 0 if white_is_zero else 1, 277: 1}
    pixels = samples_HW.tobytes()
    assert_dark_on_light(page_of(tiff(order, [({**tags, 278: SIZE[1], 279: len(pixels), 339: kind}, pixels)])))


def written(samples: NDArray[Any], **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **how)
    return file.getvalue()


RGB = np.repeat(GREY[..., None], 3, 2)
BLACK_AND_WHITE = np.zeros((3, 65536), np.uint16)
BLACK_AND_WHITE[:, 1] = 65535
WRITTEN = {
    "planes of 16 bits": written((np.moveaxis(RGB, 2, 0) * 65535).astype("u2"), photometric="rgb", planarconfig=2),
    "RGB of 12 in 16 bits": written((RGB * 4095).astype("u2"), photometric="rgb"),
    "RGB of real numbers": written(RGB.astype("f4"), photometric="rgb"),
    "tiles": written((GREY * 65535).astype("u2"), compression="lzw", predictor=True, tile=(64, 64)),
    "real numbers predicted": written(GREY.astype("f4"), compression="deflate", predictor=3),
    "BigTIFF": written((GREY * 65535).astype("u2"), bigtiff=True),
    "zstd": written((GREY * 4095).astype("u2"), compression="zstd"),
    "WebP": written((RGB * 255).astype("u1"), photometric="rgb", compression="webp"),
    "JPEG 2000": written((GREY * 255).astype("u1"), compression="jpeg2000"),
    "palette of 16 bits": written((GREY > 0.5).astype("u2"), photometric="palette", colormap=BLACK_AND_WHITE),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_tiffs_of_other_layouts_and_codecs_are_dark_on_light(case: str) -> None:
    assert_dark_on_light(page_of(WRITTEN[case]))


def coloured() -> NDArray[np.uint8]:
    image = drawn(mode="RGB", paper=(255, 255, 255), ink=(0, 0, 0))
    for left, colour in ((20, "red"), (150, "green"), (280, "gold")):
        ImageDraw.Draw(image).rectangle((left, 200, left + 100, 280), fill=colour)
    return np.asarray(image)


COLOURS = coloured()


def assert_looks_like(page: Page, picture: NDArray[np.uint8]) -> None:
    (tile,) = page.tiles
    wanted = Image.fromarray(picture).resize(tile.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(tile.astype(float) - np.asarray(wanted)).mean() < 6


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("code", ["u1", "u2", "u4", "f4"])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_colours_are_the_same_in_any_depth_and_layout(order: str, planar: int, code: str, tile: Any) -> None:
    white = 1.0 if code == "f4" else float(np.iinfo(code).max)
    samples = (COLOURS / 255 * white).astype(code)
    if planar == 2:
        samples = np.moveaxis(samples, 2, 0)
    assert_looks_like(
        page_of(written(samples, photometric="rgb", planarconfig=planar, byteorder=order, tile=tile)), COLOURS
    )


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_compressed_real_numbers_of_either_order_of_bytes_are_dark_on_light(compression: str, photometric: str) -> None:
    samples = (GREY if photometric == "minisblack" else 1 - GREY).astype("f4")
    for order in "<>":
        how = {"compression": compression, "predictor": 3, "byteorder": order}
        assert_dark_on_light(page_of(written(samples, photometric=photometric, **how)))


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("code", ["u1", "u2", "f4"])
@pytest.mark.parametrize("colours", [1, 3])
def test_text_on_nothing_is_seen_in_a_tiff_whatever_its_transparency(
    kind: str, planar: int, code: str, colours: int
) -> None:
    white = 1.0 if code == "f4" else float(np.iinfo(code).max)
    alpha = 1 - GREY[..., None]
    for ink in (0.0, 1.0):
        shade = np.full((*GREY.shape, colours), ink) * (alpha if kind == "assocalpha" else 1)
        samples = (np.concatenate([shade, alpha], 2) * white).astype(code)
        photometric = "rgb" if colours == 3 else "minisblack"
        stored = np.moveaxis(samples, 2, 0) if planar == 2 else samples
        how = {"photometric": photometric, "planarconfig": planar, "extrasamples": [kind]}
        seen = RGB if ink == 0 else 1 - RGB
        assert_looks_like(page_of(written(stored, **how)), (seen * 255).astype(np.uint8))


@pytest.mark.parametrize("code", ["u1", "u2"])
@pytest.mark.parametrize("kind", ["CIELab", "ICCLab"])
def test_lab_of_either_kind_and_depth_has_its_colours(code: str, kind: str) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab_image = ImageCms.profileToProfile(Image.fromarray(COLOURS), *profiles, outputMode="LAB")
    assert lab_image is not None
    samples = np.asarray(lab_image).copy()  # a and b with a sign
    if kind == "ICCLab":
        samples[..., 1:] ^= 0x80
    deep = samples.astype("u2") * (257 if code == "u2" else 1)
    assert_looks_like(page_of(written(deep.astype(code), photometric=8 if kind == "CIELab" else 9)), COLOURS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["u1", "u2"])
def test_a_palette_may_be_of_eight_bits(order: str, code: str) -> None:
    palette = np.zeros((3, 2 ** (8 * int(code[1]))), np.uint16)
    palette[:, 1] = 255
    data = written((GREY > 0.5).astype(code), photometric="palette", colormap=palette, byteorder=order)
    assert_dark_on_light(page_of(data))


def wide_png(samples: NDArray[Any]) -> bytes:
    data: bytes = imagecodecs.png_encode(samples.astype(np.uint16))
    return data


@pytest.mark.parametrize("white", [65535, 16383, 4095, 1023, 255])
def test_colours_of_sixteen_bits_in_a_png_may_use_few_of_them(white: int) -> None:
    opaque = np.full((*GREY.shape, 1), 65535)
    colours = COLOURS / 255 * white
    assert_looks_like(page_of(wide_png(colours)), COLOURS)
    assert_looks_like(page_of(wide_png(np.concatenate([colours, opaque], 2))), COLOURS)
    for alpha in (opaque, np.full_like(opaque, white)):
        assert_dark_on_light(page_of(wide_png(np.concatenate([GREY[..., None] * white, alpha], 2))))


def test_a_tiff_may_begin_with_a_frame_that_pillow_does_not_know() -> None:
    grey = {256: 40, 257: 30, 258: 16, 259: 1, 277: 1, 278: 30, 279: 2400}
    rare = ({**grey, 262: 0}, struct.pack(">H", 65535 - 30000) * 1200)
    pages = pages_of(tiff("MM", [rare, frame({254: 1}, 60), rare, frame({}, 180)]))
    assert [round(page.tiles[0].mean()) for page in pages] == [255 - round(35535 * 255 / 65535)] * 2 + [180]


def test_a_hot_pixel_does_not_darken_the_rest() -> None:
    samples_HW = 4095 * GREY
    samples_HW[0, 0] = 65535
    assert_dark_on_light(page_of(grey_tiff("II", 16, UNSIGNED, samples_HW)))


@pytest.mark.parametrize("white", [65535, 4095, 1023, 255, 15, 1])
def test_a_png_of_sixteen_bits_may_use_few_of_them(white: int) -> None:
    image = Image.fromarray((white * GREY).round().astype(np.uint16))
    assert_dark_on_light(page_of(saved(image, "PNG")))


@pytest.mark.parametrize("pillow_format", ["PNG", "TIFF", "BMP", "GIF"])
def test_samples_of_one_bit_in_eight_are_seen(pillow_format: str) -> None:
    assert_dark_on_light(page_of(saved(drawn(paper=1), pillow_format)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_png_of_few_bits_is_dark_on_light(bits: int) -> None:
    image = drawn().quantize(2**bits)
    assert_dark_on_light(page_of(saved(image, "PNG", bits=bits)))


def test_noise_on_a_sheet_of_sixteen_bits_stays_a_blank_page() -> None:
    noise_HW = np.random.default_rng(0).normal(60000, 300, (300, 400)).clip(0, 65535)
    assert page_of(saved(Image.fromarray(noise_HW.astype(np.uint16)), "PNG")).facts.is_blank


def clear(mode: str = "RGBA", ink: Any = (255, 255, 255, 255)) -> Image.Image:
    return drawn(paper=(255, 255, 255, 0) if mode == "RGBA" else (255, 0), ink=ink, mode=mode)


def palette_with_clear() -> bytes:
    image = drawn(paper=0, ink=1, mode="P")
    image.putpalette([255, 255, 255, 255, 255, 255])
    return saved(image, "PNG", transparency=0)


@pytest.mark.parametrize(
    "data",
    [
        saved(clear(), "PNG"),
        saved(clear(ink=(255, 255, 160, 255)), "PNG"),
        saved(clear("LA", (255, 255)), "PNG"),
        saved(clear(), "WEBP", lossless=True),
        saved(clear(), "TIFF"),
        palette_with_clear(),
        saved(drawn(paper=0, ink=255), "PNG", transparency=0),
    ],
    ids=["RGBA", "yellow", "LA", "WebP", "TIFF", "palette", "clear grey"],
)
def test_light_text_on_nothing_is_seen(data: bytes) -> None:
    page = page_of(data)
    assert not page.facts.is_blank
    assert page.tiles[0].max() > 220
    assert page.tiles[0].min() < 60


def test_light_text_with_grey_edges_on_one_clear_colour_is_seen() -> None:
    page = page_of(saved(drawn(paper=0, ink=255), "PNG", transparency=0))
    assert np.median(page.tiles[0]) < 40
    assert page.tiles[0].max() > 220


def test_light_and_dark_text_on_nothing_are_both_seen() -> None:
    image = clear()
    ImageDraw.Draw(image).text((50, 200), "Dark 45678", fill=(0, 0, 0, 255), font=ImageFont.load_default(size=50))
    page = page_of(saved(image, "PNG"))
    upper, lower = np.split(page.tiles[0], 2)
    assert abs(int(np.median(upper)) - int(upper.max())) > 90
    assert int(np.median(lower)) - int(lower.min()) > 90


@pytest.mark.parametrize("ink", [0, 10, 15, 40, 128])
def test_ink_that_is_not_quite_black_stays_as_dark_on_nothing(ink: int) -> None:
    shade = np.full((*GREY.shape, 3), ink)
    samples = np.concatenate([shade, 255 * (1 - GREY[..., None])], 2)
    shown = (255 - (1 - RGB) * (255 - ink)).astype(np.uint8)
    assert_looks_like(page_of(saved(Image.fromarray(samples.astype(np.uint8)), "PNG")), shown)
    assert_looks_like(page_of(wide_png(samples * 257)), shown)


@pytest.mark.parametrize("pillow_format", ["PNG", "WEBP", "TIFF"])
def test_dark_text_on_nothing_stands_on_white(pillow_format: str) -> None:
    assert_dark_on_light(page_of(saved(clear(ink=(0, 0, 0, 255)), pillow_format)))


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(drawn().convert("RGB"), *profiles, outputMode="LAB")
    assert image is not None
    return image


@pytest.mark.parametrize(
    "data",
    [
        saved(drawn().convert("CMYK"), "JPEG"),
        saved(drawn().convert("CMYK"), "TIFF"),
        saved(lab(), "TIFF"),
        saved(drawn().convert("YCbCr"), "TIFF"),
        saved(drawn().convert("YCbCr"), "TIFF", compression="jpeg"),
        saved(drawn().convert("RGB"), "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        saved(drawn().convert("1"), "TIFF", compression="group4"),
    ],
    ids=["CMYK JPEG", "CMYK TIFF", "LAB", "YCbCr", "JPEG in TIFF", "predictor", "fax"],
)
def test_other_colour_spaces_are_dark_on_light(data: bytes) -> None:
    assert_dark_on_light(page_of(data))


RESOLUTIONS = {  # (bytes, aspect of a pixel)
    "fax": (saved(drawn().convert("1"), "TIFF", compression="group3", dpi=(204, 98)), 98 / 204),
    "fine fax": (saved(drawn().convert("1"), "TIFF", compression="group4", dpi=(204, 196)), 196 / 204),
    "finest fax": (saved(drawn().convert("1"), "TIFF", compression="group4", dpi=(204, 391)), 391 / 204),
    "PNG": (saved(drawn(), "PNG", dpi=(200, 100)), 0.5),
    "BMP": (saved(drawn(), "BMP", dpi=(100, 200)), 2.0),
    "JPEG": (saved(drawn(), "JPEG", dpi=(204, 98)), 98 / 204),
    "JPEG without unit": (saved(drawn(), "JPEG").replace(b"\x01\x01\0\0\x01\0\x01", b"\x01\x01\0\0\x02\0\x01", 1), 0.5),
    "equal": (saved(drawn(), "TIFF", dpi=(300, 300)), 1.0),
    "absurd": (saved(drawn(), "TIFF", dpi=(300, 1)), 1.0),
    "zero": (saved(drawn(), "TIFF", dpi=(0, 300)), 1.0),
}


@pytest.mark.parametrize("case", RESOLUTIONS)
def test_pixels_are_shown_square(case: str) -> None:
    data, aspect = RESOLUTIONS[case]
    page = page_of(data)
    shown = page.facts.width_pt / page.facts.height_pt
    assert shown == pytest.approx(SIZE[0] / SIZE[1] * aspect, rel=0.01)
    assert page.tiles[0].shape[1] / page.tiles[0].shape[0] == pytest.approx(shown, rel=0.12), "sides are multiples"
    assert_dark_on_light(page)


@pytest.mark.parametrize(("pillow_format", "orientation"), [("JPEG", 6), ("TIFF", 6), ("PNG", 8)])
def test_a_turned_image_is_stretched_as_it_was_stored(pillow_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    how = {"tiffinfo": {274: orientation}} if pillow_format == "TIFF" else {"exif": exif}
    page = page_of(saved(drawn(), pillow_format, dpi=(200, 100), **how))
    assert page.facts.width_pt / page.facts.height_pt == pytest.approx(2 * SIZE[1] / SIZE[0], rel=0.01)


def frame(kind: dict[int, int], shade: int) -> tuple[dict[int, int | tuple[int, int]], bytes]:
    pixels = bytes([shade]) * 40 * 30
    return {256: 40, 257: 30, 258: 8, 259: 1, 262: 1, 277: 1, 278: 30, 279: len(pixels), **kind}, pixels


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize(
    ("kinds", "shades"),
    [
        ([{}, {254: 1}, {}], [60, 180]),
        ([{254: 1}, {254: 0}, {254: 2}], [120, 180]),
        ([{}, {255: 2}, {255: 1}], [60, 180]),
        ([{254: 2}, {254: 3}, {254: 4}], [60]),
        ([{254: 2}, {254: 6}, {254: 2}], [60, 180]),
        ([{254: 1}, {254: 1}, {254: 1}], [60, 120, 180]),
    ],
)
def test_thumbnails_and_masks_of_a_tiff_are_no_pages(
    order: str, kinds: list[dict[int, int]], shades: list[int]
) -> None:
    data = tiff(order, [frame(kind, shade) for kind, shade in zip(kinds, (60, 120, 180), strict=True)])
    assert [round(page.tiles[0].mean()) for page in pages_of(data)] == shades


def hanging(parent: tuple[NDArray[Any], int], *below: tuple[NDArray[Any], int]) -> bytes:
    """A TIFF of one frame with others hanging on it (SubIFDs); each with its NewSubfileType."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff_file:
        tiff_file.write(parent[0], subfiletype=parent[1], subifds=len(below))
        for samples, kind in below:
            tiff_file.write(samples, subfiletype=kind)
    return file.getvalue()


PAGE_60, PAGE_120 = (np.full((60, 80), shade, np.uint8) for shade in (60, 120))
SMALL = np.full((15, 20), 180, np.uint8)


@pytest.mark.parametrize(
    ("data", "shades"),
    [
        (hanging((PAGE_60, 0), (SMALL, 1)), [60]),
        (hanging((PAGE_60, 0), (SMALL, 0)), [60]),
        (hanging((SMALL, 1), (PAGE_60, 0)), [60]),
        (hanging((PAGE_60, 0), (PAGE_120, 0)), [60, 120]),
        (hanging((PAGE_60, 2), (SMALL, 2), (SMALL, 1)), [60, 180]),
    ],
    ids=["a smaller version", "a smaller version that does not say so", "below a thumbnail", "a page", "a small page"],
)
def test_of_frames_that_hang_on_a_frame_pages_are_read(data: bytes, shades: list[int]) -> None:
    assert [round(page.tiles[0].mean()) for page in pages_of(data)] == shades


def test_a_mask_that_pillow_does_not_know_is_no_page() -> None:
    mask = {256: 40, 257: 30, 258: 1, 259: 1, 262: 4, 277: 1, 278: 30, 279: 150}
    data = tiff("II", [frame({}, 60), (dict(mask), bytes(150)), frame({}, 180)])
    assert [round(page.tiles[0].mean()) for page in pages_of(data)] == [60, 180]


def test_a_frame_of_an_unknown_kind_fails_alone() -> None:
    data = tiff("II", [frame({}, 60), frame({262: 32803}, 120), frame({}, 180)])
    results = list(read_pages(io.BytesIO(data), (1, 2, 3), OPTIONS))
    assert [isinstance(result, Page) for result in results] == [True, False, True]


def test_a_chain_of_frames_that_returns_ends() -> None:
    data = tiff("II", [frame({}, 60), frame({}, 120)])
    first = struct.unpack("<I", data[4:8])[0]
    assert [round(page.tiles[0].mean()) for page in pages_of(data[:-4] + struct.pack("<I", first))] == [60, 120]


def test_a_huge_plan_is_refused_by_name_of_the_option_and_read_with_it() -> None:
    plan = Image.new("1", (14000, 13000), 1)
    ImageDraw.Draw(plan).rectangle((2000, 3000, 9000, 3200), fill=0)
    data = saved(plan, "TIFF", compression="group4")
    with pytest.raises(BadInput, match="--max-image-megapixels") as caught:
        page_of(data)
    assert caught.value.failure.code == "image_bomb"
    assert_dark_on_light(page_of(data, DocumentOptions(max_tokens=256, max_image_pixels=200_000_000)))
