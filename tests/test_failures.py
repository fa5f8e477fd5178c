"""The tables that say which test keeps which failure away tell the truth."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("table", ["tests/failures.md", "SECURITY.md"])
def test_every_test_that_is_named_exists(table):
    named = set(re.findall(r"`(test_\w+)`", (TESTS.parent / table).read_text()))
    there = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named, f"{table} names no tests"
    assert named <= there, f"{table} names tests that are not there: {sorted(named - there)}"


def test_every_number_of_the_catalogue_has_its_line():
    numbers = re.findall(r"^\| (\d+) \|", (TESTS / "failures.md").read_text(), re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, 55))
