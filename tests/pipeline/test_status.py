"""The status is counted in the files: right at every moment of a job, and never twice."""

from collections import Counter

import pyarrow.parquet as pq

from jobs.status import main
from pipeline.close import close_shard
from pipeline.job import ParseJob
from pipeline.kinds import DOCUMENT_KIND
from pipeline.lease import hold
from pipeline.manifest import make_manifest, write_manifest
from pipeline.status import job_status
from tests.pipeline.test_close import PAGES_OF, frozen_job


def test_what_is_shown_while_a_job_runs_is_what_its_tables_hold_in_the_end(tmp_path, capsys):
    """`frozen_job` writes most units twice: the status must count them once, before the seal and after it."""
    output = str(tmp_path / "out")
    books, survey = frozen_job(output, PAGES_OF)
    for _ in range(2):
        with hold(books.store, output):
            pass
    running = job_status(books)
    assert (running.finished, running.pieces.total()) == (False, survey.unit_pages)
    epoch = books.claim_epoch()
    assert job_status(books).pieces == running.pieces
    closed = close_shard(books, survey, 0, books.sealed(epoch), DOCUMENT_KIND)
    write_manifest(
        books.store,
        output,
        make_manifest(ParseJob(input="/in", output=output), {}, survey, [closed], [], wall_seconds=1.0),
    )
    pages = pq.read_table(tmp_path / "out" / "pages")
    assert running.pieces == Counter(pages["status"].to_pylist())
    assert running.failed == Counter(code for code in pages["error_code"].to_pylist() if code)
    assert job_status(books).finished
    assert main([output]) == 0
    shown = capsys.readouterr().out
    assert f"pages           {len(pages)}/{len(pages)}" in shown
    assert "inputs failed   1 (corrupt 1), when they were opened" in shown
    assert "state           finished, 2 runs" in shown


def test_before_the_first_part_there_is_nothing_to_count(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == "no job here\n"
