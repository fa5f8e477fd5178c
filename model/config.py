"""What a checkpoint is, read from its config.json. Nothing is guessed: a missing key is an error that names it."""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from model.checkpoint import read_json

OWN_RULES = frozenset({"vision", "text", "dtype", "fp8", "unquantised"})  # fields that are not keys of config.json


@dataclass(frozen=True, slots=True)
class VisionConfig:
    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """Which decoder layers have a mixture of experts in place of their MLP, and how large it is."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    decoder_sparse_step: int
    mlp_only_layers: tuple[int, ...]

    def covers(self, layer: int) -> bool:
        """Every `decoder_sparse_step`-th layer, those of `mlp_only_layers` excepted; layers count from 0."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """Rotary frequencies stretched beyond the positions that were trained (Peng et al., YaRN, arXiv 2309.00071)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0  # frequencies that turn more often than this within the original positions stay
    beta_slow: float = 1.0  # those that turn less often are divided by the factor; between them lies a ramp
    attention_factor: float | None = None  # of cos and sin; None: 0.1 ln(factor) + 1

    @property
    def max_position(self) -> int:
        """How many positions (not tokens) it reaches."""
        return int(self.factor * self.original_max_position_embeddings)


@dataclass(frozen=True, slots=True)
class TextConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # its own key: not hidden_size / num_attention_heads
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies given to time, rows, columns
    max_position_embeddings: int  # the longest context, in tokens
    yarn: YarnConfig | None  # None: frequencies as trained
    moe: MoEConfig | None  # None: every layer is dense


@dataclass(frozen=True, slots=True)
class ModelConfig:
    vision: VisionConfig
    text: TextConfig
    tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    dtype: str  # of the tensors on disk, by the checkpoint's own word: "bfloat16", "float32", ...
    fp8: bool = False  # matrices lie on disk as FP8 blocks with scales, which ones, their dtypes say
    unquantised: tuple[str, ...] = ()  # modules of an FP8 checkpoint that are not in FP8, nor what is inside them

    @property
    def pixel_multiple(self) -> int:
        """Both sides of a frame are multiples of this many pixels: one visual token covers a square of them."""
        return self.vision.patch_size * self.vision.spatial_merge_size

    def may_be_fp8(self, module: str) -> bool:
        """Whether a module, by its full name, is none of those that the checkpoint wants as they were trained."""
        names = module.split(".")
        return not any(".".join(names[: end + 1]) in self.unquantised for end in range(len(names)))

    def check_tensor_parallel(self, size: int) -> None:
        """Raises ValueError when the decoder cannot be cut for `size` ranks; key heads may be fewer than ranks, as
        ranks can hold the same one."""
        key_heads = self.text.num_key_value_heads
        if key_heads % size and size % key_heads:
            raise ValueError(
                f"tensor_parallel {size}: neither it nor num_key_value_heads, {key_heads}, divides the other"
            )
        sizes = {name: getattr(self.text, name) for name in ("num_attention_heads", "intermediate_size", "vocab_size")}
        if self.text.moe:
            sizes["moe_intermediate_size"] = self.text.moe.moe_intermediate_size
        for name, whole in sizes.items():
            if whole % size:
                raise ValueError(f"tensor_parallel {size} does not divide {name}, {whole}")


