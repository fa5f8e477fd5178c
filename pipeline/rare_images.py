"""What Pillow does not read, or not in full: odd frames of TIFFs by tifffile, 16 bits of PNGs by imagecodecs."""

import io
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.image_colors import to_8_bits
from pipeline.records import BadInput, ErrorCode, Stage

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_JPEG = 7  # of Compression
_ASSOCIATED, _NOT_ASSOCIATED = 1, 2  # of ExtraSamples: colours are multiplied by their alpha, or not; 0 says nothing
_UNSIGNED = (1, 4)  # of SampleFormat; 4 is undefined
_SIDEWAYS = (5, 6, 7, 8)  # of Orientation
_NOT_A_PAGE = 0b101  # of NewSubfileType: a smaller version of another frame, or its mask
_PAGE = 0b010
_MASK = 4  # of PhotometricInterpretation
_SMALLER_VERSION = 2  # of the older SubfileType
_KEPT = (254, 255, 274, 282, 283)  # NewSubfileType, SubfileType, Orientation, XResolution, YResolution
_WIDE_COLOURS = re.compile("(RGB|LA|RGBA|RGBa|RGBX);16[BLN]")  # how Pillow names samples that it halves


def image_bomb(stage: Stage, width: int, height: int, max_pixels: int) -> BadInput:
    """What is said of an image over the limit."""
    message = (
        f"the image has {width} x {height} pixels, more than {max_pixels / 1e6:g} million: "
        "read it with a larger --max-image-megapixels"
    )
    return BadInput(stage, ErrorCode.IMAGE_BOMB, message)


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """A frame of a TIFF without its pixels."""

    size: tuple[int, int]  # (width, height), upright
    tags: Mapping[int, Any]

    @property
    def is_page(self) -> bool:
        """Not a thumbnail, nor a mask."""
        kind = self.tags.get(ExifTags.Base.NewSubfileType, 0)
        if self.tags.get(ExifTags.Base.PhotometricInterpretation) == _MASK:
            return False
        if not isinstance(kind, int):
            return True
        return not kind & _NOT_A_PAGE and self.tags.get(ExifTags.Base.SubfileType) != _SMALLER_VERSION


