"""Files read through the real decoder, and functions run where nothing else has been: for tests of poison."""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from model.request import Sampling
from pipeline.decode import DecodeOptions, read_unit
from pipeline.documents import DocumentOptions
from pipeline.records import Page, Unit
from pipeline.sandbox import Sandbox
from pipeline.store import Store, StoreOptions
from pipeline.video_windows import VideoOptions

T = TypeVar("T")


def decode_options(media: DocumentOptions | VideoOptions, *, memory_bytes: int, seconds: float) -> DecodeOptions:
    return DecodeOptions(
        store=StoreOptions(),
        media=media,
        model="",
        instructions=("",),
        sampling=Sampling(max_new_tokens=1),
        memory_bytes=memory_bytes,
        piece_timeout_seconds=seconds,
    )


def read_pages(
    path: Path, pages: int, document: DocumentOptions, memory_bytes: int, seconds: float
) -> tuple[list[str], int]:
    """ "ok" or the error code of each page, and the most memory a child of this process ever had, in bytes."""
    asset = Store().stat(str(path))
    unit = Unit(asset.asset_id, asset.uri, asset.size, asset.etag, 1, pages, 1)
    options = decode_options(document, memory_bytes=memory_bytes, seconds=seconds)
    with closing(Sandbox(memory_bytes=memory_bytes)) as sandbox:
        results = list(read_unit(sandbox, unit, options))
    return ["ok" if isinstance(result, Page) else result[1].code for result in results], largest_child_bytes()


def largest_child_bytes() -> int:
    """Of the children that have ended. A process that started others counts those too: see `in_fresh_process`."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def in_fresh_process(function: Callable[..., T], *args: object) -> T:
    """Runs the function where nothing else has run, so that its children are the only ones that are measured."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()
