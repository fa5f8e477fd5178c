"""A short soak, for every build; `make soak` goes on for longer, and with ranks and videos."""

from tests.soak import soak


def test_jobs_under_fire_end_with_the_tables_of_an_undisturbed_run():
    assert soak(kills=10, seed=7, jobs=["documents"], inputs=4).total() >= 10
