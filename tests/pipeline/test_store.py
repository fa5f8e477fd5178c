"""The store does the same on a folder, on moto's S3 and on Ceph's; faults have their codes; no write is half seen."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from pipeline.records import Asset, BadInput, ErrorCode, Stage
from pipeline.store import Store, StoreOptions, absolute, join

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """An empty folder or bucket, and a store that reaches it."""

    store: Store
    root: str

    def put(self, **objects: bytes) -> None:
        for name, data in objects.items():
            self.store.put(join(self.root, name), data)

    def names(self, folder: str, max_depth: int | None = None) -> list[str]:
        return [asset.uri.removeprefix(self.root + "/") for asset in self.store.list(folder, max_depth)]


@pytest.fixture(params=["folder", "moto", "radosgw"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place(Store(), str(tmp_path))
    server = request.getfixturevalue(f"{request.param}_s3")
    return Place(Store(StoreOptions(endpoint_url=server.endpoint_url)), f"s3://{server.new_bucket()}")


def failure_code(error: pytest.ExceptionInfo[BadInput]) -> tuple[Stage, ErrorCode]:
    return error.value.failure.stage, error.value.failure.code


def test_what_is_put_is_listed_described_opened_and_read(place: Place) -> None:
    uri = join(place.root, "a folder", "object.bin")
    for data in (b"first", b"", b"the last one stands"):
        place.store.put(uri, data)
        asset = place.store.stat(uri)
        assert (asset.uri, asset.size) == (uri, len(data))
        assert asset.etag
        assert '"' not in asset.etag
        assert list(place.store.list(place.root)) == [asset]
        assert place.store.read(uri) == data
        with place.store.open(asset) as file:
            assert file.read() == data
    assert place.store.exists(uri)
    place.store.delete(uri)
    assert not place.store.exists(uri)
    assert list(place.store.list(place.root)) == []


def test_listing_is_sorted_by_whole_key_and_keeps_to_the_folder(place: Place) -> None:
    keys = [
        "docs/a-b/x",
        "docs/a/x",
        "docs/a/b/c/y",
        "docs/a.pdf",
        "docs/Z",
        "docs/é",
        "docs-old/x",
        "doc",
        "docs/日本",
    ]
    place.put(**dict.fromkeys(keys, b"1"))
    inside = sorted(key for key in keys if key.startswith("docs/"))
    assert place.names(join(place.root, "docs")) == inside
    assert place.names(join(place.root, "docs/")) == inside
    assert place.names(place.root) == sorted(keys)
    assert place.names(join(place.root, "docs"), max_depth=1) == ["docs/Z", "docs/a.pdf", "docs/é", "docs/日本"]
    assert place.names(join(place.root, "docs"), max_depth=2) == [key for key in inside if key != "docs/a/b/c/y"]


def test_what_is_not_there_is_said_the_same_way_everywhere(place: Place) -> None:
    missing = join(place.root, "no", "such")
    place.put(**{"folder/file": b"1"})
    assert list(place.store.list(missing)) == []
    assert list(place.store.list(join(place.root, "folder", "file"))) == []
    place.store.delete(missing)
    for uri in (missing, place.root, join(place.root, "folder"), join(place.root, "folder", "file", "below")):
        assert not place.store.exists(uri)
        with pytest.raises(BadInput) as error:
            place.store.stat(uri)
        assert failure_code(error) == (Stage.LIST, ErrorCode.NOT_FOUND)
    with pytest.raises(FileNotFoundError):
        place.store.read(missing)


def test_a_large_object_reads_like_its_bytes_in_any_order(place: Place) -> None:
    rng = random.Random(1)
    data = rng.randbytes(9_000_001)
    place.put(large=data)
    with place.store.open(place.store.stat(join(place.root, "large"))) as file:
        for _ in range(30):
            start, size = rng.randrange(len(data)), rng.choice([1, 1000, 5_000_000])
            file.seek(start)
            assert file.read(size) == data[start : start + size]
        file.seek(0)
        assert file.read() == data
        file.seek(-10, io.SEEK_END)
        assert file.read() == data[-10:]


def test_an_object_replaced_by_another_of_the_same_size_is_not_read(place: Place) -> None:
    uri = join(place.root, "object")
    place.store.put(uri, bytes(9_000_000))
    asset = place.store.stat(uri)
    with place.store.open(asset) as half_read:
        assert half_read.read(10) == bytes(10)
        place.store.put(uri, b"x" * asset.size)
        half_read.seek(8_000_000)
        with pytest.raises(BadInput) as error:
            half_read.read(10)
        assert failure_code(error) == (Stage.READ, ErrorCode.CHANGED_DURING_RUN)
    with place.store.open(asset) as file, pytest.raises(BadInput) as error:
        file.read()
    assert failure_code(error) == (Stage.READ, ErrorCode.CHANGED_DURING_RUN)


@pytest.mark.parametrize("change", [b"", b"short"])
def test_an_object_that_shrank_is_not_read(place: Place, change: bytes) -> None:
    uri = join(place.root, "object")
    place.store.put(uri, bytes(1000))
    asset = place.store.stat(uri)
    place.store.put(uri, change)
    with place.store.open(asset) as file:
        file.seek(500)
        with pytest.raises(BadInput) as error:
            file.read(1)
    assert failure_code(error) == (Stage.READ, ErrorCode.CHANGED_DURING_RUN)


def test_an_object_deleted_after_listing_is_not_found(place: Place) -> None:
    place.put(object=b"data")
    (asset,) = place.store.list(place.root)
    place.store.delete(asset.uri)
    with place.store.open(asset) as file, pytest.raises(BadInput) as error:
        file.read(1)
    assert failure_code(error) == (Stage.READ, ErrorCode.NOT_FOUND)


def test_of_many_exclusive_writers_one_wins_and_its_bytes_stand(place: Place) -> None:
    rounds = 5 if place.root.startswith("s3:") else 200
    for round_number in range(rounds):
        uri = join(place.root, "claims", str(round_number))
        start = threading.Barrier(6)

        def claim(writer: int, uri: str = uri, start: threading.Barrier = start) -> bool:
            start.wait()
            return place.store.put_if_absent(uri, b"%d" % writer * 50_000)

        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(claim, range(6)))
        assert sum(won) == 1
        assert place.store.read(uri) == b"%d" % won.index(True) * 50_000
    assert len(place.names(place.root)) == rounds


def test_a_reader_sees_the_old_object_or_the_new_one(place: Place) -> None:
    uri = join(place.root, "object")
    place.store.put(uri, b"0" * 200_000)
    seen: set[bytes] = set()
    done = threading.Event()

    def read_all_the_time() -> None:
        while not done.is_set():
            seen.add(place.store.read(uri))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all_the_time)
        for version in range(20):
            place.store.put(uri, b"%d" % (version % 10) * 200_000)
        done.set()
        reading.result()
    assert seen
    assert all(len(data) == 200_000 and len(set(data)) == 1 for data in seen)


NAMES = [
    "a b.pdf",
    "a#b",
    "a%2Fb",
    "a?b=c",
    "caf\u00e9",
    "cafe\u0301",
    "a+b&c;d",
    "[x]*",
    " lead",
    "trail ",
    "%",
    "a\\b",
]
NAMES += ['it\'s "so"', "tab\there", "~", "日本語.pdf", "\U0001f600", "...", "-n", "a=b@c:d,e"]
KEYS = [*NAMES, "a//b", "/lead", "..", "a/../b", "a/./b", "end//x", "k" * 1024, "é" * 512, "s3://b/c"]


def test_odd_names_round_trip(place: Place, request: pytest.FixtureRequest) -> None:
    server = request.node.callspec.params["place"]
    names = NAMES if server == "folder" else KEYS
    if server != "moto":  # moto cannot route a newline
        names = [*names, "line\nbreak"]
    for name in names:
        place.store.put(join(place.root, name), name.encode())
    listed = {asset.uri.removeprefix(place.root + "/"): asset for asset in place.store.list(place.root)}
    assert list(listed) == sorted(names)
    for name in names:
        assert place.store.stat(join(place.root, name)) == listed[name]
        assert place.store.open(listed[name]).read() == name.encode()
        place.store.delete(listed[name].uri)
    assert list(place.store.list(place.root)) == []


# Folders


def test_the_ways_to_write_a_path_name_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a #1 é.pdf"
    path.write_bytes(b"data")
    monkeypatch.chdir(tmp_path)
    store = Store()
    for uri in (str(path), path.as_uri(), "a #1 é.pdf", "./a #1 é.pdf", f"{tmp_path}/x/../a #1 é.pdf"):
        assert absolute(uri) == str(path)
        assert store.stat(uri).uri == str(path)
    assert absolute("b/c.pdf", "/data/lists/") == "/data/lists/b/c.pdf"
    assert absolute("b/c.pdf", "s3://bucket/lists/") == "s3://bucket/lists/b/c.pdf"
    assert absolute("s3://bucket/a b", "/data") == "s3://bucket/a b"


@pytest.mark.parametrize(
    "uri", ["", "http://host/a.pdf", "gs://bucket/a", "s3://", "s3:///key", "a\0b", "file://host/a"]
)
def test_a_uri_of_no_store_is_refused_with_its_value(uri: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(uri))):
        absolute(uri)


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"1")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "above").symlink_to(tmp_path.parent)
    (tmp_path / "real" / "to_other").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "to_real").symlink_to(tmp_path / "real")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "nothing").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    listed = {asset.uri.removeprefix(f"{tmp_path}/"): asset.etag for asset in Store().list(str(tmp_path))}
    assert list(listed) == ["itself", "nothing", "other/to_real/file", "pipe", "real/file"]
    assert (listed["itself"], listed["nothing"], listed["pipe"]) == ("", "", "")
    with pytest.raises(BadInput) as error:
        Store().stat(str(tmp_path / "pipe"))
    assert failure_code(error) == (Stage.LIST, ErrorCode.NOT_FOUND)


def test_a_folder_that_may_not_be_read_is_access_denied(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    tmp_path.chmod(0o755)
    closed.chmod(0)
    script = """
