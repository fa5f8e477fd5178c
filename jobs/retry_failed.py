"""Reads again what failed in a finished job, and nothing else: `python -m jobs.retry_failed OUTPUT [--code CODE ...]`.

The inputs, pages and windows that failed are tried once more, with the job's own settings; the tables are then written
anew, with one row for each input and each page or window as before. Options that the answers do not depend on may be
changed: more memory, a longer time limit, a password. Killed, the same command goes on.
"""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Sequence

from jobs.cluster import connected
from jobs.options import add_options, add_store_options, job_books, make_job
from jobs.running import BAD_JOB, DONE, STOPPED, interrupt
from pipeline.flow import Setup, Superseded, allocated, prepare, run
from pipeline.job import INDEX_ANSWER_FIELDS, PARSE_ANSWER_FIELDS, IndexJob, ParseJob
from pipeline.kinds import VIDEO_KIND, kind_of
from pipeline.lease import Occupied, hold
from pipeline.manifest import Manifest, read_manifest
from pipeline.progress import summary_text
from pipeline.records import ErrorCode
from pipeline.retry import begin_retry
from pipeline.store import absolute

_FIXED = {"config", "input", "output", "model", "prompt", *PARSE_ANSWER_FIELDS, *INDEX_ANSWER_FIELDS}
_PARSE_FIELDS = {field.name for field in dataclasses.fields(ParseJob)}
_INDEX_FIELDS = {field.name for field in dataclasses.fields(IndexJob)}
_STORE = {"endpoint_url", "profile", "region"}


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    try:
        books = job_books(flags)
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


def retry_job(manifest: Manifest, flags: argparse.Namespace) -> ParseJob | IndexJob:
    """The job as it was run, with what the flags change. Passwords are not in the manifest: give them again.

    Raises ValueError for a flag of the other kind of job.
    """
    is_index = kind_of(manifest.config) is VIDEO_KIND
    names, others = (_INDEX_FIELDS, _PARSE_FIELDS) if is_index else (_PARSE_FIELDS, _INDEX_FIELDS)
    for name in others - names:
        if getattr(flags, name, None) is not None:
            raise ValueError(f"{name} is no option of the job in {flags.output}")
    for name in (manifest.config.keys() & names) - {"password"}:
        if getattr(flags, name, None) is None:
            setattr(flags, name, manifest.config[name])
    flags.output = absolute(flags.output)
    return make_job(IndexJob, flags) if is_index else make_job(ParseJob, flags)


def _work(setup: Setup, codes: Sequence[str]) -> int:
    try:
        resources = allocated(setup)
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


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m jobs.retry_failed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUTPUT", help="where the job wrote to")
    codes = [code.value for code in ErrorCode]
    parser.add_argument(
        "--code", action="append", default=[], choices=codes, metavar="CODE", help="only what failed with this code"
    )
    parser.add_argument("--take-over", action="store_true", help="end another run that is working on this output")
    add_store_options(parser)
    add_options(parser, ParseJob, without=_FIXED | _STORE)
    add_options(parser, IndexJob, without=_FIXED | _STORE | _PARSE_FIELDS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
