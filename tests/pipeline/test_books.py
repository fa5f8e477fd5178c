"""The books: one owner for each epoch, lists of parts that never change, and nothing counted twice."""

import json
import threading

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.books import Books
from pipeline.parse_pages import skipped_page
from pipeline.records import Asset, Unit
from pipeline.rows import unit_to_row
from pipeline.store import Store, StoreOptions
from pipeline.survey import UNITS, listing_table
from pipeline.tables import parts_table, to_parquet


@pytest.fixture
def books(tmp_path) -> Books:
    return Books(Store(), str(tmp_path / "out"))


def put_part(books: Books, epoch: int, *unit_ids: str) -> None:
    table = parts_table([(unit_id, skipped_page(f"doc of {unit_id}", 1)) for unit_id in unit_ids])
    books.store.put(books.part_uri(epoch, unit_ids), to_parquet(table))


def counted(books: Books, epoch: int) -> list[str]:
    return sorted(books.sealed(epoch)["unit_id"].to_pylist())


def test_a_unit_counts_once_its_epoch_is_sealed(books):
    assert books.claim_epoch() == 0
    put_part(books, 0, "a", "b")
    assert counted(books, 0) == []
    assert books.claim_epoch() == 1
    assert counted(books, 1) == ["a", "b"]


def test_a_part_that_comes_after_the_seal_never_counts(books):
    books.claim_epoch()
    put_part(books, 0, "a")
    books.claim_epoch()
    put_part(books, 0, "late")
    put_part(books, 1, "b")
    last = books.claim_epoch()
    assert counted(books, last) == ["a", "b"]


def test_a_unit_in_two_parts_counts_in_the_first(books):
    books.claim_epoch()
    put_part(books, 0, "a")
    put_part(books, 0, "a", "b")
    books.claim_epoch()
    put_part(books, 1, "b", "c")
    sealed = books.sealed(books.claim_epoch())
    assert sorted(sealed["unit_id"].to_pylist()) == ["a", "b", "c"]
    part_of_b = dict(zip(sealed["unit_id"].to_pylist(), sealed["part"].to_pylist(), strict=True))["b"]
    assert part_of_b.startswith("000000/")
    assert sorted(set(books.read_part(part_of_b)["unit_id"].to_pylist())) == ["a", "b"]


def test_the_same_units_go_to_the_same_part_whatever_their_order(books):
    assert books.part_uri(0, ["a", "b"]) == books.part_uri(0, ["b", "a"])
    assert books.part_uri(0, ["a", "b"]) != books.part_uri(0, ["a"])
    assert books.part_uri(0, ["a"]) != books.part_uri(1, ["a"])


def test_drivers_that_claim_at_the_same_moment_get_different_epochs(books):
    drivers = 8
    claimed: list[int] = []
    barrier = threading.Barrier(drivers)

    def drive() -> None:
        own = Books(Store(), books.output)
        barrier.wait()
        claimed.append(own.claim_epoch())

    threads = [threading.Thread(target=drive) for _ in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(drivers))


def test_a_driver_sees_that_another_has_begun_after_it(books):
    epoch = books.claim_epoch()
    assert not books.is_superseded(epoch)
    Books(Store(), books.output).claim_epoch()
    assert books.is_superseded(epoch)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("claim"), st.integers(0, 1)),
            st.tuples(st.integers(0, 5), st.frozensets(st.sampled_from("abcdef"), min_size=1, max_size=3)),
        ),
        max_size=16,
    )
)
def test_what_counts_never_changes_whoever_writes_and_whenever(tmp_path_factory, events):
    """Against a model: two drivers claim, anybody writes into any epoch at any time, as lost machines do."""
    books = Books(Store(), str(tmp_path_factory.mktemp("books")))
    parts: list[set[frozenset[str]]] = []  # of each epoch, as they are now
    frozen: list[set[str]] = []  # units of each sealed epoch, as they were when it was sealed
    epoch = -1
    for what, value in events:
        if what == "claim":
            epoch = books.claim_epoch()
            parts.append(set())
            frozen += [set().union(*done) for done in parts[len(frozen) : epoch]]
        elif what <= epoch:
            put_part(books, what, *value)
            parts[what].add(value)
    if epoch >= 0:
        assert set(counted(books, epoch)) == set().union(*frozen)
        assert len(counted(books, epoch)) == len(set(counted(books, epoch)))


def test_a_job_with_other_settings_is_refused_with_what_differs(books):
    begun = {"input": "/in", "prompt": "markdown", "max_new_tokens": "4096", "config_hash": "1"}
    books.open(begun)
    books.open(begun)
    with pytest.raises(ValueError, match="prompt: markdown -> html") as caught:
        books.open(begun | {"prompt": "html", "config_hash": "2"})
    assert "input" not in str(caught.value)
    assert "max_new_tokens" not in str(caught.value)


def unit_table(asset: Asset, last: int) -> pa.Table:
    unit = Unit(asset.asset_id, asset.uri, asset.size, asset.etag, 1, last, tokens=100 * last)
    return pa.Table.from_pylist([unit_to_row(unit)], schema=UNITS)


def test_a_survey_counts_only_when_its_mark_is_written_and_the_first_one_stays(books):
    first, second = books.claim_epoch(), books.claim_epoch()
    asset = Asset("/in/a.pdf", 10, "v1")
    assert books.survey() is None
    one = books.freeze_survey(first, [(listing_table([asset]), unit_table(asset, 3))])
    assert (one.shards, one.assets, one.units, one.unit_pages, one.unit_tokens) == (1, 1, 1, 3, 300)
    other = Asset("/in/b.pdf", 10, "v1")
    assert books.freeze_survey(second, [(listing_table([other]), unit_table(other, 4))]) == one
    assert books.survey_assets(one, 0)["uri"].to_pylist() == ["/in/a.pdf"]
    assert books.survey_units(one, 0)["last"].to_pylist() == [3]


def test_a_survey_broken_off_in_the_middle_is_made_anew(books):
    asset = Asset("/in/a.pdf", 10, "v1")

    def breaks_off():
        yield listing_table([asset]), unit_table(asset, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        books.freeze_survey(books.claim_epoch(), breaks_off())
    assert books.survey() is None
    again = books.freeze_survey(books.claim_epoch(), [(listing_table([asset]), unit_table(asset, 5))])
    assert books.survey_units(again, 0)["last"].to_pylist() == [5]


def test_the_books_hold_in_a_bucket_too(s3):
    books = Books(Store(StoreOptions(endpoint_url=s3.endpoint_url)), f"s3://{s3.new_bucket()}/out")
    books.open({"input": "/in"})
    assert books.claim_epoch() == 0
    put_part(books, 0, "a")
    assert books.claim_epoch() == 1
    put_part(books, 0, "late")
    assert counted(books, 1) == ["a"]
    assert json.loads(books.store.read(f"{books.output}/_job/job.json")) == {"input": "/in"}
