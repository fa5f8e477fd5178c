"""The processes of one replica: rank 0 is its caller's, the others are children that repeat what rank 0 does.

All ranks run the same engine on the same prompts, and what an engine decides depends on nothing else: only new prompts
and the word to step travel from rank 0. Nobody outlives the others.
"""

import contextlib
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from model.parallel import ALONE, join_group

logger = logging.getLogger(__name__)

STOP = "stop"
SECONDS_TO_STOP = 10.0
# A plain interpreter: a child of multiprocessing's would import the caller's main module again.
_CHILD = """
import sys
sys.path[:] = {path!r}
from model.ranks import serve
serve({descriptor})
"""


class Followers:
    """Ranks 1 to `size` - 1, seen from rank 0; none of them when `size` is 1."""

    def __init__(self, size: int, device: str, follow: Callable[..., None], *args: Any) -> None:
        """Starts them, each with `follow(group, leader, *args)`, importable by name, and meets them: `group` is rank
        0's. `device` is cpu, or cuda for one GPU each. On CPUs the ranks share the threads that this process has.

        Raises RuntimeError when one of them does not come.
        """
        self.group = ALONE
        self._links: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closed = threading.Event()
        # A file, not a port: another replica on this machine cannot have it.
        folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self.close = weakref.finalize(self, _close, self._links, self._processes, self._closed, folder)
        if size == 1:
            return
        environment = dict(os.environ)
        if device == "cpu":
            threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // size)
            torch.set_num_threads(threads)
            environment["OMP_NUM_THREADS"] = str(threads)
        meeting = Path(folder.name) / "meeting"
        for rank in range(1, size):
            process, link = _start(environment)
            self._processes.append(process)
            self._links.append(link)
            link.send((rank, size, meeting, rank_device(device, rank), follow, args))
        self.wait("started")
        try:
            self.group = join_group(0, size, meeting, rank_device(device, 0))
        except RuntimeError as error:  # one that ends takes its connections with it, maybe before they are all made
            wait(self._links, SECONDS_TO_STOP)
            self.close()
            for rank, process in enumerate(self._processes, start=1):
                if process.returncode:
                    raise self._ended(rank, "joined") from error
            raise

    def wait(self, what: str) -> None:
        """Until each has said `what`. Raises RuntimeError when one ends instead."""
        for rank, link in enumerate(self._links, start=1):
            try:
                said = link.recv()
            except (EOFError, ConnectionResetError):
                self.close()
                raise self._ended(rank, what) from None
            assert said == what, f"rank {rank} said {said}, not {what}"

    def _ended(self, rank: int, before: str) -> RuntimeError:
        return RuntimeError(
            f"rank {rank} of {len(self._links) + 1} ended with status {self._processes[rank - 1].returncode} before it"
            f" had {before}: its own words are on the standard error"
        )

    def watch(self) -> None:
        """From here on this process ends, with status 1, when one of them does: what the GPU works on for a group that
        is not whole never ends."""
        if self._links:
            arguments = (self._links, self._processes, self._closed)
            threading.Thread(target=_watch, args=arguments, name="ranks", daemon=True).start()

    def tell(self, message: Any) -> None:
        """Sends what the leader of each yields; pickled once."""
        if self._links:
            data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
            for link in self._links:
                link.send_bytes(data)


class Leader:
    """Rank 0, seen from another one. When rank 0 is gone, this process ends, whatever it is doing."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._inbox = queue.SimpleQueue[Any]()
        threading.Thread(target=self._receive, name="leader", daemon=True).start()

    def say(self, what: str) -> None:
        self._link.send(what)

    def __iter__(self) -> Iterator[Any]:
        """What rank 0 tells."""
        while True:
            yield self._inbox.get()

    def _receive(self) -> None:
        try:
            while (message := self._link.recv()) != STOP:
                self._inbox.put(message)
        except (EOFError, OSError):
            os._exit(1)
        os._exit(0)


def serve(descriptor: int) -> None:
    """A child's life. The other end of `descriptor` says what it is to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with rank 0
    link = Connection(descriptor)
    rank, size, meeting, device, follow, args = link.recv()
    leader = Leader(link)
    leader.say("started")
    follow(join_group(rank, size, meeting, device), leader, *args)


def rank_device(device: str, rank: int) -> torch.device:
    """The GPU of a rank among those this process sees, or the CPU."""
    return torch.device(device, rank) if device == "cuda" else torch.device(device)


def _start(environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    with theirs:
        code = _CHILD.format(path=sys.path, descriptor=theirs.fileno())
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
        )
    return process, ours


def _watch(links: Sequence[Connection], processes: Sequence[subprocess.Popen[bytes]], closed: threading.Event) -> None:
    ended = wait(links)[0]  # nothing is said any more: what can be read is the end
    if closed.is_set():
        return
    rank = 1 + [*links].index(ended)  # type: ignore[arg-type]
    status = processes[rank - 1].wait(SECONDS_TO_STOP)
    _say_ended(rank, len(links) + 1, status)
    logging.shutdown()
    os._exit(1)


def _say_ended(rank: int, size: int, status: int) -> None:
    logger.critical("rank %d of %d ended with status %d: its replica ends with it", rank, size, status)


def _close(
    links: Sequence[Connection],
    processes: Sequence[subprocess.Popen[bytes]],
    closed: threading.Event,
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    """Ends the children, by force where they do not listen. One that has ended by itself is the reason for this end: a
    step that could not go on without it may have noticed before the watch did."""
    closed.set()
    folder.cleanup()
    for rank, process in enumerate(processes, start=1):
        if status := process.poll():
            _say_ended(rank, len(links) + 1, status)
    for link, process in zip(links, processes, strict=True):
        with contextlib.suppress(OSError):  # it is ending by itself, with a status of its own
            link.send(STOP)
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        link.close()
