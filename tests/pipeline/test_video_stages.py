"""Videos through the stages of the stream one after the other, without Ray: survey, decoder, answers, part, tables."""

import io
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import retry_failed, status, verify
from model.request import Completion, Prompt
from pipeline.audit import audit
from pipeline.books import FrozenSurvey
from pipeline.close import close_shard
from pipeline.decode import Decoder
from pipeline.flow import Setup, decode_options, missing_units, prepare, sink_options
from pipeline.job import IndexJob
from pipeline.manifest import make_manifest, read_manifest, write_manifest
from pipeline.records import ErrorCode, Failure, Stage
from pipeline.retry import begin_retry
from pipeline.rows import AnsweredPiece, AnsweredUnit, DecodedUnit, ReplicaLoad, Row
from pipeline.sink import PartWriter
from pipeline.store import Store
from pipeline.survey import Surveyor, cut_units
from pipeline.tables import to_parquet
from tests.drive import SMALL
from tests.fakes import completion
from tests.pipeline.test_video_flow import LIGHTS, inputs, tables_of

__all__ = ["inputs"]


REFUSED = Failure(Stage.INFER, ErrorCode.INFER_REJECTED, "too long")


Answer = Callable[[Prompt], Completion]


def answered(row: Row, refused: Collection[int], answer: Answer) -> Row:
    """What a replica makes of a row of the decoder; it refuses the windows with these numbers."""
    decoded = DecodedUnit.from_row(row)
    pieces = [
        AnsweredPiece(
            piece.facts,
            tuple(REFUSED if piece.facts.number in refused else answer(prompt) for prompt in piece.prompts),
        )
        for piece in decoded.pieces
    ]
    return AnsweredUnit(decoded.unit, tuple(pieces), decoded.failures, ReplicaLoad("r", 1, 1.0, 0.1)).to_row()


def freeze_survey(setup: Setup) -> FrozenSurvey:
    job = setup.job
    surveyor = Surveyor(job.store_options, setup.media, SMALL.child_memory_bytes, job.piece_timeout_seconds)
    assets = surveyor(setup.listing)
    units = cut_units(assets, job.piece_ranges, bytes_per_token=setup.media.bytes_per_token)
    setup.books.open(setup.record)
    return setup.books.freeze_survey(setup.books.claim_epoch(), [(assets, units)])


def finish(setup: Setup, survey: FrozenSurvey, refused: Collection[int] = (), answer: Answer = completion) -> None:
    """Reads what has no rows yet, and closes the books."""
    books = setup.books
    epoch = books.claim_epoch()
    decoder, writer = Decoder(decode_options(setup, SMALL)), PartWriter(sink_options(setup, epoch))
    for unit in missing_units(books, survey, books.sealed(epoch)).to_pylist():
        writer(pa.Table.from_pylist([answered(decoder(unit), refused, answer)]))
    closed = close_shard(books, survey, 0, books.sealed(books.claim_epoch()), setup.kind)
    manifest = make_manifest(setup.job, setup.settings, survey, [closed], [], wall_seconds=1.0)
    write_manifest(books.store, books.output, manifest)


def close_index(setup: Setup, refused: Collection[int] = (), answer: Answer = completion) -> None:
    finish(setup, freeze_survey(setup), refused, answer)


