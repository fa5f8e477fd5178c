"""What a job takes of a cluster always fits it, and leaves room for Ray Data's own tasks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import parse_config
from model.footprint import tower_parameters
from pipeline.job import ParseJob
from pipeline.resources import SPARE_CPUS, WRITER_CPUS, Cluster, Load, allocate, reading_speed, with_memory
from tests.official_files import SIZES, config_json

GB = 2**30


def job(**options) -> ParseJob:
    return ParseJob(**({"input": "in", "output": "out"} | options))


@given(
    st.floats(1, 256),
    st.integers(0, 16),
    st.integers(1, 512),
    st.sampled_from(["1", "2", "1,4", "8,16"]),
    st.integers(0, 20),
    st.sampled_from(["auto", "cpu", "cuda"]),
    st.sampled_from([1, 2, 4]),
)
def test_what_is_given_fits_or_is_refused(cpus, gpus, memory_gb, replicas, decoders, device, tensor_parallel):
    cluster = Cluster(cpus=cpus, gpus=gpus, memory_bytes=memory_gb * GB)
    try:
        given = allocate(
            job(replicas=replicas, decoders=decoders, device=device, tensor_parallel=tensor_parallel), cluster
        )
    except ValueError:
        return
    fewest = given.replicas[0]
    used = given.decoders + fewest * given.replica_cpus + given.writers * WRITER_CPUS
    assert used + SPARE_CPUS <= cpus
    assert fewest * given.replica_gpus <= gpus
    assert given.replica_gpus == (tensor_parallel if given.device == "cuda" else 0)
    assert given.replica_cpus % tensor_parallel == 0
    assert given.decoders * given.decoder_memory_bytes <= cluster.memory_bytes
    assert given.child_memory_bytes > 0
    assert not decoders or given.decoders == decoders


def test_gpus_are_used_when_there_are_some():
    given = allocate(job(), Cluster(cpus=16, gpus=1, memory_bytes=128 * GB))
    assert (given.device, given.replica_gpus, given.batch_size) == ("cuda", 1, 64)
    assert given.decoders == 13


def test_a_small_machine_holds_one_of_each():
    given = allocate(job(), Cluster(cpus=5, gpus=0, memory_bytes=4 * GB))
    assert (given.device, given.decoders, given.replica_cpus, given.writers) == ("cpu", 1, 2.0, 1)


@pytest.mark.parametrize(
    ("options", "cluster", "remedy"),
    [
        ({"device": "cuda"}, Cluster(cpus=8, gpus=0, memory_bytes=64 * GB), "GPUs"),
        ({"replicas": "4", "device": "cuda"}, Cluster(cpus=64, gpus=2, memory_bytes=64 * GB), "fewer replicas"),
        (
            {"tensor_parallel": 4, "device": "cuda"},
            Cluster(cpus=64, gpus=2, memory_bytes=64 * GB),
            "less tensor_parallel",
        ),
        ({"cuda_graphs": True}, Cluster(cpus=8, gpus=0, memory_bytes=64 * GB), "not cpu and 1: leave cuda_graphs out"),
        (
            {"cuda_graphs": True, "device": "cuda", "tensor_parallel": 2},
            Cluster(cpus=8, gpus=2, memory_bytes=64 * GB),
            "not cuda and 2",
        ),
        ({"tensor_parallel": 4}, Cluster(cpus=5, gpus=0, memory_bytes=64 * GB), "1 replicas .* need"),
        ({"decoders": 40}, Cluster(cpus=8, gpus=0, memory_bytes=256 * GB), "fewer decoders"),
        ({}, Cluster(cpus=8, gpus=0, memory_bytes=1 * GB), "less decoder_memory_mb"),
        ({}, Cluster(cpus=2, gpus=0, memory_bytes=64 * GB), "CPUs"),
    ],
)
def test_what_cannot_fit_is_refused_with_a_remedy(options, cluster, remedy):
    with pytest.raises(ValueError, match=remedy):
        allocate(job(**options), cluster)


def test_calls_in_flight_fill_the_batch_and_a_half_more():
    given = allocate(job(batch_size=64), Cluster(cpus=16, gpus=1, memory_bytes=128 * GB))
    assert given.calls_per_replica(1.0) == 96
    assert given.calls_per_replica(5.0) == 32  # of five pages each: three of them are unanswered on the average
    assert given.calls_per_replica(1000.0) == 2


def test_the_expected_speed_says_where_it_comes_from():
    cluster = Cluster(cpus=16, gpus=4, memory_bytes=128 * GB)
    assert reading_speed(job(replicas="1,4"), allocate(job(replicas="1,4"), cluster))[1].count("assumed") == 1
    given = job(replicas="2", tokens_per_second=1000.0)
    assert reading_speed(given, allocate(given, cluster)) == (2000.0, "2 x 1,000, as given")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "8B-Instruct",
            {},
            r"float32 needs 38\.\d GB \(weights 35\.1, .* 7,168 tokens, 2\.1\), and .* 17\.2 GB",
        ),
        ("32B-Instruct", {"dtype": "bfloat16"}, r"bfloat16 needs .* \(weights 66\.7, .*give less max_new_tokens"),
        ("8B-Instruct", {"dtype": "bfloat16"}, "needs 19.5 GB"),
        ("2B-Instruct", {"dtype": "bfloat16"}, None),
    ],
)
def test_a_checkpoint_that_fits_no_node_is_refused_before_anything_is_read(name, options, message):
    cluster = Cluster(cpus=8, gpus=0, memory_bytes=16 * GB, node_memory_bytes=16 * GB)
    load = Load(parse_config(config_json(SIZES[name])), 7168, 2048)
    given = allocate(job(**options), cluster)
    if message is None:
        with_memory(job(**options), load, given, cluster)
    else:
        with pytest.raises(ValueError, match=message):
            with_memory(job(**options), load, given, cluster)


def test_what_a_replica_takes_is_reserved_and_counted_once_for_each():
    load = Load(parse_config(config_json(SIZES["2B-Instruct"])), 7168, 2048)
    large = Cluster(cpus=32, gpus=0, memory_bytes=64 * GB, node_memory_bytes=64 * GB)
    small = Cluster(cpus=32, gpus=0, memory_bytes=15 * GB, node_memory_bytes=15 * GB)
    two = job(replicas="2", decoders=2, dtype="bfloat16")
    assert 5 * GB < with_memory(two, load, allocate(two, large), large).replica_memory_bytes < 7 * GB
    with pytest.raises(ValueError, match=r"2 of it beside 2 decoders of 2048 MB do not fit .* give fewer replicas"):
        with_memory(two, load, allocate(two, small), small)


def test_each_rank_on_a_cpu_has_the_whole_vision_tower():
    load = Load(parse_config(config_json(SIZES["2B-Instruct"])), 7168, 2048)
    cluster = Cluster(cpus=32, gpus=0, memory_bytes=64 * GB, node_memory_bytes=64 * GB)
    alone, ranks = (
        with_memory(given, load, allocate(given, cluster), cluster).replica_memory_bytes
        for given in (job(), job(tensor_parallel=2))
    )
    assert ranks > alone + 4 * tower_parameters(load.config.vision)
