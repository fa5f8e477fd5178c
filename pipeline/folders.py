"""Files in folders with the verbs of an object store: listed in key order, read in one version, written whole.

Errors are OSError. Paths are absolute.
"""

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.records import Asset

_UNFINISHED = re.compile(r"\.pagereel-[0-9a-f]{32}\.tmp")  # a write that has not happened yet; never listed


class FileStore:
    """Regular files. The version (etag) of a file is "size-mtime_ns"."""

    def list(self, folder: str, max_depth: int | None, *, closed_folders: bool) -> Iterator[Asset]:
        """With `closed_folders`, those below that cannot be listed come with "/" behind their name and no etag."""
        try:
            if not stat.S_ISDIR(os.stat(folder).st_mode):
                return
        except (FileNotFoundError, NotADirectoryError):
            return
        top = os.path.join(folder, "")
        pending = [top]  # folders end in "/", so that names sort as whole keys do: "a-b/x" before "a/x"
        while pending:
            path = pending.pop()
            if not path.endswith("/"):
                yield from _listed_file(path)
            elif closed_folders and path != top and not os.access(path, os.R_OK | os.X_OK):
                yield Asset(path, 0, "")
            elif max_depth is None or path.count("/") - top.count("/") < max_depth:
                try:
                    pending += [path + name for name in sorted(_names(path), reverse=True)]
                except OSError:
                    if path == top or not closed_folders:
                        raise
                    yield Asset(path, 0, "")

    def stat(self, path: str) -> Asset:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EISDIR, "is not a regular file", path)
        return Asset(path, info.st_size, _version(info))

    def fetch(self, asset: Asset, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of exactly this version; ESTALE when the file is another one by now."""
        with open(asset.uri, "rb") as file:
            file.seek(start)
            data = file.read(stop - start)
            version = _version(os.fstat(file.fileno()))  # after the read: what changed meanwhile is caught too
        if version != asset.etag:
            raise OSError(errno.ESTALE, f"was {asset.etag} (size-time) when listed and is {version} now", asset.uri)
        return data

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def put(self, path: str, data: bytes) -> None:
        with _written_aside(path, data) as aside:
            os.replace(aside, path)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        with _written_aside(path, data) as aside:
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return


def _names(folder: str) -> Iterator[str]:
    """The names in a folder that are to be listed, those of folders with "/" behind them."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_link_to_folder = entry.is_symlink() and os.path.isdir(entry.path)
            if is_link_to_folder and _leads_back(entry.path):
                continue
            if is_link_to_folder or entry.is_dir(follow_symlinks=False):
                yield entry.name + "/"
            elif not _UNFINISHED.fullmatch(entry.name):
                yield entry.name


def _leads_back(link: str) -> bool:
    """Whether a link to a folder leads to one of the folders it lies in."""
    folder = os.path.dirname(link)
    while not os.path.samefile(link, folder):
        if folder == os.path.dirname(folder):
            return False
        folder = os.path.dirname(folder)
    return True


def _listed_file(path: str) -> Iterator[Asset]:
    try:
        info = os.stat(path)
    except OSError:
        yield Asset(path, 0, "")  # a link to nothing, or out of reach
        return
    is_file = stat.S_ISREG(info.st_mode)  # opening a pipe would wait for somebody to write
    yield Asset(path, info.st_size, _version(info)) if is_file else Asset(path, 0, "")


def _version(info: os.stat_result) -> str:
    return f"{info.st_size}-{info.st_mtime_ns}"


@contextmanager
def _written_aside(path: str, data: bytes) -> Iterator[str]:
    """The data, safe on disk, in a file beside `path`. Afterwards it is gone and what became of it is safe as well."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    aside = os.path.join(folder, f".pagereel-{uuid.uuid4().hex}.tmp")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield aside
    finally:
        if os.path.lexists(aside):
            os.unlink(aside)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the name, not only the bytes
    finally:
        os.close(descriptor)
