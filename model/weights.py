"""Safetensors on disk <-> the model's parameters, strictly: every tensor, no other, each of its shape."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import extended, read_config
from model.processor import checkpoint_folder
from model.qwen3_vl import Qwen3VL, empty_model

ExpertLayout = Literal["auto", "official", "transformers"]
NAMED_AT_MOST = 10  # tensors in an error
MAPPED_BYTES = 2**27  # of a file that are mapped at a time: what was read counts as ours until the mapping ends


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor on disk: its file, shape, and bytes."""

    path: Path
    shape: tuple[int, ...]
    num_bytes: int


def from_pretrained(
    model: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_layout: ExpertLayout = "auto",
    max_context: int | None = None,
    rope_scaling_factor: float | None = None,
) -> Qwen3VL:
    """The model of a folder or hub id, in evaluation mode; `dtype` None keeps the checkpoint's own.

    `max_context` and `rope_scaling_factor` as in `config.extended`.

    Raises ValueError that names the tensors which are missing, extra or of another shape.
    """
    folder = checkpoint_folder(model)
    config = extended(read_config(folder), max_context, rope_scaling_factor)
    network = empty_model(config, device=device, dtype=dtype or getattr(torch, config.dtype))
    load_weights(network, folder, expert_layout)
    return network.eval().requires_grad_(False)


def load_weights(network: Qwen3VL, folder: Path, expert_layout: ExpertLayout = "auto") -> None:
    """Fills `network` from `folder`: model.safetensors, or the files of model.safetensors.index.json.

    Files are mapped, and read straight into the parameters.
    """
    stored = stored_tensors(folder)
    targets = targets_on_disk(network, stored, expert_layout)
    if problems := _differences(targets, stored):
        raise ValueError(f"{folder} does not fit its config.json: {'; '.join(problems)}")
    with torch.no_grad():
        for name, value in _read(stored, list(targets)):
            targets[name].copy_(value)


def targets_on_disk(network: Qwen3VL, stored: Mapping[str, Stored], expert_layout: ExpertLayout) -> dict[str, Tensor]:
    """For each tensor the checkpoint must have, by its name there, where its values go: a parameter, a view of one
    that is turned as the tensor is, or the part of one that a split checkpoint stores by itself.

    Raises ValueError when the shapes of expert tensors fit two layouts and `expert_layout` does not say which it is.
    """
    targets: dict[str, Tensor] = {}
    for name, parameter in network.state_dict().items():
        prefix, _, last = name.rpartition(".")
        if not prefix.endswith(".mlp.experts"):
            targets[name] = parameter
        elif f"{prefix}.0.down_proj.weight" in stored:
            for expert, weight in enumerate(parameter):
                parts = zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True)
                for part, target in parts if last == "gate_up_proj" else ((last, weight),):
                    targets[f"{prefix}.{expert}.{part}.weight"] = target
        else:
            targets[name] = _turned_as_stored(name, parameter, stored, expert_layout)
    return targets


def _turned_as_stored(
    name: str, parameter: Tensor, stored: Mapping[str, Stored], expert_layout: ExpertLayout
) -> Tensor:
    """Official checkpoints store the experts' matrices [X, in, out], transformers 5 saves them [X, out, in]."""
    turned = parameter.transpose(1, 2)
    if expert_layout != "auto":
        return turned if expert_layout == "official" else parameter
    if name in stored and parameter.shape == turned.shape:
        raise ValueError(
            f"{name} is square, {tuple(parameter.shape[1:])}: its shape does not tell how it is stored. Set the option"
            " expert_layout to 'official' ([experts, in, out]) or 'transformers' ([experts, out, in])"
        )
    return turned if name in stored and stored[name].shape == tuple(turned.shape) else parameter


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint. Raises ValueError when there are none, or files that its index names are missing or
    hold other tensors than it says."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        weight_map = json.loads(index.read_text())["weight_map"]
        paths = sorted({folder / file for file in weight_map.values()})
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise ValueError(f"{index} names files that are not there: {', '.join(missing)}")
    elif single.is_file():
        weight_map, paths = None, [single]
    else:
        raise ValueError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
    stored = {name: tensor for path in paths for name, tensor in _header(path).items()}
    if weight_map is not None and (wrong := sorted(weight_map.keys() ^ stored.keys())):
        raise ValueError(f"{index} and its files do not agree on {_some(wrong)}")
    return stored


def _header(path: Path) -> dict[str, Stored]:
    """What a file holds, from its first bytes: a length (8 bytes, little endian) and that much JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(path, tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
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


def _differences(targets: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> list[str]:
    misshapen = [
        f"{name} is {stored[name].shape}, not {tuple(target.shape)}"
        for name, target in targets.items()
        if name in stored and stored[name].shape != tuple(target.shape)
    ]
    named = (
        ("missing", sorted(targets.keys() - stored.keys())),
        ("unexpected", sorted(stored.keys() - targets.keys())),
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
