"""Runs functions in a child process that may hang, crash or run out of memory without harm to the caller."""

import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

from pipeline.records import BadInput, ErrorCode, Stage

T = TypeVar("T")
Reply = tuple[Literal["item", "end", "error"], Any]

_OUT_OF_MEMORY = 97  # exit status of a child that met a MemoryError
# The child is a plain interpreter: one of multiprocessing's would import the caller's main module again. One BLAS
# thread, because each reserves memory that counts against the limit.
_CHILD = """
import os, sys
sys.path[:] = {path!r}
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
from pipeline.sandbox import serve
serve({descriptor}, {memory_bytes})
"""


class Sandbox:
    """One child process, started when it is needed, replaced after `max_tasks` tasks and whenever it had to be killed.

    Functions, arguments and results are pickled; functions must be importable by name. For one caller at a time. The
    child ends when its parent does, however that ends.
    """

    def __init__(self, *, memory_bytes: int, max_tasks: int = 500) -> None:
        """`memory_bytes` bounds the child's data: heap and anonymous memory, the interpreter's own included."""
        self._memory_bytes = memory_bytes
        self._max_tasks = max_tasks
        self._tasks_left = 0
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None

    def run(self, function: Callable[..., T], *args: Any, seconds: float) -> T:
        """`function(*args)` in the child. Arrays in the result are read-only.

        Raises what it raises, and BadInput (stage render) with render_timeout after `seconds`, render_oom when it runs
        out of memory, render_crash when the child dies.
        """
        (result,) = self.iterate(_once, function, *args, seconds=seconds)
        return result

    def iterate(self, function: Callable[..., Iterable[T]], *args: Any, seconds: float) -> Iterator[T]:
        """The items of `function(*args)`, each as soon as it is made; the clock starts again with each.

        Raises as `run` does. The child works one item ahead. An iteration that is given up ends the child.
        """
        finished = False
        try:
            self._start((function, args))
            while not finished:
                kind, value = self._next_reply(seconds)
                finished = kind != "item"
                if kind == "error":
                    raise value
                if kind == "item":
                    yield value
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """Ends the child. The sandbox can still be used: the next task starts another."""
        if self._child is not None:
            process, connection = self._child
            process.kill()
            process.wait()
            connection.close()
        self._child = None

    def _start(self, task: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        if self._child is None or self._tasks_left < 1 or self._child[0].poll() is not None:
            self.close()
            self._tasks_left = self._max_tasks
            self._child = _spawn(self._memory_bytes)
        self._tasks_left -= 1
        process, connection = self._child
        try:
            _send(connection, task)
        except ConnectionError:
            raise _why_it_died(process.wait()) from None

    def _next_reply(self, seconds: float) -> Reply:
        assert self._child is not None, "no task was started"
        process, connection = self._child
        if not connection.poll(seconds):
            raise BadInput(Stage.RENDER, ErrorCode.RENDER_TIMEOUT, f"no result within {seconds:g} seconds")
        try:
            reply: Reply = _receive(connection)
        except (EOFError, ConnectionError):
            raise _why_it_died(process.wait()) from None
        return reply


def _spawn(memory_bytes: int) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    descriptor = theirs.fileno()
    code = _CHILD.format(path=sys.path, descriptor=descriptor, memory_bytes=memory_bytes)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,  # an interrupt at the terminal is for the parent
    )
    theirs.close()
    return process, ours


def _once(function: Callable[..., T], *args: Any) -> Iterator[T]:
    yield function(*args)


def _why_it_died(status: int) -> BadInput:
    if status == _OUT_OF_MEMORY:
        return BadInput(Stage.RENDER, ErrorCode.RENDER_OOM, "more memory is needed than the limit allows")
    if status == -signal.SIGKILL:  # not by us: that is a timeout
        return BadInput(Stage.RENDER, ErrorCode.RENDER_OOM, "killed by the system, as it does when memory is short")
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return BadInput(Stage.RENDER, ErrorCode.RENDER_CRASH, f"the process was {how}")


def _send(connection: Connection, value: Any) -> None:
    """Arrays travel beside the pickle, not inside it: 6 MB take 5 ms instead of 20."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    connection.send((pickled, len(buffers)))
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


def _receive(connection: Connection) -> Any:
    pickled, buffers = connection.recv()
    return pickle.loads(pickled, buffers=[connection.recv_bytes() for _ in range(buffers)])


def serve(descriptor: int, memory_bytes: int) -> None:
    """What the child does: tasks in, replies out, until its parent is gone."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff alone writes a line for every damaged row of an image
    connection = Connection(descriptor)
    tasks: queue.SimpleQueue[tuple[bytes, list[bytes]]] = queue.SimpleQueue()
    threading.Thread(target=_take_tasks, args=(connection, tasks), daemon=True).start()
    while True:
        pickled, buffers = tasks.get()
        try:
            function, args = pickle.loads(pickled, buffers=buffers)
            for item in function(*args):
                _send(connection, ("item", item))
            _send(connection, ("end", None))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except Exception as error:  # noqa: BLE001 - raised again in the parent
            _send(connection, ("error", _portable(error)))


def _take_tasks(connection: Connection, tasks: queue.SimpleQueue[tuple[bytes, list[bytes]]]) -> None:
    """In a thread of its own, so that the end of the parent is noticed while a task hangs in C code."""
    try:
        while True:
            pickled, buffers = connection.recv()
            tasks.put((pickled, [connection.recv_bytes() for _ in range(buffers)]))
    except (EOFError, ConnectionError):
        os._exit(0)


def _portable(error: Exception) -> Exception:
    """The exception with the child's traceback as a note; where it cannot be pickled, a RuntimeError that quotes it."""
    trace = traceback.format_exc()
    error.add_note(f"In the sandbox:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - pickling runs whatever code the exception brings
        return RuntimeError(trace)
    return error
