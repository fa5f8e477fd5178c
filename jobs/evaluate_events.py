"""Measures an index of events against videos whose every event is known: `python -m jobs.evaluate_events FOLDER`.

Generates videos of 20 seconds to 10 minutes in FOLDER/videos, in words no training run has seen, and indexes them twice
with the real job, in windows that overlap: into FOLDER/whole, and into FOLDER/killed by a job that is killed in the
middle and run again. The events of the first are compared with the truth, the tables of both with each other, row for
row. What is in FOLDER already is used: the same command goes on after a stop, and a finished one only counts again.

The truth is taken twice: exact, and as far as the sampled frames show it, which is all that any model can tell. Each
true event is also searched for in the index of its video, by its own words, as a user would: how often the first hit is
the moment is what grounding benchmarks (Charades-STA, QVHighlights) call R@1. With --oracle the answers come from the
truth instead of a model, into FOLDER/oracle-whole and FOLDER/oracle-killed: what is lost then is not the model's fault.

Exit status: 0 when at least 95 % of what the frames show is found with an IoU of 0.7 or more (R@1), at least 95 % with
both ends within a frame pair, nothing twice, and both indexes are the same; otherwise 1.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.cluster import connected
from jobs.event_index import EventIndex, Query, read_index, search
from jobs.event_scores import MICROSECONDS, EventScores, as_sampled, is_moment, score_events, told_event
from jobs.options import CommandParser
from jobs.oracle import OracleLoader
from jobs.sample_videos import SampleClip, SampleEvent, frame_times, make_clip, pairs_of, write_video
from pipeline.books import Books
from pipeline.flow import allocated, prepare, run
from pipeline.job import IndexJob
from pipeline.lease import hold
from pipeline.schema import LOG_PROBABILITIES, LOG_PROBABILITY_TOLERANCE, VARYING
from pipeline.store import Store

SEED = 30_000  # no training run draws from it
SIZE = (160, 96)
VIDEO_FPS = 8
LEAST = 0.95


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found in an index, and how long it is."""

    exact: EventScores
    sampled: EventScores
    hours: float
    windows: int
    crossing: int  # true events that go on beyond the border of a window
    searched: int  # true events, as far as the frames show them, that a search for their words finds first


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    folder = Path(options.folder).absolute()
    began = time.monotonic()
    clips = sample_clips(folder / "videos", options.videos, options.shortest, options.longest)
    by = "oracle-" if options.oracle else ""
    whole, killed = (_job(options, folder, f"{by}{name}") for name in ("whole", "killed"))
    loader = _oracle(whole, clips) if options.oracle else None
    killed_at = index_with_a_kill(killed, loader)
    index_in_a_process(whole, loader)
    output = Path(whole.output)
    found = evaluate(output, clips, fps=options.fps)
    differing = differing_tables(output, Path(killed.output))
    print(report(found, len(clips), "the oracle" if options.oracle else options.model))
    print(f"killed with {killed_at} and resumed: {same_text(output, differing)}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if is_met(found.sampled) and not differing else 1


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="where videos and indexes go")
    parser.add_argument("--model", default="model/demo", help="checkpoint: a folder or a hub id (default: model/demo)")
    parser.add_argument("--oracle", action="store_true", help="answer from the truth instead of with a model")
    parser.add_argument("--videos", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--shortest", type=float, default=20.0, help="seconds of the shortest video (default: 20)")
    parser.add_argument("--longest", type=float, default=600.0, help="seconds of the longest one (default: 600)")
    parser.add_argument(
        "--fps", type=float, default=2.0, choices=(1.0, 2.0, 4.0), help="sampled frames a second (default: 2)"
    )
    parser.add_argument("--window-seconds", type=float, default=16.0, help="length of a window (default: 16)")
    parser.add_argument("--overlap-seconds", type=float, default=4.0, help="what windows share (default: 4)")
    return parser


def _job(options: argparse.Namespace, folder: Path, name: str) -> IndexJob:
    return IndexJob(
        input=str(folder / "videos"),
        output=str(folder / name),
        model=options.model,
        fps=options.fps,
        window_seconds=options.window_seconds,
        overlap_seconds=options.overlap_seconds,
        max_new_tokens=1024,
    )


def sample_clips(folder: Path, count: int, shortest: float, longest: float) -> dict[str, SampleClip]:
    """Clips by the names of their files, which are written where they are not there yet. Their lengths are spread
    evenly by ratio, so that short ones are as many as long ones."""
    rng = np.random.default_rng(SEED)
    lengths = np.round(np.geomspace(shortest, longest, count) * VIDEO_FPS) / VIDEO_FPS
    folder.mkdir(parents=True, exist_ok=True)
    clips = {}
    for number, seconds in enumerate(lengths.tolist()):
        name = f"{number:03d}.mp4"
        clips[name] = make_clip(rng, seconds=seconds, size=SIZE, held_out=True)
        if not (folder / name).exists():
            write_video(folder / f".{name}", clips[name], fps=VIDEO_FPS)
            (folder / f".{name}").rename(folder / name)
    return clips


def _oracle(job: IndexJob, clips: Mapping[str, SampleClip]) -> OracleLoader:
    store = Store()
    ids = {name: store.stat(str(Path(job.input) / name)).asset_id for name in clips}
    bare = {ids[name]: replace(clip, scenes=()) for name, clip in clips.items()}  # pictures would weigh megabytes
    step_us = round((job.window_seconds - job.overlap_seconds) * MICROSECONDS)
    return OracleLoader(clips=bare, model=job.model, fps=job.fps, step_us=step_us)


def index(job: IndexJob, loader: OracleLoader | None) -> None:
    """Runs the job as `jobs.index_videos` does, with another engine if there is one."""
    setup = prepare(job)
    if setup.finished:
        return
    with hold(setup.books.store, job.output), connected():
        run(setup, allocated(setup), sys.stderr, load_engine=loader)


def index_in_a_process(job: IndexJob, loader: OracleLoader | None) -> None:
    process = _start(job, loader)
    process.join()
    assert process.exitcode == 0, f"the job on {job.output} ended with {process.exitcode}"


def index_with_a_kill(job: IndexJob, loader: OracleLoader | None) -> str:
    """Kills the job (SIGKILL) as soon as half of its units are written, and runs it to its end; how far it had come."""
    books = Books(Store(), job.output)
    if (Path(job.output) / "_SUCCESS").exists():
        return "an earlier run of this command"
    process = _start(job, loader)
    while True:
        survey = books.survey()
        written = len(list(Path(job.output).glob("_job/parts/*/*.parquet")))
        if survey and 2 * written >= survey.units:
            break
        assert process.is_alive(), f"the job on {job.output} ended with {process.exitcode} before it could be killed"
        time.sleep(0.1)
    process.kill()
    process.join()
    assert not (Path(job.output) / "_SUCCESS").exists(), "the job was done before it could be killed"
    index_in_a_process(job, loader)
    return f"{written} of {survey.units} parts written"


def _start(job: IndexJob, loader: OracleLoader | None) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=index, args=(job, loader))
    process.start()
    return process


