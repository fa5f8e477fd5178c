"""The end of a job: its counts, the inputs that failed by their names, and commands that work as they are printed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.kinds import DOCUMENT_KIND
from pipeline.manifest import Counts, Manifest, TableFile
from pipeline.store import Store, StoreOptions, join
from pipeline.summary import summary_text
from pipeline.tables import to_parquet

FAILED = [f"bad {number}.pdf" for number in range(13)]
FILE = "documents/documents-00000.parquet"
MANIFEST = Manifest(
    schema_version=1,
    survey="survey/000000",
    config_hash="abc",
    config={},
    versions={},
    assets=Counts({"failed": 13, "ok": 2}, {"corrupt": 13}),
    pieces=Counts({"ok": 1234}, {}),
    found=5000,
    tokens_in=70_000,
    tokens_out=80_000,
    wall_seconds=420.0,
    occupancy=0.856,
    tables=(TableFile(FILE, 15, 1, ""),),
)


def write_table(store: Store, output: str) -> None:
    rows = [
        {"filename": name, "status": "failed", "error_code": "corrupt", "error_message": "cut off"} for name in FAILED
    ]
    rows[3:3] = [{"filename": f"{n}.pdf", "status": "ok", "error_code": "", "error_message": ""} for n in "ab"]
    table = pa.Table.from_pylist([row | {"pages_total": 1, "pages_ok": 1} for row in rows])
    store.put(join(output, FILE), to_parquet(table))


@pytest.fixture(params=["folder", "bucket"])
def written(request, tmp_path) -> tuple[str, StoreOptions]:
    if request.param == "folder":
        output, options = str(tmp_path / "it's out"), StoreOptions()
    else:
        s3 = request.getfixturevalue("moto_s3")
        output, options = f"s3://{s3.new_bucket()}/out", StoreOptions(endpoint_url=s3.endpoint_url, region="us-east-1")
    write_table(Store(options), output)
    return output, options


def test_the_summary_names_what_failed_and_its_commands_work_as_printed(written):
    text = summary_text(MANIFEST, DOCUMENT_KIND, *written)
    assert "documents  15: failed 13, ok 2 (corrupt 13)" in text
    assert "pages      1,234: ok 1,234" in text
    assert "7 min" in text
    assert "86 % as many pages at once" in text
    lines = text.splitlines()
    begin = lines.index("failed")
    assert lines[begin + 1 : begin + 11] == [f"  {name}: corrupt: cut off" for name in FAILED[:10]]
    assert lines[begin + 11] == "  and 3 more"
    for title, names in (("all that failed", FAILED), ("look at it with", ["a.pdf", "b.pdf", *FAILED])):
        command = lines[lines.index(title) + 1]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where an active environment has its python
        run = subprocess.run(
            command, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
        )
        shown = run.stdout
        assert all(name in shown for name in names)
        assert ("a.pdf" in shown) == (title == "look at it with")
        assert "error_code" in shown


def test_a_job_in_which_nothing_failed_names_nothing(tmp_path):
    all_well = replace(MANIFEST, assets=Counts({"ok": 2}, {}))
    text = summary_text(all_well, DOCUMENT_KIND, str(tmp_path), StoreOptions())
    assert "failed" not in text
