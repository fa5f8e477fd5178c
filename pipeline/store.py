"""Objects in buckets and files in folders, behind the same few verbs: the only room that knows what a bucket is.

A uri is `s3://bucket/` and the raw key (no quoting: `%2F`, `#`, `?` and spaces stand for themselves), or a path, or
`file:///path` (percent-quoted, as file uris are). Errors travel as OSError with the errno that fits, whichever store
they come from; the verbs that touch users' inputs turn them into BadInput.
"""

import errno
import io
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO
from urllib.parse import unquote

import boto3
from botocore import exceptions as aws
from botocore.config import Config

from pipeline.folders import FileStore
from pipeline.ranged import CHUNK_BYTES, RangedFile
from pipeline.records import Asset, BadInput, ErrorCode, Stage

_S3 = "s3://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_CODES = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.ENOTDIR: ErrorCode.NOT_FOUND,
    errno.EISDIR: ErrorCode.NOT_FOUND,
    errno.ENAMETOOLONG: ErrorCode.NOT_FOUND,
    errno.ELOOP: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.ACCESS_DENIED,
    errno.EPERM: ErrorCode.ACCESS_DENIED,
    errno.EBUSY: ErrorCode.THROTTLED,
    errno.ESTALE: ErrorCode.CHANGED_DURING_RUN,
}  # whatever else goes wrong on the way to the bytes may be over soon: READ_TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to reach S3. Credentials are never here: they come from the profile or the usual AWS environment.

    What is None comes from that environment too (AWS_ENDPOINT_URL, AWS_PROFILE, AWS_DEFAULT_REGION). `max_attempts`
    counts the first try; the waits between double up to 20 seconds. A connection may be silent for `timeout_seconds`.
    """

    endpoint_url: str | None = None
    profile: str | None = None
    region: str | None = None
    max_attempts: int = 8
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if self.endpoint_url and "@" in self.endpoint_url:  # the message does not repeat it
            raise ValueError("endpoint_url holds a user name or password: give them as AWS keys or in a profile")
        if self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds must be more than 0, not {self.timeout_seconds}")


def absolute(uri: str, folder: str = "") -> str:
    """The uri as it stands in the tables: `s3://bucket/key` unchanged, everything else an absolute path.

    Relative paths are relative to `folder` (absolute itself, perhaps in a bucket) or to the working directory. Raises
    ValueError for a uri that no store here understands.
    """
    if not uri or "\0" in uri:
        raise ValueError(f"{uri!r} is not a path or uri")
    if uri.startswith(_S3):
        _split(uri)
        return uri
    if uri.startswith("file:///"):
        return os.path.abspath(unquote(uri.removeprefix("file://")))
    if _SCHEME.match(uri):
        shown = _without_credentials(uri)
        raise ValueError(f"{shown!r}: only s3://bucket/key, file:///path and plain paths are understood")
    if folder and not uri.startswith("/"):
        return absolute(join(folder, uri))
    return os.path.abspath(uri)


def _without_credentials(uri: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", uri)


def join(uri: str, *names: str) -> str:
    """The uri of something inside the folder or prefix `uri`."""
    return "/".join([uri.removesuffix("/"), *names])


class Store:
    """Reads, lists and writes objects wherever their uri says. Safe to use from several threads; not picklable: send
    StoreOptions instead.
    """

    def __init__(self, options: StoreOptions = StoreOptions()) -> None:
        self._files = FileStore()
        self._s3 = _S3Store(options)

    def list(self, uri: str, max_depth: int | None = None, *, closed_folders: bool = False) -> Iterator[Asset]:
        """Every object under the folder or `prefix/`, streamed in the order of their keys' code points.

        `max_depth` 1 stops at the folder's own objects, 2 at those of its subfolders, and so on. Where there is no such
        folder, nothing is listed. Left out are empty objects whose key ends in "/", with which some tools mark folders.
        Links are followed unless they lead back to a folder they lie in; a link to nothing, and what is no regular
        file, is listed with an empty etag. So are, with a "/" at the end of their uri and if `closed_folders` are asked
        for, folders below that may not be read; otherwise they are an error. Raises BadInput(LIST, ...).
        """
        uri = absolute(uri)
        with _as_bad_input(Stage.LIST):
            if uri.startswith(_S3):
                yield from self._s3.list(uri, max_depth)
            else:
                yield from self._files.list(uri, max_depth, closed_folders=closed_folders)

    def stat(self, uri: str) -> Asset:
        """One object as it is now. Raises BadInput(LIST, ...) when it is missing, a folder, or out of reach."""
        uri = absolute(uri)
        with _as_bad_input(Stage.LIST):
            return self._backend(uri).stat(uri)

    def open(self, asset: Asset, *, chunk_bytes: int = CHUNK_BYTES) -> BinaryIO:
        """A seekable file over exactly that version of the object; at most 16 MB of it are held in memory.

        `read()` without a size is one request, others fetch `chunk_bytes` at once. Nothing is fetched before the first
        read. Reading raises BadInput(READ, CHANGED_DURING_RUN / NOT_FOUND / ACCESS_DENIED / THROTTLED /
        READ_TIMEOUT, ...).
        """
        assert asset.etag, f"{asset.uri} was never seen"
        backend = self._backend(asset.uri)

        def fetch(start: int, stop: int) -> bytes:
            with _as_bad_input(Stage.READ):
                data = backend.fetch(asset, start, stop)
                if len(data) != stop - start:
                    raise OSError(errno.ESTALE, f"holds {start + len(data)} bytes where {asset.size} were listed")
                return data

        return io.BufferedReader(RangedFile(asset.size, fetch, chunk_bytes=chunk_bytes), buffer_size=64 << 10)

    def read(self, uri: str) -> bytes:
        """A whole object of our own bookkeeping. Raises FileNotFoundError when it is absent, OSError for the rest."""
        uri = absolute(uri)
        return self._backend(uri).read(uri)

    def put(self, uri: str, data: bytes) -> None:
        """Write a whole object; readers see the old one or the new one, never a part. Raises OSError."""
        uri = absolute(uri)
        with _writing(uri):
            self._backend(uri).put(uri, data)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write a whole object unless there is one; of several writers exactly one succeeds. Raises OSError.

        False can also mean that this very call succeeded and its answer was lost on the way: whoever must know reads
        the object back.
        """
        uri = absolute(uri)
        with _writing(uri):
            return self._backend(uri).put_if_absent(uri, data)

    def exists(self, uri: str) -> bool:
        """Whether there is an object (not a folder) at the uri. Raises OSError when that cannot be found out."""
        uri = absolute(uri)
        try:
            self._backend(uri).stat(uri)
        except OSError as error:
            if _code(error) is ErrorCode.NOT_FOUND:
                return False
            raise
        return True

    def delete(self, uri: str) -> None:
        """Remove an object if it is there. Raises OSError."""
        uri = absolute(uri)
        self._backend(uri).delete(uri)

    def _backend(self, uri: str) -> "FileStore | _S3Store":
        return self._s3 if uri.startswith(_S3) else self._files


