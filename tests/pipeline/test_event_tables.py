"""Events and chapters come back from Parquet as they went in, read by another library."""

from pathlib import Path

import duckdb

from pipeline.event_tables import CHAPTERS, EVENTS, chapters_table, events_table
from pipeline.merge_events import chapters_of, merge_events
from pipeline.records import WindowEvent, WindowSpan
from pipeline.tables import to_parquet

SECOND = 1_000_000


def test_duckdb_reads_the_events_as_they_were_merged(tmp_path: Path) -> None:
    spans = [WindowSpan(1, 0, 60 * SECOND, (0, SECOND), 0), WindowSpan(2, 50 * SECOND, 90 * SECOND, (50 * SECOND,), 0)]
    said = [WindowEvent(10 * SECOND, 55 * SECOND, 'it\'s \ud800 a "dog"', "pet", 0.5, ("clamped",))]
    said.append(WindowEvent(56 * SECOND, 60 * SECOND, "rain", "", None, ()))
    events = merge_events(
        "video", [(spans[0], said), (spans[1], [WindowEvent(56 * SECOND, 70 * SECOND, "rain", "", None, ())])]
    )
    (tmp_path / "events.parquet").write_bytes(to_parquet(events_table(events)))
    (tmp_path / "chapters.parquet").write_bytes(to_parquet(chapters_table(chapters_of(events))))
    ids = [(event.event_id, events[0].chapter_id) for event in events]
    read = duckdb.connect()
    columns = "event_id, chapter_id, start_us, end_us, description, label, confidence, flags, len(sources)"
    rows = read.execute(f"select {columns} from '{tmp_path}/events.parquet' order by start_us").fetchall()
    assert rows == [
        (*ids[0], 10 * SECOND, 55 * SECOND, 'it\'s \ufffd a "dog"', "pet", 0.5, ["clamped"], 1),
        (*ids[1], 56 * SECOND, 70 * SECOND, "rain", "", None, [], 2),
    ]
    assert read.execute(f"select title, events from '{tmp_path}/chapters.parquet'").fetchall() == [(rows[0][4], 2)]


def test_empty_tables_have_all_their_columns() -> None:
    assert events_table([]).schema == EVENTS
    assert chapters_table([]).schema == CHAPTERS
