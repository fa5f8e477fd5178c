"""Safetensors on disk <-> the model's parameters, strictly: every tensor, no other, each of its shape."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.config import read_config
from model.processor import checkpoint_folder
from model.qwen3_vl import Qwen3VL, empty_model


def from_pretrained(model: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Qwen3VL:
    """The model of a folder or hub id, in evaluation mode; `dtype` None keeps the checkpoint's own.

    Raises ValueError that names the tensors which are missing, extra or of another shape.
    """
    folder = checkpoint_folder(model)
    config = read_config(folder)
    network = empty_model(config, device=device, dtype=dtype or getattr(torch, config.dtype))
    load_weights(network, folder)
    return network.eval().requires_grad_(False)


def load_weights(network: Qwen3VL, folder: Path) -> None:
    """Fills `network` from `folder`: model.safetensors, or the files of model.safetensors.index.json."""
    files = tensor_files(folder)
    wanted = network.state_dict()
    problems = _differences(wanted, files)
    if problems:
        raise ValueError(f"{folder} does not fit its config.json: {'; '.join(problems)}")
    by_file: dict[Path, list[str]] = {}
    for name in wanted:
        by_file.setdefault(files[name], []).append(name)
    with torch.no_grad():
        for path, names in by_file.items():
            with safe_open(path, framework="pt") as tensors:
                for name in names:
                    wanted[name].copy_(tensors.get_tensor(name))


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor. Raises ValueError when there are none or one that the index names is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        if missing := sorted({str(path) for path in files.values() if not path.is_file()}):
            raise ValueError(f"{index} names files that are not there: {', '.join(missing)}")
        return files
    single = folder / "model.safetensors"
    if not single.is_file():
        raise ValueError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
    with safe_open(single, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), single)


def _differences(wanted: dict[str, torch.Tensor], files: dict[str, Path]) -> list[str]:
    missing = sorted(wanted.keys() - files.keys())
    extra = sorted(files.keys() - wanted.keys())
    misshapen = []
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys() & wanted.keys():
                shape = tuple(tensors.get_slice(name).get_shape())
                if shape != tuple(wanted[name].shape):
                    misshapen.append(f"{name} is {shape}, not {tuple(wanted[name].shape)}")
    named = (("missing", missing), ("unexpected", extra), ("misshapen", sorted(misshapen)))
    return [
        f"{len(names)} {what} ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"
        for what, names in named
        if names
    ]


def save_weights(network: Qwen3VL, folder: Path, dtype: torch.dtype) -> None:
    """Writes `folder`/model.safetensors as the official checkpoints are (a tied head is not stored)."""
    tensors = {name: value.detach().to(dtype).contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