def is_common(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow reads a frame of a TIFF as it is meant: deep samples, those with a sign, planes and what may be
    alpha it reads in part, or in a wrong order of bytes. Colours of 16 bits it reads right but halved."""
    bits, formats, extra = (tags.get(tag, (1,)) for tag in (258, 339, 338))
    if not all(isinstance(values, tuple) for values in (bits, formats, extra)):
        return True
    depth = 16 if tags.get(262) == _RGB and len(bits) > 2 else 8
    is_deep = max(bits) > depth or any(value not in _UNSIGNED for value in formats)
    return not (is_deep or (len(bits) > 1 and tags.get(284) == 2) or 0 in extra)


class RareTiff:
    """A TIFF as tifffile reads it. Its methods raise what tifffile raises: ValueError, RuntimeError and their like."""

    def __init__(self, file: BinaryIO) -> None:
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it warns of all that it goes on without
        file.seek(0)
        self._tiff = tifffile.TiffFile(file)

    def header(self, frame: int, sub: int | None = None) -> TiffHeader:
        """Of a frame, or of one that hangs on it (SubIFD). Raises EOFError behind the last."""
        page = self._page(frame, sub)
        tags = {tag.code: _number(tag.value) for tag in page.tags}
        size = (page.imagewidth, page.imagelength)
        return TiffHeader(size[::-1] if tags.get(ExifTags.Base.Orientation) in _SIDEWAYS else size, tags)

    def pages_below(self, frame: int) -> list[int]:
        """The frames hanging on a frame that are pages and no versions of it: called so, or at least of its size."""
        parent = self.header(frame)
        least = parent.size[0] * parent.size[1]
        pages = []
        for sub in range(len(self._page(frame, None).pages or ())):
            header = self.header(frame, sub)
            is_called_page = bool(header.tags.get(ExifTags.Base.NewSubfileType, 0) & _PAGE)
            if header.is_page and (is_called_page or header.size[0] * header.size[1] >= least):
                pages.append(sub)
        return pages

    def plain(self, frame: int, sub: int | None = None, *, max_pixels: int) -> TiffImageFile:
        """A frame as a TIFF of that frame alone, of eight bits a sample, for Pillow.

        Raises EOFError behind the last, BadInput when it has more than `max_pixels`.
        """
        page = self._page(frame, sub)
        if page.imagewidth * page.imagelength > max_pixels:
            raise image_bomb(Stage.RENDER, page.imagewidth, page.imagelength, max_pixels)
        tags = {tag.code: _number(tag.value) for tag in page.tags if tag.code in _KEPT}
        file = io.BytesIO()
        _image(page).save(file, "TIFF", tiffinfo=tags)
        file.seek(0)
        return TiffImageFile(file)

    def _page(self, frame: int, sub: int | None) -> Any:
        if frame >= len(self._tiff.pages):
            raise EOFError(f"frame {frame} of {len(self._tiff.pages)}")
        page: Any = self._tiff.pages[frame]
        return page if sub is None else page.pages[sub]


def _image(page: Any) -> Image.Image:
    """As it is stored, in "L", "RGB", "CMYK" or "LAB", the first two with "A" where something is transparent."""
    samples = page.asarray(maxworkers=1)
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        samples = np.moveaxis(samples, 0, -1)
    kind, bits = int(page.photometric), int(page.bitspersample)
    least_white = 127 if samples.dtype == np.int8 else 2 ** min(8, bits) - 1
    if kind == _PALETTE and page.colormap is not None:
        colours: NDArray[Any] = page.colormap[:, samples]
        return Image.fromarray(np.moveaxis(colours >> (8 if page.colormap.max() > 255 else 0), 0, -1).astype(np.uint8))
    if kind in (_CIELAB, _ICCLAB):
        return _lab(samples, is_offset=kind == _ICCLAB)
    if kind not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK) and (kind, page.compression) != (_YCBCR, _JPEG):
        raise ValueError(f"PhotometricInterpretation {kind} is not known")
    channels = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _CMYK: 4}.get(kind, 3)
    stored = samples if samples.ndim == 3 else samples[..., None]
    eight = to_8_bits(stored[..., :channels], white_is_zero=kind == _WHITE_IS_ZERO, least_white=least_white)
    alpha = None if channels == 4 or stored.shape[-1] == channels else _alpha(page, eight, stored[..., channels])
    if alpha is not None:
        eight = np.concatenate([eight, alpha[..., None]], -1)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "CMYK" if channels == 4 else "RGBA"}[eight.shape[-1]]
    return Image.fromarray(np.ascontiguousarray(eight[..., 0] if mode == "L" else eight), mode)


def _alpha(page: Any, eight: NDArray[np.uint8], extra: NDArray[Any]) -> NDArray[np.uint8] | None:
    """The transparency of uint8 colours [H, W, C], which are freed of it in place; None where there is none.

    An extra sample that says nothing of itself is taken for transparency where the colours alone show nothing at all.
    """
    kinds = [int(kind) for kind in page.extrasamples]
    if not kinds or (kinds[0] not in (_ASSOCIATED, _NOT_ASSOCIATED) and int(np.ptp(eight)) > 0):
        return None
    alpha = to_8_bits(extra, white_is_zero=False)
    if kinds[0] == _ASSOCIATED:
        table = 255 / np.maximum(1, np.arange(256, dtype=np.float32))
        eight[...] = np.minimum(255, eight * table[alpha][..., None]).astype(np.uint8)
    return alpha


def _lab(samples: NDArray[Any], *, is_offset: bool) -> Image.Image:
    """CIE L*a*b* of 8 or 16 bits, a and b with a sign or, of the ICC's kind, by an offset."""
    eight = (samples[..., :3] >> (8 * (samples.dtype.itemsize - 1))).astype(np.uint8)
    if is_offset:
        eight[..., 1:] ^= 0x80
    return Image.fromarray(np.ascontiguousarray(eight), "LAB")


def _number(value: Any) -> Any:
    """A rational number as Pillow writes it."""
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else value


def has_wide_colours(image: Image.Image) -> bool:
    """Whether Pillow will read the upper eight of 16 bits of an image that is not loaded yet."""
    names = [str(word) for part in getattr(image, "tile", ()) for word in np.atleast_1d(part[3])]
    return any(_WIDE_COLOURS.fullmatch(name) for name in names)


def wide_colours(file: BinaryIO) -> Image.Image:
    """A PNG with colours or transparency of 16 bits, scaled by the bits it uses."""
    file.seek(0)
    samples = imagecodecs.png_decode(file.read())
    has_alpha = samples.shape[-1] in (2, 4)
    eight = to_8_bits(samples[..., : samples.shape[-1] - has_alpha], white_is_zero=False)
    if has_alpha:
        eight = np.concatenate([eight, to_8_bits(samples[..., -1:], white_is_zero=False)], -1)
    return Image.fromarray(np.ascontiguousarray(eight))
