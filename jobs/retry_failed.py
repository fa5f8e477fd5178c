"""Reads again what failed in a finished job, and nothing else: `python -m jobs.retry_failed OUTPUT [--code CODE ...]`.

The inputs and pages that failed are tried once more, with the job's own settings; the tables are then written anew,
with one row for each input and each page as before. Options that the answers do not depend on may be changed: more
memory, a longer time limit, a password. Killed, the same command goes on.
"""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Sequence

from jobs.cluster import connected
from jobs.options import add_options, add_store_options, document_books, make_job
from jobs.running import BAD_JOB, DONE, STOPPED, interrupt
from pipeline.flow import Setup, Superseded, cluster, prepare, run
from pipeline.job import PARSE_ANSWER_FIELDS, ParseJob
from pipeline.lease import Occupied, hold
from pipeline.manifest import Manifest, read_manifest
from pipeline.progress import summary_text
from pipeline.records import ErrorCode
from pipeline.resources import allocate
from pipeline.retry import begin_retry
from pipeline.store import absolute

_FIXED = {"config", "input", "output", "model", "prompt", *PARSE_ANSWER_FIELDS}
_STORE = {"endpoint_url", "profile", "region"}


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    try:
        books = document_books(flags)
        manifest = read_manifest(books.store, books.output)
        if manifest is None:
            raise ValueError(f"{books.output} holds no finished job: finish it first, with the command that began it")
        setup = prepare(retry_job(manifest, flags))
    except ValueError as error:
        print(f"retry_failed: {error}", file=sys.stderr)
        return BAD_JOB
    try:
        with hold(setup.books.store, setup.job.output, take_over=flags.take_over), connected():
            signal.signal(signal.SIGTERM, interrupt)
            return _work(setup, flags.code)
    except (Occupied, ConnectionError) as error:
        print(f"retry_failed: {error}", file=sys.stderr)
        return BAD_JOB
    except Superseded as error:
        print(f"retry_failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nretry_failed: stopped. The same command goes on from there.", file=sys.stderr)
        return STOPPED


def retry_job(manifest: Manifest, flags: argparse.Namespace) -> ParseJob:
    """The job as it was run, with what the flags change. Passwords are not in the manifest: give them again."""
    if "window_seconds" in manifest.config:
        raise ValueError(f"{flags.output} is an index of videos; only jobs of documents can be retried yet")
    names = {field.name for field in dataclasses.fields(ParseJob)} - {"password"}
    as_it_was = {name: value for name, value in manifest.config.items() if name in names}
    for name, value in as_it_was.items():
        if getattr(flags, name, None) is None:
            setattr(flags, name, value)
    flags.output = absolute(flags.output)
    return make_job(ParseJob, flags)


def _work(setup: Setup, codes: Sequence[str]) -> int:
    try:
        resources = allocate(setup.job, cluster())
    except ValueError as error:
        print(f"retry_failed: {error}", file=sys.stderr)
        return BAD_JOB
    if setup.finished is None:
        print("A retry was begun before: it is finished first.", file=sys.stderr)
    elif begin_retry(setup, codes, resources, sys.stderr) is None:
        print(f"Nothing failed{' with ' + ', '.join(codes) if codes else ''}; nothing to do.")
        return DONE
    manifest = run(dataclasses.replace(setup, finished=None), resources, sys.stderr)
    print(summary_text(manifest, setup.kind, setup.job.output))
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.retry_failed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", metavar="OUTPUT", help="where the job wrote to")
    codes = [code.value for code in ErrorCode]
    parser.add_argument(
        "--code", action="append", default=[], choices=codes, metavar="CODE", help="only what failed with this code"
    )
    parser.add_argument("--take-over", action="store_true", help="end another run that is working on this output")
    add_store_options(parser)
    add_options(parser, ParseJob, without=_FIXED | _STORE)
    return parser


if __name__ == "__main__":
    sys.exit(main())
