"""What Arrow schemas are written with: columns with a description, structs and lists without nulls."""

import pyarrow as pa

# Columns that depend on neighbours in the batch, on time or on attempts: what was drafted, and in how many steps, on
# what else was worked on; times on the machine; attempts on what died. Two runs of one job agree in all the others.
VARYING = frozenset(
    {"steps", "drafted_tokens", "accepted_tokens", "decode_ms", "queue_ms", "infer_ms", "attempts"},
)
# In these only the last bits depend on the batch: two runs agree to LOG_PROBABILITY_TOLERANCE.
LOG_PROBABILITIES = frozenset({"mean_logprob", "min_logprob"})
LOG_PROBABILITY_TOLERANCE = 1e-4


def column(name: str, type: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type, nullable, {b"description": description.encode()})


def struct(*fields: tuple[str, pa.DataType]) -> pa.DataType:
    return pa.struct([pa.field(name, type, False) for name, type in fields])


def list_of(type: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", type, False))
