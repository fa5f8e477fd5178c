"""What runs in the sandbox's child, where native code may crash: the object is opened there and given to decoders."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from pipeline.documents import DocumentInfo, DocumentOptions, inspect, read_pages
from pipeline.records import Asset, BadInput, ErrorCode, Failure, Page, Stage, Window, printable
from pipeline.store import Store, StoreOptions
from pipeline.video_windows import VideoOptions
from pipeline.videos import VideoInfo, inspect_video, read_windows

logger = logging.getLogger(__name__)

VIDEO_CHUNK_BYTES = 256 << 10  # fetched at once of a video: windows are read through, little beyond them


def inspect_asset(
    asset: Asset, store: StoreOptions, options: DocumentOptions | VideoOptions
) -> DocumentInfo | VideoInfo:
    """What the survey wants to know of an asset. Raises BadInput."""
    with _whatever_a_decoder_raises(Stage.OPEN):
        if isinstance(options, VideoOptions):
            return _video_info(asset, store, options)
        with _open_store(store).open(asset) as file:
            return inspect(file, options)


def read_asset_pieces(
    asset: Asset, numbers: Sequence[int], store: StoreOptions, options: DocumentOptions | VideoOptions
) -> Iterator[Page | Window | tuple[int, Failure]]:
    """The pieces asked for, in that order. Raises BadInput when the asset itself cannot be read."""
    with _whatever_a_decoder_raises(Stage.RENDER):
        if isinstance(options, VideoOptions):
            info = _video_info(asset, store, options)
            with _open_store(store).open(asset, chunk_bytes=VIDEO_CHUNK_BYTES) as file:
                yield from read_windows(file, numbers, info)
        else:
            with _open_store(store).open(asset) as file:
                yield from read_pages(file, numbers, options)


@contextmanager
def _whatever_a_decoder_raises(stage: Stage) -> Iterator[None]:
    """Makes BadInput of any exception: what a file can bring a decoder to raise is not to be foreseen, and no file may
    end a job. What is wrong here and not in the file is found all the same, in the rows and with its stack in the log.
    """
    try:
        yield
    except (BadInput, MemoryError):  # the sandbox knows what to do when memory is out
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # the last two, too, end only what raises them
        raise BadInput(stage, ErrorCode.DECODER_ERROR, _described(error)) from error


def _described(error: BaseException) -> str:
    """The type and the text of an exception, whose own methods may fail as well."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - whatever its class does
        text = "(it cannot be shown)"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def log_unforeseen(error: BadInput, uri: str) -> None:
    """The child's stack of a `decoder_error`, which the exception brings along as a note."""
    if error.failure.code == ErrorCode.DECODER_ERROR:
        logger.warning("%s", printable(f"{uri}: {error}\n" + "\n".join(getattr(error, "__notes__", ()))))


@lru_cache(maxsize=8)  # of the videos whose units come one after the other
def _video_info(asset: Asset, store: StoreOptions, options: VideoOptions) -> VideoInfo:
    with _open_store(store).open(asset, chunk_bytes=VIDEO_CHUNK_BYTES) as file:
        return inspect_video(file, options)


@lru_cache(maxsize=1)  # a child serves one job: its connections are kept from call to call
def _open_store(options: StoreOptions) -> Store:
    return Store(options)
