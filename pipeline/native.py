"""What runs in the sandbox's child, where native code may crash: the object is opened there and given to decoders."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from pipeline.documents import DocumentInfo, DocumentOptions, inspect, read_pages
from pipeline.records import Asset, Failure, Page
from pipeline.store import Store, StoreOptions


def inspect_asset(asset: Asset, store: StoreOptions, options: DocumentOptions) -> DocumentInfo:
    """What the survey wants to know of an asset. Raises BadInput."""
    with _open_store(store).open(asset) as file:
        return inspect(file, options)


def read_asset_pages(
    asset: Asset, page_nos: Sequence[int], store: StoreOptions, options: DocumentOptions
) -> Iterator[Page | tuple[int, Failure]]:
    """The pages asked for, rendered, in that order. Raises BadInput when the asset itself cannot be read."""
    with _open_store(store).open(asset) as file:
        yield from read_pages(file, page_nos, options)


@lru_cache(maxsize=1)  # a child serves one job: its connections are kept from call to call
def _open_store(options: StoreOptions) -> Store:
    return Store(options)
