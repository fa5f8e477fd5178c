"""Muon takes torch's steps, without their rounding; and what it orthogonalises is orthogonal."""

import pytest
import torch
from torch import nn

from jobs.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonalised(matrix).flatten(), (left @ right).flatten(), 0) > 0.95


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_its_steps_are_those_of_torch_up_to_bfloat16(shape):
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (
        Muon([ours], weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for rate in (0.05, 0.02, 0.01):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.02 * moved
