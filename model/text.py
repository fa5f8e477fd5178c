"""The Qwen3 decoder, dense or with experts, with interleaved M-RoPE and DeepStack.

Follows `Qwen3VLTextModel` and `Qwen3VLMoeTextModel` of transformers 5.23. Letters: N packed tokens of all sequences,
E hidden size, H query heads, K key heads, D head dimension, F rotary frequencies (D / 2), M visual tokens, L DeepStack
levels.
"""

import math

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.config import TextConfig
from model.experts import MixtureOfExperts
from model.layers import RMSNorm, activated, norm_and_rotate
from model.parallel import ColumnParallelLinear, Group, RowParallelLinear, VocabularyParallelEmbedding


class TextAttention(nn.Module):
    """Each rank has its share of the query heads, and the key heads these look at."""

    def __init__(self, config: TextConfig, layer: int, group: Group) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        size, heads, key_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = ColumnParallelLinear(size, heads * config.head_dim, group, pieces=heads)
        self.k_proj = ColumnParallelLinear(size, key_heads * config.head_dim, group, pieces=key_heads)
        self.v_proj = ColumnParallelLinear(size, key_heads * config.head_dim, group, pieces=key_heads)
        self.o_proj = RowParallelLinear(heads * config.head_dim, size, group, pieces=heads)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, hidden_NE: Tensor, cos_ND: Tensor, sin_ND: Tensor, attention: Attention) -> Tensor:
        query_NHD, key_NKD, value_NKD = (
            project(hidden_NE).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query_NHD = norm_and_rotate(query_NHD, self.q_norm, cos_ND, sin_ND)
        key_NKD = norm_and_rotate(key_NKD, self.k_norm, cos_ND, sin_ND)
        return self.o_proj(attention(self.layer, query_NHD, key_NKD, value_NKD).flatten(1))


class TextMLP(nn.Module):
    def __init__(self, config: TextConfig, group: Group) -> None:
        super().__init__()
        self.gate_proj = ColumnParallelLinear(config.hidden_size, config.intermediate_size, group)
        self.up_proj = ColumnParallelLinear(config.hidden_size, config.intermediate_size, group)
        self.down_proj = RowParallelLinear(config.intermediate_size, config.hidden_size, group)

    def forward(self, hidden_NE: Tensor) -> Tensor:
        gated = activated(self.gate_proj, hidden_NE, "silu")
        gated = gated.mul_(self.up_proj(hidden_NE))  # in place: memory that is new is slow
        return self.down_proj(gated)


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int, group: Group) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = TextAttention(config, layer, group)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.moe and config.moe.covers(layer):
            self.mlp: nn.Module = MixtureOfExperts(config.hidden_size, config.moe, group)
        else:
            self.mlp = TextMLP(config, group)

    def forward(
        self, hidden_NE: Tensor, cos_ND: Tensor, sin_ND: Tensor, attention: Attention, rows_R: Tensor | None = None
    ) -> Tensor:
        """-> [N, E], or [R, E] of the rows that are asked for: in the last layer nobody sees the others any more."""
        hidden_NE = hidden_NE + self.self_attn(self.input_layernorm(hidden_NE), cos_ND, sin_ND, attention)
        if rows_R is not None:
            hidden_NE = hidden_NE[rows_R]
        return hidden_NE + self.mlp(self.post_attention_layernorm(hidden_NE))


class TextDecoder(nn.Module):
    def __init__(self, config: TextConfig, group: Group) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = VocabularyParallelEmbedding(config.vocab_size, config.hidden_size, group)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, group) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_NE: Tensor,
        positions_3N: Tensor,
        attention: Attention,
        *,
        visual_rows_M: Tensor,
        deepstack_LME: Tensor,
        rows_R: Tensor | None = None,
    ) -> Tensor:
        """Embedded tokens -> final hidden states [N, E], or [R, E] of the rows that are asked for; level l is added at
        `visual_rows_M` after layer l."""
        cos_ND, sin_ND = (part.to(hidden_NE.dtype) for part in rotary(positions_3N, self.config))
        for index, layer in enumerate(self.layers):
            has_level = index < len(deepstack_LME)
            is_narrowed = rows_R is not None and index == len(self.layers) - 1 and not has_level
            hidden_NE = layer(hidden_NE, cos_ND, sin_ND, attention, rows_R if is_narrowed else None)
            if has_level:
                hidden_NE = hidden_NE.index_add(0, visual_rows_M, deepstack_LME[index].to(hidden_NE.dtype))
        return self.norm(hidden_NE if rows_R is None or is_narrowed else hidden_NE[rows_R])


def rotary(positions_3N: Tensor, config: TextConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [N, D], fp32 whatever the model's dtype. Frequencies take their position in turn from time, row and
    column (THWTHW...) as long as rows and columns have some left; the rest is time's.
    """
    frequencies_F, scale = rotary_frequencies(config, positions_3N.device)
    angles_NF = positions_3N[0, :, None] * frequencies_F
    for axis in (1, 2):
        ours = slice(axis, 3 * config.mrope_section[axis], 3)
        angles_NF[:, ours] = positions_3N[axis, :, None] * frequencies_F[ours]
    angles_ND = torch.cat((angles_NF, angles_NF), dim=1)
    return angles_ND.cos() * scale, angles_ND.sin() * scale


def rotary_frequencies(config: TextConfig, device: torch.device) -> tuple[Tensor, float]:
    """Radians per position, fp32 [F], and the factor of cos and sin.

    YaRN divides the slow frequencies by its factor, keeps the fast ones, and blends those between, counted by how often
    they turn within the positions that were trained. The axes are interleaved afterwards, as without it.
    """
    dim, yarn = config.head_dim, config.yarn
    exponents_F = torch.arange(dim // 2, device=device, dtype=torch.float32) * 2 / dim
    wavelengths_F = config.rope_theta**exponents_F
    if yarn is None:
        return 1.0 / wavelengths_F, 1.0
    first, last = (
        dim
        * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi))
        / (2 * math.log(config.rope_theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    low, high = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
    places_F = torch.arange(dim // 2, device=device, dtype=torch.float32)
    kept_F = 1 - ((places_F - low) / max(high - low, 0.001)).clamp(0, 1)
    frequencies_F = 1.0 / (yarn.factor * wavelengths_F) * (1 - kept_F) + 1.0 / wavelengths_F * kept_F
    scale = yarn.attention_factor
    return frequencies_F, 0.1 * math.log(yarn.factor) + 1.0 if scale is None else scale
