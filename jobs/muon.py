"""Muon in the precision its caller works in. Torch's own always rounds what it orthogonalises to bf16, 25 times slower
on a CPU that has to emulate it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: steepest at zero
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised, for matrices (Jordan, kellerjordan.github.io/posts/muon, 2024), scaled
    to the size of AdamW's steps (Liu et al., arXiv 2502.16982); `torch.optim.Muon` with `match_rms_adamw` in bf16."""

    def __init__(self, matrices: Iterable[nn.Parameter], *, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                mean = state.setdefault("momentum_buffer", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalised(matrix.grad.lerp(mean, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * max(matrix.shape) ** 0.5 * group["lr"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with all of its singular values brought near one (0.7 to 1.2), by Newton and Schulz's iteration."""
    linear, cubic, quintic = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), wide, beta=linear)
    return wide.T if is_tall else wide
