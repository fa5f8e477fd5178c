"""Finds the Ray cluster a job runs on, or starts one on this machine."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data

from model.footprint import available_bytes
from pipeline.job import CHECKOUT
from pipeline.resources import Cluster

MORE_CPUS = 2  # than there are, for stages that mostly wait; decoders and replicas then have as many threads as cores
ANSWER_SECONDS = 10.0
LEAST_CPUS = 4  # so that the smallest machine can hold all stages


def this_machine() -> Cluster | None:
    """What Ray will have when it is started here; None where RAY_ADDRESS names a cluster, which says so itself."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    gpus, memory = len(list(Path("/dev").glob("nvidia[0-9]*"))), available_bytes()
    return Cluster(cpus=_local_cpus(), gpus=gpus, memory_bytes=memory, node_memory_bytes=memory)


def _local_cpus() -> int:
    return max(LEAST_CPUS, MORE_CPUS + (os.cpu_count() or 1))


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes where nothing listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal() or "/" in host:  # such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray answers at RAY_ADDRESS={address} ({error}): start it there (ray start --head), give the address "
            "that it printed, or unset RAY_ADDRESS to run on this machine"
        ) from error


@contextmanager
def connected() -> Iterator[None]:
    """A connection to the cluster of RAY_ADDRESS, or to a Ray of our own that ends with us.

    Raises ConnectionError where nobody answers at that address.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        print(f"connecting to Ray at {address}", file=sys.stderr, flush=True)
        _check_answers(address)
        # `ray job submit` has shipped the code already; otherwise it travels with us.
        is_submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        ray.init(runtime_env=None if is_submitted else {"working_dir": str(CHECKOUT)}, logging_level=logging.WARNING)
    else:
        print("starting Ray on this machine", file=sys.stderr, flush=True)
        ray.init(address="local", num_cpus=_local_cpus(), include_dashboard=False, logging_level=logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # its file keeps everything, and what ends a job is raised
            handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()
