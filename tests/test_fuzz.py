"""A small fuzz for every build; `python -m tests.fuzz` goes on for hours."""

from pipeline.records import ErrorCode
from tests.decoding import in_fresh_process
from tests.fuzz import CHILD_BYTES, fuzz_answers, fuzz_files

MB = 2**20


def test_mutated_files_end_as_rows_with_known_codes_in_bounded_time_and_memory():
    report = in_fresh_process(fuzz_files, 60, 7)
    assert set(report.outcomes) <= {
        "empty",
        "page ok",
        *(f"{at} {code}" for at in ("file", "page") for code in ErrorCode),
    }
    assert report.outcomes["page ok"] > 10, "mutations leave most files readable in part"
    assert sum(count for outcome, count in report.outcomes.items() if outcome != "page ok") > 5
    assert report.child_bytes < CHILD_BYTES
    assert report.parent_growth < 64 * MB


def test_mutated_answers_parse_into_rows_whatever_they_are():
    assert fuzz_answers(600, seed=7).total() >= 600
