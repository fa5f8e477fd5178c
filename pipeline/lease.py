"""One driver at a time: whoever works on an output holds its lease and shows, beat by beat, that it is alive.

OUTPUT/_job/leases/000002.json   the third driver's; the newest lease is the one that counts

A lease is taken with an exclusive write and beaten by its holder alone. Clocks are not compared: a newcomer watches
whether the beat moves. A holder that was killed on the same machine is known to be dead at once. The lease is a
courtesy: what keeps the books right when two drivers are there nevertheless is the epochs.
"""

import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.store import Store, join

BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0  # without a beat

logger = logging.getLogger(__name__)


class Occupied(ValueError):  # noqa: N818 - no error: somebody else is at work
    """Another driver holds the lease of the output."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease."""

    name: str  # for people: user, machine, process
    machine: str  # boot and process namespace: where the process number means something
    process: int
    started: str  # of the process, in the kernel's ticks: numbers are used again
    since: str
    token: str  # one for each time a lease is asked for: a process may ask twice in a second
    beat: int = 0
    released: bool = False


@contextmanager
def hold(
    store: Store,
    output: str,
    *,
    take_over: bool = False,
    beat_seconds: float = BEAT_SECONDS,
    expiry_seconds: float = EXPIRY_SECONDS,
) -> Iterator[None]:
    """Holds the lease of an output. Raises Occupied, with the holder's name, when another driver does."""
    holder = this_process()
    uri = _take(store, output, holder, take_over=take_over, expiry_seconds=expiry_seconds)
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(beat_seconds):
            beats += 1
            _show(store, uri, replace(holder, beat=beats))

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _show(store, uri, replace(holder, released=True))


def count_runs(store: Store, output: str) -> int:
    """How many drivers have held the output."""
    return sum(1 for _ in store.list(join(output, "_job", "leases")))


def this_process() -> Holder:
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = (
        f"{boot.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}" if boot.exists() else socket.gethostname()
    )
    return Holder(
        name=f"{_user()}@{socket.gethostname()}, process {os.getpid()}",
        machine=machine,
        process=os.getpid(),
        started=_started(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        token=uuid.uuid4().hex,
    )


def _take(store: Store, output: str, holder: Holder, *, take_over: bool, expiry_seconds: float) -> str:
    """The uri of a lease of our own, once the newest one is free."""
    while True:
        newest = max((asset.uri for asset in store.list(join(output, "_job", "leases"))), default=None)
        if newest and _read(store, newest) == holder:
            return newest  # it was written, and the answer was lost
        if newest and not take_over and is_alive(store, newest, expiry_seconds):
            other = _read(store, newest)
            raise Occupied(
                f"{output} is being worked on by {other.name}, since {other.since}: wait, stop that run, or give "
                "--take-over, which ends it"
            )
        number = 1 + int(newest.rsplit("/", 1)[-1].removesuffix(".json")) if newest else 0
        uri = join(output, "_job", "leases", f"{number:06d}.json")
        if store.put_if_absent(uri, _body(holder)):
            return uri


def is_alive(store: Store, uri: str, expiry_seconds: float) -> bool:
    """Whether the holder of a lease still beats; takes `expiry_seconds` when it does not and nothing else tells."""
    first = _read(store, uri)
    if first.released:
        return False
    here = this_process()
    if first.machine == here.machine:
        return _started(first.process) == first.started
    until = time.monotonic() + expiry_seconds
    while time.monotonic() < until:
        time.sleep(min(1.0, expiry_seconds / 10))
        now = _read(store, uri)
        if now.released:
            return False
        if now.beat != first.beat:
            return True
    return False


def _read(store: Store, uri: str) -> Holder:
    return Holder(**json.loads(store.read(uri)))


def _show(store: Store, uri: str, holder: Holder) -> None:
    try:
        store.put(uri, _body(holder))
    except OSError as error:  # the next beat may arrive; nothing depends on a single one
        logger.warning("the lease %s could not be renewed: %s", uri, error)


def _body(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=2).encode()


def _started(process: int) -> str:
    """When a process started, in ticks since boot; "" when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in containers
        return str(os.getuid())
