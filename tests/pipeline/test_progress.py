"""What a person reads: the line while it runs, on a terminal and in a log, and the summary at the end."""

import io
import time

import pytest

from pipeline.books import FrozenSurvey
from pipeline.progress import (
    SECONDS_BETWEEN_UPDATES,
    Estimate,
    Progress,
    Tally,
    duration,
    plan_text,
    progress_line,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (89.4, "89 s"),
        (360, "6 min"),
        (3599, "1 h"),
        (12_000, "3 h 20 min"),
        (190_800, "2 d 5 h"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_the_line_tells_share_rate_tokens_failures_and_time_left():
    tally = Tally("pages", 1234, 5678, 100.0, tokens=891_000, failed={"corrupt": 1, "encrypted": 2})
    assert progress_line(tally) == (
        "pages 1,234/5,678 (21.7 %) · 12.3 pages/s · 8,910 tok/s · failed 3 (encrypted 2, corrupt 1) · 6 min left"
    )


def test_what_an_earlier_run_did_is_no_measure_of_this_ones_speed():
    line = progress_line(Tally("pages", 1100, 1200, 10.0, done_before=1000))
    assert "10.0 pages/s" in line
    assert line.endswith("10 s left")


def test_the_line_of_nothing_at_all_has_no_rates_to_divide_by():
    assert progress_line(Tally("pages", 0, 0)) == "pages 0/0 (100.0 %) · 0.0 pages/s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_few_whole_lines():
    stream = io.StringIO()
    progress = Progress("pages", 100, stream)
    for _ in range(100):
        progress.add(1, failed=["corrupt"])
    progress.finish()
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("pages 100/100 (100.0 %)")
    assert line.endswith("failed 100 (corrupt 100)")


def test_a_terminal_gets_one_line_that_is_overwritten():
    stream = Terminal()
    progress = Progress("pages", 1000, stream)
    for pages in (1, 999):
        time.sleep(SECONDS_BETWEEN_UPDATES)
        progress.add(pages)
    progress.finish()
    assert stream.getvalue().count("\n") == 1
    first, last = stream.getvalue().rstrip("\n").split("\r")[1:]
    assert first.startswith("pages 1/1,000 (0.1 %)")
    assert last.startswith("pages 1,000/1,000 (100.0 %)")
    assert len(last) >= len(first), "what was longer shows through"


def test_the_plan_tells_what_reading_will_take():
    survey = FrozenSurvey(0, "survey/000000", 1, 25, {"corrupt": 2, "encrypted": 4}, 300, 60, 250, 500_000)
    estimated = Estimate(
        tokens_out=150_000,
        most_tokens_out=1_024_000,
        start_seconds=20,
        load_seconds=61,
        read_seconds=500,
        basis="given",
    )
    text = plan_text(survey, "pages", estimated)
    assert "25: 19 can be read, failed 6 (encrypted 4, corrupt 2)" in text
    assert "250 to read of 300" in text
    assert "500,000 visual tokens in; out about 150,000, at most 1,024,000" in text
    assert "about 10 min: 20 s to start and to open the inputs, 61 s to load the model, 8 min to read (given)" in text
