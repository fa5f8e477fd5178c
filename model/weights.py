"""Safetensors on disk <-> the model's parameters, strictly: every tensor, no other, each of its shape."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import WEIGHT_INDEX, LoadProgress, Report, checkpoint_folder, weight_files
from model.config import ModelConfig, extended, read_config
from model.footprint import available_bytes, weight_bytes
from model.fp8 import FP8, dequantise, multiplies_fp8_blocks, quantise, scale_shape
from model.parallel import ALONE, Cut, Group, cuts_of
from model.qwen3_vl import Qwen3VL, empty_model

logger = logging.getLogger(__name__)

ExpertLayout = Literal["auto", "official", "transformers"]
Quantization = Literal["fp8"]
TIED_HEAD = "lm_head.weight"  # stored besides by official FP8 checkpoints whose head is that of the embedding
QUANTISABLE = re.compile(r"model\.language_model\.layers\.\d+\..*_proj(\.weight)?")  # neither routers nor norms
NAMED_AT_MOST = 10  # tensors in an error
MAPPED_BYTES = 2**27  # of a file that are mapped at a time: what was read counts as ours until the mapping ends


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor on disk: its file, the name of its dtype as safetensors has it, shape, and bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where the values of a stored tensor go: all of them, or those of this rank's cut."""

    tensor: Tensor
    cut: Cut | None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        shape = tuple(self.tensor.shape)
        return self.cut.whole_shape(shape) if self.cut else shape

    def turned(self) -> "Target":
        """The last two of three dimensions swapped."""
        return Target(self.tensor.transpose(1, 2), self.cut and replace(self.cut, dim=3 - self.cut.dim))

    def experts(self, parts: int) -> Iterator[tuple["Target", ...]]:
        """For every expert its matrix, cut by rows into equal `parts`."""
        for weight in self.tensor:
            cut = self.cut and replace(self.cut, dim=self.cut.dim - 1, blocks=1)
            yield tuple(Target(part, cut) for part in weight.chunk(parts))

    def fill(self, stored: Tensor) -> None:
        if self.cut:
            self.cut.fill(self.tensor, stored)
        else:
            self.tensor.copy_(stored)


def from_pretrained(
    model: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_layout: ExpertLayout = "auto",
    max_context: int | None = None,
    rope_scaling_factor: float | None = None,
    quantization: Quantization | None = None,
    group: Group = ALONE,
    report: Report | None = None,
) -> Qwen3VL:
    """The model of a folder or hub id, in evaluation mode; `dtype` None keeps the checkpoint's own. With a `group`,
    this rank's share of it.

    `max_context` and `rope_scaling_factor` as in `config.extended`. `quantization` "fp8" rounds the decoder's matrices
    to what an FP8 checkpoint would hold. `report` is called before the first tensor and after each.

    Raises ValueError that names the tensors which are missing, extra or of another shape, for a group whose size the
    model does not divide by, and for weights that are larger than the memory a CPU has left.
    """
    folder = checkpoint_folder(model)
    config = extended(read_config(folder), max_context, rope_scaling_factor)
    dtype = dtype or getattr(torch, config.dtype)
    if torch.device(device).type == "cpu":
        _check_memory(model, config, dtype, group)
    network = empty_model(
        config,
        device=device,
        dtype=dtype,
        fp8=_keeps_fp8(config, device, quantization, group),
        group=group,
    )
    load_weights(network, folder, expert_layout, quantization, report)
    return network.eval().requires_grad_(False)


def _check_memory(model: str, config: ModelConfig, dtype: torch.dtype, group: Group) -> None:
    """Before the first byte is read: the system would end the process in the middle of it."""
    needed, free = weight_bytes(config, dtype.itemsize, ranks=group.size), available_bytes() // group.size
    if needed > free:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"the weights of {model} in {name} take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
            f"{' for each rank' if group.size > 1 else ''}: give dtype bfloat16, a smaller model, or more memory"
        )


