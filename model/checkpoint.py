"""Where a checkpoint lies, what kind it is, and what its small files say of how answers are written. No torch."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from model.request import Sampling

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
WEIGHT_INDEX = "model.safetensors.index.json"
# Checkpoints of the same network that give vectors and scores, no text. The official ones are known by their names; a
# copy under another name by the files that the library they are published for adds, or by the tokenizer that ends a
# text with <|endoftext|>, as only Qwen3-VL-Embedding's does.
OTHER_USE = re.compile(r"qwen3-vl-(embedding|reranker)", re.IGNORECASE)
OTHER_USE_FILES = ("modules.json", "config_sentence_transformers.json")
# Settings of generation_config.json that change answers and are not ours, with the values that change nothing.
UNSERVED = {
    "repetition_penalty": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "min_p": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "top_h": (None,),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1, 1.0),
    "min_new_tokens": (None, 0),
}


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How much of a checkpoint is in the model."""

    tensors: int
    tensors_total: int
    num_bytes: int  # on disk
    num_bytes_total: int


Report = Callable[[LoadProgress], None]


def checkpoint_folder(model: str) -> Path:
    """`model` when it is a folder, otherwise the local snapshot of that hub repository, downloaded when it is missing.

    Raises ValueError when it is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    if Path(model).is_file():
        raise ValueError(f"model {model!r} is a file: give the folder that holds config.json and the weights")
    if not HUB_ID.fullmatch(model):
        raise ValueError(
            f"model {model!r} is neither a folder nor a hub id such as Qwen/Qwen3-VL-8B-Instruct: there is no such "
            "folder here"
        )
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"model {model!r}: there is no such folder here (looked in {Path.cwd()}), and the hub did not give it as a "
            f"repository ({reason}). Give the path of a checkpoint's folder, or download it where there is a network"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ValueError that names the file when there is none in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object, but {str(content)[:40]}")
    return content


def weight_files(folder: Path) -> tuple[list[Path], set[str] | None]:
    """The files that hold a checkpoint's tensors, and the names its index says they have; None: it has no index.

    Raises ValueError when there are none, or the index names files that are not there.
    """
    index, single = folder / WEIGHT_INDEX, folder / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single], None
        raise ValueError(f"{folder} has no weights: neither {single.name} nor {index.name}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index}: weight_map is {str(weight_map)[:60]}, not a file for each tensor")
    paths = sorted({folder / file for file in weight_map.values()})
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{index} names files that are not there: {', '.join(missing)}")
    return paths, set(weight_map)


def refuse_other_uses(model: str, folder: Path) -> None:
    """Raises ValueError for checkpoints of this network that were not trained to write answers: Embedding and
    Reranker."""
    wants = "it is for vectors or scores, and what it writes means nothing: give an Instruct or Thinking checkpoint"
    if found := OTHER_USE.search(model) or OTHER_USE.search(str(folder.resolve())):
        raise ValueError(f"model {model!r} is a Qwen3-VL-{found[1].title()} checkpoint: {wants}")
    for name in OTHER_USE_FILES:
        if (folder / name).is_file():
            raise ValueError(f"model {model!r} has a {name}, as embedding and reranker checkpoints have: {wants}")
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and _ends_texts(read_json(tokenizer).get("post_processor")):
        raise ValueError(
            f"model {model!r}: its tokenizer.json puts <|endoftext|> behind every text, as that of "
            f"Qwen3-VL-Embedding does: {wants}"
        )


def _ends_texts(post_processor: Any) -> bool:
    """Whether a tokenizer's post-processor, or one in a sequence of them, adds <|endoftext|>."""
    if not isinstance(post_processor, dict):
        return False
    if post_processor.get("type") == "Sequence":
        return any(map(_ends_texts, post_processor.get("processors") or ()))
    return post_processor.get("type") == "TemplateProcessing" and "<|endoftext|>" in post_processor.get(
        "special_tokens", {}
    )


def read_stop_token_ids(folder: Path) -> frozenset[int]:
    """The end-of-sequence ids of a checkpoint: those of generation_config.json, or else of config.json.

    Raises ValueError when there are none: no answer would ever end by itself.
    """
    config = read_json(folder / "config.json")
    for section in (_read_generation(folder), config, config.get("text_config", {})):
        found = section.get("eos_token_id")
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    raise ValueError(f"{folder}: neither generation_config.json nor config.json has an eos_token_id")


def read_sampling(folder: Path) -> Sampling:
    """How generation_config.json wants answers to be drawn; greedy where it says so, or nothing.

    Raises ValueError that names a setting which this version does not have, or a value that cannot be.
    """
    generation = _read_generation(folder)
    source = folder / "generation_config.json"
    if not generation.get("do_sample"):  # as in transformers, where other settings then mean nothing
        return Sampling()
    for name, harmless in UNSERVED.items():
        if generation.get(name) not in harmless:
            raise ValueError(
                f"{source}: {name} is {generation[name]!r}, which this version does not have. Give --temperature (0 is "
                "greedy) to choose yourself how answers are drawn"
            )
    # What is not said is what transformers has: temperature 1, the 50 likeliest tokens, all of their sum.
    given = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    given |= {name: generation[name] for name in given if generation.get(name) is not None}
    try:
        return Sampling(temperature=float(given["temperature"]), top_k=int(given["top_k"]), top_p=float(given["top_p"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _read_generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}
