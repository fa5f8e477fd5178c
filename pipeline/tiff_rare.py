"""Frames of a TIFF that Pillow does not know, through tifffile: odd depths, byte orders, signs, 16-bit palettes."""

import io
import logging
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.image_colors import to_8_bits
from pipeline.records import BadInput, ErrorCode, Stage

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5  # PhotometricInterpretation
_KEPT = ("NewSubfileType", "SubfileType", "XResolution", "YResolution", "Orientation")


def image_bomb(stage: Stage, width: int, height: int, max_pixels: int) -> BadInput:
    """What is said of an image over the limit."""
    message = (
        f"the image has {width} x {height} pixels, more than {max_pixels / 1e6:g} million: "
        "read it with a larger --max-image-megapixels"
    )
    return BadInput(stage, ErrorCode.IMAGE_BOMB, message)


class RareTiff:
    """A TIFF as tifffile reads it. Its methods raise what tifffile raises: ValueError, RuntimeError and their like."""

    def __init__(self, file: BinaryIO) -> None:
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it warns of all that it goes on without
        file.seek(0)
        self._tiff = tifffile.TiffFile(file)

    def plain(self, index: int, *, max_pixels: int) -> TiffImageFile:
        """Frame `index` as a TIFF of that frame alone, of eight bits a sample, for Pillow.

        Raises EOFError behind the last, BadInput when it has more than `max_pixels`.
        """
        if index >= len(self._tiff.pages):
            raise EOFError(f"frame {index} of {len(self._tiff.pages)}")
        page: Any = self._tiff.pages[index]
        if page.imagewidth * page.imagelength > max_pixels:
            raise image_bomb(Stage.RENDER, page.imagewidth, page.imagelength, max_pixels)
        tags = {page.tags[name].code: page.tags[name].value for name in _KEPT if name in page.tags}
        file = io.BytesIO()
        _image(page).save(file, "TIFF", tiffinfo={code: _number(value) for code, value in tags.items()})
        file.seek(0)
        return TiffImageFile(file)


def _image(page: Any) -> Image.Image:
    """As it is stored, in "L", "RGB" or "CMYK"."""
    samples = page.asarray(maxworkers=1)
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        samples = np.moveaxis(samples, 0, -1)
    kind, bits = int(page.photometric), int(page.bitspersample)
    least_white = 127 if samples.dtype == np.int8 else 2 ** min(8, bits) - 1
    if kind == _PALETTE and page.colormap is not None:
        colours: NDArray[Any] = page.colormap[:, samples] >> 8
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(colours, 0, -1)).astype(np.uint8))
    if kind in (_RGB, _CMYK):
        channels = 3 if kind == _RGB else 4
        colours = to_8_bits(samples[..., :channels], white_is_zero=False, least_white=least_white)
        return Image.fromarray(np.ascontiguousarray(colours), "RGB" if kind == _RGB else "CMYK")
    if kind not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        raise ValueError(f"PhotometricInterpretation {kind} is not known")
    grey_HW = samples[..., 0] if samples.ndim == 3 else samples
    return Image.fromarray(to_8_bits(grey_HW, white_is_zero=kind == _WHITE_IS_ZERO, least_white=least_white))


def _number(value: Any) -> Any:
    """A rational number as Pillow writes it."""
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else value
