"""An output keeps the inputs it was begun with, and is never silent about the others."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from jobs.running import run_job
from pipeline.close import close_shard
from pipeline.flow import prepare
from pipeline.job import ParseJob
from pipeline.listing import list_inputs
from pipeline.manifest import make_manifest, write_manifest
from pipeline.progress import MOST_NAMED
from pipeline.records import Asset, ErrorCode, Failure, Stage
from pipeline.store import Store, StoreOptions
from pipeline.survey import cut_units, listing_table


def begun(job: ParseJob, failed: Mapping[str, ErrorCode] = MappingProxyType({})) -> None:
    """The survey of the job's inputs, as if each had no page, or `failed` by name: no Ray is needed."""
    setup = prepare(job)
    setup.books.open(setup.record)
    entries = [entry for entry in list_inputs(Store(job.store_options), job.input) if isinstance(entry, Asset)]
    codes = [failed.get(asset.uri.rpartition("/")[2]) for asset in entries]
    assets = listing_table(
        (asset, Failure(Stage.OPEN, code, "")) if code else asset for asset, code in zip(entries, codes, strict=True)
    )
    setup.books.freeze_survey(setup.books.claim_epoch(), [(assets, cut_units(assets, "", bytes_per_token=1))])


def finish(job: ParseJob) -> None:
    setup = prepare(job)
    books, survey = setup.books, setup.books.survey()
    closed = close_shard(books, survey, 0, books.sealed(books.claim_epoch()), setup.kind)
    write_manifest(
        books.store, books.output, make_manifest(job, setup.settings, survey, [closed], [], wall_seconds=1.0)
    )


@pytest.fixture
def job(tmp_path) -> ParseJob:
    for name in ("gone.pdf", "same.pdf", "changed.pdf"):
        (tmp_path / "in" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("first")
    return ParseJob(input=str(tmp_path / "in"), output=str(tmp_path / "in" / "out"))


def test_new_changed_and_vanished_inputs_of_a_finished_output_are_counted_and_named(job, tmp_path, capsys):
    begun(job)
    finish(job)
    assert str(prepare(job).changes) == ""  # its own tables are no inputs
    (tmp_path / "in" / "gone.pdf").unlink()
    (tmp_path / "in" / "changed.pdf").write_text("second version")
    for number in range(MOST_NAMED + 3):
        (tmp_path / "in" / "sub" / f"{number:02d}.pdf").write_text("new")
    flags = type("Flags", (), {"plan": False, "take_over": False, "allow_empty": None})()
    run_job("parse_documents", lambda: job, flags, own_files=False)
    said = capsys.readouterr()
    assert "13 inputs are new since this output was begun, and ignored" in said.err
    assert "sub/09.pdf and 3 more" in said.err
    assert "sub/10.pdf" not in said.err
    assert f"1 inputs are another version by now, which is ignored: {tmp_path}/in/changed.pdf" in said.err
    assert f"1 inputs are no longer there; the rows they have are kept: {tmp_path}/in/gone.pdf" in said.err
    assert "another OUTPUT" in said.err
    assert "done already" in said.out


def test_so_are_those_of_an_unfinished_one_and_a_folder_that_is_gone_is_said(job, tmp_path):
    begun(job)
    (tmp_path / "in" / "new.pdf").write_text("new")
    assert prepare(job).changes.new == (f"{tmp_path}/in/new.pdf",)
    os.rename(tmp_path / "in" / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "in")
    changes = str(prepare(replace(job, output=str(tmp_path / "out"))).changes)
    assert "cannot be compared" in changes
    assert "no such file or folder" in changes


def test_so_are_those_in_a_bucket(s3):
    store, bucket = Store(StoreOptions(endpoint_url=s3.endpoint_url)), f"s3://{s3.new_bucket()}"
    store.put(f"{bucket}/in/a.pdf", b"first")
    job = ParseJob(input=f"{bucket}/in", output=f"{bucket}/out", endpoint_url=s3.endpoint_url)
    begun(job)
    store.put(f"{bucket}/in/a.pdf", b"second")
    store.put(f"{bucket}/in/b.pdf", b"first")
    changes = prepare(job).changes
    assert (changes.new, changes.changed, changes.vanished) == ((f"{bucket}/in/b.pdf",), (f"{bucket}/in/a.pdf",), ())


def test_a_table_that_was_deleted_or_damaged_is_seen_when_the_command_runs_again(job, tmp_path, capsys, monkeypatch):
    begun(job)
    finish(job)
    table = tmp_path / "in" / "out" / "pages" / "pages-00000.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    monkeypatch.setattr("jobs.running.attended", lambda name, setup, work, holding: 7 if setup.finished is None else 8)
    flags = type("Flags", (), {"plan": False, "take_over": False, "allow_empty": None})()
    assert run_job("parse_documents", lambda: job, flags, own_files=False) == 7
    assert "written anew, being gone or damaged: pages/pages-00000.parquet" in capsys.readouterr().err
