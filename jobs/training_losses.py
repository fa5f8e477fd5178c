"""What training asks of the network beside the answer itself: helps that are thrown away in the end.

A probe has to name the letters in each cell of a visual token from the features the decoder gets; it teaches the tower
to see letters long before the decoder knows where to look. The pointing loss shows the decoder where to look: one head
of two layers has to attend to the visual token in which the next piece of the answer stands (guided attention, as
Tachibana et al., arXiv 1710.08969, have it for speech). Of small type several lines share such a token: behind the
second another probe has to tell in which of its cells. And probes of the tower's features and of the decoder's hidden
states have to tell where on the page that is: nothing else makes the tower say so, and boxes are written from it.

Letters: B samples, T tokens of one, N = B x T, L looks, H query heads, K key heads, D head dimension, M visual tokens,
Q cells, A names, R rows in which something is looked for.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.training_batches import CELLS_ACROSS, CELLS_DOWN, NAMES, NOWHERE, TrainingBatch
from model.attention import PackedCausal, device_tensor
from model.config import ModelConfig
from model.qwen3_vl import Qwen3VL

POINTING_LAYERS = (2, 4)  # of the decoder, from 0, one for each look: the first two learn what was written last


class Probes(nn.Module):
    """Linear maps that read what the features, and the decoder's hidden states, should say."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cells, size = CELLS_ACROSS * CELLS_DOWN, config.text.hidden_size
        self.letters = nn.Linear(size, cells * len(NAMES))
        self.cell = nn.Linear(size, cells)
        self.token_xy, self.pointed_xy = nn.Linear(size, 2 * 2 * 10), nn.Linear(size, 2 * 2 * 10)
        nn.init.constant_(self.letters.bias, -5.0)  # most letters are nowhere
        for of_hidden_states in (self.cell, self.pointed_xy):
            nn.init.zeros_(of_hidden_states.weight)  # a new one asks nothing of the network yet

    @property
    def device(self) -> torch.device:
        return self.cell.weight.device

    def letters_loss(self, embeddings_MO: Tensor, glyphs_MQA: Tensor) -> Tensor:
        """Binary cross-entropy for each letter or sight (for each token, where there are fewer of them than tokens)."""
        logits_MQA = self.letters(embeddings_MO).view(glyphs_MQA.shape).float()
        total = F.binary_cross_entropy_with_logits(logits_MQA, glyphs_MQA.float(), reduction="sum")
        return total / glyphs_MQA.sum().clamp(min=len(glyphs_MQA))

    def place_losses(self, hidden_NE: Tensor, cells_N: Tensor, xy_N2: Tensor) -> dict[str, Tensor]:
        """Cross-entropies of the cell in which each token is read, and of where on the page that is (see `_xy_loss`);
        it is predicted, so looked for, in the row before it."""
        rows_R = (cells_N != NOWHERE).nonzero().squeeze(1)
        hidden_RE = hidden_NE[rows_R - 1]
        return {
            "cell": F.cross_entropy(self.cell(hidden_RE).float(), cells_N[rows_R]),
            "pointed xy": _xy_loss(self.pointed_xy(hidden_RE), xy_N2[rows_R]),
        }

    def token_xy_loss(self, embeddings_MO: Tensor, grids_G3: list[tuple[int, int, int]], merge: int) -> Tensor:
        """Cross-entropy of the hundreds and tens of where each visual token's middle is, in thousandths."""
        xy_M2 = [
            torch.cartesian_prod((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns).flip(1)
            for rows, columns in ((high // merge, wide // merge) for _, high, wide in grids_G3)
        ]
        return _xy_loss(self.token_xy(embeddings_MO), (1000 * torch.cat(xy_M2)).long().to(embeddings_MO.device))


def _xy_loss(logits_RD: Tensor, xy_R2: Tensor) -> Tensor:
    """Of x and y, in thousandths, the hundreds and the tens as digits; of a box's numbers these are what matters."""
    digits_R4 = torch.cat([xy_R2 // 100, xy_R2 // 10 % 10], dim=1)
    return F.cross_entropy(logits_RD.float().view(-1, 10), digits_R4.flatten())


class PointingCausal:
    """Causal attention over a rectangular batch that also notes how well one head of some layers points."""

    def __init__(self, targets_LBT: Tensor) -> None:
        _, samples, length = targets_LBT.shape
        self._inner = PackedCausal([length] * samples)
        rows_R2 = (targets_LBT[0, :, 1:] != NOWHERE).nonzero()  # token t is predicted, so looked for, at t - 1
        self._sample_R, self._row_R = rows_R2.unbind(1)
        self._targets_LR = targets_LBT[:, self._sample_R, self._row_R + 1]
        self._shape = (samples, length)
        self.losses: list[Tensor] = []

    def __call__(self, layer: int, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> Tensor:
        if layer in POINTING_LAYERS and len(self._row_R):
            query_BTD, key_BTD = (heads[:, 0].unflatten(0, self._shape) for heads in (query_NHD, key_NKD))
            scores_BTT = torch.einsum("bqd,bkd->bqk", query_BTD, key_BTD) * query_NHD.shape[-1] ** -0.5
            scores_RT = scores_BTT[self._sample_R, self._row_R].float()
            future_RT = torch.arange(self._shape[1], device=scores_RT.device) > self._row_R[:, None]
            scores_RT = scores_RT.masked_fill(future_RT, -torch.inf)
            self.losses.append(F.cross_entropy(scores_RT, self._targets_LR[POINTING_LAYERS.index(layer)]))
        return self._inner(layer, query_NHD, key_NKD, value_NKD)


def tower_losses(network: Qwen3VL, probes: Probes, batch: TrainingBatch) -> dict[str, Tensor]:
    """What the tower's probes lose alone: the decoder is not run."""
    visual = network.look(device_tensor(batch.patches_PC, probes.device), batch.grids_G3)
    return _tower_losses(network, probes, batch, visual.embeddings_MO)


def _tower_losses(network: Qwen3VL, probes: Probes, batch: TrainingBatch, embeddings_MO: Tensor) -> dict[str, Tensor]:
    losses = {"xy": probes.token_xy_loss(embeddings_MO, batch.grids_G3, network.config.vision.spatial_merge_size)}
    if batch.glyphs_MQA.any():
        losses["letters"] = probes.letters_loss(embeddings_MO, device_tensor(batch.glyphs_MQA, probes.device))
    return losses


def losses_of(
    network: Qwen3VL, probes: Probes, batch: TrainingBatch, *, has_deepstack: bool = True
) -> tuple[dict[str, Tensor], float]:
    """Mean cross-entropy of the answers' tokens with what the probes and the pointing heads lose, where there is any;
    and the share of the answers' tokens guessed right. Without DeepStack the decoder gets zeros from its levels."""
    device = probes.device
    visual = network.look(device_tensor(batch.patches_PC, device), batch.grids_G3)
    if not has_deepstack:
        visual = replace(visual, deepstack_LMO=torch.zeros_like(visual.deepstack_LMO))
    pointing = PointingCausal(device_tensor(batch.targets_LBT, device))
    token_ids_N, asked_N = (device_tensor(ids_BT, device).flatten() for ids_BT in (batch.token_ids_BT, batch.asked_BT))
    pointed: list[Tensor] = []  # the hidden states behind the layers that point
    last_pointing = network.model.language_model.layers[POINTING_LAYERS[-1]]
    with last_pointing.register_forward_hook(lambda _, args, hidden_NE: pointed.append(hidden_NE)):
        hidden_NE = network(token_ids_N, device_tensor(batch.positions_3N, device), pointing, visual)
    predicted = (asked_N != NOWHERE).nonzero().squeeze(1)
    logits = network.logits(hidden_NE[predicted - 1]).float()
    targets = asked_N[predicted]
    losses = {"answer": F.cross_entropy(logits, targets)}
    if pointing.losses:
        losses["pointing"] = torch.stack(pointing.losses).mean()
        cells_BT, xy_BT2 = (device_tensor(places, device) for places in (batch.cells_BT, batch.xy_BT2))
        losses |= probes.place_losses(pointed[0], cells_BT.flatten(), xy_BT2.flatten(0, 1))
    losses |= _tower_losses(network, probes, batch, visual.embeddings_MO)
    return losses, (logits.argmax(-1) == targets).float().mean().item()
