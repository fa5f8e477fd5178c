"""Recounts a job from its files: `python -m jobs.verify OUTPUT`.

A table that is gone or damaged is written anew when the job's command is run again; a part of _job that is, is not.
Exit status: 0 all is as it should be, 1 something differs, 2 it cannot be looked at, 3 not finished (stopped, or still
running) and consistent so far.
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.options import CommandParser, add_store_options, job_books
from pipeline.audit import Recount, audit
from pipeline.progress import MOST_NAMED

DIFFERS, UNFINISHED = 1, 3


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m jobs.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUTPUT", help="where the job wrote to")
    add_store_options(parser)
    flags = parser.parse_args(argv)
    try:
        books = job_books(flags)
        counted = audit(books.store, books.output)
    except (ValueError, OSError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    print(report(counted))
    return DIFFERS if counted.differences else UNFINISHED if counted.unfinished else 0


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
    lines += [f"DIFFERS    {difference}" for difference in counted.differences[:MOST_NAMED]]
    if len(counted.differences) > MOST_NAMED:
        lines.append(f"and {len(counted.differences) - MOST_NAMED:,} more")
    if counted.differences:
        return "\n".join([*lines, "not as it should be"])
    if counted.unfinished:
        return "\n".join([*lines, f"not finished, consistent so far: {counted.unfinished}"])
    return "\n".join([*lines, "all is as it should be"])


if __name__ == "__main__":
    sys.exit(main())
