"""The replica: prompts of many units share the engine's batches, and no caller is ever left waiting."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.request import Completion, EngineStats, Prompt
from pipeline.records import Failure, Unit
from pipeline.replica import MAX_RESUMES, Engine, EngineThread, Replica
from pipeline.rows import AnsweredUnit, DecodedPiece, DecodedUnit, Row
from tests.fakes import DirectLedger, FakeLoader
from tests.pipeline.test_rows import facts, prompt

ROOT = Path(__file__).parents[2]
STEP_SECONDS = 600.0  # longer than any test


def drafted(key: str, draft_text: str) -> Prompt:
    return replace(prompt(key, 2, 2), draft_text=draft_text)


def unit_row(number: int, drafts: list[str]) -> Row:
    unit = Unit("asset", f"/in/{number}.pdf", 10, "v1", number, number, 4)
    prompts = tuple(drafted(f"asset#{number}/{tile}", draft) for tile, draft in enumerate(drafts))
    return DecodedUnit(unit, (DecodedPiece(facts(number, len(drafts)), prompts),), ()).to_row()


def answers_to(
    rows: list[Row], load_engine: Callable[[], Engine], step_timeout_seconds: float = STEP_SECONDS
) -> list[AnsweredUnit]:
    async def ask() -> list[Row]:
        replica = Replica(load_engine, DirectLedger(), step_timeout_seconds)
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
    thread = EngineThread(FakeLoader()(), STEP_SECONDS)
    assert thread.submit(drafted("a", "REFUSE")).result(timeout=60).code == "infer_rejected"
    assert thread.submit(drafted("b", "fine")).result(timeout=60).text == "fine"


BROKEN_ENGINE = """
import asyncio
from pipeline.replica import Replica
from tests.fakes import DirectLedger, FakeLoader
from tests.pipeline.test_replica import unit_row

def load():
    engine = FakeLoader()()
    engine.step = lambda: 1 / 0
    return engine

asyncio.run(Replica(load, DirectLedger(), 600.0)(unit_row(1, ["x"])))
"""


HANGING_ENGINE = """
import asyncio
from pipeline.replica import Replica
from tests.fakes import DirectLedger, FakeLoader
from tests.pipeline.test_replica import unit_row

asyncio.run(Replica(FakeLoader(hangs="HANG"), DirectLedger(), 2.0)(unit_row(1, ["HANG"])))
"""


ENGINE_OUTSIDE_RAY = """
import asyncio, ray
from pipeline.replica import Replica
from tests.fakes import DirectLedger, FakeLoader
from tests.pipeline.test_replica import unit_row

asyncio.run(Replica(FakeLoader(), DirectLedger(), 600.0)(unit_row(1, ["x"])))
assert not ray.is_initialized()
"""


def test_a_replica_outside_an_actor_starts_no_ray():
    subprocess.run([sys.executable, "-c", ENGINE_OUTSIDE_RAY], cwd=ROOT, timeout=300, check=True)


def test_a_step_that_hangs_in_native_code_ends_its_process_and_its_log_says_where():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGING_ENGINE], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert time.monotonic() - began > 2.0
    assert "Timeout" in done.stderr
    assert "in step" in done.stderr


def test_a_step_within_its_time_leaves_no_clock_behind():
    (unit,) = answers_to([unit_row(1, ["fine"])], FakeLoader(), step_timeout_seconds=1.0)
    time.sleep(1.5)  # a clock that still ran would end this process
    assert unit.pieces[0].answers[0].text == "fine"


def test_steps_that_take_longer_only_together_go_on():
    rows = [unit_row(number, ["fine"]) for number in range(6)]
    began = time.monotonic()
    answered = answers_to(rows, FakeLoader(max_batch_size=1, step_seconds=0.4), step_timeout_seconds=1.0)
    assert time.monotonic() - began > 2.0
    assert [unit.pieces[0].answers[0].text for unit in answered] == ["fine"] * 6


def test_an_engine_that_breaks_ends_its_process_with_the_reason_instead_of_hanging():
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_ENGINE], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


class LoopingEngine:
    """Falls into a loop behind five clean tokens, as often as it is told; then it writes to the end."""

    def __init__(self, loops: int) -> None:
        self._loops = loops
        self._prompt: Prompt | None = None
        self.asked: list[Prompt] = []
        self.stats = EngineStats(max_batch_size=1)

    @property
    def has_work(self) -> bool:
        return self._prompt is not None

    def add(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self.asked.append(prompt)

    def step(self) -> list[Completion]:
        prompt, self._prompt = self._prompt, None
        assert prompt is not None
        is_loop = len(self.asked) <= self._loops
        text, reason = (f"clean{len(self.asked)} ", "repetition") if is_loop else ("end", "stop")
        token_ids = (len(self.asked),) * (40 if is_loop else 3)
        return [
            Completion(
                prompt.key, text, token_ids, len(prompt.token_ids_T), reason, -0.1, -0.5, 0.1, 0.2, 0, text_tokens=5
            )
        ]


def ask_looping(loops: int) -> tuple[Completion, LoopingEngine]:
    engine = LoopingEngine(loops)
    (unit,) = answers_to([unit_row(1, ["x"])], lambda: engine)
    answer = unit.pieces[0].answers[0]
    assert isinstance(answer, Completion)
    return answer, engine


def test_an_answer_that_loops_is_taken_up_behind_its_clean_beginning_with_another_setting():
    answer, engine = ask_looping(2)
    assert (answer.text, answer.finish_reason, answer.resumes) == ("clean1 clean2 end", "stop", 2)
    assert answer.token_ids == (1,) * 5 + (2,) * 5 + (3,) * 3
    first, second, third = engine.asked
    assert second.token_ids_T.tolist() == [*first.token_ids_T.tolist(), *(1,) * 5]
    assert third.token_ids_T.tolist() == [*second.token_ids_T.tolist(), *(2,) * 5]
    following = first.next_position + np.arange(10)
    assert third.positions_3T[:, -10:].tolist() == [following.tolist()] * 3
    assert third.next_position == first.next_position + 10
    assert third.positions_3T.shape == (3, len(third.token_ids_T))
    assert [prompt.sampling.temperature for prompt in engine.asked] == [0.0, 0.3, 0.6]
    limit = first.sampling.max_new_tokens
    assert [prompt.sampling.max_new_tokens for prompt in engine.asked] == [limit, limit - 5, limit - 10]


def test_an_answer_that_loops_again_and_again_is_given_up_with_what_is_clean():
    answer, engine = ask_looping(99)
    assert len(engine.asked) == 1 + MAX_RESUMES
    assert (answer.text, answer.finish_reason) == ("clean1 clean2 clean3 ", "repetition")
    assert answer.resumes == MAX_RESUMES
