"""The guess for a CPU is measured where it is made, and follows the work that a model asks for."""

from dataclasses import replace

import pytest

from model.processor import Processor
from pipeline import plan
from pipeline.job import resolve_model
from pipeline.plan import active_parameters, measured_rates


def test_a_model_of_more_work_is_expected_to_read_slower_as_measured_on_this_machine(monkeypatch):
    monkeypatch.setattr(plan, "MEASURED_SECONDS", 0.1)
    config = Processor.from_pretrained(resolve_model("model/demo")).config
    deeper = replace(config, text=replace(config.text, num_hidden_layers=20 * config.text.num_hidden_layers))
    prompts, answers = measured_rates(config, 32)
    slower_prompts, slower_answers = measured_rates(deeper, 32)
    ratio = active_parameters(deeper) / active_parameters(config)
    assert answers / slower_answers == pytest.approx(ratio, rel=0.6)
    assert prompts > slower_prompts > 0
