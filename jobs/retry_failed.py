"""Reads again what failed in a finished job, and nothing else: `python -m jobs.retry_failed OUTPUT [--code CODE ...]`.

Inputs, pages and windows that failed in a way that may pass (storage, access, timeouts, memory, crashes; with
--password what is encrypted, with --max-new-tokens what was cut off) are tried once more, with the job's own settings;
--code names what else. The tables are then written anew, with one row for each input and each page or window as before,
and it says how many were recovered. Options that the answers do not depend on may be changed: more memory, a longer
time limit, a password. Killed, the same command goes on.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from jobs.cluster import this_machine
from jobs.options import CommandParser, add_options, add_store_options, job_books, make_job
from jobs.running import BAD_JOB, DONE, EXIT_STATUS, attended, exit_status
from pipeline.flow import Setup, prepare, run, with_longer_answers
from pipeline.job import INDEX_ANSWER_FIELDS, PARSE_ANSWER_FIELDS, IndexJob, ParseJob
from pipeline.kinds import VIDEO_KIND, Kind, kind_of
from pipeline.lease import hold
from pipeline.manifest import Manifest, read_manifest
from pipeline.progress import failures
from pipeline.records import ErrorCode
from pipeline.resources import Resources
from pipeline.retry import begin_retry, recovered
from pipeline.store import absolute
from pipeline.summary import summary_text

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
        setup = prepare(retry_job(manifest, flags), this_machine())
        if flags.longest_answer is not None:
            setup = with_longer_answers(setup, flags.longest_answer)
    except (ValueError, OSError) as error:
        print(f"retry_failed: {error}", file=sys.stderr)
        return BAD_JOB
    has_passwords = isinstance(setup.job, ParseJob) and bool(setup.job.password)
    codes = flags.code or codes_by_default(has_passwords=has_passwords, is_longer=bool(flags.longest_answer))
    if setup.finished and not set(codes) & {*manifest.assets.by_error, *manifest.pieces.by_error}:
        print(nothing_to_retry(manifest, setup.kind))
        return DONE
    holding = hold(setup.books.store, setup.job.output, take_over=flags.take_over)
    return attended("retry_failed", setup, lambda resources: _work(setup, codes, resources), holding=holding)


def codes_by_default(*, has_passwords: bool, is_longer: bool) -> list[str]:
    """What may end otherwise when it is tried again as the flags say."""
    codes = {code for code in ErrorCode if code.retryable} | {ErrorCode.NOT_FOUND}
    codes |= {ErrorCode.ENCRYPTED, ErrorCode.WRONG_PASSWORD} if has_passwords else set()
    codes |= {ErrorCode.OUTPUT_TRUNCATED} if is_longer else set()
    return sorted(codes)


def nothing_to_retry(manifest: Manifest, kind: Kind) -> str:
    """What is left, of a job in which no code that is asked for stands."""
    left = [
        f"{name}: {failures(counts.by_error)}"
        for name, counts in ((kind.assets, manifest.assets), (kind.pieces, manifest.pieces))
        if counts.by_error
    ]
    if not left:
        return "Nothing failed; nothing to do."
    return "Nothing here that trying again may help; nothing to do. Name it with --code to try it all the same.\n" + (
        "\n".join(left)
    )


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


def _work(setup: Setup, codes: Sequence[str], resources: Resources) -> int:
    if setup.finished is None:
        print("A retry was begun before: it is finished first.", file=sys.stderr)
    elif begin_retry(setup, codes, resources, sys.stderr) is None:
        print("Nothing failed with these codes; nothing to do.")
        return DONE
    manifest = run(dataclasses.replace(setup, finished=None), resources, sys.stderr)
    print(recovered(setup.books, setup.kind).text(setup.kind.pieces))
    print(summary_text(manifest, setup.kind, setup.job.output, setup.job.store_options))
    return exit_status("retry_failed", manifest, setup.job)


def parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m jobs.retry_failed",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUTPUT", help="where the job wrote to")
    codes = [code.value for code in ErrorCode]
    parser.add_argument(
        "--code",
        action="append",
        default=[],
        choices=codes,
        metavar="CODE",
        help="what has this code, and nothing else",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        dest="longest_answer",
        metavar="N",
        help="a higher limit of answers than the job's: reads again what was cut off (output_truncated), too",
    )
    parser.add_argument("--take-over", action="store_true", help="end another run that is working on this output")
    add_store_options(parser)
    add_options(parser, ParseJob, without=_FIXED | _STORE)
    add_options(parser, IndexJob, without=_FIXED | _STORE | _PARSE_FIELDS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
