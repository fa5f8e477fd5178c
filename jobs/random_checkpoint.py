"""A checkpoint of random weights under the small files of an official one: `python -m jobs.random_checkpoint FOLDER`.

True widths, vocabulary and tokenizer, and as many layers as wanted: to try what takes the official files where their
weights cannot be had. What a job makes of it is noise.
"""

import argparse
import json
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from jobs.options import CommandParser
from model.checkpoint import read_json
from model.config import ModelConfig, parse_config
from model.fp8 import FP8, quantise
from model.qwen3_vl import empty_model
from model.weights import QUANTISABLE, TIED_HEAD, scale_name

EMBEDDING = "model.language_model.embed_tokens.weight"
NOT_COPIED = ("config.json", "tokenizer.json", "model.safetensors.index.json")  # these are written
EXAMPLES = """\
examples:
  python -m jobs.random_checkpoint thin-8b --like Qwen3-VL-8B-Instruct --layers 2 --vision-layers 4
  python -m jobs.parse_documents ~/scans out --model thin-8b --max-new-tokens 16"""


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    try:
        config = thinned(read_json(flags.like / "config.json"), flags.layers, flags.vision_layers, flags.experts)
        parse_config(config, source=str(flags.like / "config.json"))
        copy_small_files(flags.like, flags.tokenizer, flags.folder)
        (flags.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_weights(flags.folder, config, seed=flags.seed, shard_bytes=int(flags.shard_gb * 1e9), stream=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"random_checkpoint: {error}", file=sys.stderr)
        return 2
    print(f"{flags.folder} is ready: give it as --model")
    return 0


def thinned(
    config: dict[str, Any], layers: int | None, vision_layers: int | None, experts: int | None
) -> dict[str, Any]:
    """The content of a config.json with fewer layers, tower blocks or experts; None keeps what there is. The taps of
    DeepStack are spread over the blocks that are left, as many as there were.

    Raises ValueError for numbers that cannot be.
    """
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    taps = len(vision["deepstack_visual_indexes"])
    for section, key, wanted, least in (
        (text, "num_hidden_layers", layers, taps),
        (vision, "depth", vision_layers, taps),
        (text, "num_experts", experts, text.get("num_experts_per_tok", 1)),
    ):
        if wanted is None:
            continue
        if key not in section:
            raise ValueError(f"{key} {wanted}: the checkpoint has no experts")
        if not least <= wanted <= section[key]:
            raise ValueError(f"{key} must lie between {least} and the {section[key]} there are, not {wanted}")
        section[key] = wanted
    if vision_layers is not None:
        vision["deepstack_visual_indexes"] = [(number + 1) * vision_layers // (taps + 1) for number in range(taps)]
    return config | {"text_config": text, "vision_config": vision}


def copy_small_files(like: Path, tokenizer: Path | None, folder: Path) -> None:
    """All small files but config.json and the index of the weights. Raises ValueError for a folder that holds any."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty: give another folder, or remove it")
    if tokenizer and tokenizer.is_dir():
        tokenizer = tokenizer / "tokenizer.json"
    tokenizer = tokenizer or like / "tokenizer.json"
    if not tokenizer.is_file():
        raise ValueError(f"{tokenizer} is not there: give --tokenizer with a tokenizer.json of the same family")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(like.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt") and path.name not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def write_weights(folder: Path, config: dict[str, Any], *, seed: int, shard_bytes: int, stream: TextIO) -> None:
    """Safetensors files of at most `shard_bytes` (or one tensor), and their index. One file is in memory at a time."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    held = total = 0
    began = time.monotonic()

    def flush() -> None:
        nonlocal shard, held
        name = f"model-{len(shards) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        shards.append(list(shard))
        print(f"{name}: {len(shard)} tensors, {total / 1e9:.1f} GB, {time.monotonic() - began:.0f} s", file=stream)
        shard, held = {}, 0

    for name, tensor in random_tensors(parse_config(config), seed):
        if shard and held + tensor.nbytes > shard_bytes:
            flush()
        shard[name] = tensor
        held += tensor.nbytes
        total += tensor.nbytes
    flush()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):  # as official files are named, which count from the start
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"model-{number:05d}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def random_tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, values) of every tensor, as official files have them: bfloat16, experts [X, in, out], in FP8 checkpoints
    e4m3 with scales and the head of a tied one besides. Matrices are normal, scaled so that what goes through them
    keeps its size; norms are one and biases zero. Each tensor has a seed of its own, by its name."""
    network = empty_model(config, device="meta", dtype=torch.bfloat16)
    for name, shape in ((name, tensor.shape) for name, tensor in network.state_dict().items()):
        if ".mlp.experts." in name:
            shape = (shape[0], shape[2], shape[1])
        values = _random(name, tuple(shape), seed)
        if config.fp8 and QUANTISABLE.fullmatch(name) and config.may_be_fp8(name.removesuffix(".weight")):
            rounded, scales = quantise(values)
            assert rounded.dtype == FP8
            yield name, rounded
            yield scale_name(name), scales
        else:
            yield name, values.to(torch.bfloat16)
        if name == EMBEDDING and config.fp8 and config.tie_word_embeddings:
            yield TIED_HEAD, values.to(torch.bfloat16)


def _random(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    is_table = name == EMBEDDING or name.endswith("pos_embed.weight")
    inputs = 2500 if is_table else shape[-2] if ".mlp.experts." in name else int(torch.tensor(shape[1:]).prod())
    return torch.empty(shape).normal_(0.0, inputs**-0.5, generator=generator)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m jobs.random_checkpoint",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where to write; must be empty or not there")
    parser.add_argument(
        "--like", metavar="FOLDER", type=Path, required=True, help="small files of an official checkpoint"
    )
    parser.add_argument("--layers", metavar="N", type=int, help="decoder layers (default: all)")
    parser.add_argument("--vision-layers", metavar="N", type=int, help="blocks of the vision tower (default: all)")
    parser.add_argument("--experts", metavar="N", type=int, help="experts of a layer (default: all)")
    parser.add_argument("--tokenizer", metavar="PATH", type=Path, help="tokenizer.json, where --like has none")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="the same seed writes the same bytes")
    parser.add_argument("--shard-gb", metavar="N", type=float, default=5.0, help="largest file (default: 5)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
