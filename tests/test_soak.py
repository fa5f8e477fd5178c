"""A short soak, for every build; `make soak` goes on for hours."""

import pytest

from tests.soak import soak


@pytest.mark.heavy
def test_jobs_under_fire_end_with_the_tables_of_an_undisturbed_run():
    assert soak(kills=10, seed=7, documents=4).total() >= 10