def evaluate(output: Path, clips: Mapping[str, SampleClip], *, fps: float) -> Evaluation:
    """The index in `output` against the clips by the names of their files."""
    index, windows = read_index(Store(), str(output)), pq.read_table(output / "windows").to_pylist()
    exact, sampled, crossing, searched = EventScores(), EventScores(), 0, 0
    for video in index.videos.to_pylist():
        clip = clips[video["filename"]]
        of_video = replace(index, events=index.events.filter(pc.field("video_id") == video["video_id"]))
        told = [
            told_event(event["start_us"], event["end_us"], event["description"])
            for event in of_video.events.to_pylist()
        ]
        shown = as_sampled(clip.events, pairs_of(frame_times(0.0, clip.seconds, fps)), clip.seconds)
        exact += score_events(told, clip.events, pair_seconds=2 / fps)
        sampled += score_events(told, shown, pair_seconds=2 / fps)
        ends = [row["end_us"] / MICROSECONDS for row in windows if row["video_id"] == video["video_id"]]
        crossing += sum(any(event.start_seconds < end < event.end_seconds for end in ends) for event in clip.events)
        searched += found_first(of_video, shown)
    hours = sum(clip.seconds for clip in clips.values()) / 3600
    return Evaluation(exact, sampled, hours, len(windows), crossing, searched)