def test_every_light_is_one_event_and_every_input_a_row(inputs, tmp_path):
    close_index(prepare(IndexJob(input=str(inputs), output=str(tmp_path / "out"))))
    tables = tables_of(tmp_path / "out")
    columns = ["filename", "status", "error_code", "windows_total", "events"]
    assert [tuple(row.values()) for row in tables["videos"].select(columns).to_pylist()] == [
        ("broken.mp4", "failed", "corrupt", 0, 0),
        ("empty.mp4", "failed", "empty_file", 0, 0),
        ("long.mp4", "ok", "", 4, 4),
        ("none.mp4", "ok", "", 1, 0),
        ("short.mkv", "ok", "", 1, 1),
    ]
    found = [(event["start_us"] / 1e6, event["end_us"] / 1e6) for event in tables["events"].to_pylist()]
    wanted = [light for _, (_, lights) in sorted(LIGHTS.items()) for light in lights]
    assert len(found) == len(wanted)
    for (start, end), (true_start, true_end) in zip(found, wanted, strict=True):
        assert abs(start - true_start) <= 1.0
        assert abs(end - true_end) <= 1.0
    assert [tuple(w["frame_us"][:2]) for w in tables["windows"].to_pylist()][:2] == [
        (0, 500_000),
        (50_000_000, 50_500_000),
    ]
    assert sum(tables["windows"]["events"].to_pylist()) > len(found), "no event was in two windows"


def test_a_window_is_drafted_from_the_one_before_by_the_same_query(inputs, tmp_path):
    setup = prepare(
        IndexJob(input=str(inputs / "long.mp4"), output=str(tmp_path / "out"), query=("a light", "the dark"))
    )
    survey = freeze_survey(setup)
    decoder = Decoder(decode_options(setup, SMALL))
    decoded = [DecodedUnit.from_row(decoder(unit)) for unit in setup.books.all_units(survey).to_pylist()]
    windows = [piece for unit in decoded for piece in unit.pieces]
    assert len(windows) == 4
    for before, window in pairwise(windows):
        assert [prompt.draft_from for prompt in window.prompts] == [prompt.key for prompt in before.prompts]
    known = {prompt.key for window in windows for prompt in window.prompts}
    assert known.isdisjoint(prompt.draft_from for prompt in windows[0].prompts)


def test_each_query_is_a_prompt_of_its_own(inputs, tmp_path):
    job = IndexJob(input=str(inputs / "short.mkv"), output=str(tmp_path / "out"), query=("a light", "the dark"))
    close_index(prepare(job))
    events = pq.read_table(tmp_path / "out" / "events")
    assert sorted(events["label"].to_pylist()) == ["a light", "the dark"]


def test_a_question_is_answered_for_each_window(inputs, tmp_path):
    job = IndexJob(input=str(inputs / "short.mkv"), output=str(tmp_path / "out"), question="Is there a light?")
    close_index(prepare(job))
    (window,) = pq.read_table(tmp_path / "out" / "windows").to_pylist()
    assert window["answer"] == '[{"start": 3.2, "end": 5.2, "description": "a bright light"}]'
    assert len(pq.read_table(tmp_path / "out" / "events")) == 0


def test_the_audit_believes_a_whole_index_and_names_what_was_tampered_with(inputs, tmp_path, capsys):
    output = tmp_path / "out"
    close_index(prepare(IndexJob(input=str(inputs), output=str(output))))
    counted = audit(Store(), str(output))
    assert counted.differences == ()
    assert (counted.assets, counted.pieces, counted.found) == (Counter(ok=3, failed=2), Counter(ok=6), 5)
    assert verify.main([str(output)]) == 0
    assert "windows    6: ok 6\nevents     5\nall is as it should be" in capsys.readouterr().out
    for table, says in (
        ("videos", "inputs with a row: 4, expected 5"),
        ("windows", "says 4 windows"),
        ("events", "events in the manifest"),
        ("chapters", "the chapters of shard 0 are not those of the parts"),
    ):
        path = output / table / f"{table}-00000.parquet"
        whole = path.read_bytes()
        rows = pq.read_table(path)
        path.write_bytes(to_parquet(rows.slice(1)))
        differences = audit(Store(), str(output)).differences
        assert any(says in difference for difference in differences), differences
        assert verify.main([str(output)]) == 1
        path.write_bytes(whole)


