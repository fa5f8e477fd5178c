"""Every way to name inputs finds exactly the files it should, here and in a bucket; bad ones are refused by name."""

import csv
import errno
import glob
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.listing import list_inputs
from pipeline.records import Asset, ErrorCode, Stage
from pipeline.store import Store, StoreOptions, join

TREE = [
    "a.pdf",
    "b.PDF",
    "c",
    "_DSC0001.jpg",
    "scan [1].pdf",
    "caf\u00e9.pdf",
    "cafe\u0301.pdf",
    "2023/x.pdf",
    "2024/x.pdf",
    "2024/x.tif",
    "2024/deep/er/x.pdf",
    "2024-old/y.pdf",
]
NOT_INPUTS = [
    ".DS_Store",
    ".git/config.pdf",
    "2024/.x.pdf.swp",
    "_SUCCESS",
    "_job/job.json",
    "_job.json",
    "2024/_SUCCESS",
]


def write_tree(store: Store, root: str, names: list[str]) -> None:
    for name in names:
        store.put(join(root, name), name.encode())


def found(store: Store, source: str, root: str) -> list[str]:
    """The paths below the root of all inputs, none of which may be a failure."""
    return [asset.uri.removeprefix(root + "/") for asset in list_inputs(store, source)]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, str]]:
    if request.param == "folder":
        return Store(), str(tmp_path)
    server = request.getfixturevalue("s3")
    return Store(StoreOptions(endpoint_url=server.endpoint_url)), f"s3://{server.new_bucket()}"


def test_a_folder_gives_everything_but_hidden_names_and_books(place: tuple[Store, str]) -> None:
    store, root = place
    write_tree(store, root, TREE + NOT_INPUTS)
    assert found(store, root, root) == sorted(TREE)
    assert found(store, root + "/", root) == sorted(TREE)
    assert found(store, join(root, "2024"), root) == ["2024/deep/er/x.pdf", "2024/x.pdf", "2024/x.tif"]


PATTERNS = [
    "*",
    "*.pdf",
    "?.pdf",
    "[ab].*",
    "[!a].*",
    "*/x.pdf",
    "20*/*",
    "2024*/**/*.pdf",
    "**/x.*",
    "**",
    "2024/**",
    "**/deep/**/x.pdf",
    "2024/x.t[i]f",
    "*[[]1]*",
    "caf?.pdf",
]


def test_patterns_match_what_pythons_glob_matches(tmp_path: Path, s3) -> None:
    here, bucket = str(tmp_path), f"s3://{s3.new_bucket()}"
    stores = {here: Store(), bucket: Store(StoreOptions(endpoint_url=s3.endpoint_url))}
    for root, store in stores.items():
        write_tree(store, root, TREE + NOT_INPUTS)
    for pattern in PATTERNS:
        matches = glob.iglob(pattern, root_dir=here, recursive=True)
        expected = sorted(name for name in matches if (tmp_path / name).is_file() and name not in NOT_INPUTS)
        assert expected, pattern
        for root, store in stores.items():
            assert found(store, f"{root}/{pattern}", root) == expected, pattern


def test_a_relative_pattern_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "is [not] a pattern"
    write_tree(Store(), str(folder), TREE)
    monkeypatch.chdir(folder)
    assert found(Store(), "*.PDF", str(folder)) == ["b.PDF"]
    assert found(Store(), "../*/2023/*", str(folder)) == ["2023/x.pdf"]


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_stands_when_it_exists(place: tuple[Store, str]) -> None:
    store, root = place
    write_tree(store, root, ["scan [1].pdf", "scan 1.pdf", "year [2]/a.pdf", "year 2/b.pdf"])
    assert found(store, join(root, "scan [1].pdf"), root) == ["scan [1].pdf"]
    assert found(store, join(root, "year [2]"), root) == ["year [2]/a.pdf"]
    assert found(store, join(root, "year [2]", "*"), root) == ["year 2/b.pdf"]


def test_one_file_is_one_input(place: tuple[Store, str]) -> None:
    store, root = place
    write_tree(store, root, TREE)
    uri = join(root, "2024", "x.tif")
    assert list(list_inputs(store, uri)) == [store.stat(uri)]


