"""The mixture of experts against its definition, written out token by token."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import random_pair

import model.engine
from model.config import MoEConfig
from model.engine import Engine
from model.engine_options import EngineOptions
from model.experts import MixtureOfExperts, multiplies_groups_alone

MOE = MoEConfig(
    num_experts=9, num_experts_per_tok=3, moe_intermediate_size=24, decoder_sparse_step=1, mlp_only_layers=()
)


@pytest.fixture
def mixture() -> MixtureOfExperts:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(16, MOE)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixture.requires_grad_(False)


@pytest.mark.parametrize("num_tokens", [1, 2, 40])
def test_every_token_goes_through_its_three_best_experts(mixture, num_tokens):
    hidden = torch.randn(num_tokens, 16)
    expected = torch.zeros_like(hidden)
    for token, values in enumerate(hidden):
        likes = (mixture.gate.weight @ values).softmax(0)
        best = np.argsort(-likes.numpy())[:3]
        for expert in best:
            gate, up = (mixture.experts.gate_up_proj[expert] @ values).chunk(2)
            answer = mixture.experts.down_proj[expert] @ (F.silu(gate) * up)
            expected[token] += likes[expert] / likes[best].sum() * answer

    torch.testing.assert_close(mixture(hidden), expected, atol=1e-5, rtol=1e-5)


def test_experts_that_nobody_chose_do_no_harm(mixture):
    hidden = torch.randn(1, 16).expand(5, -1)
    weights, experts = mixture.route(hidden)
    assert len(experts.unique()) == 3
    torch.testing.assert_close(weights.sum(1), torch.ones(5), atol=1e-6, rtol=0)
    idle = sorted(set(range(9)) - set(experts.unique().tolist()))
    before = mixture(hidden)
    mixture.experts.gate_up_proj[idle] = torch.nan
    assert torch.equal(mixture(hidden), before)


def test_the_router_decides_in_full_precision(mixture):
    """Two experts whose likings differ by less than a bfloat16 can tell: the softmax must not round them together."""
    mixture = mixture.to(torch.bfloat16)
    weights, _ = mixture.route(torch.randn(64, 16).bfloat16())
    assert weights.dtype == torch.bfloat16
    assert (weights[:, :-1] >= weights[:, 1:]).all()


def test_which_layers_are_sparse():
    moe = MoEConfig(4, 2, 8, decoder_sparse_step=2, mlp_only_layers=(3,))
    assert [layer for layer in range(8) if moe.covers(layer)] == [1, 5, 7]


@pytest.mark.parametrize(
    ("dtype", "capability", "alone"),
    [
        (torch.bfloat16, (9, 0), True),
        (torch.bfloat16, (10, 3), True),
        (torch.bfloat16, (8, 0), False),
        (torch.bfloat16, (12, 0), False),
        (torch.float32, (9, 0), False),
    ],
)
def test_groups_are_multiplied_without_the_host_where_torch_has_a_kernel(monkeypatch, dtype, capability, alone):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_groups_alone(torch.empty(1, dtype=dtype)) is alone


@pytest.mark.parametrize(("capability", "moe"), [((8, 0), True), ((8, 0), False), ((9, 0), True)])
def test_graphs_of_experts_that_wait_for_the_host_are_refused_at_the_start(monkeypatch, tmp_path, capability, moe):
    """torch cannot be asked here for a GPU: the engine is stopped behind the check, where it sizes its cache."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(model.engine, "checked_implementation", lambda *choice: "triton")
    monkeypatch.setattr(model.engine, "cache_tokens", lambda *sizes: 1 / 0)
    network = random_pair(1, tmp_path, moe=moe).ours.to(torch.bfloat16)
    refused = moe and capability < (9, 0)
    with pytest.raises(ValueError if refused else ZeroDivisionError, match=r"experts needs" if refused else "zero"):
        Engine(network, None, EngineOptions(device="cuda", cuda_graphs=True), frozenset())
