"""A small fuzz for every build; `python -m tests.fuzz` goes on for hours."""

import pytest

from pipeline.records import ErrorCode
from tests.decoding import in_fresh_process
from tests.fuzz import CHILD_BYTES, MAX_PIECES, PIECE_SECONDS, fuzz_answers, fuzz_files, fuzz_videos

MB = 2**20


@pytest.mark.parametrize(("fuzz", "count"), [(fuzz_files, 60), (fuzz_videos, 40)])
def test_mutated_files_and_videos_end_as_rows_with_known_codes_in_bounded_time_and_memory(fuzz, count):
    report = in_fresh_process(fuzz, count, 7)
    assert set(report.outcomes) <= {
        "empty",
        "piece ok",
        *(f"{at} {code}" for at in ("file", "piece") for code in ErrorCode),
    }
    assert report.outcomes["piece ok"] > 10, "mutations leave most files readable in part"
    assert sum(count for outcome, count in report.outcomes.items() if outcome != "piece ok") > 5
    assert report.slowest < 2 * PIECE_SECONDS * (1 + MAX_PIECES)
    assert report.child_bytes < CHILD_BYTES
    assert report.parent_growth < 64 * MB


def test_mutated_answers_parse_into_rows_whatever_they_are():
    assert fuzz_answers(600, seed=7).total() >= 600
