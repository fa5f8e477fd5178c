"""A driver for tests that kill it: `python -m tests.drive INPUT OUTPUT ENGINE [videos]` on the Ray of RAY_ADDRESS.

ENGINE: seconds of a step of the stub engine, or "demo" for the model that comes along. PAGEREEL_DIE_AT_WRITE "before 3"
or "after 3" ends the driver at its fourth write.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import ray

from pipeline.flow import prepare, run
from pipeline.folders import FileStore
from pipeline.job import IndexJob, ParseJob
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


def die_at_write(when: str, number: int) -> None:
    """SIGKILL to this process before or after its write of that number, whichever verb it is."""
    writes = 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*args: Any) -> Any:
            nonlocal writes
            if when == "before" and writes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(*args)
            if when == "after" and writes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            writes += 1
            return result

        return written

    for verb in ("put", "put_if_absent", "delete"):
        setattr(FileStore, verb, dying(getattr(FileStore, verb)))


def main(source: str, output: str, engine: str, kind: str = "documents") -> None:
    if death := os.environ.get("PAGEREEL_DIE_AT_WRITE"):
        when, number = death.split()
        die_at_write(when, int(number))
    job = IndexJob if kind == "videos" else ParseJob
    setup = prepare(job(input=source, output=output, max_new_tokens=48 if engine == "demo" else 4096))
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    run(setup, SMALL, sys.stderr, load_engine=None if engine == "demo" else FakeLoader(step_seconds=float(engine)))


if __name__ == "__main__":
    main(*sys.argv[1:])
