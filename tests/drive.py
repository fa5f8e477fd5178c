"""A driver for tests that kill it: `python -m tests.drive INPUT OUTPUT STEP_SECONDS` on the Ray of RAY_ADDRESS."""

import os
import sys

import ray

from pipeline.flow import prepare, run
from pipeline.job import ParseJob
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


def main(source: str, output: str, step_seconds: str) -> None:
    setup = prepare(ParseJob(input=source, output=output))
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    run(setup, SMALL, sys.stderr, load_engine=FakeLoader(step_seconds=float(step_seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
