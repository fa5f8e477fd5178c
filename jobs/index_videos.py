"""Videos in a folder or bucket become an index of events: `python -m jobs.index_videos INPUT OUTPUT`."""

import argparse
import sys
from collections.abc import Sequence

from jobs.options import CommandParser, add_options, make_job
from jobs.running import EXIT_STATUS, add_run_flags, run_job, with_absolute_paths
from pipeline.job import IndexJob

DESCRIPTION = """\
Watches videos with Qwen3-VL and writes an index of what happens in them as Parquet tables: OUTPUT/videos (a row for
each input), OUTPUT/windows (a row for each stretch of video the model saw at once), OUTPUT/events (what happens, with
start and end on the video's own clock, each event once although windows overlap), OUTPUT/chapters (runs of events),
and OUTPUT/_job.json. What cannot be read is a row that says why.

A window is as long as the checkpoint's frames allow, 60 seconds at most unless you say otherwise; frames per second,
seconds and tokens of a window follow from each other, and --plan prints them. More pixels for each frame: fewer
seconds, fewer frames per second, or more tokens. Sharper times: more frames per second, since no time is better than
the frame pair it was read from. Where a shot ends in the second half of what two windows share, the first one does too.
For windows of hours give --max-frames-per-window and --max-tokens-per-window as the model's context allows.
Stopped or killed, the same command goes on where it was; finished, it says so and does nothing."""
EXAMPLES = """\
examples:
  python -m jobs.index_videos ~/videos out                           a folder, with the small model that comes along
  python -m jobs.index_videos ~/videos out --plan                    only look: hours, windows, tokens, expected time
  python -m jobs.index_videos 's3://in/**/*.mp4' s3://out/index --model Qwen/Qwen3-VL-8B-Instruct
  python -m jobs.index_videos ~/videos out --query 'a goal is scored' --query 'a player is sent off'
  python -m jobs.index_videos ~/videos out --question 'How many people are in the room?' --window-seconds 20
  python -m jobs.search_events out 'red car'                         finds moments in what was written

"""


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    return run_job("index_videos", lambda: with_absolute_paths(make_job(IndexJob, flags)), flags)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m jobs.index_videos",
        description=DESCRIPTION,
        epilog=EXAMPLES + EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, IndexJob)
    add_run_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