import os, sys
from pipeline.records import BadInput
from pipeline.store import Store
if os.geteuid() == 0:
    os.setuid(65534)  # root may read everything
try:
    print(list(Store().list(sys.argv[1])))
except BadInput as bad:
    print(bad.failure.code)
"""
    run = subprocess.run([sys.executable, "-c", script, closed], cwd=REPOSITORY, capture_output=True, text=True)
    closed.chmod(0o755)
    assert run.stdout == "access_denied\n", run.stderr


def test_a_killed_writer_leaves_only_whole_files(tmp_path: Path) -> None:
    script = """
import itertools, sys
from pipeline.store import Store
for n in itertools.count():
    Store().put(f"{sys.argv[1]}/put-{n}", b"x" * 3_000_000)
    Store().put_if_absent(f"{sys.argv[1]}/claim-{n}", b"x" * 3_000_000)
"""
    leftovers = 0
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        writer = subprocess.Popen([sys.executable, "-c", script, folder], cwd=REPOSITORY)
        while not (folder / "claim-1").exists():
            assert writer.poll() is None
        threading.Event().wait(random.Random(attempt).random() * 0.02)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        listed = list(Store().list(str(folder)))
        assert {asset.size for asset in listed} == {3_000_000}
        leftovers = len(list(folder.iterdir())) - len(listed)
        if leftovers:
            break  # it was killed in the middle of a write, which is not listed
    assert leftovers


# S3


def test_marks_of_folders_are_not_objects(s3, tmp_path: Path) -> None:
    bucket = s3.new_bucket()
    client = boto3.client("s3", endpoint_url=s3.endpoint_url)
    for key, body in {"docs/": b"", "docs/sub/": b"", "docs/file": b"1", "docs/odd/": b"not a mark"}.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)
    listed = [asset.uri for asset in Store(StoreOptions(endpoint_url=s3.endpoint_url)).list(f"s3://{bucket}/docs")]
    assert listed == [f"s3://{bucket}/docs/file", f"s3://{bucket}/docs/odd/"]


def test_a_missing_bucket_is_not_an_empty_one(s3) -> None:
    store = Store(StoreOptions(endpoint_url=s3.endpoint_url))
    for uri in ("s3://there-is-no-such-bucket", "s3://no bucket can have this name/x"):
        with pytest.raises(BadInput) as error:
            list(store.list(uri))
        assert failure_code(error) == (Stage.LIST, ErrorCode.NOT_FOUND)
    with pytest.raises(FileNotFoundError):
        store.put("s3://there-is-no-such-bucket/key", b"")


def test_the_endpoint_is_found_in_the_usual_environment(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    uri = f"s3://{s3.new_bucket()}/key"
    Store().put(uri, b"data")
    assert Store(StoreOptions(endpoint_url=s3.endpoint_url)).read(uri) == b"data"


def test_keys_come_from_a_profile(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text(
        f"[archive]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    uri = f"s3://{s3.new_bucket()}/key"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    Store(StoreOptions(endpoint_url=s3.endpoint_url, profile="archive")).put(uri, b"data")
    with pytest.raises(PermissionError, match="credentials"):
        Store(StoreOptions(endpoint_url=s3.endpoint_url)).read(uri)
    with pytest.raises(ValueError, match="no-such-profile"):
        Store(StoreOptions(endpoint_url=s3.endpoint_url, profile="no-such-profile")).read(uri)


def test_a_wrong_key_is_access_denied_and_is_not_repeated(radosgw_s3, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{radosgw_s3.new_bucket()}/key"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongsecret")
    store = Store(StoreOptions(endpoint_url=radosgw_s3.endpoint_url))
    with pytest.raises(BadInput) as error:
        list(store.list(uri))
    assert failure_code(error) == (Stage.LIST, ErrorCode.ACCESS_DENIED)
    assert "wrongsecret" not in str(error.value)
    with pytest.raises(PermissionError):
        store.put(uri, b"")


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_attempts .* 0"):
        StoreOptions(max_attempts=0)
    with pytest.raises(ValueError, match=r"timeout_seconds .* -1"):
        StoreOptions(timeout_seconds=-1)
    with pytest.raises(ValueError, match="not an endpoint"):
        Store(StoreOptions(endpoint_url="not an endpoint")).read("s3://bucket/key")


# Faults: a server that says what the test tells it to


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    etag: str = '"e"'
    promised_bytes: int | None = None  # when the body breaks off
    delay_seconds: float = 0.0


class FaultyS3(ThreadingHTTPServer):
    """Gives the answers in turn, the last one for ever, and keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Scripted)
        self.answers: deque[Answer] = deque()
        self.asked: list[str] = []
        self.conditions: list[str | None] = []

    def store(self, *answers: Answer, max_attempts: int = 3, timeout_seconds: float = 10.0) -> Store:
        self.answers.extend(answers)
        endpoint = f"http://127.0.0.1:{self.server_port}"
        return Store(StoreOptions(endpoint_url=endpoint, max_attempts=max_attempts, timeout_seconds=timeout_seconds))


