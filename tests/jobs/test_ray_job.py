"""The job through `ray job submit`, from a copy of what git would clone, on a head node of this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.samples import PLAIN_LADDER, make_page, write_pdf

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
PAGES = 48


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node in a process group of its own; the environment that finds it."""
    dashboard = free_port()
    home = Path("/tmp") / f"pr{os.getpid()}"  # Ray's socket paths must stay short
    path = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # the entrypoint says "python", as a user would
    environment = {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled"}
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    arguments = ["--head", "--block", f"--port={free_port()}", f"--dashboard-port={dashboard}", "--num-cpus=6"]
    # The Ray that other tests share has an agent on the default port, and without an agent no job can start.
    arguments += [f"--dashboard-agent-listen-port={free_port()}"]
    arguments += [f"--temp-dir={home}", "--object-store-memory=200000000", "--disable-usage-stats"]
    starting = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with (tmp_path / "head.log").open("wb") as log:
        node = subprocess.Popen(
            [RAY, "start", *arguments], env=starting, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: reachable(dashboard), seconds=300)
        yield environment
    finally:
        os.killpg(node.pid, signal.SIGKILL)  # it keeps nothing that is needed; asked to end, it takes half a minute
        node.wait(timeout=300)
        shutil.rmtree(home, ignore_errors=True)


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(holds, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.2)


def clone(folder: Path) -> Path:
    """What git has or would add, as a clean clone would have it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def ray_job(environment: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", *arguments], env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )


def submit_when_ready(environment: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The dashboard answers before the agent that starts jobs has registered, and refuses them until then."""
    end = time.monotonic() + 180
    while True:
        submitted = ray_job(environment, "submit", *arguments, cwd=cwd)
        if "No available agent" not in submitted.stdout + submitted.stderr or time.monotonic() > end:
            return submitted
        time.sleep(1)


def test_a_submitted_job_can_be_stopped_and_submitted_again(tmp_path, head):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(PAGES):
        pages = [make_page(rng, PLAIN_LADDER[-1], held_out=True)]
        (tmp_path / "in" / f"{number:02}.pdf").write_bytes(write_pdf(pages))
    checkout, output = clone(tmp_path / "clone"), tmp_path / "out"
    entrypoint = ["--", "python", "-m", "jobs.parse_documents", str(tmp_path / "in"), str(output)]
    entrypoint += ["--max-new-tokens", "200"]
    slow = ["--batch-size", "2"]  # slow enough to be stopped

    submitted = submit_when_ready(
        head, "--no-wait", "--submission-id", "first", "--working-dir", ".", *entrypoint, *slow, cwd=checkout
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    try:
        wait_until(lambda: list((output / "_job").rglob("parts/*/*.parquet")), seconds=120)
    except AssertionError:
        pytest.fail(ray_job(head, "logs", "first", cwd=checkout).stdout)
    ray_job(head, "stop", "first", cwd=checkout)
    assert not (output / "_SUCCESS").exists(), "the job was over before it could be stopped"
    assert list((output / "_job").rglob("parts/*/*.parquet"))

    again = ray_job(head, "submit", "--working-dir", ".", *entrypoint, cwd=checkout)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (output / "_SUCCESS").exists()
    pages = pq.read_table(output / "pages").to_pydict()
    assert len(pages["page_id"]) == len(set(pages["page_id"])) == PAGES
