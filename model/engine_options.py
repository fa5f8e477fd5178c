"""How an engine runs a checkpoint: what can be chosen, and what does not go together."""

from dataclasses import dataclass
from typing import get_args

import torch

from model.weights import ExpertLayout, Quantization

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a checkpoint is run. Raises ValueError for what cannot be."""

    max_batch_size: int = 64  # requests that run at once
    max_step_tokens: int = 2048  # tokens of one forward pass: prompts in chunks, and one for each decoding request
    max_draft_tokens: int = 256  # tokens of a pass that check drafts; 0: no drafts
    prefix_cache: bool = True  # what earlier prompts left in the cache is found by those that begin alike
    kv_cache_tokens: int | None = None  # None: what the batch can use and there is memory for
    max_sequence_tokens: int | None = None  # the longest prompt with its answer, for which there must be room
    max_image_tokens: int = 16_384  # visual tokens of the largest image or frame pair: memory is measured with such
    block_size: int = 16  # tokens in one block of the cache; flash_attention_2 wants a multiple of 256
    dtype: str | None = None  # "float32", "bfloat16", "float16"; None: the checkpoint's own on cuda, float32 on cpu
    device: str = "cpu"
    tensor_parallel: int = 1  # GPUs (on a CPU: processes) the model is spread over; when one of them dies, all end
    attn_implementation: str = "auto"  # "sdpa", "numba" (CPUs), "triton" (GPUs: auto takes it), "flash_attention_2"
    cuda_graphs: bool = False  # decode and verify steps as CUDA graphs; needs triton's attention and one GPU
    overlap: bool = False  # prompts and decoding in passes of their own: one is prepared while the other is at work
    expert_layout: ExpertLayout = "auto"  # how experts lie on disk: "official", "transformers"; auto: by their shapes
    max_context: int | None = None  # most tokens of a prompt and its answer; None: what the checkpoint was made for
    quantization: Quantization | None = None  # "fp8": the decoder's matrices in FP8 blocks, whatever the checkpoint has
    kv_cache_dtype: str | None = None  # "fp8": half the memory of bfloat16, less exact; None: as the weights
    rope_scaling_factor: float | None = None  # YaRN, only for a max_context beyond what the model was trained on

    def __post_init__(self) -> None:
        bounded = ("max_batch_size", "max_step_tokens", "block_size", "tensor_parallel", "max_context")
        for name in (*bounded, "max_sequence_tokens", "max_image_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_draft_tokens < 0:
            raise ValueError(f"max_draft_tokens must be at least 0, not {self.max_draft_tokens}")
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < self.block_size:
            raise ValueError(
                f"kv_cache_tokens must be at least one block of {self.block_size}, not {self.kv_cache_tokens}"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: choose {', '.join(DTYPES)}, or None")
        if self.expert_layout not in get_args(ExpertLayout):
            raise ValueError(f"expert_layout {self.expert_layout!r}: choose {', '.join(get_args(ExpertLayout))}")
        for name in ("quantization", "kv_cache_dtype"):
            if getattr(self, name) not in (None, "fp8"):
                raise ValueError(f"{name} {getattr(self, name)!r}: choose fp8, or None")
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device {self.device!r}: choose cpu or cuda (one of several: cuda:1)")
        self._check_together()

    def _check_together(self) -> None:
        if self.kv_cache_dtype == "fp8" and self.attn_implementation == "flash_attention_2":
            raise ValueError(
                "kv_cache_dtype 'fp8': flash_attention_2 does not read it; choose attn_implementation 'sdpa'"
            )
        if self.tensor_parallel > 1 and ":" in self.device:
            raise ValueError(f"device {self.device!r} is one: with tensor_parallel {self.tensor_parallel} give cuda")
        if self.cuda_graphs and (not self.device.startswith("cuda") or self.tensor_parallel > 1):
            raise ValueError(
                f"cuda_graphs needs device cuda and tensor_parallel 1, not {self.device} and {self.tensor_parallel}"
            )

    def check_device(self) -> None:
        """Raises ValueError for GPUs that are not there."""
        if not self.device.startswith("cuda"):
            return
        if not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r}: torch sees no CUDA device here")
        if self.tensor_parallel > torch.cuda.device_count():
            raise ValueError(
                f"tensor_parallel {self.tensor_parallel}: torch sees {torch.cuda.device_count()} GPUs here"
            )

    @property
    def max_step_rows(self) -> int:
        """The most rows of logits of one pass."""
        return min(self.max_batch_size + self.max_draft_tokens, self.max_step_tokens)