def _keeps_fp8(
    config: ModelConfig, device: torch.device | str, quantization: Quantization | None, group: Group
) -> bool:
    """Whether matrices stay in FP8 on the device, said in one line of the log where they should and cannot."""
    if not config.fp8 and quantization is None:
        return False
    if group.size > 1:
        logger.warning("FP8 blocks are not spread over ranks yet: FP8 weights are dequantised at load")
        return False
    kept = multiplies_fp8_blocks(torch.device(device))
    if not kept:
        logger.warning("%s does not multiply FP8 blocks (Hopper does): FP8 weights are dequantised at load", device)
    return kept


def load_weights(
    network: Qwen3VL,
    folder: Path,
    expert_layout: ExpertLayout = "auto",
    quantization: Quantization | None = None,
    report: Report | None = None,
) -> None:
    """Fills `network` from `folder`: model.safetensors, or the files of model.safetensors.index.json.

    Files are mapped, and read straight into the parameters: of a tensor that is cut only the pages of the share. FP8
    matrices with their scales are dequantised for parameters of another dtype, others are quantised for FP8
    parameters; with `quantization` both happens.
    """
    stored, targets, scale_names = plan_load(network, folder, expert_layout)
    scales = {scale_names[name]: value.clone() for name, value in _read(stored, list(scale_names))}
    names = [name for name in targets if name in stored]
    with torch.no_grad():
        for name, value in _reported(_read(stored, names), stored, names, report):
            target = targets[name]
            device = target.tensor.device
            if target.tensor.dtype == FP8:
                values, scale = (value, scales[name]) if name in scales else quantise(value.to(device))
                target.fill(values)
                targets[scale_name(name)].fill(scale)
            elif name in scales:
                target.fill(dequantise(value.to(device), scales[name].to(device)))
            elif quantization == "fp8" and QUANTISABLE.fullmatch(name) and network.config.may_be_fp8(_module(name)):
                target.fill(dequantise(*quantise(value.to(device))))
            else:
                target.fill(value)


def plan_load(
    network: Qwen3VL, folder: Path, expert_layout: ExpertLayout = "auto"
) -> tuple[dict[str, Stored], dict[str, Target], dict[str, str]]:
    """What will be read, where it goes, and for the name of each scale that of the FP8 tensor it belongs to. Only
    headers are read, so `network` may be on the meta device.

    Raises ValueError, with the names, unless the tensors on disk are exactly those that `network` needs.
    """
    stored = stored_tensors(folder)
    targets = targets_on_disk(network, stored, expert_layout)
    scale_names = {scale_name(name): name for name in targets if name in stored and stored[name].dtype == "F8_E4M3"}
    if scale_names and not network.config.fp8:
        raise ValueError(f"{folder} holds FP8 tensors, but its config.json has no quantization_config")
    if network.config.tie_word_embeddings:  # a copy of the embedding, which is not read, as transformers does not
        stored.pop(TIED_HEAD, None)
    if mistaken := sorted(name for name in scale_names.values() if not network.config.may_be_fp8(_module(name))):
        raise ValueError(f"{folder}: quantization_config leaves out {_some(mistaken)}, and they are stored in FP8")
    if problems := _differences(targets, stored, scale_names):
        raise ValueError(f"{folder} does not fit its config.json: {'; '.join(problems)}")
    return stored, targets, scale_names


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def scale_name(name: str) -> str:
    """The tensor that has the scales of an FP8 tensor: X.weight_scale_inv of X.weight, X_scale_inv of experts' X."""
    return f"{name}_scale_inv"


def targets_on_disk(network: Qwen3VL, stored: Mapping[str, Stored], expert_layout: ExpertLayout) -> dict[str, Target]:
    """For each tensor the checkpoint must have, by its name there, where its values go: a parameter, a view of one
    that is turned as the tensor is, or the part of one that a split checkpoint stores by itself.

    Raises ValueError when the shapes of expert tensors fit two layouts and `expert_layout` does not say which it is.
    """
    targets: dict[str, Target] = {}
    cuts = cuts_of(network)
    for name, parameter in network.state_dict().items():
        target = Target(parameter, cuts.get(name))
        prefix, _, last = name.rpartition(".")
        if not prefix.endswith(".mlp.experts"):
            targets[name] = target
        elif f"{prefix}.0.down_proj.weight" in stored:
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
            for expert, weights in enumerate(target.experts(len(parts))):
                for part, weight in zip(parts, weights, strict=True):
                    targets[f"{prefix}.{expert}.{part}.weight"] = weight
        else:
            targets[name] = _turned_as_stored(name, target, stored, expert_layout)
    return targets