def read_config(folder: Path) -> ModelConfig:
    """The configuration in `folder`/config.json.

    Raises ValueError for a missing file or key, for another architecture, and for what this version cannot run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    return parse_config(read_json(path), source=str(path))


def parse_config(raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """`raw` as in config.json -> ModelConfig. Accepts both spellings of the rotary settings:
    `rope_scaling` beside `rope_theta` (transformers 4) and `rope_parameters` holding both (transformers 5).
    """
    if raw.get("model_type") not in ("qwen3_vl", "qwen3_vl_moe"):
        raise ValueError(
            f"{source}: model_type is {raw.get('model_type')!r}; this version runs Qwen3-VL checkpoints only "
            "('qwen3_vl' and 'qwen3_vl_moe')"
        )
    need = partial(_required, source=source)
    text, vision = need(raw, "text_config"), need(raw, "vision_config")
    rope = text.get("rope_parameters") or {"rope_theta": need(text, "rope_theta"), **need(text, "rope_scaling")}
    _refuse_other_networks(text, vision, rope, source)
    quantization = raw.get("quantization_config") or text.get("quantization_config")
    text_keys = {name for name in _names(TextConfig) if name not in ("rope_theta", "mrope_section", "yarn", "moe")}
    config = ModelConfig(
        vision=VisionConfig(
            **{name: need(vision, name) for name in _names(VisionConfig) if name != "deepstack_visual_indexes"},
            deepstack_visual_indexes=tuple(need(vision, "deepstack_visual_indexes")),
        ),
        text=TextConfig(
            **{name: need(text, name) for name in text_keys},
            rope_theta=float(need(rope, "rope_theta")),
            mrope_section=tuple(need(rope, "mrope_section")),
            yarn=_yarn(rope, source),
            moe=_moe(text, source) if raw["model_type"] == "qwen3_vl_moe" else None,
        ),
        **{name: need(raw, name) for name in _names(ModelConfig) if name not in OWN_RULES},
        dtype=raw.get("dtype") or text.get("dtype") or need(raw, "torch_dtype"),
        fp8=_is_fp8(quantization, source),
        unquantised=_unquantised(quantization, source),
    )
    _check_sizes(config, source)
    return config


def extended(config: ModelConfig, max_context: int | None, rope_scaling_factor: float | None) -> ModelConfig:
    """The configuration for contexts of at most `max_context` tokens; with a factor, for more than were trained (YaRN).

    Raises ValueError when the context needs a factor and has none, and when a factor is not needed: YaRN changes the
    frequencies and the scale of attention at every position, so short prompts would be answered differently and
    nothing would say so.
    """
    text = config.text
    trained = text.yarn.original_max_position_embeddings if text.yarn else text.max_position_embeddings
    factor = rope_scaling_factor or (text.yarn.factor if text.yarn else None)
    wanted = max_context or text.max_position_embeddings
    if factor is not None and wanted <= trained:
        raise ValueError(
            f"RoPE scaling by {factor} would silently change the answers to all prompts, short ones too (YaRN rescales"
            f" attention at every position), and no context needs it: the longest is {wanted} tokens, and the model was"
            f" trained on {trained}. Scale only for a max_context beyond that"
        )
    if factor is None and wanted > trained:
        raise ValueError(
            f"max_context is {wanted}, but the model was trained on {trained} tokens. Beyond them it needs"
            " rope_scaling_factor (YaRN; 2 or 3 for a million tokens of video), which changes short prompts, too"
        )
    if rope_scaling_factor is None:
        return replace(config, text=replace(text, max_position_embeddings=wanted))
    if rope_scaling_factor <= 1:
        raise ValueError(f"rope_scaling_factor must be more than 1, not {rope_scaling_factor}")
    yarn = YarnConfig(float(rope_scaling_factor), trained)
    return replace(config, text=replace(text, max_position_embeddings=wanted, yarn=yarn))


def _yarn(rope: dict[str, Any], source: str) -> YarnConfig | None:
    if rope.get("rope_type", "default") == "default":
        return None
    need = partial(_required, source=source)
    optional = ("beta_fast", "beta_slow", "attention_factor")
    return YarnConfig(
        factor=float(need(rope, "factor")),
        original_max_position_embeddings=need(rope, "original_max_position_embeddings"),
        **{name: float(rope[name]) for name in optional if rope.get(name) is not None},
    )


def _moe(text: dict[str, Any], source: str) -> MoEConfig:
    need = partial(_required, source=source)
    moe = MoEConfig(
        num_experts=text.get("num_local_experts") or need(text, "num_experts"),  # transformers 5 saves the former
        **{name: need(text, name) for name in _names(MoEConfig) if name not in ("num_experts", "mlp_only_layers")},
        mlp_only_layers=tuple(need(text, "mlp_only_layers")),
    )
    if not 0 < moe.num_experts_per_tok <= moe.num_experts or moe.decoder_sparse_step < 1:
        raise ValueError(f"{source}: {moe} cannot be: a token needs 1 to num_experts experts, the step is at least 1")
    return moe


def _is_fp8(quantization: dict[str, Any] | None, source: str) -> bool:
    """Raises ValueError for a quantization other than e4m3 in blocks of 128 x 128 with scales found at run time."""
    if not quantization:
        return False
    built_in = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    }
    for name, expected in built_in.items():
        found = quantization.get(name, expected if name == "fmt" else None)
        if found != expected:
            raise ValueError(f"{source}: quantization_config.{name} is {found!r}; this version runs {expected!r} only")
    return True


def _unquantised(quantization: dict[str, Any] | None, source: str) -> tuple[str, ...]:
    """What official files call `ignored_layers`, and transformers `modules_to_not_convert`."""
    names: list[str] = []
    for key in ("ignored_layers", "modules_to_not_convert"):
        found = (quantization or {}).get(key) or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError(f"{source}: quantization_config.{key} is {str(found)[:60]}, not a list of names")
        names += found
    return tuple(sorted(set(names)))


def _names(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


def _required(section: dict[str, Any], key: str, *, source: str) -> Any:
    if key not in section:
        raise ValueError(f"{source}: the key {key!r} is missing beside {', '.join(list(section)[:4])}, ...")
    return section[key]


def _refuse_other_networks(text: dict[str, Any], vision: dict[str, Any], rope: dict[str, Any], source: str) -> None:
    """Settings the code has built in; a checkpoint that says otherwise would be read wrongly."""
    built_in = (
        ("text_config.hidden_act", text.get("hidden_act"), "silu"),
        ("text_config.norm_topk_prob", text.get("norm_topk_prob", True), True),
        ("text_config.attention_bias", text.get("attention_bias", False), False),
        ("vision_config.hidden_act", vision.get("hidden_act"), "gelu_pytorch_tanh"),
        ("vision_config.temporal_patch_size", vision.get("temporal_patch_size"), 2),
        ("rope mscale", rope.get("mscale"), None),
        ("rope truncate", rope.get("truncate", True), True),
        ("mrope_interleaved", rope.get("mrope_interleaved"), True),
    )
    if (kind := rope.get("rope_type", "default")) not in ("default", "yarn"):
        raise ValueError(f"{source}: rope type is {kind!r}; this version runs 'default' and 'yarn' only")
    for name, found, expected in built_in:
        if found != expected:
            raise ValueError(f"{source}: {name} is {found!r}; this version runs {expected!r} only")


def _check_sizes(config: ModelConfig, source: str) -> None:
    text, vision = config.text, config.vision
    if len(text.mrope_section) != 3 or sum(text.mrope_section) != text.head_dim // 2:
        raise ValueError(f"{source}: mrope_section {text.mrope_section} must be three numbers of sum head_dim / 2")
    if vision.out_hidden_size != text.hidden_size:
        raise ValueError(
            f"{source}: vision out_hidden_size {vision.out_hidden_size} is not the text hidden_size {text.hidden_size}"
        )
    if not 0 < len(vision.deepstack_visual_indexes) <= text.num_hidden_layers:
        raise ValueError(f"{source}: {len(vision.deepstack_visual_indexes)} DeepStack taps do not fit the decoder")
