"""What evaluate_events says of an index: perfect answers are found whole, and what is wrong is counted."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.evaluate_events import differing_tables, evaluate, found_first, is_met, report, sample_clips
from jobs.event_index import read_index
from jobs.event_scores import told_event
from jobs.oracle import Oracle, OracleLoader
from jobs.sample_videos import SampleClip
from model.request import Completion, Prompt
from pipeline.flow import prepare
from pipeline.job import IndexJob
from pipeline.store import Store
from pipeline.tables import to_parquet
from tests.pipeline.test_video_stages import close_index


def index(job: IndexJob, clips: dict[str, SampleClip]) -> Path:
    """Perfect answers through survey, decoder, sink and closing, without Ray."""
    store = Store()
    by_id = {store.stat(f"{job.input}/{name}").asset_id: clip for name, clip in clips.items()}
    oracle = Oracle(OracleLoader(clips=by_id, model=job.model, fps=job.fps, step_us=12_000_000))

    def answer(prompt: Prompt) -> Completion:
        oracle.add(prompt)
        (completion,) = oracle.step()
        return completion

    close_index(prepare(job), answer=answer)
    return Path(job.output)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SampleClip]]:
    folder = tmp_path_factory.mktemp("events")
    clips = sample_clips(folder / "videos", 3, 20.0, 70.0)
    job = IndexJob(
        input=str(folder / "videos"), output=str(folder / "whole"), fps=2.0, window_seconds=16.0, overlap_seconds=4.0
    )
    return index(job, clips), clips


def test_perfect_answers_are_found_dated_and_told_once(indexed: tuple[Path, dict[str, SampleClip]]) -> None:
    found = evaluate(*indexed, fps=2.0)
    assert found.sampled.true == found.sampled.told == found.sampled.recalled == found.sampled.dated > 10
    assert (found.sampled.doubled, found.sampled.invented) == (0, 0)
    assert found.searched == found.sampled.true
    assert found.crossing > 0
    assert is_met(found.sampled)
    assert "100.0%     100.0%        0         0" in report(found, 3, "the oracle")


def test_an_event_told_twice_or_missed_is_counted(indexed: tuple[Path, dict[str, SampleClip]], tmp_path: Path) -> None:
    output, clips = indexed
    for name in ("videos", "windows", "events", "chapters"):
        (tmp_path / name).mkdir()
        rows = pq.read_table(output / name)
        if name == "events":
            rows = rows.take([1, 1, *range(2, len(rows))])
        (tmp_path / name / "part.parquet").write_bytes(to_parquet(rows))
    (tmp_path / "_SUCCESS").touch()
    found = evaluate(tmp_path, clips, fps=2.0)
    assert found.sampled.doubled == 1
    assert found.sampled.recalled == found.sampled.true - 1 >= found.searched
    assert not is_met(found.sampled)
    assert differing_tables(output, output) == []
    assert [text.split(" (")[0] for text in differing_tables(output, tmp_path)] == ["events"]


def test_a_search_finds_an_event_by_the_words_that_were_read_right(
    indexed: tuple[Path, dict[str, SampleClip]],
) -> None:
    output, _ = indexed
    index = read_index(Store(), str(output))
    first = index.events.slice(0, 1).to_pylist()[0]
    one = replace(index, events=index.events.slice(0, 1))
    truth = told_event(first["start_us"], first["end_us"], f"misread {first['description']}")
    late = told_event(first["end_us"], first["end_us"] + 5_000_000, truth.description)
    assert found_first(one, [truth]) == 1
    assert found_first(one, [late]) == 0
    assert found_first(one, [late, truth]) == 2  # seen twice: either moment will do
    assert found_first(one, [replace(truth, description="unheard-of")]) == 0


def test_videos_are_the_same_each_time_and_as_long_as_asked_for(tmp_path: Path) -> None:
    clips = sample_clips(tmp_path, 2, 20.0, 21.0)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = sample_clips(tmp_path, 2, 20.0, 21.0)
    assert {name: clip.events for name, clip in clips.items()} == {name: clip.events for name, clip in again.items()}
    assert [clip.seconds for clip in clips.values()] == [20.0, 21.0]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
