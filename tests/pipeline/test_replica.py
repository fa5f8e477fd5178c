"""The replica: prompts of many units share the engine's batches, and no caller is ever left waiting."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from model.request import Prompt
from pipeline.records import Failure, Unit
from pipeline.replica import EngineThread, Replica
from pipeline.rows import AnsweredUnit, DecodedPiece, DecodedUnit, Row
from tests.fakes import DirectLedger, FakeLoader
from tests.pipeline.test_rows import facts, prompt

ROOT = Path(__file__).parents[2]


def drafted(key: str, draft_text: str) -> Prompt:
    return replace(prompt(key, 2, 2), draft_text=draft_text)


def unit_row(number: int, drafts: list[str]) -> Row:
    unit = Unit("asset", f"/in/{number}.pdf", 10, "v1", number, number, 4)
    prompts = tuple(drafted(f"asset#{number}/{tile}", draft) for tile, draft in enumerate(drafts))
    return DecodedUnit(unit, (DecodedPiece(facts(number, len(drafts)), prompts),), ()).to_row()


def answers_to(rows: list[Row], load_engine: FakeLoader) -> list[AnsweredUnit]:
    async def ask() -> list[Row]:
        replica = Replica(load_engine, DirectLedger())
        return await asyncio.gather(*(replica(row) for row in rows))

    return [AnsweredUnit.from_row(row) for row in asyncio.run(ask())]


def test_every_caller_gets_the_answers_to_its_own_prompts():
    rows = [unit_row(number, [f"{number} top", f"{number} bottom"]) for number in range(20)]
    answered = answers_to(rows, FakeLoader(max_batch_size=3, step_seconds=0.001))
    texts = [[answer.text for answer in unit.pieces[0].answers] for unit in answered]
    assert texts == [[f"{number} top", f"{number} bottom"] for number in range(20)]


def test_calls_in_flight_fill_the_batch_across_units():
    rows = [unit_row(number, ["x"]) for number in range(40)]
    answered = answers_to(rows, FakeLoader(max_batch_size=8, step_seconds=0.05))
    last = max((unit.load for unit in answered), key=lambda load: load.steps)
    assert last.steps <= 7
    assert last.occupancy > 0.7


def test_a_prompt_that_can_never_fit_fails_its_page_and_no_other():
    one, two = answers_to([unit_row(1, ["REFUSE me"]), unit_row(2, ["fine"])], FakeLoader())
    (refused,) = one.pieces[0].answers
    assert isinstance(refused, Failure)
    assert refused.code == "infer_rejected"
    assert "never fit" in refused.message
    assert two.pieces[0].answers[0].text == "fine"


def test_an_engine_that_is_given_only_refused_prompts_waits_for_the_next():
    thread = EngineThread(FakeLoader()())
    assert thread.submit(drafted("a", "REFUSE")).result(timeout=10).code == "infer_rejected"
    assert thread.submit(drafted("b", "fine")).result(timeout=10).text == "fine"


BROKEN_ENGINE = """
import asyncio
from pipeline.replica import Replica
from tests.fakes import DirectLedger, FakeLoader
from tests.pipeline.test_replica import unit_row

def load():
    engine = FakeLoader()()
    engine.step = lambda: 1 / 0
    return engine

asyncio.run(Replica(load, DirectLedger())(unit_row(1, ["x"])))
"""


def test_an_engine_that_breaks_ends_its_process_with_the_reason_instead_of_hanging():
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_ENGINE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
