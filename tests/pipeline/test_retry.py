"""A retry reads what failed, nothing else, and leaves the tables of a run in which it never failed."""

import errno
import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reportlab.pdfgen.canvas import Canvas

from jobs import retry_failed
from pipeline.audit import audit
from pipeline.books import Books
from pipeline.flow import prepare, run, with_longer_answers
from pipeline.job import ParseJob
from pipeline.kinds import VIDEO_KIND
from pipeline.manifest import Manifest
from pipeline.records import Asset, Failure, Stage
from pipeline.records import ErrorCode as Code
from pipeline.retry import begin_retry, failed_pieces, recovered, retried_shard
from pipeline.status import job_status
from pipeline.store import Store
from pipeline.survey import UNITS, asset_row, cut_units
from tests.drive import SMALL
from tests.fakes import FakeLoader
from tests.pipeline.test_changes import begun, finish
from tests.pipeline.test_close import assets_table

OF_THE_CLOCK = ("decode_ms", "queue_ms", "infer_ms")
FORGIVING = FakeLoader(refuses="")


def write_pdf(path: Path, pages: int, *, refused: tuple[int, ...] = ()) -> None:
    canvas = Canvas(str(path), invariant=True)
    for page_no in range(1, pages + 1):
        canvas.drawString(100, 500, f"Page {page_no} of {path.name}" + (" REFUSE" if page_no in refused else ""))
        canvas.showPage()
    canvas.save()


