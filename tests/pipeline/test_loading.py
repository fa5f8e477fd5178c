"""What is said while weights are loaded."""

import io

import pytest
from safetensors import safe_open

import model.weights
import pipeline.loading
from model.checkpoint import LoadProgress
from model.weights import from_pretrained
from pipeline.job import CHECKOUT, DEMO_MODEL
from pipeline.loading import LoadingLines

DEMO = CHECKOUT / DEMO_MODEL


def test_loading_reports_from_nothing_to_all_that_the_file_holds():
    with safe_open(DEMO / "model.safetensors", framework="pt") as tensors:
        sizes = [tensors.get_tensor(name).nbytes for name in tensors.keys()]  # noqa: SIM118 - it is no dict
    steps: list[LoadProgress] = []
    from_pretrained(str(DEMO), report=steps.append)
    assert [step.tensors for step in steps] == list(range(len(sizes) + 1))
    assert (steps[0].num_bytes, steps[-1].num_bytes) == (0, sum(sizes))
    assert {(step.tensors_total, step.num_bytes_total) for step in steps} == {(len(sizes), sum(sizes))}


def lines_of(total_bytes: int, steps: int) -> list[str]:
    stream = io.StringIO()
    show = LoadingLines("some/model", stream)
    for step in range(steps + 1):
        show(LoadProgress(step, steps, total_bytes * step // steps, total_bytes))
    return stream.getvalue().splitlines()


def test_the_first_line_is_there_at_once_and_the_last_at_the_end():
    assert lines_of(17_500_000_000, 750) == [
        "loading some/model: 0 of 750 tensors, 0.0 of 17.5 GB, 0 s",
        "loading some/model: 750 of 750 tensors, 17.5 of 17.5 GB, 0 s",
    ]


def test_lines_come_in_between_when_it_takes_long(monkeypatch):
    monkeypatch.setattr(pipeline.loading, "SECONDS_BETWEEN_LINES", 0.0)
    assert lines_of(4_000_000_000, 4)[2] == "loading some/model: 2 of 4 tensors, 2.0 of 4.0 GB, 0 s"


def test_a_small_checkpoint_is_there_before_anybody_has_read_a_line():
    assert lines_of(16_000_000, 100) == []


def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(model.weights, "available_bytes", lambda: 10**7)
    with pytest.raises(ValueError, match=r"the weights of .* in bfloat16 take 0\.0 GB of memory, and 0\.0 GB are free"):
        from_pretrained(str(DEMO), report=lambda _: pytest.fail("it began to load"))
