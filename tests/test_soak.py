"""A short soak, for every build; `make soak` goes on for longer, and with ranks and videos."""

from functools import partial

from tests.decoding import in_fresh_process
from tests.soak import soak


def test_jobs_under_fire_end_with_the_tables_of_an_undisturbed_run():
    # Apart from the Ray and the environment of the other tests.
    killed = in_fresh_process(partial(soak, kills=5, seed=7, jobs=["documents"], inputs=4))
    assert killed.total() >= 5
