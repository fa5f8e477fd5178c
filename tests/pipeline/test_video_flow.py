"""Videos through the whole job on a real Ray: every input, window and event once, whoever dies in the middle."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.flow import planned_survey, prepare, run
from pipeline.job import IndexJob
from pipeline.store import Store, StoreOptions, join
from tests.drive import SMALL
from tests.fakes import FakeLoader
from tests.pipeline.video_files import write_lights

ROOT = Path(__file__).parents[2]
# Seconds in which the light is on; "long.mp4" has windows of 60 s every 50 s, and events across their borders.
LIGHTS = {
    "long.mp4": (200, [(5.0, 9.0), (48.0, 63.0), (90.0, 175.0), (180.0, 184.0)]),
    "none.mp4": (30, []),
    "short.mkv": (12, [(3.0, 6.0)]),
}
TIMINGS = ("decode_ms", "queue_ms", "infer_ms")
TABLES = ("videos", "windows", "events", "chapters")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, (seconds, lights) in LIGHTS.items():
        write_lights(folder / name, seconds, lights)
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and nothing more")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


def run_job(inputs: Path | str, output: Path | str, **options):
    setup, stream = prepare(IndexJob(input=str(inputs), output=str(output), **options)), io.StringIO()
    return run(setup, SMALL, stream, load_engine=FakeLoader()), stream.getvalue()


def tables_of(output: Path) -> dict[str, pa.Table]:
    tables = {name: pq.read_table(output / name) for name in TABLES}
    return tables | {"windows": tables["windows"].drop_columns(TIMINGS)}


@pytest.fixture(scope="module")
def undisturbed(ray_address, inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    return output, *run_job(inputs, output)


def test_every_input_has_its_row_and_every_event_is_there_once(undisturbed):
    tables = tables_of(undisturbed[0])
    columns = ["filename", "status", "error_code", "windows_total", "events"]
    assert [tuple(row.values()) for row in tables["videos"].select(columns).to_pylist()] == [
        ("broken.mp4", "failed", "corrupt", 0, 0),
        ("empty.mp4", "failed", "empty_file", 0, 0),
        ("long.mp4", "ok", "", 4, 4),
        ("none.mp4", "ok", "", 1, 0),
        ("short.mkv", "ok", "", 1, 1),
    ]
    names = dict(zip(tables["videos"]["video_id"].to_pylist(), tables["videos"]["filename"].to_pylist(), strict=True))
    found = [(names[e["video_id"]], e["start_us"] / 1e6, e["end_us"] / 1e6) for e in tables["events"].to_pylist()]
    wanted = [(name, *light) for name, (_, lights) in sorted(LIGHTS.items()) for light in lights]
    assert [name for name, *_ in found] == [name for name, *_ in wanted]
    for (_, start, end), (_, true_start, true_end) in zip(found, wanted, strict=True):
        assert abs(start - true_start) <= 1.0
        assert abs(end - true_end) <= 1.0
    assert len(set(tables["events"]["event_id"].to_pylist())) == len(found)
    assert len(tables["windows"]) == 6


def test_the_manifest_and_the_progress_count_what_the_tables_hold(undisturbed):
    output, manifest, shown = undisturbed
    assert manifest.assets.by_status == {"failed": 2, "ok": 3}
    assert manifest.pieces.by_status == {"ok": 6}
    assert manifest.found == 5
    for file in manifest.tables:
        assert pq.read_metadata(output / file.file).num_rows == file.rows
    assert "windows 6/6 (100.0 %) · videos 5/5" in shown
    assert "0.07 h of video" in shown
    in_windows = sum(tables_of(output)["windows"]["events"].to_pylist())
    assert in_windows > 5
    assert f"{in_windows} events" in shown


def test_an_index_whose_driver_was_killed_ends_with_the_same_tables(ray_address, undisturbed, inputs, tmp_path):
    output = tmp_path / "out"
    environment = os.environ | {"RAY_ADDRESS": ray_address}
    command = [sys.executable, "-m", "tests.drive", str(inputs), str(output), "1", "videos"]
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 300
        while not list(output.glob("_job/parts/*/*.parquet")):
            assert driver.poll() is None, driver.stderr and driver.stderr.read().decode()
            assert time.monotonic() < until, "no part was written"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    assert not (output / "_SUCCESS").exists()
    run_job(inputs, output, max_new_tokens=4096)
    assert tables_of(output) == tables_of(undisturbed[0])


def test_a_bucket_gives_the_same_events_as_a_folder(s3, undisturbed, inputs):
    store, bucket = Store(StoreOptions(endpoint_url=s3.endpoint_url)), s3.new_bucket()
    for path in inputs.iterdir():
        store.put(f"s3://{bucket}/in/{path.name}", path.read_bytes())
    manifest, _ = run_job(f"s3://{bucket}/in", f"s3://{bucket}/out", endpoint_url=s3.endpoint_url)
    (file,) = [file.file for file in manifest.tables if file.file.startswith("events")]
    events = pq.read_table(pa.BufferReader(store.read(join(f"s3://{bucket}/out", file))))
    columns = ["start_us", "end_us", "description"]
    assert events.select(columns) == tables_of(undisturbed[0])["events"].select(columns)


def test_queries_label_what_they_find_and_another_plan_is_refused(ray_address, inputs, undisturbed, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "short.mkv").write_bytes((inputs / "short.mkv").read_bytes())
    run_job(tmp_path / "in", tmp_path / "out", query=("a light", "the dark"))
    assert sorted(tables_of(tmp_path / "out")["events"]["label"].to_pylist()) == ["a light", "the dark"]
    with pytest.raises(ValueError, match=r"fps: 0\.0 -> 4\.0"):
        prepare(IndexJob(input=str(inputs), output=str(undisturbed[0]), fps=4.0))


def test_a_plan_opens_every_input_and_reads_none(ray_address, inputs, tmp_path):
    setup = prepare(IndexJob(input=str(inputs), output=str(tmp_path / "out")))
    survey = planned_survey(setup, SMALL, io.StringIO())
    assert (survey.assets, survey.pages, survey.failed) == (5, 6, {"corrupt": 1, "empty_file": 1})
    assert "windows of 60 s every 50 s, ended early by shot cuts, 2 frames a second" in setup.media.plan
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_seconds": 500.0}, "checkpoint takes 768"),
        ({"overlap_seconds": 40.0}, "more than half"),
        ({"window_seconds": 0.5}, "no two frames"),
        ({"max_tokens_per_window": 3}, "less than a token"),
        ({"question": "why?", "query": ("a",)}, "one wish"),
        ({"fps": -1.0}, "fps must be 0"),
    ],
)
def test_a_bad_job_is_refused_with_the_reason(options, message, inputs, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(IndexJob(input=str(inputs), output=str(tmp_path / "out"), **options))
    assert not (tmp_path / "out").exists()
