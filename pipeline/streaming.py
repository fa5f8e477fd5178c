"""How tables go into Ray Data and come out of it again, the same way in all three passes."""

from collections.abc import Generator
from typing import TypeVar

import pyarrow as pa
import ray.data
from ray.data import DataContext, Dataset

T = TypeVar("T")

NO_PROGRESS_SECONDS = 2 * 3600.0  # loading a large model, or waiting for a machine, is no standstill
MAX_INIT_DEATHS = 5  # of actors that die, one after the other, while they start: a machine may go at any moment
ROWS_PER_CHUNK = 10_000


def stream(table: pa.Table, *, rows_per_block: int) -> Dataset:
    """The rows of a table as small blocks: a block is what one call of an actor gets, and what is done again when it is
    lost."""
    context = DataContext.get_current()
    context.enable_progress_bars = False  # the job shows its own
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    context.raise_original_map_exception = True  # so that a full disk is told as what it is
    context.max_consecutive_actor_init_deaths = MAX_INIT_DEATHS
    chunks = [table.slice(start, ROWS_PER_CHUNK) for start in range(0, len(table), ROWS_PER_CHUNK)]
    return ray.data.from_arrow(chunks).repartition(target_num_rows_per_block=rows_per_block)


Stream = Generator[T, None, None]


def collect(dataset: Dataset) -> Stream[pa.Table]:
    """Runs it; its blocks as they come, in any order.

    Whoever reads them closes what they come from, also where it gives up: when that is left to the end of the process,
    Ray is gone, and its executor, which asks for it once more, has been seen to wait for ever.
    """
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