def test_thousands_of_files_are_listed_in_order(tmp_path: Path) -> None:
    names = [f"{folder}/{number:05}" for folder in range(5) for number in range(1000)]
    for folder in range(5):
        (tmp_path / str(folder)).mkdir()
    for name in names:
        (tmp_path / name).touch()
    assert found(Store(), str(tmp_path), str(tmp_path)) == names


def test_names_that_no_table_can_hold_and_links_to_nothing_become_failures(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.pdf", "wb"):
        good, link, latin = sorted(list_inputs(Store(), str(tmp_path)), key=lambda entry: isinstance(entry, tuple))
    assert good == Store().stat(str(tmp_path / "good"))
    (link, link_failure), (latin, latin_failure) = sorted([link, latin], key=lambda entry: "caf" in entry[0].uri)
    assert (link.uri, link_failure.code) == (str(tmp_path / "link"), ErrorCode.NOT_FOUND)
    assert (latin.uri, latin_failure.code) == (f"{tmp_path}/caf\\udce9.pdf", ErrorCode.UNSUPPORTED_TYPE)


def test_a_pipe_in_a_folder_is_a_failure_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.pdf")
    ((_, failure),) = list_inputs(Store(), str(tmp_path))
    assert (failure.code, "a pipe" in failure.message) == (ErrorCode.NOT_FOUND, True)


@pytest.mark.parametrize("mode", [0, 0o600])
@pytest.mark.parametrize("pattern", ["", "/**/*.pdf"])
def test_a_folder_that_may_not_be_read_is_a_failure_of_its_own(mode: int, pattern: str) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are for their owner alone
    folder.chmod(0o755)
    for name in ("a/1.pdf", "b/2.pdf", "c/3.pdf"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(b"1")
    (folder / "b").chmod(mode)
    script = """
import os, sys
from pipeline.listing import list_inputs
from pipeline.store import Store
if os.geteuid() == 0:
    os.setuid(65534)  # root may read everything
for entry in list_inputs(Store(), sys.argv[1]):
    asset, code = (entry[0], entry[1].code) if isinstance(entry, tuple) else (entry, "")
    print(asset.uri.removeprefix(sys.argv[2] + "/"), code)
"""
    command = [sys.executable, "-c", script, f"{folder}{pattern}", str(folder)]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    (folder / "b").chmod(0o755)
    shutil.rmtree(folder)
    assert run.stdout.splitlines() == ["a/1.pdf ", "b access_denied", "c/3.pdf "], run.stderr


# Manifests


def as_txt(rows: list[dict[str, str]]) -> bytes:
    return ("# my files\r\n\n" + "".join(f"  {row['uri']}\n" for row in rows)).encode()


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


FORMATS = {"txt": as_txt, "csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.mark.parametrize("extension", FORMATS)
def test_a_manifest_gives_its_entries_in_its_order_with_their_columns(place: tuple[Store, str], extension: str) -> None:
    store, root = place
    write_tree(store, root, TREE)
    names = ["2024/x.pdf", "gone.pdf", "b.PDF", "caf\u00e9.pdf", "cafe\u0301.pdf", "a.pdf"]
    rows = [
        {"box": f'Nr. {number}, "B"', "uri": join(root, name), "note": "" if number else "ü\n2"}
        for number, name in enumerate(names)
    ]
    manifest = join(root, "lists", f"mine.{extension}")
    store.put(manifest, FORMATS[extension](rows))
    entries = list(list_inputs(store, manifest))

    for entry, row in zip(entries, rows, strict=True):
        user = () if extension == "txt" else (("box", row["box"]), ("note", row["note"]))
        if row["uri"].endswith("gone.pdf"):
            asset, failure = entry
            assert asset == Asset(row["uri"], 0, "", user)
            assert (failure.stage, failure.code) == (Stage.LIST, ErrorCode.NOT_FOUND)
        else:
            seen = store.stat(row["uri"])
            assert entry == Asset(seen.uri, seen.size, seen.etag, user)


def test_relative_uris_are_relative_to_the_manifest(place: tuple[Store, str], tmp_path: Path) -> None:
    store, root = place
    write_tree(store, root, TREE)
    (tmp_path / "elsewhere").write_bytes(b"1")
    store.put(join(root, "2024", "list.txt"), f"x.pdf\ndeep/er/x.pdf\n{tmp_path}/elsewhere\n".encode())
    uris = [asset.uri for asset in list_inputs(store, join(root, "2024", "list.txt"))]
    assert uris == [join(root, "2024", "x.pdf"), join(root, "2024", "deep/er/x.pdf"), str(tmp_path / "elsewhere")]


def test_values_that_are_not_strings_are_carried_as_strings(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    lines = ['{"uri": "a", "n": 1, "tags": ["x", null], "ok": true}', "", '{"uri": "b", "none": null, "n": 1.5}']
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    first, second = list_inputs(Store(), str(tmp_path / "list.jsonl"))
    assert dict(first.user) == {"n": "1", "tags": '["x", null]', "ok": "true", "none": ""}
    assert dict(second.user) == {"n": "1.5", "tags": "", "ok": "", "none": ""}
    assert [name for name, _ in first.user] == [name for name, _ in second.user]

    day = pa.array([19000, None], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"uri": ["a", "b"], "day": day}), tmp_path / "list.parquet")
    assert [dict(asset.user) for asset in list_inputs(Store(), str(tmp_path / "list.parquet"))] == [
        {"day": "2022-01-08"},
        {"day": ""},
    ]


def test_a_long_manifest_keeps_its_order(tmp_path: Path) -> None:
    names = [f"{number * 7919 % 1000:04}" for number in range(1000)]
    for name in names[::2]:
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("\n".join(names))
    entries = list(list_inputs(Store(), str(tmp_path / "list.txt")))
    uris = [entry.uri if isinstance(entry, Asset) else entry[0].uri for entry in entries]
    assert uris == [str(tmp_path / name) for name in names]
    assert [isinstance(entry, Asset) for entry in entries] == list(
        itertools.islice(itertools.cycle([True, False]), 1000)
    )


def test_an_entry_of_a_manifest_that_is_out_of_reach_is_a_failure_of_its_own(tmp_path: Path, s3) -> None:
    (tmp_path / "folder").mkdir()
    uris = [
        f"{tmp_path}/folder",
        "s3://there-is-no-such-bucket/key",
        f"{tmp_path}/{'n' * 300}",
        f"{tmp_path}/list.jsonl",
    ]
    lines = [json.dumps({"uri": uri}) for uri in [*uris, f"{tmp_path}/\udce9"]]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    store = Store(StoreOptions(endpoint_url=s3.endpoint_url))
    *missing, itself, unprintable = list_inputs(store, str(tmp_path / "list.jsonl"))
    assert [(asset.uri, failure.code) for asset, failure in missing] == [(uri, ErrorCode.NOT_FOUND) for uri in uris[:3]]
    assert itself == store.stat(str(tmp_path / "list.jsonl"))
    assert (unprintable[0].uri, unprintable[1].code) == (f"{tmp_path}/\\udce9", ErrorCode.UNSUPPORTED_TYPE)


# Bad jobs


def nothing(folder: Path) -> str:
    return str(folder / "missing.pdf")


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return str(folder / "empty")


def only_hidden_files(folder: Path) -> str:
    (folder / "hidden").mkdir()
    (folder / "hidden" / ".DS_Store").touch()
    return str(folder / "hidden")


def pattern_of_nothing(folder: Path) -> str:
    return f"{folder}/*.missing"


def manifest(name: str, content: str | bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder / name)

    return write


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (nothing, "missing.pdf"),
        (empty_folder, "empty"),
        (only_hidden_files, "hidden"),
        (pattern_of_nothing, r"\*\.missing"),
        (manifest("none.txt", "# only a comment\n"), "none.txt"),
        (manifest("path.csv", "path,box\na.pdf,1\n"), r"path.csv: entry 1: no uri.*'path', 'box'"),
        (manifest("semicolon.csv", "uri;box\na.pdf;1\n"), "uri;box"),
        (manifest("hole.csv", "uri,box\na.pdf,1\n,2\n"), "entry 2: no uri"),
        (manifest("wide.csv", "uri,box\na.pdf,1,2,3\n"), "entry 1: more values than columns.*2.*3"),
        (manifest("quote.csv", 'uri,box\na.pdf,1\n"b"x,2\n'), "entry 2"),
        (manifest("twice.txt", "a.pdf\nb.pdf\n./a.pdf\n"), r"twice.txt names 1 inputs more than once: .*/a\.pdf"),
        (manifest("web.txt", "a.pdf\nhttp://host/b.pdf\n"), "entry 2.*http://host/b.pdf"),
        (manifest("latin.txt", b"caf\xe9.pdf\n"), "latin.txt: entry 1.*utf-8"),
        (manifest("broken.jsonl", '{"uri": "a"}\n{"uri": \n'), "broken.jsonl: entry 2"),
        (manifest("list.jsonl", '["a.pdf"]\n'), r"not an object.*a\.pdf"),
        (manifest("number.jsonl", '{"uri": 7}\n'), "entry 1: no uri"),
        (manifest("fake.parquet", b"PAR1 not really PAR1"), "fake.parquet"),
        (manifest("empty.parquet", b""), "empty.parquet"),
        (lambda folder: "gs://bucket/prefix", "gs://bucket/prefix"),
        (lambda folder: "", "''"),
    ],
)
def test_a_source_that_names_no_inputs_is_refused(tmp_path: Path, source: Callable[[Path], str], says: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){says}"):
        next(list_inputs(Store(), source(tmp_path)))


