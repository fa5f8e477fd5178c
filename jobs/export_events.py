"""An index of events as WebVTT, JSON and a page to look at: `python -m jobs.export_events OUTPUT`."""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from jobs.event_index import EventIndex, media_link, read_index
from jobs.event_page import VideoEvents, event_page, poster_file, thumbnail_file
from jobs.options import CommandParser, add_store_options, store_options
from jobs.thumbnails import POSTER, THUMBNAIL, Moment, pictures_of
from jobs.webvtt import event_cues, webvtt
from pipeline.records import BadInput
from pipeline.store import Store, absolute, join

DONE, BAD_JOB = 0, 2
FORMATS = ("vtt", "json", "html")
DESCRIPTION = """\
Writes what jobs.index_videos found to files for other programs and for people, in OUTPUT/export or the folder of --to:
  vtt   NAME.vtt (events) and NAME.chapters.vtt for each video: tracks for a player or an editor
  json  NAME.json for each video: its events and chapters with links to their seconds
  html  index.html: for each video a player with captions, a timeline, its events with pictures, click to play; for what
        could not be read the reason; a filter over all; opens without a server
Answers to a --question stand where events would. Times in vtt and links are a player's, which counts from the first
track; those in json and on the page are the video's own.
NAME is the video's file name and the beginning of its id."""


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    formats = flags.format or FORMATS
    store = Store(store_options(flags))
    try:
        output = absolute(flags.output)
        target = absolute(flags.to) if flags.to else join(output, "export")
        index = read_index(store, output)
    except (ValueError, BadInput) as error:
        print(f"export_events: {error}", file=sys.stderr)
        return BAD_JOB
    videos = _videos(index, target)
    written = 0
    for video in videos:
        for name, text in _files(video, formats):
            store.put(join(target, name), text.encode())
            written += 1
    if "html" in formats:
        pictures = _write_pictures(store, target, videos) if flags.thumbnails else set()
        title = flags.title or f"Events of {output.rstrip('/').rsplit('/', 1)[-1]}"
        store.put(join(target, "index.html"), event_page(title, videos, pictures, index.question).encode())
        written += 1 + len(pictures)
    print(f"{target}: {len(videos)} videos, {written} files")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m jobs.export_events",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "output", metavar="OUTPUT", help="where jobs.index_videos wrote: a folder or s3://bucket/prefix"
    )
    parser.add_argument("--format", action="append", choices=FORMATS, help="only this; may be given several times")
    parser.add_argument("--to", metavar="FOLDER", help="a folder or s3://bucket/prefix (default: OUTPUT/export)")
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (default: OUTPUT's own name)")
    parser.add_argument(
        "--thumbnails",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="decode pictures for the page: one of each video, and one at the start of each event",
    )
    add_store_options(parser)
    return parser


def _videos(index: EventIndex, target: str) -> list[VideoEvents]:
    """The videos in order of uri, each with its events, chapters and gaps in order of time."""
    of_video: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for name, table in ("events", index.events), ("chapters", index.chapters), ("gaps", index.gaps):
        for row in table.sort_by([("start_us", "ascending"), ("end_us", "ascending")]).to_pylist():
            of_video[name, row["video_id"]].append(row)
    return [
        VideoEvents(
            video,
            of_video["events", video["video_id"]],
            of_video["chapters", video["video_id"]],
            of_video["gaps", video["video_id"]],
            _player_url(video["source_uri"], target),
        )
        for video in index.videos.sort_by("source_uri").to_pylist()
    ]


def _player_url(uri: str, target: str) -> str:
    """Where a page in the folder `target` finds a video: relative, so that both can move or be served together. "" for
    what lies in a bucket: its objects are not public."""
    return "" if "://" in uri or "://" in target else quote(os.path.relpath(uri, target))


def _files(video: VideoEvents, formats: Sequence[str]) -> list[tuple[str, str]]:
    """(name, content) of the files of one video."""
    name = _file_name(video.video)
    files = []
    if "vtt" in formats and not video.is_failed:
        late_us = video.video["start_offset_us"]  # a player's clock, and a cue's, begins with the first track
        chapters = [
            (row["chapter_id"], row["start_us"] + late_us, row["end_us"] + late_us, row["title"])
            for row in video.chapters
        ]
        files += [
            (f"{name}.vtt", webvtt(event_cues(video.events, late_us))),
            (f"{name}.chapters.vtt", webvtt(chapters)),
        ]
    if "json" in formats:
        uri = video.video["source_uri"]
        content = {
            **video.video,
            "chapters": video.chapters,
            "events": [
                row | {"link": media_link(uri, row["start_us"] + video.video["start_offset_us"])}
                for row in video.events
            ],
        }
        files.append((f"{name}.json", json.dumps(content, indent=2, ensure_ascii=False)))
    return files


def _file_name(video: Mapping[str, Any]) -> str:
    """The video's name as far as every file system takes it, and as much of its id as keeps two apart."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', video['filename'])[:80].lstrip('.')}-{video['video_id'][:12]}"


def _write_pictures(store: Store, target: str, videos: Sequence[VideoEvents]) -> set[str]:
    """Writes JPEGs of the beginning of each event, and one of each video; names them relative to the page.

    A source that is gone has none.
    """
    written = set()
    for video in videos:
        if video.is_failed:
            continue
        moments = [Moment(thumbnail_file(row["event_id"]), _moment_us(row), THUMBNAIL) for row in video.events]
        whole = {"start_us": 0, "end_us": video.video["duration_us"]}
        shown = _moment_us(video.events[0] if video.events else whole)
        poster = Moment(poster_file(video.video["video_id"]), shown, POSTER)
        for file, jpeg in pictures_of(store, video.video["source_uri"], [*moments, poster]):
            store.put(join(target, file), jpeg)
            written.add(file)
    return written


def _moment_us(row: Mapping[str, Any]) -> int:
    """A second into an event, or its middle: at its start the frames may still show what was before."""
    start_us: int = row["start_us"]
    return start_us + min((row["end_us"] - start_us) // 2, 1_000_000)


if __name__ == "__main__":
    sys.exit(main())
