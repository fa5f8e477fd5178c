"""The whole model on one screen: look, write what was seen into the text, read on.

Letters: N packed tokens of all sequences, M visual tokens among them, P patches, C values of a patch, E hidden
size, V vocabulary. Parameter names are those of the official checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention, AttentionImplementation
from model.config import ModelConfig
from model.fp8 import keep_in_fp8
from model.parallel import ALONE, ColumnParallelLinear, Group
from model.text import TextDecoder
from model.vision import VisionTower, VisualFeatures, look_together


class Qwen3VLModel(nn.Module):
    """Tower and decoder, under the prefix `model.` the checkpoints give them."""

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__()
        self.visual = VisionTower(config.vision)
        self.language_model = TextDecoder(config.text, group)


class Qwen3VL(nn.Module):
    """With several ranks, one of them: the tower whole, the decoder and the head cut as `parallel` says."""

    def __init__(self, config: ModelConfig, group: Group = ALONE) -> None:
        """Raises ValueError for a group whose size the model does not divide by."""
        config.check_tensor_parallel(group.size)
        super().__init__()
        self.config = config
        self.group = group
        self.num_heads = group.cut(0, config.text.num_attention_heads).length  # of this rank
        self.num_key_heads = group.cut(0, config.text.num_key_value_heads).length  # in this rank's key/value cache
        self.model = Qwen3VLModel(config, group)
        if not config.tie_word_embeddings:
            self.lm_head = ColumnParallelLinear(config.text.hidden_size, config.text.vocab_size, group)

    def look(
        self, patches_PC: Tensor, grids_G3: list[tuple[int, int, int]], implementation: AttentionImplementation = "sdpa"
    ) -> VisualFeatures:
        """uint8 patches of any number of images and frame pairs -> the features of their visual tokens, in order.
        Every rank sees its share of the grids, and knows all features afterwards."""
        return look_together(self.model.visual, patches_PC, grids_G3, implementation, self.group)

    def forward(
        self,
        token_ids_N: Tensor,
        positions_3N: Tensor,
        attention: Attention,
        visual: VisualFeatures | None = None,
        visual_rows_M: Tensor | None = None,
        rows_R: Tensor | None = None,
    ) -> Tensor:
        """Packed tokens (or a chunk of them) -> hidden states ready for `logits`: [N, E], or [R, E] of the rows that
        are asked for.

        `visual` holds the features of exactly the visual tokens among `token_ids_N`, in order. `visual_rows_M` says
        which rows those are; without it they are searched for, and on a GPU the host waits for the result.
        """
        decoder = self.model.language_model
        hidden_NE = decoder.embed_tokens(token_ids_N)
        if visual_rows_M is None:
            is_visual_N = (token_ids_N == self.config.image_token_id) | (token_ids_N == self.config.video_token_id)
            visual_rows_M = is_visual_N.nonzero().squeeze(1) if visual else token_ids_N.new_empty(0)
        deepstack_LME = visual.deepstack_LMO if visual else hidden_NE.new_empty(0, 0, hidden_NE.shape[1])
        if visual:
            hidden_NE = hidden_NE.index_copy(0, visual_rows_M, visual.embeddings_MO.to(hidden_NE.dtype))
        return decoder(
            *(hidden_NE, positions_3N, attention),
            visual_rows_M=visual_rows_M,
            deepstack_LME=deepstack_LME,
            rows_R=rows_R,
        )

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """-> [N, V]; with several ranks the columns of this rank's share of the vocabulary."""
        if self.config.tie_word_embeddings:
            return F.linear(hidden_NE, self.model.language_model.embed_tokens.weight)
        return self.lm_head(hidden_NE)


def empty_model(
    config: ModelConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    fp8: bool = False,
    group: Group = ALONE,
) -> Qwen3VL:
    """A model with allocated but meaningless weights (none at all on the meta device); with `fp8` the linear maps of
    the decoder's layers keep theirs in FP8 blocks, which cannot be cut."""
    assert not fp8 or group.size == 1, "FP8 blocks are not cut"
    with torch.device("meta"):
        model = Qwen3VL(config, group).to(dtype)
        if fp8:
            keep_in_fp8(model.model.language_model, lambda name: config.may_be_fp8(f"model.language_model.{name}"))
    return model if str(device) == "meta" else model.to_empty(device=device)