def test_a_window_that_was_refused_is_read_again_and_nothing_else(inputs, tmp_path, capsys):
    """Its index is then the one in which it never failed."""
    job = IndexJob(input=str(inputs), output=str(tmp_path / "out"))
    close_index(prepare(IndexJob(input=str(inputs), output=str(tmp_path / "undisturbed"))))
    close_index(prepare(job), refused={2})
    assert tables_of(tmp_path / "out") != tables_of(tmp_path / "undisturbed")
    assert status.main([job.output]) == 0
    shown = capsys.readouterr().out
    assert (
        "windows         6/6: failed 1, ok 5\nwindows failed  1 (infer_rejected 1)\nstate           finished" in shown
    )
    survey = begin_retry(prepare(job), ["infer_rejected"], SMALL, io.StringIO())
    setup = prepare(job)
    assert survey is not None
    assert [(unit["first"], unit["last"], unit["tries"]) for unit in units_of(setup, survey)][-1] == (2, 2, 1)
    assert setup.finished is None
    finish(setup, survey)
    assert tables_of(tmp_path / "out") == tables_of(tmp_path / "undisturbed")
    assert audit(Store(), job.output).differences == ()
    assert begin_retry(prepare(job), ["infer_rejected"], SMALL, io.StringIO()) is None


def units_of(setup: Setup, survey: FrozenSurvey) -> list[Row]:
    return setup.books.survey_units(survey, 0).to_pylist()


def test_a_retry_takes_the_options_of_its_job_and_refuses_those_of_the_other_kind(inputs, tmp_path, capsys):
    job = IndexJob(input=str(inputs / "short.mkv"), output=str(tmp_path / "out"), query=("a light",), fps=1.0)
    close_index(prepare(job))
    manifest = read_manifest(Store(), job.output)
    flags = retry_failed.parser().parse_args([job.output, "--window-timeout-seconds", "7"])
    assert retry_failed.retry_job(manifest, flags) == replace(job, window_timeout_seconds=7.0)
    assert retry_failed.main([job.output, "--page-timeout-seconds", "7"]) == 2
    assert "page_timeout_seconds is no option of the job" in capsys.readouterr().err


SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "video"
# What the manifest of the samples says becomes of each; of those not named here all is well.
TROUBLED = {
    "sample_audio_only_15s.mp4": ("failed", "no_video"),
    **dict.fromkeys(
        ("hls_http.m3u8", "hls_key.m3u8", "hls_local.m3u8", "concat_as.mp4", "sdp_as.mp4"),
        ("failed", "unsupported_type"),
    ),
}


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no sample videos here")
def test_every_sample_and_every_hostile_file_has_the_row_its_manifest_says(tmp_path):
    """Through the survey, the decoder, the sink and closing."""
    files = [path for path in SAMPLES.rglob("*") if path.suffix in {".mp4", ".mkv", ".ts", ".m3u8"}]
    (tmp_path / "in").mkdir()
    for path in files:
        shutil.copy(path, tmp_path / "in")
    job = IndexJob(input=str(tmp_path / "in" / "*"), output=str(tmp_path / "out"))
    close_index(prepare(job))
    rows = {row["filename"]: row for row in tables_of(tmp_path / "out")["videos"].to_pylist()}
    assert rows.keys() == {path.name for path in files}
    assert len(rows) >= 17
    for name, row in rows.items():
        assert (row["status"], row["error_code"]) == TROUBLED.get(name, ("ok", "")), name
        assert (row["duration_us"] > 0) == (name not in TROUBLED)
    corrupted = rows["corrupted.mp4"]
    assert (corrupted["decode_errors"], corrupted["corrupt_frames"], corrupted["is_truncated"]) == (1, 1, False)
    assert rows["mv_with_2_top_shots.mp4"]["rotation"] == 270
    assert rows["sample_with_htc_rotation_track_name.mkv"]["rotation"] == 0
    assert rows["nasa_13013.mp4"]["video_tracks"] == 2
    assert rows["derived_vfr_needles.mp4"]["is_vfr"]
