"""The small files of the official Qwen3-VL checkpoints, written down as keys and values: what a checkpoint of that size
has and, as much, what it has not."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

VOCABULARY = 151_936
CONTEXT = 262_144
# (id, token, special), as tokenizer_config.json has them.
ADDED_TOKENS = [
    *((151_643 + number, f"<|{name}|>", True) for number, name in enumerate((
        "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start",
        "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad",
    ))),
    *((151_657 + number, token, False) for number, token in enumerate((
        "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
        "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
    ))),
]  # fmt: skip
SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


@dataclass(frozen=True)
class Size:
    """What sets the sizes apart. Tensors are those in the safetensors files of the official repository."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tower: dict[str, object]
    tied: bool
    num_tensors: int
    moe_intermediate_size: int = 0
    fp8: bool = False
    thinking: bool = False

    @property
    def is_moe(self) -> bool:
        return self.moe_intermediate_size > 0


SIZES = {
    "2B-Instruct": Size(2048, 6144, 28, 16, 8, SMALL_TOWER, tied=True, num_tensors=625),
    "4B-Instruct": Size(2560, 9728, 36, 32, 8, SMALL_TOWER, tied=True, num_tensors=713),
    "8B-Instruct": Size(4096, 12288, 36, 32, 8, LARGE_TOWER, tied=False, num_tensors=750),
    "32B-Instruct": Size(5120, 25600, 64, 64, 8, LARGE_TOWER, tied=False, num_tensors=1058),
    "30B-A3B-Instruct": Size(
        2048, 6144, 48, 32, 4, LARGE_TOWER, tied=False, num_tensors=882, moe_intermediate_size=768
    ),
    "235B-A22B-Instruct": Size(
        4096, 12288, 94, 64, 4, LARGE_TOWER, tied=False, num_tensors=1388, moe_intermediate_size=1536
    ),
    "2B-Thinking-FP8": Size(2048, 6144, 28, 16, 8, SMALL_TOWER, tied=True, num_tensors=822, fp8=True, thinking=True),
    "8B-Instruct-FP8": Size(4096, 12288, 36, 32, 8, LARGE_TOWER, tied=False, num_tensors=1002, fp8=True),
}
SIZES |= {f"{size}-Thinking": replace(SIZES[f"{size}-Instruct"], thinking=True) for size in ("8B", "235B-A22B")}


def config_json(size: Size) -> dict[str, object]:
    family = "qwen3_vl_moe" if size.is_moe else "qwen3_vl"
    experts = {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": size.moe_intermediate_size,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }
    config: dict[str, object] = {
        "architectures": [f"Qwen3VL{'Moe' if size.is_moe else ''}ForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": family,
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": size.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": size.intermediate_size,
            "max_position_embeddings": CONTEXT,
            "model_type": f"{family}_text",
            "num_attention_heads": size.num_attention_heads,
            "num_hidden_layers": size.num_hidden_layers,
            "num_key_value_heads": size.num_key_value_heads,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "use_cache": True,
            "vocab_size": VOCABULARY,
            **(experts if size.is_moe else {}),
        },
        "tie_word_embeddings": size.tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": family,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": size.hidden_size,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **size.tower,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }
    if size.fp8:
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "ignored_layers": ["lm_head", "model.visual.merger.linear_fc1", "model.visual.merger.linear_fc2"],
            "weight_block_size": [128, 128],
        }
    return config


def preprocessor_json(least: int, most: int, kind: dict[str, str]) -> dict[str, object]:
    return {
        "size": {"longest_edge": most, "shortest_edge": least},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        **kind,
    }


def write_small_files(folder: Path, name: str) -> None:
    """All but tokenizer and template."""
    size = SIZES[name]
    drawing = {"temperature": 1.0, "top_p": 0.95} if size.thinking else {"temperature": 0.7, "top_p": 0.8}
    files = {
        "config.json": config_json(size),
        "generation_config.json": {
            "bos_token_id": 151643,
            "pad_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "top_k": 20,
            "repetition_penalty": 1.0,
            "transformers_version": "4.56.0",
            **drawing,
        },
        "preprocessor_config.json": preprocessor_json(
            65_536, 16_777_216, {"image_processor_type": "Qwen2VLImageProcessorFast"}
        ),
        "video_preprocessor_config.json": preprocessor_json(
            4096, 25_165_824, {"video_processor_type": "Qwen3VLVideoProcessor"}
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=4))


def tensors_of(size: Size) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every tensor on disk."""
    hidden, heads = size.hidden_size, size.num_attention_heads * 128
    keys = size.num_key_value_heads * 128
    if not size.tied or size.fp8:  # a tied FP8 checkpoint stores its head as well
        yield "lm_head.weight", "BF16", (VOCABULARY, hidden)
    yield "model.language_model.embed_tokens.weight", "BF16", (VOCABULARY, hidden)
    yield "model.language_model.norm.weight", "BF16", (hidden,)
    for layer in range(size.num_hidden_layers):
        prefix = f"model.language_model.layers.{layer}"
        for norm, width in (("input_layernorm", hidden), ("post_attention_layernorm", hidden)):
            yield f"{prefix}.{norm}.weight", "BF16", (width,)
        for norm in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{norm}.weight", "BF16", (128,)
        maps = {
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, heads),
        }
        if size.is_moe:
            inner = size.moe_intermediate_size
            yield f"{prefix}.mlp.gate.weight", "BF16", (128, hidden)
            yield f"{prefix}.mlp.experts.gate_up_proj", "BF16", (128, hidden, 2 * inner)
            yield f"{prefix}.mlp.experts.down_proj", "BF16", (128, inner, hidden)
        else:
            maps |= {f"mlp.{part}_proj": (size.intermediate_size, hidden) for part in ("gate", "up")}
            maps["mlp.down_proj"] = (hidden, size.intermediate_size)
        for name, shape in maps.items():
            yield f"{prefix}.{name}.weight", "F8_E4M3" if size.fp8 else "BF16", shape
            if size.fp8:
                yield f"{prefix}.{name}.weight_scale_inv", "F32", (-(-shape[0] // 128), -(-shape[1] // 128))
    for name, shape in tower_tensors(size):
        yield f"model.visual.{name}", "BF16", shape


def tower_tensors(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = size.tower["hidden_size"], size.tower["intermediate_size"]
    assert isinstance(width, int)
    assert isinstance(inner, int)
    joined = 4 * width

    def affine(name: str, out: int, inputs: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, *inputs)
        yield f"{name}.bias", (out,)

    yield from affine("patch_embed.proj", width, (3, 2, 16, 16))
    yield "pos_embed.weight", (2304, width)
    for block in range(size.tower["depth"]):  # type: ignore[call-overload]
        prefix = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            yield from affine(f"{prefix}.{norm}", width, ())
        yield from affine(f"{prefix}.attn.qkv", 3 * width, (width,))
        yield from affine(f"{prefix}.attn.proj", width, (width,))
        yield from affine(f"{prefix}.mlp.linear_fc1", inner, (width,))
        yield from affine(f"{prefix}.mlp.linear_fc2", width, (inner,))
    mergers = {"merger": width} | {f"deepstack_merger_list.{level}": joined for level in range(3)}
    for merger, normed in mergers.items():
        yield from affine(f"{merger}.norm", normed, ())
        yield from affine(f"{merger}.linear_fc1", joined, (joined,))
        yield from affine(f"{merger}.linear_fc2", size.hidden_size, (joined,))
