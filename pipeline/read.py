"""Pass 2: units -> decoders -> replicas -> parts, one streaming pipeline of Ray Data, one row in and one row out."""

from collections.abc import Callable

import pyarrow as pa
from ray.data import ActorPoolStrategy

from pipeline.decode import DecodeOptions, Decoder
from pipeline.replica import Engine, Replica
from pipeline.resources import WRITER_CPUS, Resources
from pipeline.rows import Receipt
from pipeline.sink import PartWriter, SinkOptions
from pipeline.streaming import Stream, collect, stream
from pipeline.survey import count_pages
from pipeline.suspects import LedgerActor

MAX_UNITS_PER_PART = 16
PARTS_PER_PASS = 256  # at least, where there are as many units: a part is what a killed run loses


def read_units(
    units: pa.Table,
    *,
    decode: DecodeOptions,
    load_engine: Callable[[], Engine],
    step_timeout_seconds: float,
    sink: SinkOptions,
    resources: Resources,
) -> Stream[Receipt]:
    """Reads the units (rows of UNITS) and commits them part by part; a receipt for each part, once it is there."""
    calls = resources.calls_per_replica(count_pages(units) / len(units))
    fewest, most = resources.replicas
    prompts = stream(units, rows_per_block=1).map(
        Decoder,  # type: ignore[arg-type] # Ray's types know no classes
        fn_constructor_args=[decode],
        # A pool of its own: Ray would otherwise run decoding inside the replica's actor.
        compute=ActorPoolStrategy(size=resources.decoders),
        num_cpus=1,
        memory=resources.decoder_memory_bytes,
    )
    # Ray starts what died anew and repeats its calls for ever; the ledger sees to it that this comes to an end.
    answers = prompts.map(
        Replica,  # type: ignore[arg-type]
        fn_constructor_args=[load_engine, LedgerActor(), step_timeout_seconds],
        compute=ActorPoolStrategy(
            min_size=fewest,
            max_size=most,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=2 * calls,
        ),
        num_cpus=resources.replica_cpus,
        num_gpus=resources.replica_gpus,
        memory=resources.replica_memory_bytes or None,
    )
    receipts = answers.map_batches(
        PartWriter,
        fn_constructor_args=[sink],
        batch_size=min(MAX_UNITS_PER_PART, 1 + len(units) // PARTS_PER_PASS),
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.writers),
        num_cpus=WRITER_CPUS,
    )
    for block in collect(receipts):
        yield from map(Receipt.from_row, block.to_pylist())
