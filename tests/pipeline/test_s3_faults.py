"""Object storage as it is: a real S3 server behind a proxy that throttles, breaks off, loses answers and times out."""

import threading
import time

import pytest

from pipeline.books import Books
from pipeline.lease import hold
from pipeline.records import BadInput, ErrorCode
from pipeline.store import Store, StoreOptions
from tests.pipeline.test_books import counted, put_part
from tests.s3_proxy import faulty_proxy

KEYS = ["a b.pdf", "#1?.pdf", "a%2Fb.pdf", "ä.pdf", "a\u0308.pdf", "x" * 1000 + ".pdf", "empty.pdf"]


def store_at(endpoint: str, attempts: int = 12) -> Store:
    return Store(StoreOptions(endpoint_url=endpoint, max_attempts=attempts, timeout_seconds=1.0))


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_read_through_a_bad_network_is_what_was_stored(s3, seed):
    bucket, direct = s3.new_bucket(), store_at(s3.endpoint_url)
    stored = {f"s3://{bucket}/{key}": key.encode() * 2000 if key != "empty.pdf" else b"" for key in KEYS}
    for uri, data in stored.items():
        direct.put(uri, data)
    with faulty_proxy(s3.endpoint_url, seed=seed) as (endpoint, mood):
        store = store_at(endpoint)
        listed = list(store.list(f"s3://{bucket}"))
        assert {asset.uri: store.open(asset).read() for asset in listed} == stored
    assert mood.done.total() - mood.done["passed"] >= 2, f"nothing went wrong: {mood.done}"


def test_of_exclusive_writers_on_a_bad_network_at_most_one_is_told_it_won_and_one_stands(s3):
    """An answer may be lost after the write was done: then nobody is told it won, and that must be allowed for."""
    bucket = s3.new_bucket()
    with faulty_proxy(s3.endpoint_url, seed=3) as (endpoint, _):
        won: dict[int, list[bytes]] = {number: [] for number in range(6)}

        def write(name: bytes) -> None:
            store = store_at(endpoint)
            for number in won:
                if store.put_if_absent(f"s3://{bucket}/{number}", name):
                    won[number].append(name)

        threads = [threading.Thread(target=write, args=(name,)) for name in (b"one", b"two", b"three")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    direct = store_at(s3.endpoint_url)
    for number, winners in won.items():
        assert len(winners) <= 1
        stands = direct.read(f"s3://{bucket}/{number}")
        assert winners in ([], [stands])
    assert any(won.values())


def test_the_books_count_each_unit_once_on_a_bad_network(s3):
    output = f"s3://{s3.new_bucket()}/out"
    with faulty_proxy(s3.endpoint_url, seed=5) as (endpoint, _):
        books = Books(store_at(endpoint), output)
        books.open({"input": "/in"})
        epoch = books.claim_epoch()
        for unit_ids in ("ab", "c", "bd"):
            put_part(books, epoch, *unit_ids)
        assert counted(books, books.claim_epoch()) == ["a", "b", "c", "d"]


def test_a_lease_whose_answer_was_lost_is_ours(s3):
    output = f"s3://{s3.new_bucket()}/out"
    for seed in range(3):
        proxy = faulty_proxy(s3.endpoint_url, seed=seed, faults=["lost_answer"], probability=0.5)
        with proxy as (endpoint, _), hold(store_at(endpoint, attempts=20), output):
            pass


def test_a_403_that_heals_costs_nothing_and_one_that_stays_is_a_row_that_may_be_retried(s3):
    bucket, direct = s3.new_bucket(), store_at(s3.endpoint_url)
    direct.put(f"s3://{bucket}/key", b"data")
    (asset,) = direct.list(f"s3://{bucket}")
    with faulty_proxy(s3.endpoint_url, seed=1, faults=["forbidden"], probability=1) as (endpoint, mood):
        store = store_at(endpoint, attempts=3)
        with pytest.raises(BadInput) as caught:
            store.open(asset).read()
        assert caught.value.failure.code is ErrorCode.ACCESS_DENIED
        assert caught.value.failure.code.retryable
        assert mood.done.total() == 2, "a listed object is asked for once more, and no oftener"

        def heal_after_one_more() -> None:
            while mood.done.total() < 3:
                time.sleep(0.001)
            mood.probability = 0.0

        healing = threading.Thread(target=heal_after_one_more)
        healing.start()
        assert store.open(asset).read() == b"data"
        healing.join()


def test_a_store_that_only_throttles_ends_as_throttled(s3):
    bucket, direct = s3.new_bucket(), store_at(s3.endpoint_url)
    direct.put(f"s3://{bucket}/key", b"data")
    (asset,) = direct.list(f"s3://{bucket}")
    with faulty_proxy(s3.endpoint_url, seed=1, faults=["slow_down"], probability=1) as (endpoint, _):
        with pytest.raises(BadInput) as caught:
            store_at(endpoint, attempts=2).open(asset).read()
        assert caught.value.failure.code is ErrorCode.THROTTLED
