"""Documents in a folder or bucket become Parquet tables: `python -m jobs.parse_documents INPUT OUTPUT`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.options import CommandParser, add_options, make_job
from jobs.running import EXIT_STATUS, add_run_flags, run_job, with_absolute_paths
from pipeline.job import ParseJob

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

"""


def main(argv: Sequence[str] | None = None, *, own_files: bool = True) -> int:
    flags = _parser().parse_args(argv)
    return run_job("parse_documents", lambda: _job(flags), flags, own_files=own_files)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m jobs.parse_documents",
        description=DESCRIPTION,
        epilog=EXAMPLES + EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, ParseJob)
    parser.add_argument("--password-file", metavar="FILE", help="more passwords to try, one on each line")
    add_run_flags(parser)
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
    return with_absolute_paths(replace(job, password=tuple(passwords)))


if __name__ == "__main__":
    sys.exit(main())
