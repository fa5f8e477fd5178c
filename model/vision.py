"""The vision tower: patches of images and frame pairs -> one embedding for every 2x2 patches, and the DeepStack levels.

Follows `Qwen3VLVisionModel` of transformers 5.23. Letters: P stored patches, N patches the tower works on (a pair of
frames is one), M = N / 4 visual tokens, G grids, C values of a patch, E hidden size, O size of the language model,
L DeepStack levels, D head dimension.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import AttentionImplementation, packed_attention
from model.config import VisionConfig
from model.layers import Linear, activated, rotate
from model.parallel import Group, share_out

ROPE_THETA = 10000.0  # not in the official config files; transformers has the same default


@dataclass(frozen=True, slots=True)
class VisualFeatures:
    """What the language model receives for each visual token."""

    embeddings_MO: Tensor  # in place of the token's embedding
    deepstack_LMO: Tensor  # level l is added after decoder layer l


class PatchEmbedding(nn.Module):
    """A linear map of a patch pair, kept as the [E, C, 2, patch, patch] convolution weight the checkpoints have.

    Takes bytes and does the normalisation itself: (x / 255 - 0.5) / 0.5 = (x - 127.5) / 127.5, and x - 127.5 is exact
    even in bfloat16, so the division is folded into the weight.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, first_NC: Tensor, second_NC: Tensor | None) -> Tensor:
        """uint8 patches of the first and the second frame of each pair -> [N, E]. Images only: None for the second, for
        an image is its own; the weights of the two are added, and its bytes are multiplied once."""
        weight = self.proj.weight  # as a linear map: Conv3d is 10 to 50,000 times slower (transformers issue 45750)
        weight_2EC = weight.movedim(2, 0).flatten(2) / 127.5
        if second_NC is None:
            return F.linear(_centred(first_NC, weight.dtype), weight_2EC.sum(0), self.proj.bias)
        pixels_NC2 = torch.cat([_centred(first_NC, weight.dtype), _centred(second_NC, weight.dtype)], dim=1)
        return F.linear(pixels_NC2, weight_2EC.transpose(0, 1).flatten(1), self.proj.bias)


def _centred(patches_NC: Tensor, dtype: torch.dtype) -> Tensor:
    return patches_NC.to(dtype).sub_(127.5)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_NE: Tensor,
        cos_ND: Tensor,
        sin_ND: Tensor,
        lengths: list[int],
        implementation: AttentionImplementation,
    ) -> Tensor:
        query, key, value = self.qkv(hidden_NE).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        query, key = rotate(query, cos_ND, sin_ND), rotate(key, cos_ND, sin_ND)
        attended = packed_attention(query, key, value, lengths, causal=False, implementation=implementation)
        return self.proj(attended.flatten(1))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_NE: Tensor) -> Tensor:
        return self.linear_fc2(activated(self.linear_fc1, hidden_NE, "gelu_tanh"))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(
        self,
        hidden_NE: Tensor,
        cos_ND: Tensor,
        sin_ND: Tensor,
        lengths: list[int],
        implementation: AttentionImplementation,
    ) -> Tensor:
        hidden_NE = hidden_NE + self.attn(self.norm1(hidden_NE), cos_ND, sin_ND, lengths, implementation)
        return hidden_NE + self.mlp(self.norm2(hidden_NE))