class _S3Store:
    """Objects of S3 and of stores that speak its protocol, through boto3."""

    def __init__(self, options: StoreOptions) -> None:
        self._options = options

    @cached_property
    def _client(self) -> Any:
        options = self._options
        config = Config(
            retries={"mode": "adaptive", "total_max_attempts": options.max_attempts},
            connect_timeout=min(10.0, options.timeout_seconds),
            read_timeout=options.timeout_seconds,
            max_pool_connections=32,
            request_checksum_calculation="when_required",  # stores other than AWS refuse the newer checksums
            response_checksum_validation="when_required",
        )
        try:
            session = boto3.Session(profile_name=options.profile, region_name=options.region)
            return session.client("s3", endpoint_url=options.endpoint_url, config=config)
        except (aws.BotoCoreError, ValueError) as error:
            raise ValueError(f"S3 cannot be reached with {options}: {error}") from error

    def list(self, uri: str, max_depth: int | None) -> Iterator[Asset]:
        bucket, key = _split(uri)
        prefix = join(key, "") if key else ""
        request = {"Bucket": bucket, "Prefix": prefix} | ({"Delimiter": "/"} if max_depth == 1 else {})
        with _as_os_error(uri):
            for page in self._client.get_paginator("list_objects_v2").paginate(**request):
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(prefix)
                    is_folder_mark = item["Key"].endswith("/") and item["Size"] == 0
                    if not is_folder_mark and (max_depth is None or name.count("/") < max_depth):
                        yield Asset(f"{_S3}{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))

    def stat(self, uri: str) -> Asset:
        bucket, key = _split(uri)
        if not key:
            raise OSError(errno.EISDIR, "is a bucket, not an object", uri)
        with _as_os_error(uri):
            answer = self._client.head_object(Bucket=bucket, Key=key)
        return Asset(uri, answer["ContentLength"], answer["ETag"].strip('"'))

    def fetch(self, asset: Asset, start: int, stop: int) -> bytes:
        # Quoted as HTTP wants it; AWS, RadosGW and moto take it so in a GET (RadosGW's PUT would not).
        condition = {"IfMatch": f'"{asset.etag}"', "Range": f"bytes={start}-{stop - 1}"}
        etag, data = self._get(asset.uri, condition)
        if etag != asset.etag:  # the store ignored the condition
            raise OSError(errno.ESTALE, f"had etag {asset.etag} when listed and has {etag} now", asset.uri)
        return data

    def read(self, uri: str) -> bytes:
        return self._get(uri, {})[1]

    def put(self, uri: str, data: bytes) -> None:
        bucket, key = _split(uri)
        with _as_os_error(uri):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        bucket, key = _split(uri)
        with _as_os_error(uri):
            for _ in _attempts(self._options.max_attempts):
                try:
                    self._client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
                    return True
                except aws.ClientError as error:
                    if _status(error) == 412:
                        return False
                    if _status(error) != 409:  # 409: somebody writes or deletes it at this moment
                        raise
        raise OSError(errno.EBUSY, "is being written by somebody else all the time", uri)

    def delete(self, uri: str) -> None:
        bucket, key = _split(uri)
        with _as_os_error(uri):
            self._client.delete_object(Bucket=bucket, Key=key)

    def _get(self, uri: str, condition: dict[str, str]) -> tuple[str, bytes]:
        """Etag and bytes. boto3 tries again until the answer begins; a body that breaks off is tried again here."""
        bucket, key = _split(uri)
        with _as_os_error(uri):
            for attempt in _attempts(self._options.max_attempts):
                try:
                    answer = self._client.get_object(Bucket=bucket, Key=key, **condition)
                except aws.ClientError as error:
                    # Of an object that was listed, stores under load say so now and then, and take it back.
                    is_first = attempt == 0 < self._options.max_attempts - 1
                    if condition and is_first and error.response["Error"]["Code"] == "AccessDenied":
                        continue
                    raise
                try:
                    return answer["ETag"].strip('"'), answer["Body"].read()
                except (aws.HTTPClientError, aws.IncompleteReadError):
                    continue
        raise OSError(errno.ETIMEDOUT, f"broke off {self._options.max_attempts} times while being read", uri)


def _split(uri: str) -> tuple[str, str]:
    """(bucket, key) of an s3 uri; the key is everything after the bucket's slash, as it stands."""
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket")
    if "@" in bucket:  # no bucket's name has it
        raise ValueError(f"{_without_credentials(uri)!r} holds keys: give them in the AWS environment or a profile")
    return bucket, key


def _status(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _errno(error: aws.ClientError) -> int:
    """The errno that says what an answer of S3 means. 403 and whatever else it refuses is a matter of access."""
    status = _status(error)
    if status == 404:
        return errno.ENOENT
    if status in (412, 416):
        return errno.ESTALE
    if status in (429, 503):
        return errno.EBUSY
    if status >= 500 or error.response["Error"]["Code"] == "RequestTimeout":
        return errno.ETIMEDOUT
    return errno.EACCES


@contextmanager
def _as_os_error(uri: str) -> Iterator[None]:
    try:
        yield
    except aws.ClientError as error:
        raise OSError(_errno(error), str(error), uri) from error
    except aws.ParamValidationError as error:  # no bucket or key can have this name
        raise OSError(errno.ENOENT, str(error), uri) from error
    except (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError) as error:
        raise OSError(errno.ETIMEDOUT, str(error), uri) from error
    except aws.BotoCoreError as error:  # no credentials, or none that can be had
        raise OSError(errno.EACCES, str(error), uri) from error


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    """Says what could not be written: a full disk does not. One text, which Ray carries whole from an actor."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{uri} cannot be written: {error}") from error


def _code(error: OSError) -> ErrorCode:
    return _CODES.get(error.errno or 0, ErrorCode.READ_TIMEOUT)


@contextmanager
def _as_bad_input(stage: Stage) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(stage, _code(error), error.strerror or str(error)) from error


def _attempts(count: int) -> Iterator[int]:
    """0 to count - 1 with growing, random waits between them."""
    for attempt in range(count):
        if attempt:
            time.sleep(random.random() * min(20.0, 2.0**attempt))
        yield attempt
