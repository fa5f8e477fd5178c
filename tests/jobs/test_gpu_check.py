"""The command for the day a GPU is there, rehearsed on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_fp8 import hopper_stand_in

import model.fp8
from jobs import gpu_kernels
from jobs.gpu_check import checks, main
from jobs.gpu_kernels import CheckFailedError, Settings
from jobs.gpu_processes import Check, run_all, run_one
from tests.broken_checks import check_broken_kernel, check_that_crashes, check_that_hangs, check_that_raises

ROOT = Path(__file__).parents[2]
ON_CPUS = {
    "copies to the device",
    "paged attention, sdpa",
    "paged attention, sdpa, FP8 cache",
    "paged attention, numba",
    "packed attention, sdpa",
    "experts",
    "logits",
    "answers",
    "answers, drafts",
    "answers, FP8 cache",
    "answers, two lanes",
    "answers, tensor parallel 2",
    "memory, weights",
    "roofline, demo",
}


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings("cpu", tmp_path / "tiny", 10**9)


def test_a_rehearsal_on_a_cpu_runs_all_that_can_run_there(tmp_path):
    """As people start it; the rest is skipped with the reason, and everything stands in the file."""
    report = tmp_path / "found.json"
    command = [sys.executable, "-m", "jobs.gpu_check", "--device", "cpu", "--json", str(report)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = json.loads(report.read_text())
    results = {check["name"]: check for check in found["checks"]}
    assert list(results) == [check.name for check in checks()]
    assert {name for name, check in results.items() if check["status"] == "PASS"} == ON_CPUS
    assert all(check["reason"] for check in results.values() if check["status"] == "SKIPPED")
    assert found["counts"] == {"PASS": 1 + len(ON_CPUS), "FAIL": 0, "SKIPPED": len(results) - len(ON_CPUS)}
    assert found["machine"]["torch"] == torch.__version__
    assert {"python", "cuda", "driver", "commit", "triton"} <= set(found["machine"])
    assert results["answers"]["numbers"]["tokens"] > 300
    assert results["answers, drafts"]["numbers"]["accepted"] > 10
    lines = done.stdout.splitlines()
    assert sum(line.startswith(("PASS", "SKIPPED")) for line in lines) == 1 + len(results)
    assert any(line.startswith("PASS    answers, two lanes") and " s  answers 15" in line for line in lines)
    assert "by the floor" in done.stdout


def test_a_broken_kernel_fails_and_is_named_with_its_number(settings, tmp_path, capsys):
    first, second = run_all(
        [Check("paged attention", check_broken_kernel), Check("copies", gpu_kernels.check_copies)], settings, tmp_path
    )
    assert (first.status, second.status) == ("FAIL", "PASS")
    assert first.numbers["largest difference"] > 0.1
    assert capsys.readouterr().out.startswith("FAIL    paged attention   ")
    assert "more than 1e-05" in first.reason


def test_a_check_that_hangs_fails_by_its_time_and_one_that_crashes_by_its_status(settings, tmp_path):
    hanging = run_one(Check("hanging", check_that_hangs, seconds=1.0), settings, tmp_path)
    assert (hanging.status, hanging.reason) == ("FAIL", "not done after 1 s: killed")
    crashing = run_one(Check("crashing", check_that_crashes), settings, tmp_path)
    assert (crashing.status, crashing.reason) == ("FAIL", "ended with status -6: the device is lost")
    raising = run_one(Check("raising", check_that_raises), settings, tmp_path)
    assert raising.reason.startswith("ended with status 1: ZeroDivisionError")


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.05, False)])
def test_fp8_products_that_are_five_per_cent_too_large_are_noticed(settings, monkeypatch, factor, passes):
    monkeypatch.setattr(gpu_kernels, "multiplies_fp8_blocks", lambda device: True)
    monkeypatch.setattr(model.fp8, "scaled_mm", lambda *parts, **how: factor * hopper_stand_in(*parts, **how))
    if passes:
        assert len(gpu_kernels.check_fp8_products(settings)) == 2 * len(gpu_kernels.FP8_ROWS) + 1
    else:
        with pytest.raises(CheckFailedError, match=r"error of 1 rows of 256 is 0\.05, more than 0\.01"):
            gpu_kernels.check_fp8_products(settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "--only 'nothing' is in no name:"),
        (["--model", "/no/such/folder"], "there is no /no/such/folder/config.json"),
    ],
)
def test_arguments_that_cannot_be_are_refused(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "found.json")]) == 1
    assert "torch sees no CUDA device here: --device cpu rehearses" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["checks"] == []
