"""What Arrow schemas are written with: columns with a description, structs and lists without nulls."""

import pyarrow as pa


def column(name: str, type: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type, nullable, {b"description": description.encode()})


def struct(*fields: tuple[str, pa.DataType]) -> pa.DataType:
    return pa.struct([pa.field(name, type, False) for name, type in fields])


def list_of(type: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", type, False))
