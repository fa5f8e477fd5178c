"""Shows how far a job is, from its files: `python -m jobs.status OUTPUT`. Needs no Ray and disturbs nobody."""

import sys
import time
from collections.abc import Sequence

from jobs.options import CommandParser, add_store_options, job_books
from pipeline.progress import failures
from pipeline.status import JobStatus, job_status


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="python -m jobs.status", description=__doc__)
    parser.add_argument("output", metavar="OUTPUT", help="where the job writes to")
    add_store_options(parser)
    parser.add_argument("--every", type=float, metavar="SECONDS", help="show it again and again until the job is done")
    flags = parser.parse_args(argv)
    try:
        books = job_books(flags)
    except ValueError as error:
        print(f"status: {error}", file=sys.stderr)
        return 2
    while True:
        status = job_status(books)
        print(report(status), flush=True)
        if flags.every is None or status.finished:
            return 0 if status.survey else 1
        time.sleep(flags.every)


def report(status: JobStatus) -> str:
    if status.survey is None:
        return "the inputs are being opened" if status.runs else "no job here"
    done = status.pieces.total()
    states = ", ".join(f"{state} {count:,}" for state, count in sorted(status.pieces.items()))
    runs = f"{status.runs:,} run{'' if status.runs == 1 else 's'}"
    pieces = status.kind.pieces
    return "\n".join(
        [
            f"inputs          {status.survey.assets:,}",
            f"inputs failed   {failures(status.survey.failed).removeprefix('failed ')}, when they were opened",
            f"{pieces:<15} {done:,}/{status.survey.unit_pages:,}" + (f": {states}" if states else ""),
            f"{pieces + ' failed':<15} {failures(status.failed).removeprefix('failed ')}",
            f"state           {'finished' if status.finished else 'not finished'}, {runs}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
