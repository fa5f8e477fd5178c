"""Recounts a job from its files: `python -m jobs.verify OUTPUT`. Exit status: 0 all is well, 1 something differs."""

import argparse
import sys
from collections.abc import Sequence

from jobs.options import add_store_options, job_books
from pipeline.audit import Recount, audit


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m jobs.verify", description=__doc__)
    parser.add_argument("output", metavar="OUTPUT", help="where the job wrote to")
    add_store_options(parser)
    flags = parser.parse_args(argv)
    try:
        books = job_books(flags)
    except ValueError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    counted = audit(books.store, books.output)
    print(report(counted))
    return 1 if counted.differences else 0


def report(counted: Recount) -> str:
    """The recount, and below it each difference on a line of its own."""
    lines = [
        f"inputs     {counted.inputs:,}",
        f"units      {counted.units:,} in {counted.parts:,} parts; {counted.late_parts:,} late parts do not count",
    ]
    for name, by_status in ((counted.kind.assets, counted.assets), (counted.kind.pieces, counted.pieces)):
        if by_status is not None:
            detail = ", ".join(f"{status} {count:,}" for status, count in sorted(by_status.items()))
            lines.append(f"{name:<10} {by_status.total():,}: {detail}")
    if counted.assets is not None:
        lines.append(f"{counted.kind.found:<10} {counted.found:,}")
    lines += [f"DIFFERS    {difference}" for difference in counted.differences]
    return "\n".join([*lines, "not as it should be" if counted.differences else "all is as it should be"])


if __name__ == "__main__":
    sys.exit(main())
