"""The attention kernel, compiled for GPUs that are not here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model import kernels

ROOT = Path(__file__).parents[2]
if not kernels.HAS_TRITON:
    pytest.skip("needs triton: pip install '.[triton]'", allow_module_level=True)


@pytest.fixture(scope="module")
def compiled():
    """In a process of its own: in this one conftest may have asked for triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compiled", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_register_is_spilled_and_two_programs_share_a_processor(compiled):
    for line in compiled:
        print({name: line[name] for name in line if name != "ttir"})
    assert len(compiled) == 10
    assert all(line["spilled"] == 0 for line in compiled)
    assert all(2 * line["shared"] <= 164 * 1024 for line in compiled)  # of an sm_80, the smallest of them


def test_the_place_of_a_head_is_counted_in_64_bits(compiled):
    """Key head 7 of a cache of 2.4 million tokens of 128 numbers lies beyond 2^31."""
    for line in compiled:
        (head,) = re.findall(r"(%\w+) = tt.get_program_id y", line["ttir"])
        uses = [text for text in line["ttir"].splitlines() if re.search(rf"{head}\b", text)][1:]
        assert uses
        assert all("arith.extsi" in text and "i64" in text for text in uses)
