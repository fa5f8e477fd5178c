"""Image files through Pillow: opened, measured, upright in RGB with square pixels at the size the model wants."""

import itertools
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile as PillowFile
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.image_colors import brightest, on_paper, paper_for, plain
from pipeline.pixels import WHOLE_PAGE, PixelBudget, cut_page, make_page, overview_size
from pipeline.rare_images import RareTiff, TiffHeader, has_wide_colours, image_bomb, is_common, wide_colours
from pipeline.records import BadInput, Box, ErrorCode, Page, Stage

PILLOW_FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/gif": "GIF",
    "image/tiff": "TIFF",
}
MAX_PIXELS = 179_000_000  # of one image, where the job says nothing else
_PIXEL_ASPECTS = (0.2, 5.0)  # of width to height: faxes have 0.52 to 2.1; what lies beyond is a mistake
_ALMOST_SQUARE = 0.02
_QUARTER = 63  # of 255: an image of 16 bits with nothing brighter uses 14 or fewer
_SUB_IFDS = 330  # the tag of frames that hang on a frame

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

_Frame = tuple[int, int | None]  # a frame of a TIFF's chain, and where it is not itself meant the one hanging on it

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
        self._file = file
        self._max_pixels = max_pixels
        self._is_tiff = media_type == "image/tiff"
        self._rare: RareTiff | None = None
        try:
            with _by_our_limits():
                self._chain = self._open(PILLOW_FORMATS[media_type])
                self._image = self._chain or self._rare_frame((0, None))  # the current frame
                self._frames, self._sizes = self._pages()
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
        with _by_our_limits():
            if self._is_tiff:
                self._seek(page_no)
            orientation = _orientation(self._image)
            self._check_size(Stage.RENDER)
            size = self._sizes[page_no - 1]  # `image` may be smaller, and squeezed
            image = self._decode(page_no, budget)
        paper = paper_for(image)
        tile_boxes = _tile_boxes(image, size, budget, paper)
        return make_page(
            [_tile(image, box, size, budget, paper) for box in tile_boxes],
            tile_boxes,
            page_no=page_no,
            label="",
            size=size,
            rotation=_TURNED.get(orientation, 0),
            words=(),
            flags=(),
            started=started,
        )

    def _pages(self) -> tuple[tuple[_Frame, ...], tuple[tuple[float, float], ...]]:
        """The frames that are pages, and the size of each upright with square pixels."""
        if not self._is_tiff:
            return ((0, None),), (_page_size(self._image),)
        frames = list(self._tiff_frames())
        pages = [(frame, size) for frame, size, is_page in frames if is_page] or [frame[:2] for frame in frames]
        return tuple(frame for frame, _ in pages), tuple(size for _, size in pages)

    def _open(self, pillow_format: str) -> PillowFile | None:
        """None for a TIFF whose first frame Pillow does not know."""
        try:
            return Image.open(self._file, formats=[pillow_format])
        except _DECODE_ERRORS:
            if self._is_tiff:
                return None
            raise

    def _frame(self, frame: _Frame) -> PillowFile:
        """A frame of a TIFF. Raises EOFError behind the last."""
        image = None if frame[1] is not None else self._in_chain(frame[0])
        return self._rare_frame(frame) if image is None else image

    def _in_chain(self, number: int) -> TiffImageFile | None:
        """A frame that Pillow knows, without its pixels. Raises EOFError behind the last."""
        if not isinstance(self._chain, TiffImageFile):
            return None
        try:
            self._chain.seek(number)
        except EOFError:
            raise
        except _DECODE_ERRORS:
            return None
        return self._chain

    def _rare_frame(self, frame: _Frame) -> PillowFile:
        return self._by_tifffile().plain(*frame, max_pixels=self._max_pixels)

    def _by_tifffile(self) -> RareTiff:
        if self._rare is None:
            self._rare = RareTiff(self._file)
        return self._rare

    def _tiff_frames(self) -> Iterator[tuple[_Frame, tuple[float, float], bool]]:
        """(frame, size, whether it is a page); (0, 0) for a frame that cannot be found, two in a row end the chain."""
        was_found = True
        for number in itertools.count():
            try:
                image = self._in_chain(number)
                header = TiffHeader(image.size, image.tag_v2) if image else self._by_tifffile().header(number)
            except EOFError:
                return
            except _DECODE_ERRORS:
                if not was_found:
                    return
                was_found = False
                yield (number, None), (0.0, 0.0), True
                continue
            was_found = True
            yield (number, None), _tiff_page_size(header), header.is_page
            if _SUB_IFDS in header.tags:
                yield from self._frames_below(number)

    def _frames_below(self, number: int) -> Iterator[tuple[_Frame, tuple[float, float], bool]]:
        try:
            rare = self._by_tifffile()
            found = [((number, sub), rare.header(number, sub)) for sub in rare.pages_below(number)]
        except _DECODE_ERRORS:  # thumbnails, mostly: the frame itself is there
            return
        yield from ((frame, _tiff_page_size(header), True) for frame, header in found)

    def _seek(self, page_no: int) -> None:
        try:
            self._image = self._frame(self._frames[page_no - 1])
        except _DECODE_ERRORS as error:
            message = f"page {page_no} of {len(self)} cannot be found: {error}"
            raise BadInput(Stage.RENDER, ErrorCode.PAGE_LOAD_FAILED, message) from error

    def _check_size(self, stage: Stage) -> None:
        width, height = self._image.size
        if min(width, height) < 1:
            raise BadInput(stage, ErrorCode.ZERO_SIZE_PAGE, f"the image measures {width} x {height} pixels")
        if width * height > self._max_pixels:
            raise image_bomb(stage, width, height, self._max_pixels)

    def _loaded(self, page_no: int) -> Image.Image:
        """The current frame with its pixels: by Pillow, or where it does not read all that there is, otherwise."""
        image = self._image
        is_wide = has_wide_colours(image)
        if isinstance(image, TiffImageFile) and image is self._chain:
            return self._loaded_tiff(image, self._frames[page_no - 1], is_wide=is_wide)
        image.load()
        return wide_colours(self._file) if is_wide and _uses_few_bits(image) else image

    def _loaded_tiff(self, image: TiffImageFile, frame: _Frame, *, is_wide: bool) -> Image.Image:
        failure: Exception | None = None
        if is_common(image.tag_v2):
            try:
                image.load()
            except _DECODE_ERRORS as error:  # Pillow knows the frame but not how it is compressed
                failure = error
            else:
                if not (is_wide and _uses_few_bits(image)):
                    return image
        try:
            rare = self._rare_frame(frame)
            rare.load()
        except _DECODE_ERRORS:
            if failure is not None:
                raise
            image.load()  # in part is more than nothing
            return image
        return rare

    def _decode(self, page_no: int, budget: PixelBudget) -> Image.Image:
        """The current frame upright as "L", "RGB" or "RGBA", perhaps at a fraction of its size."""
        image = self._image
        orientation = _orientation(image)
        is_one_tile = budget.tile_count(*self._sizes[page_no - 1]) == 1
        height, width = budget.dimensions(*image.size, scalable=False)
        try:
            if is_one_tile:
                image.draft(None, (2 * width, 2 * height))  # JPEG: decoded at 1/2, 1/4, 1/8 where that is still ample
            loaded = self._loaded(page_no)
            # A quick average first: less to turn and to resize, and no visible difference.
            reduction = min(loaded.width // (3 * width), loaded.height // (3 * height)) if is_one_tile else 1
            upright = plain(loaded, max(1, reduction))
        except _DECODE_ERRORS as error:
            raise BadInput(Stage.RENDER, ErrorCode.CORRUPT, f"the image cannot be decoded: {error}") from error
        turn = None if self._is_tiff else _TO_UPRIGHT.get(orientation)
        return upright if turn is None else upright.transpose(turn)


def _uses_few_bits(image: Image.Image) -> bool:
    """Whether what is left of 16 bits is dim, or next to nothing of it opaque."""
    extrema: Any = image.getextrema()
    is_faint = image.mode.endswith(("A", "a")) and extrema[-1][1] <= _QUARTER
    return bool(is_faint) or brightest(image) <= _QUARTER


def _page_size(image: PillowFile) -> tuple[float, float]:
    """(width, height) upright with square pixels, one of them as the finer side is stored."""
    is_sideways = _orientation(image) in _SIDEWAYS
    # A ratio without unit stands elsewhere; that of JPEG comes before EXIF's.
    resolution: Any = image.info.get("jfif_density") or image.info.get("aspect") or image.info.get("dpi")
    return _squared(image.size[::-1] if is_sideways else image.size, resolution, is_sideways=is_sideways)


def _tiff_page_size(header: TiffHeader) -> tuple[float, float]:
    resolution = [header.tags.get(tag) for tag in (ExifTags.Base.XResolution, ExifTags.Base.YResolution)]
    is_sideways = header.tags.get(ExifTags.Base.Orientation) in _SIDEWAYS
    return _squared(header.size, resolution, is_sideways=is_sideways)


def _squared(size: tuple[int, int], resolution: Any, *, is_sideways: bool) -> tuple[float, float]:
    """A size upright, in pixels that are square by the resolution (across, down) of the image as it is stored."""
    width, height = size
    aspect = _pixel_aspect(resolution)
    if is_sideways:
        aspect = 1 / aspect
    return (width * aspect, float(height)) if aspect > 1 else (float(width), height / aspect)


def _pixel_aspect(resolution: Any) -> float:
    """Width to height of a stored pixel; 1 where the resolution says nothing sensible."""
    try:
        across, down = (float(value) for value in resolution or ())
        aspect = down / across
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 1.0
    low, high = _PIXEL_ASPECTS
    return aspect if low <= aspect <= high and abs(aspect - 1) > _ALMOST_SQUARE else 1.0


@contextmanager
def _by_our_limits() -> Iterator[None]:
    """Pillow's own limit is the process's, refuses a TIFF for one huge frame, and is not the job's: it is lifted here.

    Pillow also warns of much that it then reads, or fails to read with an error of its own.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


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


def _tile_boxes(image: Image.Image, size: tuple[float, float], budget: PixelBudget, paper: str) -> tuple[Box, ...]:
    tiles = budget.tile_count(*size)
    if tiles == 1:
        return (WHOLE_PAGE,)
    overview = image.resize(overview_size(*size), Image.Resampling.BICUBIC)
    return cut_page(np.asarray(on_paper(overview, paper).convert("L")), tiles)


def _tile(
    image: Image.Image, box: Box, size: tuple[float, float], budget: PixelBudget, paper: str
) -> NDArray[np.uint8]:
    """`box` of the image as uint8 RGB [H, W, 3] on paper. Transparent pixels weigh by their alpha in the resize."""
    left, top, right, bottom = box
    height, width = budget.dimensions(size[0] * (right - left), size[1] * (bottom - top), scalable=False)
    source = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    tile = image.resize((width, height), Image.Resampling.BICUBIC, box=source)
    return np.asarray(on_paper(tile, paper))
