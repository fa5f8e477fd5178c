"""Loops are found soon after they begin, and what pages legitimately repeat is not taken for one."""

import random

import pytest

from model.loops import clean_length

PROSE = "The committee met on Tuesday and heard the report of the treasurer on the state of the accounts.\n\n"


def first_alarm(text: str) -> int | None:
    """How many characters were written when the alarm came, checked every 64 characters."""
    return next((end for end in range(64, len(text) + 64, 64) if clean_length(text[:end]) is not None), None)


@pytest.mark.parametrize(
    "unit",
    ["the same ", "I am not sure what to say about this. ", "ha", "| 0 ", "17, ", "Lorem ipsum dolor sit amet. " * 3],
    ids=["words", "sentence", "syllable", "cells", "numbers", "sentences"],
)
def test_a_repeated_unit_ends_the_text_behind_its_first_round(unit):
    text = PROSE + unit * (2000 // len(unit))
    alarm = first_alarm(text)
    assert alarm is not None
    assert alarm - len(PROSE) < max(260, 9 * len(unit) + 64)
    clean = text[: clean_length(text[:alarm])]
    assert clean.startswith(PROSE.rstrip())
    assert len(clean) <= len(PROSE) + len(unit)
    assert clean_length(text[: alarm + len(unit) // 2]) == len(clean)  # wherever the round is cut


def test_whole_lines_may_repeat_as_often_as_rows_of_a_table_do():
    row = "| 2024-01-01 | closed | 0 |\n"
    assert first_alarm(PROSE + row * 20 + PROSE) is None
    text = PROSE + row * 60
    alarm = first_alarm(text)
    assert alarm is not None
    assert text[: clean_length(text[:alarm])].count(row.strip()) == 1


def test_few_lines_in_changing_order_are_a_loop_too():
    draw = random.Random(1)
    lines = ["- the first of the points\n", "- the second one\n", "- a third\n"]
    text = PROSE + "".join(draw.choice(lines) for _ in range(80))
    assert clean_length(PROSE + "".join(draw.choice(lines) for _ in range(25))) is None
    clean = clean_length(text)
    assert clean is not None
    assert clean <= len(PROSE) + 10 * len(lines[0])
    assert all(line.strip() in text[:clean] for line in lines)


def legitimate_texts() -> dict[str, str]:
    draw = random.Random(2)
    words = PROSE.split()
    return {
        "contents": "".join(f"{n} Chapter of {draw.choice(words)} {'.' * 120} {3 * n}\n" for n in range(1, 40)),
        "spaced contents": "".join(f"Section {n} {'. ' * 60}{3 * n}\n" for n in range(1, 40)),
        "numbers": "".join(f"| {n} | {draw.randint(0, 9)}.00 | 0.00 | 0.00 | 0.00 |\n" for n in range(200)),
        "equal rows": "| Name | Value |\n|---|---|\n" + "| - | 0 |\n" * 22 + PROSE,
        "empty cells": "| a |" + " |" * 150 + "\n" + "|---" * 150 + "|\n" + PROSE,
        "rule": PROSE + "_" * 300 + "\n" + PROSE + "-" * 500 + "\n",
        "prose": " ".join(draw.choice(words) for _ in range(3000)),
        "digits": "".join(str(draw.randint(0, 9)) for _ in range(4000)),
        "chorus": ("La la la la la la\n" * 4 + PROSE) * 6,
    }


@pytest.mark.parametrize("name", legitimate_texts())
def test_what_pages_repeat_passes(name):
    assert first_alarm(legitimate_texts()[name]) is None


def test_the_start_of_a_loop_is_found_far_before_the_tail_that_is_looked_at():
    text = PROSE + "round and " * 900
    assert text[: clean_length(text)] in (PROSE + "round and ", PROSE + "round and", PROSE.rstrip() + "\n\nround and")


def test_short_and_empty_texts_have_no_loop():
    assert clean_length("") is None
    assert clean_length("aaaa") is None
