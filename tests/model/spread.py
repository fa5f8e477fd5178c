"""Ranks as threads of one process: the same groups, collectives and cuts as between processes, started in no time."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch

from model.parallel import Group, join_group

T = TypeVar("T")


def on_ranks(size: int, function: Callable[[Group], T]) -> list[T]:
    """What `function` returns on each rank of a new group."""

    def life(rank: int) -> T:
        return function(join_group(rank, size, meeting, torch.device("cpu")))

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("model.parallel.PASS_TIMEOUT", timedelta(seconds=30)),
        ThreadPoolExecutor(size) as threads,
    ):
        meeting = Path(folder) / "meeting"
        return list(threads.map(life, range(size)))
