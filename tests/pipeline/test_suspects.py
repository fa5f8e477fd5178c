"""Pages that kill engines: found, failed with their attempts, and nobody else is harmed; engines that always die stop
the job."""

import asyncio
import io

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.pdfgen.canvas import Canvas

from pipeline.flow import prepare, run
from pipeline.job import ParseJob
from pipeline.replica import Gate
from pipeline.suspects import DEATHS_OF_A_SUSPECT, MAX_BARREN_DEATHS, Ledger, SystemicError
from tests.drive import SMALL
from tests.fakes import FakeLoader


def play(units: dict[str, list[bool]], slots: int, order: list[int]) -> tuple[dict[str, set[int]], int]:
    """Replicas read `units` (whether each page kills), `slots` at once, until all are done: convictions, deaths."""
    ledger, waiting, deaths = Ledger(), sorted(units), 0
    done: dict[str, set[int]] = {}
    ledger._barren = -1000  # however many kill in a row
    while waiting:
        ledger.started("replica")
        batch, waiting = waiting[:slots], waiting[slots:]
        verdicts = {unit_id: ledger.begin("replica", unit_id) for unit_id in batch}
        together = [unit_id for unit_id in batch if not verdicts[unit_id].alone]
        if any(any(units[unit_id]) for unit_id in together):
            deaths += 1
            waiting = [batch[at % len(batch)] for at in order if at < len(batch)] + waiting
            waiting = list(dict.fromkeys([*waiting, *batch]))
            continue
        for unit_id in together:
            ledger.end("replica", unit_id)
            done[unit_id] = set()
        for unit_id in (unit_id for unit_id in batch if verdicts[unit_id].alone):
            convicted = verdicts[unit_id].convicted
            for page_no, kills in enumerate(units[unit_id]):
                if page_no in convicted:
                    continue
                ledger.begin_page("replica", unit_id, page_no)
                if kills:
                    break
            else:
                ledger.end("replica", unit_id)
                done[unit_id] = set(convicted)
                continue
            deaths += 1
            waiting = [other for other in batch if other not in done] + waiting
            break
    return done, deaths


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=6),
    st.integers(1, 4),
    st.permutations(range(4)),
)
def test_exactly_the_pages_that_kill_are_convicted_whatever_is_beside_them(pages, slots, order):
    units = {f"u{number}": kills for number, kills in enumerate(pages)}
    killers = sum(map(sum, pages))
    done, deaths = play(units, slots, list(order))
    assert done == {unit_id: {at for at, kills in enumerate(units[unit_id]) if kills} for unit_id in units}
    assert deaths <= killers + DEATHS_OF_A_SUSPECT * len(units)


def test_a_page_costs_at_most_three_engines_when_it_is_the_only_one_that_kills():
    assert play({"a": [False, False], "b": [False, True], "c": [False]}, 3, [0, 1, 2]) == (
        {"a": set(), "b": {1}, "c": set()},
        3,
    )


def test_a_unit_repeated_by_another_replica_counts_as_a_death_of_the_first():
    ledger = Ledger()
    assert not ledger.begin("one", "u").alone
    assert not ledger.begin("two", "u").alone
    assert ledger.begin("three", "u").alone


def test_engines_that_die_of_everything_are_not_blamed_on_the_pages():
    ledger = Ledger()
    with pytest.raises(SystemicError, match="without answering a single page"):  # noqa: PT012
        for number in range(MAX_BARREN_DEATHS + 2):
            ledger.started("replica")
            ledger.begin("replica", f"unit {number}")


def test_one_alone_waits_for_the_others_and_they_for_it():
    seen: list[str] = []

    async def visit(name: str, gate: Gate, *, alone: bool) -> None:
        async with gate.alone() if alone else gate.together():
            seen.append(f"{name} in")
            await asyncio.sleep(0.01)
            seen.append(f"{name} out")

    async def all_visit() -> None:
        gate = Gate()
        await asyncio.gather(*(visit(name, gate, alone=name == "X") for name in "abXcd"))

    asyncio.run(all_visit())
    at = seen.index("X in")
    assert seen[at + 1] == "X out"
    assert {entry[0] for entry in seen[:at]} == {"a", "b"}
    assert seen[at + 2 : at + 4] == ["c in", "d in"]  # the others come together


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, pages, poison in (("a.pdf", 6, (4,)), ("b.pdf", 3, ()), ("c.pdf", 2, ())):
        canvas = Canvas(str(folder / name), invariant=True)
        for page_no in range(1, pages + 1):
            canvas.drawString(100, 500, f"Page {page_no} of {name}" + (" POISON" if page_no in poison else ""))
            canvas.showPage()
        canvas.save()
    return folder


@pytest.mark.parametrize("engine", [FakeLoader(kills="POISON"), FakeLoader(hangs="POISON")], ids=["kills", "hangs"])
def test_pages_that_kill_the_engine_fail_alone_and_the_job_ends(ray_address, inputs, tmp_path, engine):
    job = ParseJob(input=str(inputs), output=str(tmp_path / "out"), step_timeout_seconds=5.0)
    manifest = run(prepare(job), SMALL, io.StringIO(), load_engine=engine)
    assert manifest.pieces.by_error == {"infer_crash": 1}
    assert manifest.pieces.by_status == {"failed": 1, "ok": 10}
    rows = pq.read_table(tmp_path / "out" / "pages").to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["page_no"] for row in failed] == [4]
    assert all(row["retryable"] and row["attempts"] == DEATHS_OF_A_SUSPECT + 1 for row in failed), failed
    assert all(row["markdown"].startswith("Page") for row in rows if row["status"] == "ok")


@pytest.mark.heavy
def test_engines_that_cannot_read_anything_stop_the_job(ray_address, inputs, tmp_path):
    setup = prepare(ParseJob(input=str(inputs), output=str(tmp_path / "out")))
    with pytest.raises(Exception, match="without answering a single page"):
        run(setup, SMALL, io.StringIO(), load_engine=FakeLoader(kills="Page"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()