@pytest.fixture
def inputs(tmp_path) -> Path:
    """Two pages that the engine refuses at first, a broken and an empty file."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_pdf(folder / "a.pdf", 3)
    write_pdf(folder / "b.pdf", 20, refused=(4, 19))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    (folder / "empty.pdf").write_bytes(b"")
    return folder


def run_job(job: ParseJob, engine: FakeLoader) -> Manifest:
    return run(prepare(job), SMALL, io.StringIO(), load_engine=engine)


def tables_of(output: Path) -> dict[str, pa.Table]:
    """Without what depends on the clock and on how often something was tried."""
    tables = {name: pq.read_table(output / name) for name in ("documents", "pages", "blocks")}
    tables["documents"] = tables["documents"].drop_columns("attempts")
    return tables | {"pages": tables["pages"].drop_columns([*OF_THE_CLOCK, "attempts"])}


def attempts_of(output: Path, table: str) -> dict[str, int]:
    rows = pq.read_table(output / table).to_pylist()
    key = "filename" if table == "documents" else "page_no"
    return {row[key]: row["attempts"] for row in rows if row["error_code"]}


def test_a_retry_ends_with_the_tables_of_a_run_that_never_failed(ray_address, inputs, tmp_path):
    """It is broken off once; one input was repaired meanwhile; one page is refused a second time, and then read."""
    job = ParseJob(input=str(inputs), output=str(tmp_path / "out"))
    first = run_job(job, FakeLoader())
    assert first.pieces.by_error == {"infer_rejected": 2}
    old = tables_of(tmp_path / "out")
    write_pdf(inputs / "broken.pdf", 2)

    assert begin_retry(prepare(job), [], SMALL, io.StringIO()) is not None
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert tables_of(tmp_path / "out") == old  # readers keep them until the retry is closed
    setup = prepare(job)
    assert setup.finished is None
    before = job_status(setup.books)
    assert (before.finished, before.pieces) == (False, {"ok": 21, "failed": 2})
    again = run(setup, SMALL, io.StringIO(), load_engine=FakeLoader(refuses="Page 4"))
    after = job_status(setup.books)
    assert (after.finished, after.pieces, after.failed) == (True, {"ok": 24, "failed": 1}, {"infer_rejected": 1})
    assert again.pieces.by_error == after.failed
    said = recovered(setup.books, setup.kind).text("pages")
    assert said == "recovered 1 of 2 inputs; 1 failed again\nrecovered 1 of 2 pages; 1 failed again"
    assert attempts_of(tmp_path / "out", "pages") == {4: 2}
    assert attempts_of(tmp_path / "out", "documents") == {"b.pdf": 2, "empty.pdf": 2}
    assert audit(Store(), job.output).differences == ()

    parts = len(list(tmp_path.glob("out/_job/parts/*/*.parquet")))
    assert begin_retry(prepare(job), ["infer_rejected"], SMALL, io.StringIO()) is not None
    run_job(job, FORGIVING)
    assert len(list(tmp_path.glob("out/_job/parts/*/*.parquet"))) == parts + 1  # one page, and nothing else
    fresh = replace(job, output=str(tmp_path / "fresh"))
    run_job(fresh, FORGIVING)
    assert tables_of(tmp_path / "out") == tables_of(tmp_path / "fresh")
    assert audit(Store(), job.output).differences == ()
    assert begin_retry(prepare(job), ["infer_rejected"], SMALL, io.StringIO()) is None
    assert prepare(job).finished is not None


def test_only_the_pages_that_failed_become_units_and_their_ids_are_new():
    assets = assets_table({"a": 5, "b": 30})
    units = cut_units(assets, "", bytes_per_token=768)
    doc_a, doc_b = assets["asset_id"].to_pylist()
    failed = pa.table(
        {"asset_id": [doc_a, *[doc_b] * 4], "number": [5, 2, 3, 4, 9], "attempts": [1, 1, 1, 3, 1]},
    )
    _, again = retried_shard(assets, units, failed, {}, pages="", bytes_per_token=768)
    new = again.slice(len(units)).to_pylist()
    assert again.slice(0, len(units)).equals(units)
    assert [(unit["asset_id"], unit["first"], unit["last"], unit["tries"]) for unit in new] == [
        (doc_a, 5, 5, 1),
        (doc_b, 2, 3, 1),
        (doc_b, 4, 4, 3),
        (doc_b, 9, 9, 1),
    ]
    assert len(set(again["unit_id"].to_pylist())) == len(again)


def test_units_of_a_retry_are_bounded_in_bytes_as_those_of_the_survey_are():
    assets = assets_table({"a": 6})
    (doc_a,) = assets["asset_id"].to_pylist()
    failed = pa.table({"asset_id": [doc_a] * 6, "number": [1, 2, 3, 4, 5, 6], "attempts": [1] * 6})
    for bytes_per_token, runs in (
        (768, [(1, 6)]),
        (4000, [(1, 2), (3, 4), (5, 6)]),
        (9000, [(n, n) for n in range(1, 7)]),
    ):
        _, again = retried_shard(assets, UNITS.empty_table(), failed, {}, pages="", bytes_per_token=bytes_per_token)
        assert [(unit["first"], unit["last"]) for unit in again.to_pylist()] == runs


def test_an_input_with_another_version_loses_its_old_units_and_keeps_its_place():
    assets = assets_table({"a": 2, "b": 2})
    units = cut_units(assets, "", bytes_per_token=768)
    old = assets["asset_id"][0].as_py()
    now = asset_row(0, Asset("/in/a.pdf", 11, "v2"), None) | {"pages": 1, "page_tokens": [100]}
    failed = pa.table({"asset_id": [old], "number": [1], "attempts": [1]})
    changed, again = retried_shard(assets, units, failed, {0: now}, pages="", bytes_per_token=768)
    assert changed["etag"].to_pylist() == ["v2", "v1"]
    assert [(unit["etag"], unit["first"], unit["last"]) for unit in again.to_pylist()] == [("v1", 1, 2), ("v2", 1, 1)]


@pytest.mark.parametrize(
    ("status", "code"), [("truncated", "output_repeated"), ("unparseable", "unparseable"), ("failed", "decoder_error")]
)
def test_windows_are_retried_by_every_code_they_can_have(tmp_path, status, code):
    ok, other = row_of_window(1, "ok", ""), row_of_window(2, status, code)
    (tmp_path / "windows").mkdir()
    pq.write_table(pa.Table.from_pylist([ok, other]), tmp_path / "windows" / "windows-00000.parquet")
    failed = failed_pieces(Books(Store(), str(tmp_path)), VIDEO_KIND, 0, [code])
    assert failed["number"].to_pylist() == [2]


def row_of_window(number: int, status: str, code: str) -> dict[str, object]:
    return {"video_id": "v", "window_no": number, "status": status, "error_code": code, "attempts": 1}


def test_an_output_without_a_finished_job_is_refused(tmp_path, capsys):
    assert retry_failed.main([str(tmp_path)]) == 2
    assert "holds no finished job" in capsys.readouterr().err


def test_attempts_are_counted_on_from_the_earlier_ones():
    failure = Failure(Stage.INFER, Code.INFER_REJECTED, "too long")
    assert asset_row(0, Asset("/in/a.pdf", 1, "v"), failure)["attempts"] == 1
    assert asset_row(0, Asset("/in/a.pdf", 1, "v"), None)["attempts"] == 0


def test_by_default_is_retried_what_may_end_otherwise():
    codes = retry_failed.codes_by_default(has_passwords=False, is_longer=False)
    assert {"read_timeout", "throttled", "access_denied", "not_found", "render_oom", "infer_crash"} <= set(codes)
    assert not {"corrupt", "encrypted", "wrong_password", "output_truncated", "unsupported_type"} & set(codes)
    assert "encrypted" in retry_failed.codes_by_default(has_passwords=True, is_longer=False)
    assert "output_truncated" in retry_failed.codes_by_default(has_passwords=False, is_longer=True)


def test_a_limit_may_be_raised_and_the_output_stays_what_it_was_begun_as(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    setup = prepare(ParseJob(input=str(tmp_path), output=str(tmp_path / "out"), max_new_tokens=64))
    longer = with_longer_answers(setup, 128)
    assert (longer.sampling.max_new_tokens, longer.load.sequence_tokens) == (128, setup.load.sequence_tokens + 64)
    assert (longer.record, longer.job) == (setup.record, setup.job)
    for refused, says in ((32, "less than what this output was begun with, 64"), (10**7, "the context is")):
        with pytest.raises(ValueError, match=says):
            with_longer_answers(setup, refused)


@pytest.fixture
def finished(tmp_path) -> Path:
    """A finished job with a corrupt and an unreachable input, without Ray."""
    for name in ("broken.pdf", "away.pdf"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"%PDF-1.7 and nothing more")
    job = ParseJob(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    begun(job, {"broken.pdf": Code.CORRUPT, "away.pdf": Code.READ_TIMEOUT})
    finish(job)
    return tmp_path / "out"


def test_a_disk_that_is_full_is_a_line_and_no_traceback(finished, capsys, monkeypatch):
    monkeypatch.setattr(Store, "put_if_absent", full_disk)
    assert retry_failed.main([str(finished)]) == 1
    assert "retry_failed: broken off: [Errno 28] No space left on device" in capsys.readouterr().err


def full_disk(store: Store, uri: str, data: bytes) -> bool:
    raise OSError(errno.ENOSPC, "No space left on device", uri)


def test_where_nothing_is_left_that_may_help_it_says_what_is_left(finished, capsys):
    assert retry_failed.main([str(finished), "--code", "infer_crash"]) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "documents: failed 2 (corrupt 1, read_timeout 1)" in said
