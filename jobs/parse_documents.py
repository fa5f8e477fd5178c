"""Documents in a folder or bucket become Parquet tables: `python -m jobs.parse_documents INPUT OUTPUT`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from jobs.cluster import connected
from jobs.options import add_options, make_job
from pipeline.flow import Setup, Superseded, cluster, find_survey, prepare, run
from pipeline.job import ParseJob, resolve_model
from pipeline.lease import Occupied, hold
from pipeline.manifest import Manifest
from pipeline.progress import plan_text, summary_text
from pipeline.resources import allocate, reading_speed
from pipeline.store import absolute

DONE, NOT_DONE, BAD_JOB, STOPPED = 0, 1, 2, 130
DESCRIPTION = """\
Reads documents (PDF, PNG, JPEG, WebP, BMP, GIF, TIFF) with Qwen3-VL and writes Parquet tables:
OUTPUT/documents (a row for each input), OUTPUT/pages (a row for each page), OUTPUT/blocks (headings, paragraphs, tables
and so on, in reading order), and OUTPUT/_job.json. What cannot be read is a row that says why.
Stopped or killed, the same command goes on where it was; finished, it says so and does nothing."""
EXAMPLES = """\
examples:
  python -m jobs.parse_documents ~/scans out                        a folder, with the small model that comes along
  python -m jobs.parse_documents ~/scans out --plan                 only look: inputs, pages, tokens, expected time
  python -m jobs.parse_documents 's3://in/2024/**/*.pdf' s3://out/2024 --model Qwen/Qwen3-VL-8B-Instruct
  python -m jobs.parse_documents list.csv out --prompt html --pages 1-3 --password-file passwords.txt
  python -m jobs.parse_documents --config nightly.yaml --replicas 2,8
  ray job submit --working-dir . -- python -m jobs.parse_documents s3://in s3://out

exit status: 0 done, 1 more than --max-failure-rate of the inputs failed or the job could not be finished,
2 the job cannot be run as given, 130 stopped (run it again to go on)"""


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    try:
        job = _job(flags)
        setup = prepare(job)
    except ValueError as error:
        return _refuse(error)
    if setup.finished and not flags.plan:
        print(f"This job is done already; nothing to do.\n{summary_text(setup.finished, job.output)}")
        return _exit_status(setup.finished, job)
    try:
        with hold(setup.books.store, job.output, take_over=flags.take_over), connected():
            signal.signal(signal.SIGTERM, interrupt)  # after ray.init, which sets its own
            return _work(setup, plan_only=flags.plan)
    except (Occupied, ConnectionError) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print("\nparse_documents: stopped. What is done is kept: the same command goes on from there.", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.parse_documents",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, ParseJob)
    parser.add_argument("--password-file", metavar="FILE", help="more passwords to try, one on each line")
    parser.add_argument(
        "--take-over", action="store_true", help="go on with a job that another run is working on: end that"
    )
    parser.add_argument("--plan", action="store_true", help="open every input, tell what reading would take, and stop")
    return parser


def _job(flags: argparse.Namespace) -> ParseJob:
    """The job with its paths absolute: actors live in other folders. Raises ValueError."""
    job = make_job(ParseJob, flags)
    passwords = list(job.password)
    if flags.password_file:
        try:
            passwords += Path(flags.password_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"password file {flags.password_file} cannot be read: {error}") from error
    is_our_own_folder = resolve_model(job.model) == job.model and Path(job.model).is_dir()
    return replace(
        job,
        input=absolute(job.input),
        output=absolute(job.output),
        model=os.path.abspath(job.model) if is_our_own_folder else job.model,
        password=tuple(passwords),
    )


def _work(setup: Setup, *, plan_only: bool) -> int:
    try:
        resources = allocate(setup.job, cluster())
    except ValueError as error:
        return _refuse(error)
    if plan_only:
        print(plan_text(find_survey(setup, resources, sys.stderr), *reading_speed(setup.job, resources)))
        return DONE
    try:
        manifest = run(setup, resources, sys.stderr)
    except Superseded as error:
        print(f"parse_documents: {error}", file=sys.stderr)
        return NOT_DONE
    print(summary_text(manifest, setup.job.output))
    return _exit_status(manifest, setup.job)


def _exit_status(manifest: Manifest, job: ParseJob) -> int:
    if manifest.failure_rate <= job.max_failure_rate:
        return DONE
    failed = f"{100 * manifest.failure_rate:.1f} % of the inputs failed"
    print(f"parse_documents: {failed}, more than --max-failure-rate {job.max_failure_rate:g}", file=sys.stderr)
    return NOT_DONE


def _refuse(error: Exception) -> int:
    print(f"parse_documents: {error}", file=sys.stderr)
    return BAD_JOB


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
