"""A Ray cluster of two nodes in this process, one of which may die."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 4, "object_store_memory": 100 * 2**20}


@dataclass
class Grid:
    """Two nodes of a Ray cluster; the second one may die."""

    cluster: Any
    second: Any = None

    def processes(self, title: str) -> list[psutil.Process]:
        """Those below the cluster's raylets whose title or command has `title` in it."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]
        found = []
        for raylet in raylets:
            for process in psutil.Process(raylet).children(recursive=True):
                try:
                    if title in " ".join(process.cmdline()):
                        found.append(process)
                except psutil.Error:
                    continue
        return sorted(found, key=lambda process: process.pid)

    def lose_second(self) -> None:
        """SIGKILL to the raylet of the second node, and another node in its place."""
        os.kill(self.second.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.add_second()

    def add_second(self, attempts: int = 8) -> None:
        """A busy machine starts a node too slowly now and then: Ray gives up after half a minute."""
        for left in range(attempts, 0, -1):
            try:
                self.second = self.cluster.add_node(**NODE)
                return
            except Exception:  # Ray raises nothing narrower
                if left == 1:
                    raise


@contextmanager
def ray_folder() -> Iterator[Path]:
    """A new folder for the files of a Ray of our own, which this process will start."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.makedirs(os.path.join(folder, "ray"))
        os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ |= {"RAY_worker_niceness": "0"}  # on a busy machine they would come last; Ray spells it so
        os.environ.pop("RAY_ADDRESS", None)
        yield Path(folder)


@contextmanager
def grid() -> Iterator[Grid]:
    with ray_folder():
        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        try:
            found = Grid(cluster)
            found.add_second()
            yield found
        finally:
            cluster.shutdown()
