"""Two drivers on one output: the second is refused with the first one's name, unless that is dead or is to be ended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.parse_documents import main
from pipeline.lease import hold
from pipeline.store import Store, StoreOptions, join

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pipeline.lease import hold
from pipeline.store import Store
with hold(Store(), sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of tmp_path/out."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_driver_is_refused_with_the_name_of_the_first_and_what_to_do(holder, tmp_path, capsys):
    (tmp_path / "in.pdf").write_bytes(b"%PDF")
    assert main([str(tmp_path / "in.pdf"), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"process {holder.pid}" in message
    assert "--take-over" in message
    with hold(Store(), str(tmp_path / "out"), take_over=True):
        pass


def test_after_a_killed_driver_the_next_one_goes_on_at_once(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with hold(Store(), str(tmp_path / "out")):
        assert time.monotonic() - began < 5


def test_a_driver_that_ended_leaves_the_output_free(tmp_path):
    for _ in range(2):
        with hold(Store(), str(tmp_path)):
            pass
    with pytest.raises(ZeroDivisionError), hold(Store(), str(tmp_path)):
        raise ZeroDivisionError
    with hold(Store(), str(tmp_path)):
        pass


def elsewhere(path: Path) -> None:
    """Makes the newest lease one of another machine."""
    newest = max(path.glob("_job/leases/*.json"))
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"machine": "another", "released": False}))


def test_a_driver_on_another_machine_is_alive_as_long_as_it_beats(tmp_path):
    with hold(Store(), str(tmp_path)):
        pass
    elsewhere(tmp_path)
    newest = max(tmp_path.glob("_job/leases/*.json"))
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.05):
            number += 1
            Store().put(str(newest), json.dumps(json.loads(newest.read_text()) | {"beat": number}).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(ValueError, match="is being worked on by"), hold(Store(), str(tmp_path), expiry_seconds=5):
        pass
    stop.set()
    thread.join()
    with hold(Store(), str(tmp_path), expiry_seconds=0.3):  # it does not beat any more
        pass


def test_of_drivers_that_come_at_once_one_gets_the_lease(tmp_path):
    output = str(tmp_path / "out")  # moto's server checks If-None-Match and writes in two steps: not for a race
    barrier, refused, held = threading.Barrier(6), [], []
    done = threading.Event()

    def drive() -> None:
        store = Store(StoreOptions())
        barrier.wait()
        try:
            with hold(store, output):
                held.append(1)
                done.wait(60)
        except ValueError:
            refused.append(1)
        if len(refused) == 5:
            done.set()

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    assert len(list(Store(StoreOptions()).list(join(output, "_job", "leases")))) == 1


def test_a_lease_names_nobody_by_more_than_user_machine_and_process(tmp_path):
    with hold(Store(), str(tmp_path)):
        (lease,) = tmp_path.glob("_job/leases/*.json")
        assert json.loads(lease.read_text())["process"] == os.getpid()
