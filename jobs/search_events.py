"""Finds moments in an index of events: `python -m jobs.search_events OUTPUT "words"`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from urllib.parse import quote

from jobs.event_index import Hit, Query, clock, media_url, read_index, search
from jobs.options import CommandParser, add_store_options, store_options
from pipeline.event_times import read_time
from pipeline.records import BadInput
from pipeline.store import Store, absolute, join

FOUND, NOTHING_FOUND, BAD_JOB = 0, 1, 2
DESCRIPTION = """\
Searches the descriptions and labels of the events, or the answers to a --question, that jobs.index_videos wrote to
OUTPUT. Events with any of the words are listed, the best first (BM25). Words of four letters and more also find longer
words that begin with them, and for half as much those that differ by one letter: what a model read may be misread.
Without words, all events that pass the filters are listed in order of video and time."""
EXAMPLES = """\
examples:
  python -m jobs.search_events out "red circle"
  python -m jobs.search_events out "goal" --video match7 --after 45:00 --limit 3
  python -m jobs.search_events s3://archive/index "title card" --json

exit status: 0 something was found, 1 nothing was, 2 the search cannot be run as given"""


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    try:
        query = Query(
            words=flags.words,
            video=flags.video,
            label=flags.label,
            after_us=_time_us("--after", flags.after),
            before_us=_time_us("--before", flags.before),
            limit=flags.limit,
        )
        if query.limit < 1:
            raise ValueError(f"--limit must be at least 1, not {query.limit}")
        store, output = Store(store_options(flags)), absolute(flags.output)
        hits = search(read_index(store, output), query)
    except (ValueError, BadInput) as error:
        print(f"search_events: {error}", file=sys.stderr)
        return BAD_JOB
    page = join(output, "export", "index.html")
    page_url = media_url(page) if store.exists(page) else ""
    print(_json(hits, page_url) if flags.json else _text(hits, page_url))
    return FOUND if hits else NOTHING_FOUND


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m jobs.search_events",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "output", metavar="OUTPUT", help="where jobs.index_videos wrote: a folder or s3://bucket/prefix"
    )
    parser.add_argument("words", metavar="WORDS", nargs="?", default="", help="what to look for")
    parser.add_argument("--video", default="", metavar="TEXT", help="only videos whose uri holds this, or with this id")
    parser.add_argument("--label", default="", metavar="TEXT", help="only events with this label")
    parser.add_argument("--after", metavar="TIME", help="only events that last beyond this time: 90, 1:30 or 0:01:30")
    parser.add_argument("--before", metavar="TIME", help="only events that begin before this time")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="how many events at most (default: 10)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, times in microseconds")
    add_store_options(parser)
    return parser


def _time_us(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    seconds = read_time(text)
    if seconds is None:
        raise ValueError(f"{flag} must be a time such as 90, 1:30 or 0:01:30, not {text!r}")
    return round(seconds * 1_000_000)


def _json(hits: Sequence[Hit], page_url: str) -> str:
    rows = [asdict(hit) | {"links": _links(hit, page_url)} for hit in hits]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _text(hits: Sequence[Hit], page_url: str) -> str:
    if not hits:
        return "nothing found"
    lines = []
    for hit in hits:
        score = f"{hit.score:6.2f}  " if hit.score else ""
        span = f"{clock(hit.start_us)} - {clock(hit.end_us, round_up=True)}"
        label = f"[{_printable(hit.label)}] " if hit.label else ""
        lines.append(f"{score}{_printable(hit.filename)}  {span}  {label}{_printable(hit.description)}")
        lines += [f"        {link}" for link in _links(hit, page_url)]
    return "\n".join(lines)


def _links(hit: Hit, page_url: str) -> list[str]:
    """The source at the event's start, and the event on the page of jobs.export_events where there is one."""
    return [hit.link, *([f"{page_url}#{quote(hit.event_id)}"] if page_url else [])]


def _printable(text: str) -> str:
    """Text on one line that cannot steer a terminal: a description is what a model or a file says."""
    return "".join(character if character.isprintable() else " " for character in text)


if __name__ == "__main__":
    sys.exit(main())
