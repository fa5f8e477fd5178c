"""A new demonstration checkpoint: the official on-disk layout, a small network, an own tokenizer, random weights."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jobs.sample_videos import COLORS, DIRECTIONS, SHAPES, answer_for, make_clip, pairs_of
from jobs.samples import LADDER, make_page
from model.config import read_config
from model.qwen3_vl import Qwen3VL, empty_model
from model.weights import save_weights
from pipeline.prompts import EVENTS_INSTRUCTION, PROMPTS_FILE

VOCABULARY = 448
WAVES = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # turns from one side of an image to the other; ten: the tens of thousandths

# The names and the order of Qwen's special tokens; their numbers differ, since the vocabulary is small.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

CHAT_TEMPLATE = """\
{%- macro content_of(message) -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + content_of(message) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# The words that prompts and formats of answers are made of. Everything else is written letter by letter: a network this
# small learns to read one letter much sooner than to guess how many letters the next piece has.
WORDS = (
    "system", "user", "assistant", "qwenvl", "markdown", "html", "events", "seconds", "body", "data", "bbox", "table",
    "start", "end", "description", "title", "card", "an", "moves", "stays", *SHAPES, *COLORS, *DIRECTIONS,
)  # fmt: skip

# Qwen's splitting of text before byte-pair merging, but for words, of which only WORDS stay whole: those with the space
# or mark before them, single letters, single digits, punctuation, line ends, spaces.
_WORD = rf"(?:{'|'.join(WORDS)})(?!\p{{L}})"
SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]{_WORD}|(?<!\p{{L}}){_WORD}|\p{{L}}|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_new_checkpoint(folder: Path, *, seed: int) -> None:
    """Everything `Qwen3VLForConditionalGeneration.from_pretrained` and `Processor.from_pretrained` need, untrained."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(_corpus(seed), VOCABULARY)
    tokenizer.save_pretrained(folder)
    for name, content in _configs(tokenizer).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    network = empty_model(read_config(folder), device="cpu", dtype=torch.float32)
    initialise(network, seed=seed)
    save_weights(network, folder, torch.bfloat16)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's normalisation and special tokens; SPLIT keeps letters apart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
    )


def _corpus(seed: int) -> Iterator[str]:
    """The words that stay whole, often enough to become pieces, and texts of training pages and clips."""
    rng = np.random.default_rng([seed, 1])
    yield from 1000 * WORDS
    yield from 1000 * [f" {word}" for word in WORDS]
    for index in range(6000):
        page = make_page(rng, LADDER[3 + index % (len(LADDER) - 3)], held_out=False).page
        yield page.html() if index % 8 == 0 else page.markdown()
    for _ in range(1000):
        clip = make_clip(rng, seconds=24.0, size=(160, 96), held_out=False)
        yield answer_for(clip, pairs_of([index / 2 for index in range(48)]))


def _configs(tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, Any]]:
    ids = tokenizer.get_added_vocab()
    image = {
        **{"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2},
        **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
    pixels_of_token = 32 * 32
    return {
        "config.json": {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "dtype": "bfloat16",
            "tie_word_embeddings": True,
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "text_config": {
                "model_type": "qwen3_vl_text",
                "dtype": "bfloat16",
                "vocab_size": len(tokenizer),
                "hidden_size": 256,
                "intermediate_size": 640,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "hidden_act": "silu",
                "attention_bias": False,
                "attention_dropout": 0.0,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 8192,
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"],
                "initializer_range": 0.02,
                "use_cache": True,
                "rope_theta": 100000.0,
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [12, 10, 10]},
            },
            "vision_config": {
                "model_type": "qwen3_vl",
                "depth": 5,
                "hidden_size": 160,
                "intermediate_size": 640,
                "num_heads": 4,
                "in_channels": 3,
                "patch_size": 16,
                "temporal_patch_size": 2,
                "spatial_merge_size": 2,
                "num_position_embeddings": 1024,
                "out_hidden_size": 256,
                "deepstack_visual_indexes": [1, 3],
                "hidden_act": "gelu_pytorch_tanh",
                "initializer_range": 0.02,
            },
        },
        "generation_config.json": {
            "do_sample": False,
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
            "size": {"shortest_edge": 8 * pixels_of_token, "longest_edge": 400 * pixels_of_token},
            **image,
        },
        PROMPTS_FILE: {"events": EVENTS_INSTRUCTION},
        "video_preprocessor_config.json": {
            "video_processor_type": "Qwen3VLVideoProcessor",
            "processor_class": "Qwen3VLProcessor",
            "size": {"shortest_edge": 4 * pixels_of_token, "longest_edge": 1536 * pixels_of_token},
            **image,
        },
    }


def initialise(network: Qwen3VL, *, seed: int) -> None:
    """Normal with deviation 0.02 (less where a residual branch ends), norms one, biases zero. The position table has
    waves besides: noise says nothing of where a patch lies, and 30,000 steps of training hardly changed it."""
    generator = torch.Generator().manual_seed(seed)
    layers = network.config.vision.depth + network.config.text.num_hidden_layers
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif parameter.ndim == 1:
                parameter.zero_()
            else:
                is_branch_end = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight"))
                deviation = 0.02 / (2 * layers) ** 0.5 if is_branch_end and "merger" not in name else 0.02
                parameter.normal_(0.0, deviation, generator=generator)
        table_SE = network.model.visual.pos_embed.weight
        waves_SW = position_waves(math.isqrt(len(table_SE)))[:, : table_SE.shape[1]]
        table_SE[:, : waves_SW.shape[1]] += waves_SW


def position_waves(side: int) -> torch.Tensor:
    """float32 [side x side, 4 x waves]: sine and cosine of each wave down the rows, then along the columns of a table
    of positions (as Vaswani et al., arXiv 1706.03762, along a sentence)."""
    turns_SW = torch.linspace(0, 1, side)[:, None] * torch.tensor(WAVES)
    along_SW = torch.cat([torch.sin(2 * math.pi * turns_SW), torch.cos(2 * math.pi * turns_SW)], dim=1)
    return torch.cat([along_SW.repeat_interleave(side, dim=0), along_SW.repeat(side, 1)], dim=1)