class _Scripted(BaseHTTPRequestHandler):
    server: FaultyS3

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        self.server.conditions.append(self.headers["If-Match"])
        answers = self.server.answers
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        threading.Event().wait(answer.delay_seconds)
        self.send_response(answer.status)
        promised = len(answer.body) if answer.promised_bytes is None else answer.promised_bytes
        self.send_header("Content-Length", str(promised))
        self.send_header("ETag", answer.etag)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)
        self.close_connection = True

    do_PUT = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def faulty(aws_keys: None) -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def error_body(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()


SLOW_DOWN = Answer(503, error_body("SlowDown"))
OBJECT = Asset("s3://bucket/key", 4, "e")


def test_a_read_asks_for_the_version_that_was_listed(faulty: FaultyS3) -> None:
    assert faulty.store(Answer(206, b"data")).open(OBJECT).read() == b"data"
    assert faulty.conditions == ['"e"']


def test_a_throttled_read_is_tried_again(faulty: FaultyS3) -> None:
    store = faulty.store(SLOW_DOWN, Answer(500, error_body("InternalError")), Answer(206, b"data"))
    assert store.open(OBJECT).read() == b"data"
    assert len(faulty.asked) == 3


def test_a_body_that_breaks_off_is_read_again(faulty: FaultyS3) -> None:
    assert faulty.store(Answer(206, b"da", promised_bytes=4), Answer(206, b"data")).open(OBJECT).read() == b"data"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (SLOW_DOWN, ErrorCode.THROTTLED),
        (Answer(429, error_body("TooManyRequests")), ErrorCode.THROTTLED),
        (Answer(500, error_body("InternalError")), ErrorCode.READ_TIMEOUT),
        (Answer(400, error_body("RequestTimeout")), ErrorCode.READ_TIMEOUT),
        (Answer(206, b"data", delay_seconds=1.0), ErrorCode.READ_TIMEOUT),
        (Answer(206, b"da", promised_bytes=4), ErrorCode.READ_TIMEOUT),
        (Answer(403, error_body("AccessDenied")), ErrorCode.ACCESS_DENIED),
        (Answer(403, error_body("InvalidObjectState")), ErrorCode.ACCESS_DENIED),
        (Answer(404, error_body("NoSuchKey")), ErrorCode.NOT_FOUND),
        (Answer(412, error_body("PreconditionFailed")), ErrorCode.CHANGED_DURING_RUN),
        (Answer(206, b"data", etag='"another"'), ErrorCode.CHANGED_DURING_RUN),  # a store that ignores conditions
        (Answer(206, b"dat"), ErrorCode.CHANGED_DURING_RUN),
    ],
)
def test_each_fault_of_a_read_has_its_code(faulty: FaultyS3, answer: Answer, code: ErrorCode) -> None:
    store = faulty.store(answer, max_attempts=1, timeout_seconds=0.3)
    with pytest.raises(BadInput) as error:
        store.open(OBJECT).read()
    assert failure_code(error) == (Stage.READ, code)


