"""The audit: silent about a job that is whole, and names whatever was tampered with, file by file."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.verify import main, report
from pipeline.audit import Recount, audit
from pipeline.books import Books
from pipeline.close import close_shard
from pipeline.job import ParseJob
from pipeline.kinds import DOCUMENT_KIND
from pipeline.manifest import damaged_files, make_manifest, read_manifest, write_manifest
from pipeline.store import Store
from pipeline.tables import to_parquet
from tests.pipeline.test_close import PAGES_OF, frozen_job

PAGES = Path("pages/pages-00000.parquet")
DOCUMENTS = Path("documents/documents-00000.parquet")


@pytest.fixture
def output(tmp_path) -> Path:
    """A finished job, without Ray: its books, tables, manifest and mark."""
    output = tmp_path / "out"
    books, survey = frozen_job(str(output), PAGES_OF)
    closed = close_shard(books, survey, 0, books.sealed(books.claim_epoch()), DOCUMENT_KIND)
    job = ParseJob(input="/in", output=str(output))
    write_manifest(books.store, books.output, make_manifest(job, {}, survey, [closed], [], wall_seconds=1.0))
    return output


def differences(output: Path) -> list[str]:
    return list(audit(Store(), str(output)).differences)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path.write_bytes(to_parquet(change(pq.read_table(path))))


def test_a_whole_job_has_no_differences_and_its_counts_are_those_of_the_files(output, capsys):
    counted = audit(Store(), str(output))
    assert counted.differences == ()
    assert (counted.inputs, counted.assets) == (6, Counter(ok=3, partial=1, failed=2))
    assert counted.pieces == Counter(pq.read_table(output / "pages")["status"].to_pylist())
    assert main([str(output)]) == 0
    assert capsys.readouterr().out.endswith("all is as it should be\n")


def flip_a_byte(path: Path) -> None:
    """The last one of the values of a column."""
    names = pq.read_schema(path).names
    column = pq.read_metadata(path).row_group(0).column(names.index("page_no"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("_job/parts/*/*.parquet"))


def counting_part(output: Path) -> Path:
    return output / "_job" / "parts" / pq.read_table(output / "_job/epochs/000000.sealed.parquet")["part"][0].as_py()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a part is gone": (lambda output: counting_part(output).unlink(), "cannot be read"),
    "a part is damaged": (lambda output: flip_a_byte(counting_part(output)), "cannot be read"),
    "a part has other pages": (
        lambda output: rewrite(counting_part(output), lambda rows: rows.slice(1)),
        "holds other pages than the survey gave it",
    ),
    "a seal is gone": (lambda output: (output / "_job/epochs/000000.sealed.parquet").unlink(), "seal cannot be read"),
    "a seal lacks units": (
        lambda output: rewrite(output / "_job/epochs/000000.sealed.parquet", lambda rows: rows.slice(0, 1)),
        "units have no rows",
    ),
    "a table is damaged": (lambda output: flip_a_byte(output / PAGES), "pages-00000.parquet"),
    "a table is gone": (lambda output: (output / PAGES).unlink(), "files of the manifest are gone"),
    "a strange file is among the tables": (
        lambda output: (output / "pages/pages-00007.parquet").write_bytes((output / PAGES).read_bytes()),
        "files of tables are not in the manifest",
    ),
    "a row is gone": (lambda output: rewrite(output / DOCUMENTS, lambda rows: rows.slice(1)), "inputs with a row: 5"),
    "a row is there twice": (
        lambda output: rewrite(output / PAGES, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)])),
        "rows of pages are there twice",
    ),
    "a page says something else": (
        lambda output: rewrite(
            output / PAGES,
            lambda rows: rows.set_column(
                rows.schema.get_field_index("markdown"),
                rows.schema.field("markdown"),
                pc.utf8_upper(rows["markdown"]),
            ),
        ),
        "the pages of shard 0 are not those of the parts",
    ),
    "the sums do not add up": (
        lambda output: rewrite(
            output / DOCUMENTS,
            lambda rows: rows.set_column(
                rows.schema.get_field_index("pages_ok"),
                rows.schema.field("pages_ok"),
                pc.add(rows["pages_ok"], 1).cast(pa.int32()),
            ),
        ),
        "the pages are",
    ),
    "another schema": (
        lambda output: rewrite(output / PAGES, lambda rows: rows.drop_columns(["flags"])),
        "another schema",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_tampered_with_is_named_and_the_exit_status_says_so(fault, output, capsys):
    tamper, says = FAULTS[fault]
    tamper(output)
    assert any(says in difference for difference in differences(output)), differences(output)
    assert main([str(output)]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_a_part_that_came_too_late_does_not_count_and_is_no_fault(output):
    late, before = output / "_job/parts/000000" / "late.parquet", audit(Store(), str(output)).late_parts
    late.write_bytes(parts(output)[0].read_bytes())
    counted = audit(Store(), str(output))
    assert counted.differences == ()
    assert counted.late_parts == before + 1


def test_a_place_without_a_job_says_so(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "there is no job" in capsys.readouterr().out


def test_an_unfinished_job_is_called_that_and_consistent(output, capsys):
    (output / "_SUCCESS").unlink()
    assert main([str(output)]) == 3
    assert "not finished, consistent so far: no _SUCCESS yet" in capsys.readouterr().out
    books = Books(Store(), str(output.parent / "begun"))
    books.open({"schema_version": "2"})
    assert main([books.output]) == 3
    assert "inputs are not all opened yet" in capsys.readouterr().out
    counting_part(output).unlink()
    assert main([str(output)]) == 1


def test_the_list_of_what_differs_ends_after_ten_and_names_the_cure():
    shown = report(Recount(differences=tuple(f"difference {number}" for number in range(13))))
    assert "difference 9\nand 3 more\n" in shown
    assert "difference 10" not in shown


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_byte])
def test_a_table_gone_or_damaged_is_found_and_the_cure_is_named_and_works(output, capsys, damage):
    damage(output / PAGES)
    assert main([str(output)]) == 1
    assert "run the job's command again" in capsys.readouterr().out
    store, manifest = Store(), read_manifest(Store(), str(output))
    assert manifest is not None
    assert damaged_files(store, str(output), manifest) == [str(PAGES)]
    books = Books(store, str(output))
    survey = books.survey()
    assert survey is not None
    close_shard(books, survey, 0, books.sealed(books.claim_epoch()), DOCUMENT_KIND)
    assert damaged_files(store, str(output), manifest) == []
    assert main([str(output)]) == 0
