"""What runs in the sandbox's child, where native code may crash: the object is opened there and given to decoders."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from pipeline.documents import DocumentInfo, DocumentOptions, inspect, read_pages
from pipeline.records import Asset, Failure, Page, Window
from pipeline.store import Store, StoreOptions
from pipeline.video_windows import VideoOptions
from pipeline.videos import VideoInfo, inspect_video, read_windows

VIDEO_CHUNK_BYTES = 256 << 10  # fetched at once of a video: windows are read through, little beyond them


def inspect_asset(
    asset: Asset, store: StoreOptions, options: DocumentOptions | VideoOptions
) -> DocumentInfo | VideoInfo:
    """What the survey wants to know of an asset. Raises BadInput."""
    if isinstance(options, VideoOptions):
        return _video_info(asset, store, options)
    with _open_store(store).open(asset) as file:
        return inspect(file, options)


def read_asset_pieces(
    asset: Asset, numbers: Sequence[int], store: StoreOptions, options: DocumentOptions | VideoOptions
) -> Iterator[Page | Window | tuple[int, Failure]]:
    """The pieces asked for, in that order. Raises BadInput when the asset itself cannot be read."""
    if isinstance(options, VideoOptions):
        info = _video_info(asset, store, options)
        with _open_store(store).open(asset, chunk_bytes=VIDEO_CHUNK_BYTES) as file:
            yield from read_windows(file, numbers, info)
    else:
        with _open_store(store).open(asset) as file:
            yield from read_pages(file, numbers, options)


@lru_cache(maxsize=8)  # of the videos whose units come one after the other
def _video_info(asset: Asset, store: StoreOptions, options: VideoOptions) -> VideoInfo:
    with _open_store(store).open(asset, chunk_bytes=VIDEO_CHUNK_BYTES) as file:
        return inspect_video(file, options)


@lru_cache(maxsize=1)  # a child serves one job: its connections are kept from call to call
def _open_store(options: StoreOptions) -> Store:
    return Store(options)
