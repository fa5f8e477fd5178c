"""FP8 weights in blocks: e4m3 values, one scale for each 128 x 128 of them, as the official FP8 checkpoints have them.

Where the device multiplies such blocks itself (Hopper) weights stay in this form and activations are quantised token by
token in groups of 128; elsewhere they are dequantised at load. Letters: N tokens, O out and I in features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

BLOCK = 128
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448


def quantise(values: Tensor, rows: int = BLOCK) -> tuple[Tensor, Tensor]:
    """[..., O, I] -> e4m3 values and the fp32 scales that give them back, one for each `rows` x 128 of them.

    The largest value of a block becomes the largest of e4m3; a block of zeros has the scale 1.
    """
    *_, height, width = values.shape
    padded = F.pad(values.float(), (0, -width % BLOCK, 0, -height % rows))
    blocks = padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, rows))
    largest = blocks.abs().amax(dim=(-3, -1))
    scales = torch.where(largest > 0, largest / LARGEST, 1.0)
    return (values.float() / _spread(scales, values.shape, rows)).to(FP8), scales


def dequantise(values: Tensor, scales: Tensor, rows: int = BLOCK) -> Tensor:
    """-> fp32 of the shape of `values`."""
    return values.float() * _spread(scales.float(), values.shape, rows)


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the scales of a weight [..., O, I]."""
    return (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))


def multiplies_fp8_blocks(device: torch.device) -> bool:
    """Whether torch has the block-scaled product on this device: on Hopper only, by cuBLAS of CUDA 12.9 or newer."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    built_for = (torch.version.cuda or "0.0").split(".")
    return (int(built_for[0]), int(built_for[1])) >= (12, 9)


class Fp8Linear(nn.Module):
    """A bias-free linear map whose weight stays in FP8 blocks; both sizes are multiples of 16."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=FP8), requires_grad=False)
        shape = scale_shape((out_features, in_features))
        self.weight_scale_inv = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)

    def forward(self, hidden_NI: Tensor) -> Tensor:
        # cuBLASLt takes rows by fours: others would read scales that are not there, a single row is refused outright.
        padded_NI = F.pad(hidden_NI, (0, 0, 0, -len(hidden_NI) % 4))
        values_NI, scales = quantise(padded_NI, rows=1)
        weight_scales = F.pad(self.weight_scale_inv, (0, -self.weight_scale_inv.shape[1] % 4))  # cuBLAS reads fours
        product_NO = scaled_mm(
            values_NI,
            self.weight.t(),
            scale_a=scales.t().contiguous().t(),
            scale_recipe_a=ScalingType.BlockWise1x128,
            scale_b=weight_scales.t(),
            scale_recipe_b=ScalingType.BlockWise128x128,
            output_dtype=hidden_NI.dtype,
        )
        return product_NO[: len(hidden_NI)]


def keep_in_fp8(decoder: nn.Module, may_be_fp8: Callable[[str], bool]) -> None:
    """Makes FP8 maps of the bias-free linear maps of a decoder's layers, in place, without values. Routers stay, and
    what `may_be_fp8` denies, asked by the names that modules have below the decoder."""
    for name, module in list(decoder.named_modules()):
        for child_name, child in list(module.named_children()):
            is_map = isinstance(child, nn.Linear) and child_name != "gate" and name.startswith("layers.")
            if is_map and may_be_fp8(f"{name}.{child_name}"):
                setattr(module, child_name, Fp8Linear(child.in_features, child.out_features))


def _spread(scales: Tensor, shape: torch.Size, rows: int) -> Tensor:
    spread = scales.repeat_interleave(rows, dim=-2).repeat_interleave(BLOCK, dim=-1)
    return spread[..., : shape[-2], : shape[-1]]
