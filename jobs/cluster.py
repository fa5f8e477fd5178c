"""Finds the Ray cluster a job runs on, or starts one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data

from model.footprint import available_bytes
from pipeline.job import CHECKOUT
from pipeline.resources import Cluster

MORE_CPUS = 2  # than there are, for stages that mostly wait; decoders and replicas then have as many threads as cores
LEAST_CPUS = 4  # so that the smallest machine can hold all stages


def this_machine() -> Cluster | None:
    """What Ray will have when it is started here; None where RAY_ADDRESS names a cluster, which says so itself."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    gpus, memory = len(list(Path("/dev").glob("nvidia[0-9]*"))), available_bytes()
    return Cluster(cpus=_local_cpus(), gpus=gpus, memory_bytes=memory, node_memory_bytes=memory)


def _local_cpus() -> int:
    return max(LEAST_CPUS, MORE_CPUS + (os.cpu_count() or 1))


@contextmanager
def connected() -> Iterator[None]:
    """A connection to the cluster of RAY_ADDRESS, or to a Ray of our own that ends with us."""
    if os.environ.get("RAY_ADDRESS"):
        # `ray job submit` has shipped the code already; otherwise it travels with us.
        is_submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        ray.init(runtime_env=None if is_submitted else {"working_dir": str(CHECKOUT)}, logging_level=logging.WARNING)
    else:
        ray.init(address="local", num_cpus=_local_cpus(), include_dashboard=False, logging_level=logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # its file keeps everything, and what ends a job is raised
            handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()
