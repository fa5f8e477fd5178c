"""Videos through the stages of the stream one after the other, without Ray: survey, decoder, answers, part, tables."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.close import close_shard
from pipeline.decode import Decoder
from pipeline.flow import Setup, decode_options, prepare, sink_options
from pipeline.job import IndexJob
from pipeline.rows import AnsweredPiece, AnsweredUnit, DecodedUnit, ReplicaLoad, Row
from pipeline.sink import PartWriter
from pipeline.survey import Surveyor, cut_units
from tests.drive import SMALL
from tests.fakes import completion
from tests.pipeline.test_video_flow import LIGHTS, inputs, tables_of

__all__ = ["inputs"]


def answered(row: Row) -> Row:
    """What a replica makes of a row of the decoder."""
    decoded = DecodedUnit.from_row(row)
    pieces = tuple(AnsweredPiece(p.facts, tuple(completion(prompt) for prompt in p.prompts)) for p in decoded.pieces)
    return AnsweredUnit(decoded.unit, pieces, decoded.failures, ReplicaLoad("r", 1, 1.0)).to_row()


def close_index(setup: Setup) -> None:
    job, books = setup.job, setup.books
    epoch = books.claim_epoch()
    surveyor = Surveyor(job.store_options, setup.media, SMALL.child_memory_bytes, job.piece_timeout_seconds)
    assets = surveyor(setup.listing)
    units = cut_units(assets, job.piece_ranges, bytes_per_token=setup.media.bytes_per_token)
    survey = books.freeze_survey(epoch, [(assets, units)])
    decoder, writer = Decoder(decode_options(setup, SMALL)), PartWriter(sink_options(setup, epoch))
    for unit in units.to_pylist():
        writer(pa.Table.from_pylist([answered(decoder(unit))]))
    sealed = books.sealed(books.claim_epoch())
    close_shard(books, survey, 0, sealed, setup.kind)


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
