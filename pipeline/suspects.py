"""Which page kills engines: a ledger of what was executing when a replica died, kept outside of the replicas.

A unit that was executing twice when its replica died is a suspect: it gets an engine of its own, and its pages are read
one by one. The page that is alone with the engine when that dies as well is convicted: it becomes a failure, and nobody
reads it again. Innocent neighbours come through the same procedure unharmed, only more slowly.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

import ray

DEATHS_OF_A_SUSPECT = 2
MAX_BARREN_DEATHS = 10  # of replicas, one after the other, without a single page answered in between


class SystemicError(RuntimeError):
    """Replicas die whatever they read: the fault is not in the inputs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a unit is to be read."""

    alone: bool  # nothing beside it in the engine, and its pages one by one
    convicted: dict[int, int]  # page_no -> how many engines died of it


class Suspects(Protocol):
    """What a replica asks of the ledger."""

    def started(self, replica: str) -> None: ...
    async def begin(self, replica: str, unit_id: str) -> Verdict: ...
    async def begin_page(self, replica: str, unit_id: str, page_no: int) -> None: ...
    async def end(self, replica: str, unit_id: str) -> None: ...


class Ledger:
    """The books of one reading pass. A replica keeps its name when Ray starts it anew."""

    def __init__(self) -> None:
        self._executing: dict[str, dict[str, int | None]] = {}  # of each replica: units, and the page that is alone
        self._deaths = Counter[str]()  # of replicas, by the unit they were executing
        self._convicted: dict[str, dict[int, int]] = {}
        self._barren = 0

    def started(self, replica: str) -> None:
        """A replica starts: what it was executing before, it died over."""
        died_over = self._executing.pop(replica, {})
        self._barren += bool(died_over)
        for unit_id, page_no in died_over.items():
            self._died(unit_id, page_no)

    def begin(self, replica: str, unit_id: str) -> Verdict:
        """A unit goes into the engine now. Repeated after a death, wherever Ray repeats it. Raises SystemicError."""
        for other, units in self._executing.items():
            if unit_id in units:  # its replica died and has not come back, or never will
                self._barren += other != replica
                self._died(unit_id, units.pop(unit_id))
        if self._barren > MAX_BARREN_DEATHS:
            raise SystemicError(
                f"{self._barren} engines died without answering a single page in between: this is not the fault of "
                "some inputs. The log of the replicas says what they died of"
            )
        self._executing.setdefault(replica, {})[unit_id] = None
        return Verdict(self._deaths[unit_id] >= DEATHS_OF_A_SUSPECT, self._convicted.get(unit_id, {}))

    def begin_page(self, replica: str, unit_id: str, page_no: int) -> None:
        """A page of a suspect goes into the engine now, alone; the page before it was answered."""
        units = self._executing.setdefault(replica, {})
        if units.get(unit_id) is not None:
            self._barren = 0
        units[unit_id] = page_no

    def end(self, replica: str, unit_id: str) -> None:
        """All pages of the unit have their answers."""
        self._executing.get(replica, {}).pop(unit_id, None)
        self._barren = 0

    def _died(self, unit_id: str, page_no: int | None) -> None:
        self._deaths[unit_id] += 1
        if page_no is not None:
            self._convicted.setdefault(unit_id, {})[page_no] = self._deaths[unit_id]


class LedgerActor:
    """The ledger in a process of its own, for replicas on any node; may be pickled."""

    def __init__(self) -> None:
        # Its memory dies with it: suspects then begin anew, and nothing is lost but time.
        self._actor: Any = ray.remote(Ledger).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()

    def started(self, replica: str) -> None:
        ray.get(self._actor.started.remote(replica))

    async def begin(self, replica: str, unit_id: str) -> Verdict:
        verdict: Verdict = await self._actor.begin.remote(replica, unit_id)
        return verdict

    async def begin_page(self, replica: str, unit_id: str, page_no: int) -> None:
        await self._actor.begin_page.remote(replica, unit_id, page_no)

    async def end(self, replica: str, unit_id: str) -> None:
        await self._actor.end.remote(replica, unit_id)
