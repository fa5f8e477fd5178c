"""A driver for tests that kill it: `python -m tests.drive INPUT OUTPUT ENGINE [videos]` on the Ray of RAY_ADDRESS.

ENGINE: seconds of a step of the stub engine, "demo" for the model that comes along, or "ranks" for it on two ranks.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.flow import prepare, run
from pipeline.folders import FileStore
from pipeline.job import IndexJob, ParseJob
from pipeline.lease import hold
from pipeline.resources import Resources
from tests.fakes import FakeLoader

# So little that the test cluster holds two jobs at once.
SMALL = Resources(
    device="cpu",
    replicas=(1, 1),
    replica_cpus=1.0,
    replica_gpus=0,
    batch_size=2,
    decoders=1,
    decoder_memory_bytes=2 * 2**30,
    writers=1,
)
NEW_TOKENS = 24  # of a page the real model reads: enough to differ where something is wrong
PAGE_TOKENS = 64


@dataclass(frozen=True)
class Death:
    """SIGKILL to the driver `when` ("before" or "after") its write of that number, whichever verb it is."""

    when: str
    number: int

    def await_write(self) -> None:
        writes = 0

        def dying(write: Callable[..., Any]) -> Callable[..., Any]:
            def written(*args: Any) -> Any:
                nonlocal writes
                if self.when == "before" and writes == self.number:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = write(*args)
                if self.when == "after" and writes == self.number:
                    os.kill(os.getpid(), signal.SIGKILL)
                writes += 1
                return result

            return written

        for verb in ("put", "put_if_absent", "delete"):
            setattr(FileStore, verb, dying(getattr(FileStore, verb)))


def drive(
    address: str, source: str, output: str, engine: str, kind: str, death: Death | None = None, **options: Any
) -> None:
    """Does the job, as the commands do it, on the Ray at `address`; `options` are further ones of the job."""
    if death:
        death.await_write()
    is_real = engine in {"demo", "ranks"}
    options |= {"input": source, "output": output}
    if is_real:  # in float32 an answer does not depend on what is in the batch beside it
        options |= {"max_new_tokens": NEW_TOKENS, "dtype": "float32", "tensor_parallel": 1 + (engine == "ranks")}
    if kind == "videos":
        setup = prepare(IndexJob(**options))
    else:
        pages = {"min_tokens_per_page": PAGE_TOKENS, "max_tokens_per_page": PAGE_TOKENS}
        setup = prepare(ParseJob(**options, **(pages if is_real else {})))
    ray.init(address=address, log_to_driver=False)
    with hold(setup.books.store, output):
        run(setup, SMALL, sys.stderr, load_engine=None if is_real else FakeLoader(step_seconds=float(engine)))


def logged(log: str, *args: Any, **options: Any) -> None:
    """`drive`, with everything it says appended to a file."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    drive(*args, **options)


if __name__ == "__main__":
    drive(os.environ["RAY_ADDRESS"], *sys.argv[1:4], *(sys.argv[4:] or ["documents"]))
