"""What an image's stored samples look like on paper: any depth, sign and sense of grey, colour spaces, transparency."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

_WHITE_IS_ZERO = 0  # of TIFF's PhotometricInterpretation
_SIGNED = 2  # of its SampleFormat
_DIM = 15  # of 255: an image with nothing brighter holds samples of four bits or fewer
_LIGHT = 200  # of 255: what would be lost on white paper
_MUCH = 0.25  # of what is seen
_SAMPLE_SIDE = 512  # pixels of the picture in which the colour of the paper is chosen
_BRIGHTEST = 0.999  # of the samples; hot pixels say nothing about the rest
_SAMPLES = 2**20  # looked at for that
_BAND_PIXELS = 2**24  # made grey, or scaled, at once


def plain(image: Image.Image, reduction: int = 1) -> Image.Image:
    """A loaded image as "L", "RGB" or, with something transparent, "RGBA", averaged over `reduction` pixels a side."""
    if image.mode == "1":  # a byte a pixel already: made grey in bands, for plans of half a gigapixel
        return _grey_bands(image, reduction)
    if image.mode == "F" or image.mode.startswith("I"):
        grey_HW, white_is_zero = _samples(image)
        coloured = Image.fromarray(to_8_bits(grey_HW, white_is_zero=white_is_zero))
    elif image.mode == "L" and isinstance(image, TiffImageFile) and _has_sign(image):
        eight = to_8_bits(np.asarray(image).view(np.int8), white_is_zero=False, least_white=127)
        coloured = Image.fromarray(eight)
    elif image.mode == "LAB":
        coloured = _from_lab(image)
    else:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode[:-1] + "A")
        if image.mode == "P" and isinstance(image, TiffImageFile):
            _widen_palette(image)
        mode = "RGBA" if image.has_transparency_data else "L" if image.mode == "L" else "RGB"
        coloured = image if image.mode == mode else image.convert(mode)
    return _brightened(coloured if reduction == 1 else coloured.reduce(reduction))


def paper_for(image: Image.Image) -> str:
    """The colour of the paper on which all of a plain image shows: "white", where much of it is light on nothing
    "black", and "grey" where it is light and dark."""
    if image.mode != "RGBA":
        return "white"
    small = image.copy()
    small.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.NEAREST)
    grey_HW = np.asarray(small.convert("RGB").convert("L"))
    alpha_HW = np.asarray(small.getchannel("A")).astype(np.float32)
    seen = float(alpha_HW.sum())
    light, dark = (float(alpha_HW[which].sum()) for which in (grey_HW > _LIGHT, grey_HW < 255 - _LIGHT))
    is_mostly_clear = float(alpha_HW.mean()) < 255 / 2
    if not (seen and is_mostly_clear and light > _MUCH * seen):
        return "white"
    return "black" if dark < _MUCH * light else "grey"


def on_paper(image: Image.Image, paper: str) -> Image.Image:
    """As "RGB"."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, paper), image).convert("RGB")


def _grey_bands(image: Image.Image, reduction: int) -> Image.Image:
    rows = max(1, _BAND_PIXELS // max(1, image.width * reduction)) * reduction
    grey = Image.new("L", (-(-image.width // reduction), -(-image.height // reduction)))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("L")
        grey.paste(band if reduction == 1 else band.reduce(reduction), (0, top // reduction))
    return grey


def _samples(image: Image.Image) -> tuple[NDArray[Any], bool]:
    """Deep grey as it is stored, and whether 0 is white. Pillow reads 32 bits without sign as if they had one."""
    grey_HW = np.asarray(image)
    if not isinstance(image, TiffImageFile):
        return grey_HW, False
    if grey_HW.dtype == np.int32 and not _has_sign(image):
        grey_HW = grey_HW.view(np.uint32)
    return grey_HW, image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO


def _has_sign(image: TiffImageFile) -> bool:
    return image.tag_v2.get(ExifTags.Base.SampleFormat, (1,))[0] == _SIGNED


def to_8_bits(samples: NDArray[Any], *, white_is_zero: bool, least_white: int = 255) -> NDArray[np.uint8]:
    """Samples of any type and shape scaled by the fewest bits that hold the brightest but a thousandth of them.

    12 bits in 16 are 12; `least_white` is white where the samples need less. Real numbers are scaled by 1 or, beyond
    it, by their brightest.
    """
    lowest = min([0.0, *(float(_finite(rows).min(initial=0.0)) for rows in _bands(samples))])
    some = _finite(samples.ravel()[:: -(-samples.size // _SAMPLES)]) - lowest  # below 0 there is no agreed black
    highest = float(np.quantile(some, _BRIGHTEST, method="higher")) or float(some.max())
    white = _white(highest, least_white, is_exact=lowest < 0, is_real=samples.dtype.kind == "f")
    eight = np.empty(samples.shape, np.uint8)
    for rows, out in zip(_bands(samples), _bands(eight), strict=True):
        scaled = (_finite(rows) - lowest) * (255 / white)
        out[...] = np.clip(scaled, 0, 255, out=scaled)
    return np.subtract(255, eight, out=eight) if white_is_zero else eight


def _bands(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Views of some rows at once: a huge image as real numbers would take four times its memory."""
    rows = max(1, _BAND_PIXELS // max(1, array[:1].size))
    return [array[top : top + rows] for top in range(0, len(array), rows)]


def _finite(samples: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.nan_to_num(samples.astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _white(highest: float, least: int, *, is_exact: bool, is_real: bool) -> float:
    """The sample that is white."""
    if highest <= 0:
        return 1.0
    if is_exact or (is_real and not 0.1 <= highest <= 1):
        return highest
    if is_real:
        return 1.0
    bits = math.ceil(math.log2(highest + 1) - 1e-6)  # 32 bits of float32 are one more than 32 bits of integers
    return float(max(least, 2**bits - 1))


def _widen_palette(image: TiffImageFile) -> None:
    """Some writers put colours of eight bits where sixteen belong: Pillow sees black."""
    colours = image.tag_v2.get(ExifTags.Base.ColorMap, ())
    if colours and max(colours) < 256:
        image.putpalette([value for colour in zip(*np.split(np.array(colours), 3), strict=True) for value in colour])


def _from_lab(image: Image.Image) -> Image.Image:
    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    coloured = ImageCms.applyTransform(image, to_rgb)
    assert coloured is not None, "not in place"
    return coloured


def brightest(image: Image.Image) -> int:
    """The highest of the samples of eight bits; 255 where something is clear, for then dark ones may be all the ink."""
    extrema: Any = image.getextrema()
    channels = extrema if isinstance(extrema[0], tuple) else (extrema,)
    has_alpha = image.mode.endswith(("A", "a"))
    if (has_alpha and channels[-1][0] < 255) or "transparency" in image.info:
        return 255
    return max(high for _, high in channels[: len(channels) - has_alpha])


def _brightened(image: Image.Image) -> Image.Image:
    """Samples of 1 to 4 bits in 8 made visible."""
    highest = brightest(image)
    if not 0 < highest <= _DIM:
        return image
    white = 2 ** highest.bit_length() - 1
    table = [min(255, value * 255 // white) for value in range(256)]
    return image.point(table * 3 + list(range(256)) if image.mode == "RGBA" else table * len(image.getbands()))