class PatchMerger(nn.Module):
    """Four neighbouring patches become one visual token. The last merger normalises the patches before they are joined,
    the DeepStack mergers normalise what was joined; both have the exact (erf) GELU, unlike the blocks."""

    def __init__(self, config: VisionConfig, *, norm_after_joining: bool) -> None:
        super().__init__()
        joined = config.hidden_size * config.spatial_merge_size**2
        self.joined = joined
        self.norm_after_joining = norm_after_joining
        self.norm = nn.LayerNorm(joined if norm_after_joining else config.hidden_size, eps=1e-6)
        self.linear_fc1 = Linear(joined, joined)
        self.linear_fc2 = Linear(joined, config.out_hidden_size)

    def forward(self, hidden_NE: Tensor) -> Tensor:
        if self.norm_after_joining:
            joined_MJ = self.norm(hidden_NE.view(-1, self.joined))
        else:
            joined_MJ = self.norm(hidden_NE).view(-1, self.joined)
        return self.linear_fc2(activated(self.linear_fc1, joined_MJ, "gelu"))


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, norm_after_joining=False)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(config, norm_after_joining=True) for _ in config.deepstack_visual_indexes
        )

    def forward(
        self, patches_PC: Tensor, grids_G3: list[tuple[int, int, int]], implementation: AttentionImplementation = "sdpa"
    ) -> VisualFeatures:
        """uint8 patches and their (frames, rows, columns) grids, as a Prompt has them -> features of all visual tokens.

        Grids do not see each other: attention runs inside each image or frame pair.
        """
        rows_N, columns_N = self._patch_places(grids_G3, patches_PC.device)
        if all(frames == 1 for frames, _, _ in grids_G3):
            hidden_NE = self.patch_embed(patches_PC, None)
        else:
            first_N, second_N = _frame_pairs(grids_G3, patches_PC.device)
            hidden_NE = self.patch_embed(patches_PC[first_N], patches_PC[second_N])
        hidden_NE = hidden_NE + self._position_embeddings(grids_G3).to(hidden_NE.dtype)
        cos_ND, sin_ND = self._rotary(rows_N, columns_N)
        lengths = [rows * columns for _, rows, columns in grids_G3]
        taps = dict(zip(self.config.deepstack_visual_indexes, self.deepstack_merger_list, strict=True))
        levels = {}
        for index, block in enumerate(self.blocks):
            hidden_NE = block(hidden_NE, cos_ND, sin_ND, lengths, implementation)
            if index in taps:
                levels[index] = taps[index](hidden_NE)
        return VisualFeatures(self.merger(hidden_NE), torch.stack([levels[index] for index in taps]))

    def _patch_places(self, grids_G3: list[tuple[int, int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of every patch in its grid, in merge order."""
        merge = self.config.spatial_merge_size
        places = []
        for _, rows, columns in grids_G3:
            row, column = torch.meshgrid(
                torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
            )
            blocks = torch.stack((row, column)).view(2, rows // merge, merge, columns // merge, merge)
            places.append(blocks.transpose(2, 3).reshape(2, -1))
        rows_N, columns_N = torch.cat(places, dim=1)
        return rows_N, columns_N

    def _position_embeddings(self, grids_G3: list[tuple[int, int, int]]) -> Tensor:
        """The learned square of positions, interpolated bilinearly (corners aligned) to each grid, fp32 [N, E]."""
        side = round(self.config.num_position_embeddings**0.5)
        merge = self.config.spatial_merge_size
        table_1ESS = self.pos_embed.weight.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        sizes: dict[tuple[int, int], Tensor] = {}
        for _, rows, columns in grids_G3:
            if (rows, columns) not in sizes:
                grown = F.interpolate(table_1ESS, size=(rows, columns), mode="bilinear", align_corners=True)[0]
                blocks = grown.unflatten(1, (-1, merge)).unflatten(3, (-1, merge))  # E, R, merge, C, merge
                sizes[rows, columns] = blocks.permute(1, 3, 2, 4, 0).flatten(0, 3)
        return torch.cat([sizes[rows, columns] for _, rows, columns in grids_G3])

    def _rotary(self, rows_N: Tensor, columns_N: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [N, D], fp32: the first half of the frequencies turns with the row, the rest with the column."""
        half = self.config.head_dim // 2
        exponents = torch.arange(0, half, 2, device=rows_N.device, dtype=torch.float32) / half
        frequencies = 1.0 / ROPE_THETA**exponents
        angles_NF = torch.cat((rows_N[:, None] * frequencies, columns_N[:, None] * frequencies), dim=1)
        angles_ND = torch.cat((angles_NF, angles_NF), dim=1)
        return angles_ND.cos(), angles_ND.sin()


def look_together(
    tower: VisionTower,
    patches_PC: Tensor,
    grids_G3: list[tuple[int, int, int]],
    implementation: AttentionImplementation,
    group: Group,
) -> VisualFeatures:
    """The tower is whole on every rank and the grids are shared out, single frame pairs of one video too: what all
    ranks saw is gathered, so that each of them has the features of all grids."""
    if group.size == 1:
        return tower(patches_PC, grids_G3, implementation)
    merge, width = tower.config.spatial_merge_size, tower.config.hidden_size
    areas = [rows * columns for _, rows, columns in grids_G3]
    shares = share_out([area * (3 * width + area) for area in areas], group.size)  # linear maps, and attention
    patches = patches_PC.split([frames * area for (frames, _, _), area in zip(grids_G3, areas, strict=True)])
    tokens = [[areas[grid] // merge**2 for grid in share] for share in shares]
    levels = len(tower.config.deepstack_visual_indexes)
    seen_MLO = tower.pos_embed.weight.new_zeros(max(map(sum, tokens)), 1 + levels, tower.config.out_hidden_size)
    if mine := shares[group.rank]:
        ours = tower(torch.cat([patches[grid] for grid in mine]), [grids_G3[grid] for grid in mine], implementation)
        own_MLO = seen_MLO[: len(ours.embeddings_MO)]
        own_MLO[:, 0] = ours.embeddings_MO
        own_MLO[:, 1:] = ours.deepstack_LMO.transpose(0, 1)
    by_grid: dict[int, Tensor] = {}
    for share, counts, part_MLO in zip(shares, tokens, group.gather(seen_MLO), strict=True):
        by_grid |= zip(share, part_MLO[: sum(counts)].split(counts), strict=True)
    all_MLO = torch.cat([by_grid[grid] for grid in range(len(grids_G3))])
    return VisualFeatures(all_MLO[:, 0], all_MLO[:, 1:].transpose(0, 1))


def _frame_pairs(grids_G3: list[tuple[int, int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each patch the tower works on, where its first and its second frame's patch are stored. An image is both."""
    firsts, seconds = [], []
    start = 0
    for frames, rows, columns in grids_G3:
        patches = rows * columns
        first = torch.arange(start, start + patches, device=device)
        firsts.append(first)
        seconds.append(first + patches * (frames - 1))
        start += patches * frames
    return torch.cat(firsts), torch.cat(seconds)
