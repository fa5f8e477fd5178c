"""Image files through Pillow: opened, measured, decoded upright in RGB on white at the size the model wants."""

import struct
import time
import warnings
import zlib
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.pixels import WHOLE_PAGE, PixelBudget, cut_page, make_page, overview_size
from pipeline.records import BadInput, Box, ErrorCode, Page, Stage

PILLOW_FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/gif": "GIF",
    "image/tiff": "TIFF",
}
MAX_PIXELS = 178_956_970  # of one image: Pillow itself refuses more

# How a stored image becomes upright, by its EXIF orientation, and how far that turns it clockwise (after mirroring).
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_TURNED = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}

_DECODE_ERRORS = (  # what Pillow's decoders raise for damaged files
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError),
    *(RuntimeError, struct.error, zlib.error),
)


class ImageFile:
    """An open image: one page, or one for each frame of a TIFF; of an animation the first frame.

    Raises BadInput (stage open) when it cannot be opened, or when it is one page of more than `max_pixels`.
    """

    def __init__(self, file: BinaryIO, media_type: str, *, max_pixels: int = MAX_PIXELS) -> None:
        file.seek(0)
        self._max_pixels = max_pixels
        self._is_tiff = media_type == "image/tiff"
        try:
            with _no_warnings():
                # Image.open refuses a whole file for one huge frame; of a TIFF the other frames are still wanted.
                pillow_format = PILLOW_FORMATS[media_type]
                self._image = TiffImageFile(file) if self._is_tiff else Image.open(file, formats=[pillow_format])
                self._sizes = self._frame_sizes()
        except Image.DecompressionBombError as error:
            raise BadInput(Stage.OPEN, ErrorCode.IMAGE_BOMB, str(error)) from error
        except _DECODE_ERRORS as error:
            raise BadInput(Stage.OPEN, ErrorCode.CORRUPT, f"not a readable {media_type}: {error}") from error
        if len(self._sizes) == 1:
            self._check_size(Stage.OPEN)

    def __len__(self) -> int:
        return len(self._sizes)

    def page_sizes(self) -> tuple[tuple[float, float], ...]:
        """(width, height) in pixels of each page upright; (0, 0) for a frame that cannot be found."""
        return self._sizes

    def read_page(self, page_no: int, budget: PixelBudget) -> Page:
        """Page `page_no`, 1-based. Raises BadInput (stage render) when this page cannot be read."""
        started = time.perf_counter()
        if page_no > len(self):
            raise BadInput(Stage.RENDER, ErrorCode.PAGE_LOAD_FAILED, f"page {page_no} of {len(self)} does not exist")
        with _no_warnings():
            if self._is_tiff:
                self._seek(page_no)
            orientation = _orientation(self._image)
            self._check_size(Stage.RENDER)
            image = self._decode(budget)
        size = self._sizes[page_no - 1]  # `image` may be smaller
        tile_boxes = _tile_boxes(image, size, budget)
        return make_page(
            [_tile(image, box, size, budget) for box in tile_boxes],
            tile_boxes,
            page_no=page_no,
            label="",
            size=size,
            rotation=_TURNED.get(orientation, 0),
            words=(),
            flags=(),
            started=started,
        )

    def _frame_sizes(self) -> tuple[tuple[float, float], ...]:
        if not self._is_tiff:
            return (self._image.size[::-1] if _orientation(self._image) in _SIDEWAYS else self._image.size,)
        sizes: list[tuple[float, float]] = [self._image.size]
        while True:
            try:
                self._image.seek(len(sizes))
            except EOFError:
                return tuple(sizes)
            except _DECODE_ERRORS:  # the chain of frames is broken here: one page that fails, then the end
                return (*sizes, (0.0, 0.0))
            sizes.append(self._image.size)

    def _seek(self, page_no: int) -> None:
        try:
            self._image.seek(page_no - 1)
        except _DECODE_ERRORS as error:
            message = f"page {page_no} of {len(self)} cannot be found: {error}"
            raise BadInput(Stage.RENDER, ErrorCode.PAGE_LOAD_FAILED, message) from error

    def _check_size(self, stage: Stage) -> None:
        width, height = self._image.size
        if min(width, height) < 1:
            raise BadInput(stage, ErrorCode.ZERO_SIZE_PAGE, f"the image measures {width} x {height} pixels")
        if width * height > self._max_pixels:
            message = f"the image has {width} x {height} pixels, more than {self._max_pixels}"
            raise BadInput(stage, ErrorCode.IMAGE_BOMB, message)

    def _decode(self, budget: PixelBudget) -> Image.Image:
        """The current frame upright as "L", "RGB" or "RGBA", perhaps at a fraction of its size."""
        image = self._image
        is_one_tile = budget.tile_count(*image.size) == 1
        height, width = budget.dimensions(*image.size, scalable=False)
        try:
            if is_one_tile:
                image.draft(None, (2 * width, 2 * height))  # JPEG: decoded at 1/2, 1/4, 1/8 where that is still ample
            image.load()
            plain = _plain(image)
            reduction = min(plain.width // (3 * width), plain.height // (3 * height)) if is_one_tile else 1
            if reduction > 1:  # a quick average first: less to turn and to resize, and no visible difference
                plain = plain.reduce(reduction)
        except (Image.DecompressionBombError, *_DECODE_ERRORS) as error:
            raise BadInput(Stage.RENDER, ErrorCode.CORRUPT, f"the image cannot be decoded: {error}") from error
        turn = None if self._is_tiff else _TO_UPRIGHT.get(_orientation(image))
        return plain if turn is None else plain.transpose(turn)


def _no_warnings() -> AbstractContextManager[None]:
    """Pillow warns of much that it then reads, or fails to read with an error of its own."""
    return warnings.catch_warnings(action="ignore")


def _orientation(image: Image.Image) -> int:
    """How the image is stored, 1 to 8, by its EXIF block; a damaged block says nothing.

    Pillow turns a TIFF upright itself and has swapped its sides already.
    """
    if isinstance(image, TiffImageFile):
        orientation = image.tag_v2.get(ExifTags.Base.Orientation, 1)
    else:
        try:  # by the base class: PNG's own getexif decodes the image to look for a late block
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        except _DECODE_ERRORS:
            orientation = 1
    return orientation if orientation in _TO_UPRIGHT else 1


def _plain(image: Image.Image) -> Image.Image:
    """As "L", "RGB" or, where something is transparent, "RGBA"."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image)))
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(grey_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """Deeper grey scaled, not cut off. 32 bits have no agreed white: it is the least usual one that holds them all."""
    if grey_HW.dtype.itemsize == 2:
        return (grey_HW >> 8).astype(np.uint8)
    finite_HW = np.nan_to_num(grey_HW.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    white = next((white for white in (1.0, 255.0, 65535.0) if finite_HW.max() <= white), float(finite_HW.max()))
    return (finite_HW.clip(0, white) * (255 / white)).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _tile_boxes(image: Image.Image, size: tuple[float, float], budget: PixelBudget) -> tuple[Box, ...]:
    tiles = budget.tile_count(*size)
    if tiles == 1:
        return (WHOLE_PAGE,)
    overview = image.resize(overview_size(*size), Image.Resampling.BICUBIC)
    return cut_page(np.asarray(_on_white(overview).convert("L")), tiles)


def _tile(image: Image.Image, box: Box, size: tuple[float, float], budget: PixelBudget) -> NDArray[np.uint8]:
    """`box` of the image as uint8 RGB [H, W, 3] on white. Transparent pixels weigh by their alpha in the resize."""
    left, top, right, bottom = box
    height, width = budget.dimensions(size[0] * (right - left), size[1] * (bottom - top), scalable=False)
    source = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    tile = image.resize((width, height), Image.Resampling.BICUBIC, box=source)
    return np.asarray(_on_white(tile))
