"""Columns in which two runs of one job may differ are named, and no others."""

import pyarrow as pa

from jobs.evaluate_events import difference
from pipeline.schema import LOG_PROBABILITIES, VARYING
from pipeline.tables import DOCUMENTS, PAGES
from pipeline.video_tables import VIDEOS, WINDOWS


def test_every_varying_column_is_one_of_pages_and_of_windows():
    for schema in (PAGES, WINDOWS):
        assert set(schema.names) >= VARYING | LOG_PROBABILITIES


def test_what_was_read_is_never_called_varying():
    assert {name for schema in (DOCUMENTS, VIDEOS) for name in schema.names} & VARYING == {"attempts"}
    assert not VARYING & {"markdown", "answer", "status", "flags", "tokens_out", "finish_reason", "resumes"}


def test_only_the_last_bits_of_log_probabilities_may_differ():
    one, near, far = (pa.table({"min_logprob": pa.array([value], pa.float32())}) for value in (-1.0, -1.00005, -1.001))
    assert difference(one, near) == ""
    assert difference(one, far) == "min_logprob"
