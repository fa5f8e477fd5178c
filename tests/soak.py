"""Kills whatever can die while jobs run, and compares: `python -m tests.soak --kills 200 --seed 7`.

A Ray cluster of two nodes in this process runs parse and index jobs on generated inputs, each driver in a process of
its own. SIGKILL goes, at random moments, to the driver (also before or after any of its writes), to the actors that
look, decode, read, keep the ledger and write, to a rank of an engine that is spread over two, and to a whole node:
whoever died least comes next. A dead driver is started again until its job is done. Then the tables must be, row for
row, those of a run that nobody disturbed, and the audit must find nothing. The seed decides everything but Ray's own
timing.
"""

import argparse
import multiprocessing
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from reportlab.pdfgen.canvas import Canvas

from jobs.evaluate_events import difference
from pipeline.audit import audit
from pipeline.schema import VARYING
from pipeline.store import Store
from tests.drive import Death, logged
from tests.grid import Grid, grid
from tests.pipeline.video_files import write_lights

PROCESSES = {  # as they stand in a process's title or command
    "surveyor": "Surveyor",
    "decoder": "Decoder",
    "replica": "Replica",
    "rank": "model.ranks",
    "ledger": "ray::Ledger",
    "writer": "PartWriter",
}
TARGETS = ("driver", "write", "node", *PROCESSES)
TABLES = {"documents": ("documents", "pages", "blocks"), "videos": ("videos", "windows", "events", "chapters")}
ENDS_ENGINES = {"replica", "rank", "node"}
# The page that is alone with the third engine that dies is convicted, as it should be: of each driver, no third.
MAX_DEAD_ENGINES = 2
MAX_SECONDS = 900.0  # of one driver: longer is a hang
PATIENCE = 45.0  # seconds until a process is there that may die
WRITES = 20  # about as many as a driver makes
WRITE_SHARE = 0.2  # of the drivers are ended by one of theirs


def write_documents(folder: Path, documents: int) -> None:
    """PDFs of 1 to 24 pages that say which they are, a broken and an empty one."""
    folder.mkdir()
    for number in range(documents):
        canvas = Canvas(str(folder / f"{number:03d}.pdf"), pagesize=(320, 288), invariant=True)
        for page_no in range(1, 2 + (7 * number) % 24):
            canvas.setFont("Helvetica", 16)  # as the model that comes along can read it
            canvas.drawString(8, 264, f"Page {page_no} of document {number}")
            canvas.showPage()
        canvas.save()
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    (folder / "empty.pdf").write_bytes(b"")


def write_few_documents(folder: Path, documents: int) -> None:
    """For a model that really reads: the first three."""
    write_documents(folder, min(documents, 3))


