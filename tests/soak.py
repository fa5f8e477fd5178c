"""Kills whatever can die while jobs run, and compares: `python -m tests.soak --kills 200 --seed 7`.

A Ray cluster of two nodes in this process runs parse jobs on generated documents, each driver in a process of its own.
SIGKILL goes, at random moments, to the driver (also before or after any of its writes), to actors that decode, read and
write, and to a whole node. A dead driver is started again until the job is done. Then the tables must be, row for row,
those of a run that nobody disturbed, and the audit must find nothing. The seed decides everything but Ray's own timing.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster
from reportlab.pdfgen.canvas import Canvas

from pipeline.audit import audit
from pipeline.store import Store

ROOT = Path(__file__).parents[1]
ACTORS = {"decoder": "Decoder", "replica": "Replica", "writer": "PartWriter"}  # as they stand in a process's title
TARGETS = ("driver", "write", "node", *ACTORS)
OF_THE_CLOCK = ("decode_ms", "queue_ms", "infer_ms")
MAX_SECONDS = 600.0  # of one driver: longer is a hang
WRITES = 16  # about as many as a driver makes


def write_inputs(folder: Path, documents: int) -> None:
    """PDFs of 1 to 24 pages that say which they are, a broken and an empty one."""
    folder.mkdir()
    for number in range(documents):
        canvas = Canvas(str(folder / f"{number:03d}.pdf"), invariant=True)
        for page_no in range(1, 2 + (7 * number) % 24):
            canvas.drawString(100, 500, f"Page {page_no} of document {number}")
            canvas.showPage()
        canvas.save()
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    (folder / "empty.pdf").write_bytes(b"")


@dataclass
class Grid:
    """Two nodes of a Ray cluster; the second one may die."""

    cluster: Any
    second: Any = None

    def processes(self, title: str) -> list[psutil.Process]:
        """Those of the cluster's workers whose title has `title` in it."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]
        found = []
        for raylet in raylets:
            for process in psutil.Process(raylet).children(recursive=True):
                try:
                    if title in " ".join(process.cmdline()):
                        found.append(process)
                except psutil.Error:
                    continue
        return sorted(found, key=lambda process: process.pid)

    def lose_second(self) -> None:
        """SIGKILL to the raylet of the second node, and another node in its place."""
        os.kill(self.second.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.add_second()

    def add_second(self, attempts: int = 3) -> None:
        """A busy machine starts a node too slowly now and then."""
        for left in range(attempts, 0, -1):
            try:
                self.second = self.cluster.add_node(num_cpus=4, object_store_memory=100 * 2**20)
                return
            except Exception:  # Ray raises nothing narrower
                if left == 1:
                    raise


@contextmanager
def grid() -> Iterator[Grid]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.makedirs(os.path.join(folder, "ray"))
        os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ["RAY_raylet_start_wait_time_s"] = "180"  # noqa: SIM112 - of a busy machine; Ray spells it so
        os.environ.pop("RAY_ADDRESS", None)
        options = {"num_cpus": 4, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        try:
            found = Grid(cluster)
            found.add_second()
            yield found
        finally:
            ray.shutdown()
            cluster.shutdown()


def start_driver(address: str, inputs: Path, output: Path, engine: str, write: str = "") -> subprocess.Popen[bytes]:
    """`write`: "before 3" and the like ends it at one of its writes."""
    environment = os.environ | {"RAY_ADDRESS": address, "PAGEREEL_DIE_AT_WRITE": write}
    command = [sys.executable, "-m", "tests.drive", str(inputs), str(output), engine]
    with open(output.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def tables_of(output: Path) -> dict[str, pa.Table]:
    tables = {name: pq.read_table(output / name) for name in ("documents", "pages", "blocks")}
    tables["documents"] = tables["documents"].drop_columns("attempts")
    return tables | {"pages": tables["pages"].drop_columns([*OF_THE_CLOCK, "attempts"])}


class Soak:
    """Jobs under fire, one after the other."""

    def __init__(
        self, grid: Grid, work: Path, *, seed: int, engine: str, documents: int, targets: Sequence[str]
    ) -> None:
        self._grid = grid
        self._work = work
        self._engine = engine
        self._random = random.Random(seed)
        self._targets = targets
        self._inputs = work / "in"
        self._jobs = 0
        self.killed = Counter[str]()
        write_inputs(self._inputs, documents)
        began = time.monotonic()
        output = work / "undisturbed"
        self._wait(start_driver(grid.cluster.address, self._inputs, output, engine), output)
        self._seconds = time.monotonic() - began
        self._expected = tables_of(output)
        pages = len(self._expected["pages"])
        print(f"undisturbed: {documents + 2} inputs, {pages} pages in {self._seconds:.1f} s", flush=True)

    def run_job(self, kills: int) -> None:
        """One job with so many kills, fewer when it is done before. Raises AssertionError when its tables are wrong."""
        self._jobs += 1
        output = self._work / f"job-{self._jobs}"
        driver = self._start(output, kills > 0)
        try:
            while driver.poll() is None or driver.returncode != 0:
                if driver.poll() is not None:
                    assert driver.returncode == -signal.SIGKILL, f"{output}: the driver ended with {driver.returncode}"
                    kills -= 1
                    driver = self._start(output, kills > 0)
                    continue
                if kills <= 0:
                    self._wait(driver, output)
                    continue
                target = self._random.choice([target for target in self._targets if target != "write"])
                moment = self._random.random() * self._seconds
                try:
                    driver.wait(moment)
                except subprocess.TimeoutExpired:
                    kills -= self._kill(target, driver, moment)
        finally:
            driver.kill()
        assert tables_of(output).keys() == self._expected.keys()
        for name, table in tables_of(output).items():
            assert table.equals(self._expected[name]), f"{output}: {name} differ from those of an undisturbed run"
        differences = audit(Store(), str(output)).differences
        assert not differences, f"{output}: {differences}"

    def _start(self, output: Path, may_die: bool) -> subprocess.Popen[bytes]:
        write = ""
        if may_die and "write" in self._targets and self._random.random() < 1 / len(self._targets):
            write = f"{self._random.choice(('before', 'after'))} {self._random.randrange(WRITES)}"
            self._tell("write", write)
        return start_driver(self._grid.cluster.address, self._inputs, output, self._engine, write)

    def _kill(self, target: str, driver: subprocess.Popen[bytes], moment: float) -> int:
        """How many died: 0 when there is no such process at this moment."""
        if target == "driver":
            driver.kill()
            driver.wait()
        elif target == "node":
            self._grid.lose_second()
        else:
            processes = self._grid.processes(ACTORS[target])
            if not processes:
                return 0
            self._random.choice(processes).kill()
        self._tell(target, f"{moment:.1f} s after the last")
        return target != "driver"  # the end of a driver is counted where it is started again

    def _tell(self, target: str, how: str) -> None:
        self.killed[target] += 1
        print(f"job {self._jobs}, kill {self.killed.total()}: {target} ({how})", flush=True)

    def _wait(self, driver: subprocess.Popen[bytes], output: Path) -> None:
        try:
            driver.wait(MAX_SECONDS)
        finally:
            driver.kill()
        log = output.with_suffix(".log").read_text(errors="replace")
        assert driver.returncode == 0, f"the driver of {output} ended with {driver.returncode}:\n{log[-4000:]}"


def soak(
    *,
    kills: int,
    seed: int,
    engine: str = "0.1",
    documents: int = 6,
    kills_per_job: int = 5,
    targets: Sequence[str] = TARGETS,
) -> Counter[str]:
    """How many of each kind were killed, once all tables were right."""
    print(f"seed {seed}", flush=True)
    with grid() as nodes, tempfile.TemporaryDirectory(prefix="soak") as work:
        under_fire = Soak(nodes, Path(work), seed=seed, engine=engine, documents=documents, targets=targets)
        while under_fire.killed.total() < kills:
            under_fire.run_job(min(kills_per_job, kills - under_fire.killed.total()))
        print(
            f"{under_fire.killed.total()} kills ({dict(under_fire.killed)}), seed {seed}: 0 rows lost, 0 twice",
            flush=True,
        )
        return under_fire.killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="decides who dies when (default: the time)")
    parser.add_argument("--engine", default="0.1", help="seconds of a step of the stub engine, or demo for the model")
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--kills-per-job", type=int, default=5)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="who may die")
    soak(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
