"""Logits to tokens: greedy, or drawn with temperature, top-k and top-p.

A token is drawn by inverting the cumulative distribution at one uniform number, made on the CPU from the request's seed
and the number of the token: the draw depends neither on the device nor on what else is in the batch.

Letters: R rows (one for each request that gets a token), V vocabulary, P ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.attention import device_tensor
from model.parallel import ALONE, Group
from model.request import Sampling


@dataclass(frozen=True, slots=True)
class Draws:
    """The rows that are drawn, and how; all others are greedy. Tensors of S rows on the logits' device."""

    rows_S: Tensor
    temperatures_S: Tensor
    top_k_S: Tensor
    top_p_S: Tensor
    uniforms_S: Tensor


def plan_draws(rows: list[tuple[Sampling, int]], *, vocab_size: int, device: torch.device) -> Draws | None:
    """(sampling, number of the token in its completion) of each row -> Draws, or None when all rows are greedy."""
    drawn = [(row, *what) for row, what in enumerate(rows) if what[0].temperature > 0]
    if not drawn:
        return None
    values_5S = np.array(
        [
            (row, sampling.temperature, sampling.top_k or vocab_size, sampling.top_p, uniform(sampling.seed, number))
            for row, sampling, number in drawn
        ],
        dtype=np.float32,
    ).T
    rows_S, temperatures_S, top_k_S, top_p_S, uniforms_S = device_tensor(values_5S, device)
    return Draws(rows_S.long(), temperatures_S, top_k_S, top_p_S, uniforms_S)


def uniform(seed: int, number: int) -> float:
    """The uniform number in [0, 1) that token `number` of a completion is drawn with."""
    return float(np.random.default_rng((seed, number)).random())


def choose_tokens(logits_RV: Tensor, draws: Draws | None, group: Group = ALONE) -> tuple[Tensor, Tensor]:
    """-> token ids int64 [R] and their natural log probabilities fp32 [R], the model's own: before temperature, top-k
    and top-p. With several ranks V is this rank's share of the vocabulary, and all of them get the same answer: for
    greedy rows only the best of each share travels, the logits only of rows that are drawn."""
    logits_RV = logits_RV.float()
    token_ids_R, chosen_R, normalizers_R = _greedy(logits_RV, group)
    if draws is not None:
        drawn_SV = group.gather(logits_RV[draws.rows_S]).movedim(0, 1).flatten(1)
        # Sums on a GPU may differ in their last bit: the ranks must not.
        tokens_S = group.of_first(_draw(drawn_SV, draws))
        token_ids_R = token_ids_R.index_copy(0, draws.rows_S, tokens_S)
        chosen_R = chosen_R.index_copy(0, draws.rows_S, drawn_SV.gather(1, tokens_S[:, None]).squeeze(1))
    return token_ids_R, chosen_R - normalizers_R


def _greedy(logits_RV: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """-> the tokens with the largest logits (of equal ones the first), these logits, and the logarithms of the sums of
    all exponentials, each [R]."""
    chosen_R, token_ids_R = logits_RV.max(dim=-1)
    logprobs_R = logits_RV.log_softmax(dim=-1).gather(1, token_ids_R[:, None]).squeeze(1)
    normalizers_R = chosen_R - logprobs_R  # a third of the time of logsumexp
    if group.size == 1:
        return token_ids_R, chosen_R, normalizers_R
    token_ids_R = token_ids_R + group.rank * logits_RV.shape[1]
    # Token ids are exact in float64, so that one gathering brings all three.
    triple_3R = torch.stack((token_ids_R.double(), chosen_R.double(), normalizers_R.double()))
    token_ids_PR, chosen_PR, normalizers_PR = group.gather(triple_3R).unbind(1)
    best_1R = chosen_PR.argmax(dim=0, keepdim=True)
    token_ids_R, chosen_R = (part_PR.gather(0, best_1R).squeeze(0) for part_PR in (token_ids_PR, chosen_PR))
    return token_ids_R.long(), chosen_R.float(), normalizers_PR.logsumexp(dim=0).float()


def _draw(logits_SV: Tensor, draws: Draws) -> Tensor:
    """Temperature first, then the top k of what it gives, then the fewest of those that reach top p of their sum."""
    sorted_SV, tokens_SV = (logits_SV / draws.temperatures_S[:, None]).sort(dim=-1, descending=True)
    ranks_V = torch.arange(sorted_SV.shape[1], device=sorted_SV.device)
    weights_SV = sorted_SV.softmax(dim=-1).masked_fill(ranks_V >= draws.top_k_S[:, None], 0.0)
    before_SV = weights_SV.cumsum(dim=-1) - weights_SV
    enough_S1 = draws.top_p_S[:, None] * weights_SV.sum(dim=-1, keepdim=True)
    weights_SV = weights_SV.masked_fill(before_SV >= enough_S1, 0.0)
    cumulative_SV = weights_SV.cumsum(dim=-1)
    reached_SV = cumulative_SV > draws.uniforms_S[:, None] * cumulative_SV[:, -1:]
    return tokens_SV.gather(1, reached_SV.int().argmax(dim=-1, keepdim=True)).squeeze(1)
