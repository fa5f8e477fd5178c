"""Disks that are really full: small file systems in memory, which only root may mount."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.flat_memory import model_with_large_pages, write_documents
from tests.jobs.test_parse_documents import ROOT, run

pytestmark = pytest.mark.heavy

# Holds most of the object store, as another job of the cluster would, and runs the command beside it.
BESIDE_ANOTHER_JOB = """
import sys
import numpy as np
import ray
from ray.exceptions import OutOfDiskError
from jobs.parse_documents import main

started = ray.init(
    num_cpus=6, object_store_memory=80 * 2**20, object_spilling_directory=sys.argv[1], include_dashboard=False
)
held = []
try:
    while True:
        held.append(ray.put(np.zeros(2**20, np.uint8)))
except OutOfDiskError:
    pass
ray.shutdown = lambda: None
ray.init = lambda *args, **options: None
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_an_output_without_room_is_told_in_a_line_and_the_same_command_ends_the_job_later(tmp_path, small_disk):
    write_documents(tmp_path / "in", pages=20, one_pagers=30, pictures=0)
    full = run(tmp_path / "in", small_disk / "out", "--max-new-tokens", 4)
    assert full.returncode == 1, full.stderr
    broken_off, kept = full.stderr.splitlines()[-2:]
    assert broken_off.startswith(f"parse_documents: broken off: {small_disk}/out/_job/parts/")
    assert broken_off.endswith("cannot be written: [Errno 28] No space left on device")
    assert "the same command goes on" in kept
    assert "Traceback" not in full.stderr

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = run(tmp_path / "in", small_disk / "out", "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr
    pages = pq.read_table(small_disk / "out" / "pages", columns=["page_no"]).to_pylist()
    assert sorted(page["page_no"] for page in pages) == sorted([*range(1, 21), *[1] * 30])


def test_an_object_store_that_can_not_spill_is_told_in_a_line(tmp_path, small_disk):
    write_documents(tmp_path / "in", pages=20, one_pagers=0, pictures=0)
    (small_disk / "full").write_bytes(bytes(60_000))
    argv = [small_disk, tmp_path / "in", tmp_path / "out", "--model", model_with_large_pages(tmp_path / "model")]
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_ANOTHER_JOB, *map(str, argv)],
        cwd=ROOT,
        env=os.environ | {"RAY_local_fs_monitor_interval_ms": "10"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "parse_documents: broken off: Ray's object store is full" in done.stderr.splitlines()[-2]
    assert not (tmp_path / "out" / "_SUCCESS").exists()
