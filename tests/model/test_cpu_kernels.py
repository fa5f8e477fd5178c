"""The compiled loops of a CPU against what torch computes by its own operations. Attention: see test_attention.py."""

import numpy as np
import pytest
import torch

from model import cpu_kernels
from model.attention import packed_attention
from model.layers import ACTIVATIONS, Linear, RMSNorm, activated, norm_and_rotate, pack_weights, rotate


@pytest.mark.parametrize("shape", [(1, 5), (7, 64), (3, 2, 40)], ids=str)
def test_a_row_is_normalised_as_torch_does(shape):
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1], eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    hidden = 100 * torch.randn(shape)
    hidden[0] = 0  # what is nothing stays nothing
    expected = torch.nn.functional.rms_norm(hidden, shape[-1:], norm.weight, 1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(norm(hidden), expected)


@pytest.mark.parametrize("is_strided", [False, True])
def test_heads_turn_as_torch_turns_them(is_strided):
    torch.manual_seed(0)
    heads_NHD = torch.randn(9, 3, 4, 40)[:, 1] if is_strided else torch.randn(9, 4, 40)
    angles_ND = torch.randn(9, 40) * 50
    expected = rotate(heads_NHD, angles_ND.cos(), angles_ND.sin())
    with torch.inference_mode():
        torch.testing.assert_close(rotate(heads_NHD, angles_ND.cos(), angles_ND.sin()), expected)


def test_powers_of_e_are_those_of_a_softmax():
    exponents = np.concatenate((np.linspace(-87, 0, 100_001), [-1e-30, -0.0])).astype(np.float32)
    powers = exponents.copy()
    cpu_kernels._exponentiate(powers)
    np.testing.assert_allclose(powers, np.exp(exponents.astype(np.float64)), rtol=6e-6)
    beyond = np.array([-88, -1e4, -np.inf], dtype=np.float32)
    cpu_kernels._exponentiate(beyond)
    assert (beyond < 1.3e-38).all()
    assert (beyond >= 0).all()


def test_other_numbers_and_training_go_through_torch():
    single, half = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    assert not cpu_kernels.serve(single)
    with torch.inference_mode():
        assert cpu_kernels.serve(single)
        assert not cpu_kernels.serve(half)
    norm = RMSNorm(8, eps=1e-6)
    norm(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad is not None


def test_heads_are_normed_and_turned_in_one_go_as_one_after_the_other():
    torch.manual_seed(0)
    heads_NHD = torch.randn(9, 3, 4, 40)[:, 1]
    angles_ND = torch.randn(9, 40) * 50
    norm = RMSNorm(40, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    expected = norm_and_rotate(heads_NHD, norm, angles_ND.cos(), angles_ND.sin())  # by torch
    with torch.inference_mode():
        found = norm_and_rotate(heads_NHD, norm, angles_ND.cos(), angles_ND.sin())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rows", [1, 5, 64, 300])
def test_packed_weights_change_no_product(rows):
    torch.manual_seed(0)
    network = torch.nn.Sequential(Linear(40, 70), torch.nn.SiLU(), Linear(70, 30, bias=False))
    hidden_NE = torch.randn(rows, 40)
    expected = network(hidden_NE)
    pack_weights(network)
    assert network[0].weight.is_mkldnn
    assert network[0].weight.shape == (70, 40)
    with torch.inference_mode():
        torch.testing.assert_close(network(hidden_NE), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_behind_packed_weights_is_what_torch_computes(activation):
    torch.manual_seed(0)
    linear = Linear(40, 70)
    hidden_NE = 20 * torch.randn(50, 40)
    expected = activated(linear, hidden_NE, activation)
    assert (expected - linear(hidden_NE)).abs().max() > 1
    pack_weights(linear)
    with torch.inference_mode():
        torch.testing.assert_close(activated(linear, hidden_NE, activation), expected)


@pytest.mark.parametrize("length", [1, 511, 512, 513, 1100])
def test_attention_by_whole_matrices_is_torchs_own(length):
    torch.manual_seed(0)
    parts_NHD = torch.randn(length, 3, 4, 40).unbind(1)
    whole = [part.double().transpose(0, 1) for part in parts_NHD]
    expected_LHD = torch.nn.functional.scaled_dot_product_attention(*whole).transpose(0, 1).float()
    with torch.inference_mode():
        torch.testing.assert_close(cpu_kernels.attend_dense(*parts_NHD), expected_LHD, atol=1e-5, rtol=1e-4)


def test_long_sequences_go_through_whole_matrices_and_others_and_groups_do_not(monkeypatch):
    heads = torch.randn(600, 4, 8)
    expected = packed_attention(heads, heads, heads, [300, 300], causal=False, implementation="sdpa")
    seen = []
    monkeypatch.setattr(cpu_kernels, "_has_avx512", lambda: True)
    attend = cpu_kernels.attend_dense
    monkeypatch.setattr(cpu_kernels, "attend_dense", lambda *parts: seen.append(len(parts[0])) or attend(*parts))
    with torch.inference_mode():
        found = packed_attention(heads, heads, heads, [300, 300], causal=False, implementation="sdpa")
        assert seen == [300, 300]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        for lengths, groups, causal in (([100] * 6, 4, False), ([600], 2, False), ([600], 4, True)):
            keys = heads[:, :groups]
            packed_attention(heads, keys, keys, lengths, causal=causal, implementation="sdpa")
        assert len(seen) == 2
    packed_attention(heads, heads, heads, [600], causal=False, implementation="sdpa")  # with gradients
    assert len(seen) == 2


def test_only_weights_in_float32_are_packed():
    network = Linear(4, 4).bfloat16()
    pack_weights(network)
    assert not network.weight.is_mkldnn
