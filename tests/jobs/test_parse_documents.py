"""The command as people run it: what it says, what it refuses, and that it can be stopped and goes on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from reportlab.pdfgen.canvas import Canvas

import jobs.cluster
import jobs.running
from jobs.parse_documents import main
from jobs.running import DEMONSTRATION, exit_status
from pipeline.job import ParseJob
from tests.official import DEMO, write_headers
from tests.official_files import SIZES, tensors_of, write_small_files

ROOT = Path(__file__).parents[2]


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "jobs.parse_documents", *map(str, argv)]


def run(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv),
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def inputs(tmp_path) -> Path:
    return write_inputs(tmp_path / "in", pages=3)


def test_a_model_that_does_not_fit_this_machine_is_refused_before_ray_is_started(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(jobs.running, "connected", lambda: pytest.fail("Ray is started"))
    monkeypatch.setattr(jobs.cluster, "available_bytes", lambda: 20 * 10**9)
    model = tmp_path / "235B"
    write_small_files(model, "235B-A22B-Instruct")
    write_headers(model, list(tensors_of(SIZES["235B-A22B-Instruct"])))
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, model)
    (tmp_path / "in").mkdir()
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(model), "--device", "cpu"]
    assert main([*arguments, "--dtype", "bfloat16"]) == 2
    message = capsys.readouterr().err
    assert re.search(r"235B in bfloat16 needs 47\d\.\d GB \(weights 471\.3, .* 20\.0 GB on a node: give less", message)
    assert not (tmp_path / "out").exists()


def test_an_address_where_no_ray_answers_is_one_line(inputs, tmp_path, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for scheme in ("", "ray://"):
        monkeypatch.setenv("RAY_ADDRESS", scheme + address)
        assert main([str(inputs), str(tmp_path / "out")]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"parse_documents: no Ray answers at RAY_ADDRESS={scheme}{address} ")
        assert last.endswith("unset RAY_ADDRESS to run on this machine")


def write_inputs(folder: Path, *, pages: int) -> Path:
    """Four documents of so many pages, and an empty file."""
    folder.mkdir()
    for name in "abcd":
        canvas = Canvas(str(folder / f"{name}.pdf"))
        for page_no in range(1, pages + 1):
            canvas.drawString(100, 500, f"page {page_no}")
            canvas.showPage()
        canvas.save()
    (folder / "empty.pdf").write_bytes(b"")
    return folder


def test_help_teaches_every_option_with_examples():
    text = run("--help").stdout
    for word in ("--prompt", "--replicas", "--max-new-tokens", "--config", "--plan", "examples:", "exit status:"):
        assert word in text


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--replicas", "4,2", "replicas must be N or MIN,MAX"),
        ("--prompt", "no-such-file", "prompt 'no-such-file'"),
        ("--model", "no/such/model", "model 'no/such/model'"),
        ("--config", "nowhere.yaml", "config nowhere.yaml"),
        ("--password-file", "nowhere", "password file nowhere"),
    ],
)
def test_a_bad_job_is_one_clear_line_and_exit_2_and_leaves_no_trace(option, value, message, inputs, tmp_path, capsys):
    assert main([str(inputs), str(tmp_path / "out"), option, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("config.json", "is not a checkpoint: it has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("chat_template.jinja", "has no chat template"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("model.safetensors", "has no weights: neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint_is_refused_at_the_start(left_out, message, inputs, tmp_path, capsys):
    shutil.copytree(ROOT / "model" / "demo", tmp_path / "mine", ignore=shutil.ignore_patterns(left_out))
    assert main([str(inputs), str(tmp_path / "out"), "--model", str(tmp_path / "mine")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("own_files", "times"), [(True, 1), (False, 0)])
def test_that_the_model_is_for_demonstration_is_said_to_who_reads_own_files(
    own_files, times, inputs, tmp_path, capsys, monkeypatch
):
    def no_cluster():
        raise ConnectionError("no cluster here")

    monkeypatch.setattr("jobs.running.connected", no_cluster)
    assert main([str(inputs), str(tmp_path / "out")], own_files=own_files) == 2
    assert [DEMONSTRATION in line for line in capsys.readouterr().err.splitlines()].count(True) == times


def test_an_input_that_names_nothing_is_a_bad_job(tmp_path):
    done = run(tmp_path / "nothing", tmp_path / "out")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "no such file" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_stopped_job_goes_on_with_the_same_command_and_its_summary_counts_the_tables(tmp_path, ray_address):
    """With the model that comes along and its real engine, on a cluster that runs already. So many pages that most are
    still to be read when the first part is there."""
    inputs = write_inputs(tmp_path / "in", pages=14)
    argv = command(inputs, tmp_path / "out", "--max-new-tokens", 24, "--decoders", 1, "--batch-size", 1)
    environment = os.environ | {"RAY_ADDRESS": ray_address}
    stopped = subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not list(tmp_path.glob("out/_job/parts/*/*.parquet")) and stopped.poll() is None:
        assert time.monotonic() < until, "no part was written"
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=300)
    assert stopped.returncode == 130, errors
    assert "the same command goes on" in errors
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    pages = pq.read_table(tmp_path / "out" / "pages").to_pylist()
    assert [page["page_no"] for page in pages] == [*range(1, 15)] * 4
    truncated = sum(page["status"] == "truncated" for page in pages)
    manifest = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert manifest["pieces"]["by_status"].get("truncated", 0) == truncated
    assert f"tokens     {sum(page['tokens_in'] for page in pages):,} in" in done.stdout
    assert "failed 1 (empty_file 1)" in done.stderr

    again = run(inputs, tmp_path / "out", "--max-new-tokens", 24, "--max-failure-rate", 0.1)
    assert again.returncode == 1
    assert "done already" in again.stdout
    assert "20.0 % of the inputs failed" in again.stderr


@pytest.mark.parametrize(
    ("rate", "limit", "status"), [(1.0, None, 1), (0.99, None, 0), (1.0, 1.0, 0), (0.2, 0.1, 1), (0.1, 0.1, 0)]
)
def test_a_run_in_which_every_input_failed_is_no_success(rate, limit, status):
    manifest = SimpleNamespace(failure_rate=rate)
    job = ParseJob(input="in", output="out", max_failure_rate=limit)
    assert exit_status("parse_documents", manifest, job) == status


@pytest.mark.parametrize(
    ("name", "content", "flag", "status", "sentence"),
    [
        ("list.csv", "uri,tag\n", (), 0, "names no input"),
        ("list.csv", "uri,tag\n", ("--no-allow-empty",), 2, "names no input"),
        ("folder", None, (), 2, "is a folder without a file in it"),
        ("folder", None, ("--allow-empty",), 0, "is a folder without a file in it"),
        ("*.pdf", "", (), 2, "nothing matches"),
    ],
)
def test_nothing_to_read_is_a_success_where_it_may_be_so_any_night(
    tmp_path, capsys, name, content, flag, status, sentence
):
    source = tmp_path / name
    if content is None:
        source.mkdir()
    elif content:
        source.write_text(content)
    assert main([str(source), str(tmp_path / "out"), *flag]) == status
    said = capsys.readouterr()
    assert sentence in (said.err if status else said.out)
    assert not (tmp_path / "out").exists()
