"""A replica of two processes in Ray's pool: a rank that is killed costs its replica, not the job."""

import io
from dataclasses import replace

import psutil
import pyarrow.parquet as pq
import pytest
from reportlab.pdfgen.canvas import Canvas

from jobs.samples import CARD_SIZE
from pipeline.flow import engine_loader, prepare, run
from pipeline.job import ParseJob
from tests.drive import SMALL
from tests.fakes import RankKiller

PAGES = 4
TWO_CPUS = replace(SMALL, replica_cpus=2.0)


@pytest.mark.heavy
def test_the_pool_goes_on_when_a_rank_is_killed_and_every_page_is_read_as_by_one_rank(ray_address, tmp_path):
    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=CARD_SIZE)  # as the embedded model reads it
    for page_no in range(PAGES):
        canvas.setFont("Helvetica", 16)
        canvas.drawString(8, 256, f"This is the text of page {page_no}")
        canvas.drawString(8, 236, "which goes on for another line")
        canvas.showPage()
    canvas.save()

    def pages(output: str, tensor_parallel: int) -> list[tuple[str, str]]:
        job = ParseJob(
            input=str(tmp_path / "a.pdf"),
            output=str(tmp_path / output),
            max_new_tokens=24,
            max_tokens_per_page=256,
            dtype="float32",
            tensor_parallel=tensor_parallel,
        )
        setup = prepare(job)
        loader = engine_loader(setup, TWO_CPUS)
        run(
            setup,
            TWO_CPUS,
            io.StringIO(),
            load_engine=RankKiller(loader, tmp_path / "killed") if tensor_parallel > 1 else loader,
        )
        table = pq.read_table(tmp_path / output / "pages", columns=["markdown", "status"])
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))

    spread = pages("spread", 2)
    assert not psutil.pid_exists(int((tmp_path / "killed").read_text()))
    assert len(spread) == PAGES
    assert spread == pages("alone", 1)
    assert all(markdown for markdown, _ in spread)