def test_a_server_that_is_not_there_is_a_timeout(aws_keys: None) -> None:
    store = Store(StoreOptions(endpoint_url="http://127.0.0.1:1", max_attempts=1))
    with pytest.raises(TimeoutError):
        store.read("s3://bucket/key")
    with pytest.raises(TimeoutError):  # not knowing is not absence
        store.exists("s3://bucket/key")


def test_a_conflict_of_exclusive_writers_is_settled_by_asking_again(faulty: FaultyS3) -> None:
    conflict = Answer(409, error_body("ConditionalRequestConflict"))
    assert faulty.store(conflict, Answer(200)).put_if_absent("s3://bucket/key", b"") is True
    faulty.answers.clear()
    assert faulty.store(conflict, Answer(412)).put_if_absent("s3://bucket/key", b"") is False


def test_a_long_listing_is_streamed_page_by_page(faulty: FaultyS3) -> None:
    def page(keys: list[str], next_token: str) -> Answer:
        contents = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;e&quot;</ETag></Contents>" for key in keys
        )
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{next_token}</NextContinuationToken>"
        end = more if next_token else "<IsTruncated>false</IsTruncated>"
        return Answer(200, f"<Listing><EncodingType>url</EncodingType>{contents}{end}</Listing>".encode())

    store = faulty.store(page(["a%20b", "b"], "page-2"), SLOW_DOWN, page(["c", "d%2B"], ""))
    listing = store.list("s3://bucket")
    assert next(listing) == Asset("s3://bucket/a b", 1, "e")
    assert len(faulty.asked) == 1
    assert [asset.uri for asset in listing] == ["s3://bucket/b", "s3://bucket/c", "s3://bucket/d+"]
    assert "continuation-token=page-2" in faulty.asked[-1]


FULL_DISK = """
import resource, sys
from pipeline.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (Store().put, Store().put_if_absent):
    try:
        write(sys.argv[1], bytes(5000))
    except OSError as error:
        print(error)
"""


def test_a_disk_without_room_is_an_error_and_leaves_no_half_of_an_object(tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk's: the write breaks off in the middle in the same way."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out" / "part.parquet")]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines() == [f"{command[-1]} cannot be written: [Errno 27] File too large"] * 2
    assert list((tmp_path / "out").iterdir()) == []