def _turned_as_stored(name: str, target: Target, stored: Mapping[str, Stored], expert_layout: ExpertLayout) -> Target:
    """Official checkpoints store the experts' matrices [X, in, out], transformers 5 saves them [X, out, in]."""
    turned = target.turned()
    if expert_layout != "auto":
        return turned if expert_layout == "official" else target
    if name in stored and target.stored_shape == turned.stored_shape:
        raise ValueError(
            f"{name} is square, {target.stored_shape[1:]}: its shape does not tell how it is stored. Set the option"
            " expert_layout to 'official' ([experts, in, out]) or 'transformers' ([experts, out, in])"
        )
    return turned if name in stored and stored[name].shape == turned.stored_shape else target


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint. Raises ValueError when there are none, or files that its index names are missing or
    hold other tensors than it says."""
    paths, names = weight_files(folder)
    stored = {name: tensor for path in paths for name, tensor in _header(path).items()}
    if names is not None and (wrong := sorted(names ^ stored.keys())):
        raise ValueError(f"{folder / WEIGHT_INDEX} and its files do not agree on {_some(wrong)}")
    return stored


def _header(path: Path) -> dict[str, Stored]:
    """What a file holds, from its first bytes: a length (8 bytes, little endian) and that much JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(path, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _read(stored: Mapping[str, Stored], names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, mapped, not copied: to be used before the next one is asked for."""
    for path, in_file in groupby(sorted(names, key=lambda name: stored[name].path), lambda name: stored[name].path):
        batches: list[list[str]] = []
        room = 0
        for name in in_file:
            if not batches or room < stored[name].num_bytes:
                batches.append([])
                room = MAPPED_BYTES
            batches[-1].append(name)
            room -= stored[name].num_bytes
        for batch in batches:
            with safe_open(path, framework="pt") as tensors:
                for name in batch:
                    yield name, tensors.get_tensor(name)


def _reported(
    tensors: Iterator[tuple[str, Tensor]], stored: Mapping[str, Stored], names: list[str], report: Report | None
) -> Iterator[tuple[str, Tensor]]:
    progress = LoadProgress(0, len(names), 0, sum(stored[name].num_bytes for name in names))
    if report:
        report(progress)
    for name, value in tensors:
        yield name, value
        read = progress.num_bytes + stored[name].num_bytes
        progress = replace(progress, tensors=progress.tensors + 1, num_bytes=read)
        if report:
            report(progress)


def _differences(
    targets: Mapping[str, Target], stored: Mapping[str, Stored], scale_names: Mapping[str, str]
) -> list[str]:
    """What is wrong with the stored tensors; `scale_names` has the tensor that each stored scale must belong to."""
    wanted = {name: target.stored_shape for name, target in targets.items() if not name.endswith("_scale_inv")}
    wanted |= {name: scale_shape(stored[of].shape) for name, of in scale_names.items()}
    misshapen = [
        f"{name} is {stored[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    extra = stored.keys() - wanted.keys()
    scales = {name for name in extra if "scale" in name.rpartition(".")[2]}
    named = (
        ("missing", sorted(wanted.keys() - stored.keys())),
        ("unknown scales", sorted(scales)),
        ("unexpected", sorted(extra - scales)),
        ("misshapen", sorted(misshapen)),
    )
    return [f"{len(names)} {what} ({_some(names)})" for what, names in named if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED_AT_MOST]) + (", ..." if len(names) > NAMED_AT_MOST else "")


def save_weights(network: Qwen3VL, folder: Path, dtype: torch.dtype) -> None:
    """Writes `folder`/model.safetensors: the names of the official checkpoints (a tied head is not stored), experts
    turned as transformers 5 saves them."""
    tensors = {name: value.detach().to(dtype).contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