def found_first(index: EventIndex, truth: Sequence[SampleEvent]) -> int:
    """How many true events are the moment that a search for their words finds first. Where the same was seen several
    times, each of these moments will do."""
    first = {words: search(index, Query(words, limit=1)) for words in {event.description for event in truth}}
    return sum(
        # As if told in the words that were asked for: a misread letter does no harm as long as the search finds it.
        is_moment(told_event(hit.start_us, hit.end_us, event.description), truth)
        for event in truth
        for hit in first[event.description]
    )


def differing_tables(first: Path, second: Path) -> list[str]:
    """The tables that are not equal row for row, with the columns that differ; what varies is no part of an index."""
    differing = []
    for name in ("videos", "windows", "events", "chapters"):
        one, other = (_what_stays(pq.read_table(folder / name)) for folder in (first, second))
        if apart := difference(one, other):
            differing.append(f"{name} ({apart})")
    return differing


def difference(one: pa.Table, other: pa.Table) -> str:
    """What sets two tables apart: their schemas, their numbers of rows, or the columns that differ; "" if nothing does.

    Log probabilities may differ by LOG_PROBABILITY_TOLERANCE."""
    if one.schema != other.schema:
        return "their schemas"
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} rows"
    return ", ".join(name for name in one.column_names if not _is_equal(name, one[name], other[name]))


def _is_equal(name: str, one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if name in LOG_PROBABILITIES:
        return np.allclose(one, other, rtol=0.0, atol=LOG_PROBABILITY_TOLERANCE)
    return bool(one.equals(other))


def _what_stays(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in table.column_names if name in VARYING])


def report(found: Evaluation, videos: int, answered_by: str) -> str:
    lines = [
        f"{videos} videos, {found.hours:.2f} h in {found.windows:,} windows, answered by {answered_by}; "
        f"{found.exact.true:,} events, {found.crossing:,} of them go on beyond the border of a window",
        f"{'against':24}{'events':>8}{'told':>8}{'R@1 0.7':>9}{'both ends':>11}{'doubled':>9}{'invented':>10}",
    ]
    for name, scores in (("what the frames show", found.sampled), ("the exact truth", found.exact)):
        lines.append(
            f"{name:24}{scores.true:8,}{scores.told:8,}{scores.recall:9.1%}{scores.dated_share:11.1%}"
            f"{scores.doubled:9,}{scores.invented:10,}"
        )
    lines.append(f"of those invented {found.sampled.misworded:,} are true events in other words")
    share = found.searched / max(found.sampled.true, 1)
    lines.append(f"searched for by its words, an event is the first hit, with an IoU of 0.7 or more: {share:.1%}")
    return "\n".join(lines)


def same_text(output: Path, differing: Sequence[str]) -> str:
    if differing:
        return f"NOT the same index: {'; '.join(differing)}"
    rows = {name: pq.read_table(output / name).num_rows for name in ("videos", "windows", "events", "chapters")}
    return "the same index, row for row: " + ", ".join(f"{count:,} {name}" for name, count in rows.items())


def is_met(scores: EventScores) -> bool:
    return scores.recall >= LEAST and scores.dated_share >= LEAST and scores.doubled == 0


if __name__ == "__main__":
    sys.exit(main())
