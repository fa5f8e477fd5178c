"""The whole job on a real Ray: every input and page once, whoever dies in the middle, the same tables every time."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from pipeline.books import Books
from pipeline.flow import Superseded, find_survey, follow, planned_survey, prepare, run
from pipeline.job import ParseJob
from pipeline.manifest import Manifest
from pipeline.plan import estimate
from pipeline.rows import Receipt
from pipeline.store import Store, StoreOptions, join
from pipeline.survey import UNITS
from tests.drive import SMALL
from tests.fakes import FakeLoader

ROOT = Path(__file__).parents[2]
PAGES_OF = {"a.pdf": 1, "b.pdf": 40, "c.pdf": 7}
REFUSED = ("c.pdf", 5)
TIMINGS = ("decode_ms", "queue_ms", "infer_ms")


def words(name: str, page_no: int) -> str:
    return f"Page {page_no} of {name}" + (", one to REFUSE" if (name, page_no) == REFUSED else "")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Three PDFs whose pages say which they are, one broken file, one empty."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, pages in PAGES_OF.items():
        canvas = Canvas(str(folder / name), pagesize=A4, invariant=True)
        for page_no in range(1, pages + 1):
            canvas.drawString(100, 500, words(name, page_no))
            canvas.showPage()
        canvas.save()
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    (folder / "empty.pdf").write_bytes(b"")
    return folder


def job_of(inputs: Path, output: Path, **options) -> ParseJob:
    return ParseJob(input=str(inputs), output=str(output), **options)


def run_job(job: ParseJob, engine: FakeLoader = FakeLoader()) -> tuple[Manifest, str]:  # noqa: B008
    """The manifest, and what was shown."""
    setup, stream = prepare(job), io.StringIO()
    return run(setup, SMALL, stream, load_engine=engine), stream.getvalue()


def tables_of(output: str | Path) -> dict[str, pa.Table]:
    """The tables as readers see them, without what depends on the clock."""
    tables = {name: pq.read_table(output / name) for name in ("documents", "pages", "blocks")}
    return tables | {"pages": tables["pages"].drop_columns(TIMINGS)}


@pytest.fixture(scope="module")
def undisturbed(ray_address, inputs, tmp_path_factory) -> tuple[Path, Manifest, str]:
    """A run that nobody disturbed: where its output lies, its manifest, what it showed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    return output, *run_job(job_of(inputs, output))


def test_every_input_and_every_page_has_its_row_with_its_text(undisturbed):
    tables = tables_of(undisturbed[0])
    documents = tables["documents"].select(["filename", "status", "error_code", "pages_total"]).to_pylist()
    assert [tuple(row.values()) for row in documents] == [
        ("a.pdf", "ok", "", 1),
        ("b.pdf", "ok", "", 40),
        ("broken.pdf", "failed", "corrupt", 0),
        ("c.pdf", "partial", "infer_rejected", 7),
        ("empty.pdf", "failed", "empty_file", 0),
    ]
    pages = [(name, page_no) for name, pages in PAGES_OF.items() for page_no in range(1, pages + 1)]
    assert tables["pages"]["markdown"].to_pylist() == [words(*page) if page != REFUSED else "" for page in pages]
    assert tables["pages"]["error_code"].to_pylist() == ["infer_rejected" if page == REFUSED else "" for page in pages]
    assert tables["blocks"]["text"].to_pylist() == [words(*page) for page in pages if page != REFUSED]


def test_the_manifest_and_the_progress_count_what_the_tables_hold(undisturbed):
    output, manifest, shown = undisturbed
    assert manifest.assets.by_status == {"failed": 2, "ok": 2, "partial": 1}
    assert manifest.pieces.by_status == {"failed": 1, "ok": 47}
    assert manifest.found == 47
    assert 0 < manifest.occupancy <= 1
    assert 0 < manifest.engine_seconds < manifest.wall_seconds
    for file in manifest.tables:
        assert pq.read_metadata(output / file.file).num_rows == file.rows
    assert "pages 48/48 (100.0 %)" in shown
    assert "failed 3 (corrupt 1, empty_file 1, infer_rejected 1)" in shown


def test_a_finished_job_does_nothing_when_it_is_run_again(undisturbed, inputs):
    output, manifest, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    again, shown = run_job(job_of(inputs, output))
    assert (again, shown) == (manifest, "")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_another_prompt_is_refused_by_an_output_that_was_begun(undisturbed, inputs):
    with pytest.raises(ValueError, match="prompt: markdown -> html"):
        prepare(job_of(inputs, undisturbed[0], prompt="html"))