def write_videos(folder: Path, videos: int) -> None:
    """Videos of 20 s to 4 min, with lights across the borders of their windows, a broken and an empty one."""
    folder.mkdir()
    for number in range(videos // 2):
        seconds = 20 + (70 * number) % 230
        write_lights(folder / f"{number}.mp4", seconds, [(5, 9), (48 + number, 63 + number), (90, 175)], rate=4)
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and nothing more")
    (folder / "empty.mp4").write_bytes(b"")


@dataclass(frozen=True)
class Job:
    """What is done over and over."""

    kind: str  # of its tables
    engine: str  # as the driver takes it
    write_inputs: Callable[[Path, int], None]  # into a new folder, so many


JOBS = {
    "documents": Job("documents", "0.2", write_documents),
    "videos": Job("videos", "1.0", write_videos),
    "demo": Job("documents", "demo", write_few_documents),
    "ranks": Job("documents", "ranks", write_few_documents),
}


@dataclass(frozen=True)
class Undisturbed:
    """A run of a job that nobody disturbed."""

    inputs: Path
    tables: dict[str, pa.Table]
    seconds: float


def tables_of(kind: str, output: Path) -> dict[str, pa.Table]:
    tables = {name: pq.read_table(output / name) for name in TABLES[kind]}
    return {name: table.select([c for c in table.column_names if c not in VARYING]) for name, table in tables.items()}


def log_of(output: Path) -> Path:
    return output.with_suffix(".log")


class Soak:
    """Jobs under fire, one after the other."""

    def __init__(self, grid: Grid, work: Path, *, seed: int, inputs: int, targets: Sequence[str], share: float) -> None:
        """Who is to die is killed within `share` of the time of an undisturbed job."""
        self._grid = grid
        self._work = work
        self._random = random.Random(seed)
        self._inputs = inputs
        self._targets = targets
        self._share = share
        # Drivers are forked from a process that has imported what they need.
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["tests.drive"])
        self._undisturbed: dict[str, Undisturbed] = {}
        self._jobs = 0
        self.killed = Counter[str]()

    def run_job(self, name: str, kills: int) -> None:
        """One job with so many kills, fewer when it is done before. Raises AssertionError when its tables are wrong."""
        undisturbed = self._run_undisturbed(name)
        self._jobs += 1
        output, last = self._work / f"job-{self._jobs}-{name}", self.killed.total() + kills
        began = time.monotonic()
        while self._run_driver(name, output, undisturbed, last - self.killed.total()) != 0:
            pass
        for table, rows in tables_of(JOBS[name].kind, output).items():
            if differing := difference(rows, undisturbed.tables[table]):
                raise AssertionError(f"{output}: {table} differ from those of an undisturbed run: {differing}")
        differences = audit(Store(), str(output)).differences
        assert not differences, f"{output}: {differences}"
        print(f"{output.name}: the tables are right, after {time.monotonic() - began:.0f} s", flush=True)

    def _run_undisturbed(self, name: str) -> Undisturbed:
        if name not in self._undisturbed:
            inputs, output = self._work / f"{name}-in", self._work / f"{name}-undisturbed"
            JOBS[name].write_inputs(inputs, self._inputs)
            began = time.monotonic()
            driver = self._start(name, inputs, output, None)
            self._wait(driver, output, MAX_SECONDS)
            assert driver.exitcode == 0, f"{output} ended with {driver.exitcode}: {_end(output)}"
            seconds, tables = time.monotonic() - began, tables_of(JOBS[name].kind, output)
            rows = {table: len(rows) for table, rows in tables.items()}
            print(f"{name}, undisturbed: {rows} in {seconds:.1f} s", flush=True)
            self._undisturbed[name] = Undisturbed(inputs, tables, seconds)
        return self._undisturbed[name]

    def _run_driver(self, name: str, output: Path, undisturbed: Undisturbed, kills: int) -> int:
        """A driver until it ends, with at most so many kills, its own included. How it ended: 0 or by SIGKILL."""
        write = self._draw_write() if kills else None
        targets = {each for each in self._targets if each != "write" and (each != "rank" or name == "ranks")}
        driver = self._start(name, undisturbed.inputs, output, write)
        last, dead_engines, is_ours = self.killed.total() + kills - bool(write), 0, False
        while driver.exitcode is None and self.killed.total() < last and targets:
            # Whoever died least comes next; who is not there in time, not again with this driver.
            target = min(sorted(targets), key=lambda each: (self.killed[each], self._random.random()))
            moment = self._random.random() * self._share * undisturbed.seconds
            if not self._await(target, driver):
                targets.remove(target)
                continue
            self._wait(driver, output, moment, may_go_on=True)
            if driver.exitcode is None and self._kill(target, driver):
                self._tell(output, target, f"{moment:.1f} s after it was seen")
                is_ours = target == "driver"
                dead_engines += target in ENDS_ENGINES
                if dead_engines == MAX_DEAD_ENGINES:
                    targets -= ENDS_ENGINES
        self._wait(driver, output, MAX_SECONDS)
        assert driver.exitcode in (0, -signal.SIGKILL), f"{output} ended with {driver.exitcode}: {_end(output)}"
        if driver.exitcode and not is_ours:
            assert write, f"{output}: the driver was killed, and not by us"
            self._tell(output, "write", f"{write.when} number {write.number}")
        return driver.exitcode

    def _await(self, target: str, driver: BaseProcess) -> bool:
        """Whether there is such a process, now or soon. The surveyors are gone when the engine is there."""
        end = time.monotonic() + PATIENCE
        while target in PROCESSES and not self._grid.processes(PROCESSES[target]):
            is_too_late = target == "surveyor" and self._grid.processes(PROCESSES["replica"])
            if driver.exitcode is not None or is_too_late or time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def _draw_write(self) -> Death | None:
        is_drawn = "write" in self._targets and self._random.random() < WRITE_SHARE
        return Death(self._random.choice(("before", "after")), self._random.randrange(WRITES)) if is_drawn else None

    def _start(self, name: str, inputs: Path, output: Path, write: Death | None) -> BaseProcess:
        job = JOBS[name]
        args = (str(log_of(output)), self._grid.cluster.address, str(inputs), str(output), job.engine, job.kind, write)
        driver = self._processes.Process(target=logged, args=args)
        driver.start()
        return driver

    def _wait(self, driver: BaseProcess, output: Path, seconds: float, *, may_go_on: bool = False) -> None:
        driver.join(seconds)
        if driver.exitcode is None and not may_go_on:
            driver.kill()
            raise AssertionError(f"{output}: a driver hangs: {_end(output)}")

    def _kill(self, target: str, driver: BaseProcess) -> bool:
        """Whether there was such a process at this moment."""
        if target == "driver":
            driver.kill()
            driver.join()
        elif target == "node":
            self._grid.lose_second()
        else:
            processes = self._grid.processes(PROCESSES[target])
            if not processes:
                return False
            self._random.choice(processes).kill()
        return True

    def _tell(self, output: Path, target: str, how: str) -> None:
        self.killed[target] += 1
        print(f"{output.name}, kill {self.killed.total()}: {target} ({how})", flush=True)


def _end(output: Path) -> str:
    return log_of(output).read_text(errors="replace")[-4000:]


def soak(
    *,
    kills: int,
    seed: int,
    jobs: Sequence[str] = ("documents", "videos", "ranks"),
    inputs: int = 16,
    kills_per_job: int = 25,
    targets: Sequence[str] = TARGETS,
    share: float = 0.06,
) -> Counter[str]:
    """How many of each kind were killed, once all tables were right."""
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with grid() as nodes, tempfile.TemporaryDirectory(prefix="soak") as work:
        fire = Soak(nodes, Path(work), seed=seed, inputs=inputs, targets=targets, share=share)
        for name in cycle(jobs):
            if (left := kills - fire.killed.total()) <= 0:
                break
            fire.run_job(name, min(kills_per_job, left))
        print(
            f"{fire.killed.total()} kills ({dict(fire.killed)}), seed {seed}: 0 rows lost, 0 twice; "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        return fire.killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="decides who dies when (default: the time)")
    parser.add_argument(
        "--jobs", nargs="+", choices=JOBS, default=("documents", "videos", "ranks"),
        help="one after the other, again and again; demo and ranks read with the model that comes along",
    )  # fmt: skip
    parser.add_argument("--inputs", type=int, default=16, help="documents of a job; half as many videos")
    parser.add_argument("--kills-per-job", type=int, default=25)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="who may die")
    parser.add_argument(
        "--share", type=float, default=0.06, help="of a job's time, at most, that a process lives on once it was chosen"
    )
    soak(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
