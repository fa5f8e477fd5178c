"""A mixture of experts in place of a decoder layer's MLP: each token goes through the few that its router prefers.

Follows `Qwen3VLMoeTextSparseMoeBlock` of transformers 5.23. Letters: N tokens, E hidden size, X experts, T experts of
one token, R = N * T routed rows (a token once for each of its experts), I intermediate size of one expert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MoEConfig
from model.parallel import ALONE, Group


def multiplies_groups_alone(weight: Tensor) -> bool:
    """Whether the device multiplies groups of rows without the host, as a CUDA graph must: torch does so in bfloat16 on
    compute capability 9.x and 10.x. Elsewhere it copies the sizes of the groups to the host and waits for them."""
    return weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(weight.device)[0] in (9, 10)


class Experts(nn.Module):
    """The weights of all experts of a layer, gate before up; grouped_mm multiplies each group of rows with its own.
    Each rank has its share of every expert, so that ranks work equally whatever the router likes."""

    def __init__(self, hidden_size: int, config: MoEConfig, group: Group = ALONE) -> None:
        super().__init__()
        gate_up = group.cut(1, config.moe_intermediate_size, blocks=2)
        down = group.cut(2, config.moe_intermediate_size)
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * gate_up.length, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, hidden_size, down.length))
        self.cuts = {"gate_up_proj": gate_up, "down_proj": down}

    def forward(self, hidden_RE: Tensor, ends_X: Tensor) -> Tensor:
        """Rows sorted by expert, the rows of expert x ending before `ends_X[x]` (int32) -> this rank's part of the sum
        [R, E]."""
        gate_up = F.grouped_mm(hidden_RE, self.gate_up_proj.transpose(1, 2), offs=ends_X)
        gate_RI, up_RI = gate_up.chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate_RI) * up_RI, self.down_proj.transpose(1, 2), offs=ends_X)


class MixtureOfExperts(nn.Module):
    def __init__(self, hidden_size: int, config: MoEConfig, group: Group = ALONE) -> None:
        super().__init__()
        self.group = group
        self.num_chosen = config.num_experts_per_tok
        self.gate = nn.Linear(hidden_size, config.num_experts, bias=False)
        self.experts = Experts(hidden_size, config, group)

    def forward(self, hidden_NE: Tensor) -> Tensor:
        """Nothing here waits for the device, and each token's experts are added in the router's order, so that a token
        does not depend on its neighbours."""
        weights_NT, experts_NT = self.route(hidden_NE)
        experts_R, order_R = experts_NT.flatten().sort(stable=True)
        numbers_X = torch.arange(self.gate.out_features, device=hidden_NE.device)
        ends_X = torch.searchsorted(experts_R, numbers_X, right=True, out_int32=True)
        answers_RE = self.experts(hidden_NE[order_R // self.num_chosen], ends_X)
        answers_NTE = torch.empty_like(answers_RE).index_copy(0, order_R, answers_RE).unflatten(0, experts_NT.shape)
        return self.group.sum((answers_NTE * weights_NT[:, :, None]).sum(dim=1))

    def route(self, hidden_NE: Tensor) -> tuple[Tensor, Tensor]:
        """-> each token's weights (sum 1, in the dtype of the tokens) and experts int64, both [N, T], best first.

        The softmax runs over all experts in fp32; the chosen weights are scaled to a sum of 1.
        """
        probabilities_NX = self.gate(hidden_NE).softmax(dim=-1, dtype=torch.float32)
        weights_NT, experts_NT = probabilities_NX.topk(self.num_chosen, dim=-1)
        return (weights_NT / weights_NT.sum(dim=-1, keepdim=True)).to(hidden_NE.dtype), experts_NT