def test_a_parquet_manifest_without_uri_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.pdf"]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"no uri.*path"):
        next(list_inputs(Store(), str(tmp_path / "list.parquet")))


def test_a_source_in_a_bucket_that_names_no_inputs_is_refused(s3) -> None:
    store = Store(StoreOptions(endpoint_url=s3.endpoint_url))
    bucket = s3.new_bucket()
    store.put(f"s3://{bucket}/report-1", b"1")
    for source in (f"s3://{bucket}/report", f"s3://{bucket}/report/", "s3://there-is-no-such-bucket", "s3://b*/x"):
        with pytest.raises(ValueError, match=source.replace("*", r"\*")):
            next(list_inputs(store, source))
    assert [asset.uri for asset in list_inputs(store, f"s3://{bucket}/report*")] == [f"s3://{bucket}/report-1"]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/*/*.txt"])
def test_a_subfolder_that_may_not_be_read_is_a_row_and_the_others_are_listed(tmp_path, monkeypatch, pattern):
    """Root may read everything: the refusal is made."""
    for name in ("a/one.txt", "secret/two.txt", "z/three.txt", "other.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("here")
    scandir = os.scandir

    def refusing(path):
        if str(path).rstrip("/").endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    entries = list(list_inputs(Store(), f"{tmp_path}{pattern}"))
    failed = [entry for entry in entries if isinstance(entry, tuple)]
    read = [entry.uri for entry in entries if not isinstance(entry, tuple)]
    assert [uri for uri in read if uri.endswith(".txt")] == [f"{tmp_path}/a/one.txt", f"{tmp_path}/z/three.txt"]
    ((folder, failure),) = failed
    assert (folder.uri, failure.code) == (f"{tmp_path}/secret", ErrorCode.ACCESS_DENIED)
    assert "Permission denied" in failure.message
    assert [e for e in list_inputs(Store(), f"{tmp_path}/a/*") if isinstance(e, tuple)] == []


def test_a_file_whose_folder_may_not_be_entered_is_a_row(tmp_path, monkeypatch):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("here")
    stat = os.stat

    def refusing(path, **how):
        if str(path).endswith("a.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", refusing)
    (denied, failure), read = list_inputs(Store(), str(tmp_path))
    assert (denied.uri, failure.code, read.uri) == (f"{tmp_path}/a.txt", ErrorCode.ACCESS_DENIED, f"{tmp_path}/b.txt")