@pytest.fixture
def slow_driver(ray_address, inputs, tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver in the middle of its job: some parts are there, others are not."""
    environment = os.environ | {"RAY_ADDRESS": ray_address}
    command = [sys.executable, "-m", "tests.drive", str(inputs), str(tmp_path / "out"), "0.5"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    until = time.monotonic() + 300
    while not list(tmp_path.glob("out/_job/parts/*/*.parquet")):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < until, "no part was written"
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def test_a_job_whose_driver_was_killed_ends_with_the_same_tables(slow_driver, undisturbed, inputs, tmp_path):
    slow_driver.send_signal(signal.SIGKILL)
    slow_driver.wait()
    output = tmp_path / "out"
    assert not (output / "_SUCCESS").exists()
    run_job(job_of(inputs, output))
    assert tables_of(output) == tables_of(undisturbed[0])
    books = Books(Store(), str(output))
    by_epoch = {part.split("/")[0] for part in books.sealed(books.claim_epoch())["part"].to_pylist()}
    assert len(by_epoch) > 1, "nothing was kept of what the killed driver had done"


def test_of_two_drivers_at_once_the_newer_one_ends_the_job(slow_driver, undisturbed, inputs, tmp_path):
    output = tmp_path / "out"
    run_job(job_of(inputs, output))
    assert tables_of(output) == tables_of(undisturbed[0])
    _, errors = slow_driver.communicate(timeout=300)
    assert b"Superseded" in errors
    assert tables_of(output) == tables_of(undisturbed[0])


def test_a_driver_gives_up_when_another_one_goes_on(inputs, tmp_path):
    setup = prepare(job_of(inputs, tmp_path / "out"))
    epoch = setup.books.claim_epoch()
    survey = setup.books.freeze_survey(epoch, [])
    receipts = [Receipt(asset_ids=("a",), pieces=1, found=0, media_us=0, tokens_out=1, failed=(), loads=())]
    follow(iter(receipts), setup, survey, epoch, UNITS.empty_table(), io.StringIO(), seconds_between_checks=0.0)
    setup.books.claim_epoch()
    with pytest.raises(Superseded, match="another run"):
        follow(iter(receipts), setup, survey, epoch, UNITS.empty_table(), io.StringIO(), seconds_between_checks=0.0)


def test_a_bucket_gives_the_same_tables_as_a_folder_though_a_replica_dies(
    s3, ray_address, undisturbed, inputs, tmp_path
):
    store, bucket = Store(StoreOptions(endpoint_url=s3.endpoint_url)), s3.new_bucket()
    for path in inputs.iterdir():
        store.put(f"s3://{bucket}/in/{path.name}", path.read_bytes())
    source, output = f"s3://{bucket}/in", f"s3://{bucket}/out"
    job = replace(job_of(inputs, tmp_path), input=source, output=output, endpoint_url=s3.endpoint_url)
    died = tmp_path / "died"
    manifest, _ = run_job(job, FakeLoader(step_seconds=0.05, dies_at="Page 30 of b.pdf", died=died))
    assert died.exists()
    assert manifest.assets == undisturbed[1].assets
    for name, columns in (("pages", ["page_no", "status", "markdown"]), ("blocks", ["page_no", "order", "text"])):
        (file,) = [file.file for file in manifest.tables if file.file.startswith(name)]
        table = pq.read_table(pa.BufferReader(store.read(join(output, file))), columns=columns)
        assert table == tables_of(undisturbed[0])[name].select(columns)


def test_a_plan_opens_every_input_and_leaves_nothing_behind_and_a_run_takes_what_came_since(
    ray_address, inputs, tmp_path
):
    """The same folder again, after the run: what came even later is named."""
    shutil.copytree(inputs, tmp_path / "in")
    job = job_of(tmp_path / "in", tmp_path / "out")
    setup = prepare(job)
    survey = planned_survey(setup, SMALL, io.StringIO())
    assert (survey.assets, survey.pages, survey.unit_pages) == (5, 48, 48)
    assert survey.failed == {"corrupt": 1, "empty_file": 1}
    assert survey.unit_tokens == 48 * setup.media.budget.page_tokens(*A4, scalable=True)
    estimated = estimate(setup, SMALL, survey, start_seconds=1.0)
    assert 0 < estimated.tokens_out <= estimated.most_tokens_out == 48 * job.max_new_tokens
    assert estimated.seconds > estimated.read_seconds > 0
    assert not (tmp_path / "out").exists()

    shutil.copy(tmp_path / "in" / "broken.pdf", tmp_path / "in" / "later.pdf")
    find_survey(prepare(job), SMALL, io.StringIO())
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    shutil.copy(tmp_path / "in" / "broken.pdf", tmp_path / "in" / "latest.pdf")
    (tmp_path / "in" / "later.pdf").unlink()
    again = prepare(job)
    assert planned_survey(again, SMALL, io.StringIO()).assets == 6
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert (again.changes.new, again.changes.vanished) == (
        (f"{tmp_path}/in/latest.pdf",),
        (f"{tmp_path}/in/later.pdf",),
    )
