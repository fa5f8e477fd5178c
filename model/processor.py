"""The CPU door: frames and an instruction become a Prompt. No torch.

Shapes: T tokens, P patches, C values of a patch, G grids, H x W pixels.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from model.checkpoint import checkpoint_folder, read_json, read_sampling, refuse_other_uses
from model.config import ModelConfig, extended, read_config
from model.positions import mrope_positions
from model.preprocessing import (
    ImageSizes,
    VideoSizes,
    read_image_sizes,
    read_video_sizes,
    resize_dimensions,
)
from model.request import Frames, Prompt, Sampling


def frame_patches(pixels_THWC: NDArray[np.uint8], *, patch_size: int, merge_size: int) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3] -> uint8 [T * H/patch * W/patch, 3 * patch * patch]: frame after frame, the patches of a frame
    in merge order (the merge_size x merge_size patches of one visual token follow each other), values as
    (C, row, column).
    """
    frames, height, width, channels = pixels_THWC.shape
    block = patch_size * merge_size
    if height % block or width % block:
        raise ValueError(f"frames of {width} x {height} pixels: both sides must be multiples of {block}")
    split = pixels_THWC.reshape(
        frames, height // block, merge_size, patch_size, width // block, merge_size, patch_size, channels
    )
    ordered = split.transpose(0, 1, 4, 2, 5, 7, 3, 6)  # frame, block row, block column, then inside it; C, row, column
    return np.ascontiguousarray(ordered).reshape(-1, channels * patch_size * patch_size)


def read_tokenizer(folder: Path, *, for_text: bool = False) -> Tokenizer:
    """The checkpoint's tokenizer, for which `<|image_pad|>` in a text is 13 characters and not an image.

    With `for_text` that holds for all added tokens, also those that are not special and so are no control tokens to
    the library (`<think>`, `<tool_call>`, `<|fim_prefix|>`): what somebody wrote is never more than its characters.
    Such a tokenizer would leave them out of answers, where they belong when a model writes them.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json")
    content = path.read_text(encoding="utf-8")
    if for_text:
        parsed = read_json(path)
        for token in parsed.get("added_tokens") or ():
            token["special"] = True
        content = json.dumps(parsed)
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_chat_template(folder: Path) -> Template:
    """The checkpoint's chat template, from whichever of the three places it is kept in."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return environment.from_string(plain.read_text())
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        source = read_json(path).get("chat_template") if path.is_file() else None
        if source:
            return environment.from_string(source)
    raise ValueError(f"{folder} has no chat template")


# Where vision_start and vision_end stand in a video: around each frame pair and around all of them (transformers from
# 5.10 on), or around each pair only (before, and vLLM).
VideoMarks = Literal["all", "pairs"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says: texts and frames, in order."""

    role: str  # "system", "user" or "assistant"
    content: Sequence[str | Frames]


@dataclass(frozen=True)
class Processor:
    """Makes Prompts for one checkpoint, with its own tokenizer, chat template and sizes."""

    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: Template
    image: ImageSizes
    video: VideoSizes | None  # None: the checkpoint says nothing about videos
    file_sampling: Sampling  # what generation_config.json wants
    video_marks: VideoMarks = "all"

    @classmethod
    def from_pretrained(cls, model: str, *, video_marks: VideoMarks = "all") -> "Processor":
        """`model`: a folder or a hub id. Raises ValueError for what is missing in it."""
        folder = checkpoint_folder(model)
        refuse_other_uses(model, folder)
        config = read_config(folder)
        return cls(
            config=config,
            tokenizer=read_tokenizer(folder, for_text=True),
            chat_template=read_chat_template(folder),
            image=read_image_sizes(folder, config),
            video=read_video_sizes(folder, config),
            file_sampling=read_sampling(folder),
            video_marks=video_marks,
        )

    def check_context(self, max_context: int | None, rope_scaling_factor: float | None, longest: int) -> None:
        """Raises ValueError for a context the checkpoint cannot serve, and for RoPE scaling, asked for or in its own
        configuration, when no prompt with its answer takes more than `longest` tokens and so none needs it."""
        config = extended(self.config, max_context, rope_scaling_factor)
        if config.text.yarn:
            extended(self.config, min(longest, config.text.max_position_embeddings), rope_scaling_factor)

    @property
    def pixel_multiple(self) -> int:
        return self.config.pixel_multiple

    @property
    def max_image_tokens(self) -> int:
        """The most visual tokens the checkpoint wants one image to take."""
        return self.image.max_pixels // self.pixel_multiple**2

    @property
    def thinks(self) -> bool:
        """Whether answers begin with reasoning: the chat template opens it at the end of a prompt."""
        think = self.tokenizer.token_to_id("<think>")
        return think is not None and think in self._render([Turn("user", [""])])[-2:]  # a line break may follow

    @property
    def sampling(self) -> Sampling:
        """How answers are written when nobody says how: greedy, so that pages are read as they are. Thinking
        checkpoints, which run in circles when they are greedy, as their own file wants."""
        return self.file_sampling if self.thinks else Sampling()

    def fit_image(self, image: Image.Image) -> Frames:
        """An image of any size as Frames, resized (bicubic, antialiased) by the checkpoint's own rule."""
        rgb = image.convert("RGB")
        height, width = resize_dimensions(
            rgb.height,
            rgb.width,
            multiple=self.pixel_multiple,
            min_pixels=self.image.min_pixels,
            max_pixels=self.image.max_pixels,
        )
        resized = rgb.resize((width, height), Image.Resampling.BICUBIC)
        return Frames(np.asarray(resized, dtype=np.uint8)[None])

    def encode(
        self,
        key: str,
        content: Sequence[str | Frames],
        sampling: Sampling,
        *,
        draft_text: str = "",
        draft_from: str | None = None,
    ) -> Prompt:
        """One user turn of texts and frames, in order, as a Prompt. Added tokens written out in a text, special or not,
        are read as the characters they are made of.

        Raises ValueError for frames whose sides are no multiples of `pixel_multiple` or whose times do not fit, and for
        what is neither text nor Frames.
        """
        turns = [Turn("user", content)]
        return self.encode_conversation(key, turns, sampling, draft_text=draft_text, draft_from=draft_from)

    def encode_conversation(
        self,
        key: str,
        turns: Sequence[Turn],
        sampling: Sampling,
        *,
        draft_text: str = "",
        draft_from: str | None = None,
    ) -> Prompt:
        """A conversation whose next turn is the model's, as a Prompt; everything else as `encode` does it."""
        for part in (part for turn in turns for part in turn.content):
            if not isinstance(part, str | Frames):
                raise ValueError(
                    f"the content holds a {type(part).__module__}.{type(part).__name__}: give text and Frames; of an "
                    "image, Frames(pixels[None]) with uint8 RGB pixels [height, width, 3]"
                )
        token_ids: list[int] = []
        for is_text, run in groupby(self._pieces(turns), lambda piece: isinstance(piece, str)):
            # Texts that meet, such as the user's and a time, are one to the tokenizer, as in transformers.
            pieces = list(run)
            token_ids += self._text_tokens("".join(map(str, pieces))) if is_text else map(int, pieces)
        token_ids_T = np.array(token_ids, dtype=np.int32)
        grids, patches = [], []
        for frames in (part for turn in turns for part in turn.content if isinstance(part, Frames)):
            grids += self._grids(frames)
            patches.append(self._patches(frames))
        grids_G3 = np.array(grids, dtype=np.int32).reshape(-1, 3)
        width = self.config.vision.in_channels * self.config.vision.patch_size**2
        positions_3T, next_position = mrope_positions(
            token_ids_T,
            grids_G3,
            visual_token_ids=(self.config.image_token_id, self.config.video_token_id),
            merge_size=self.config.vision.spatial_merge_size,
        )
        return Prompt(
            key=key,
            token_ids_T=token_ids_T,
            positions_3T=positions_3T,
            next_position=next_position,
            patches_PC=np.concatenate(patches) if patches else np.empty((0, width), dtype=np.uint8),
            grids_G3=grids_G3,
            sampling=sampling,
            draft_text=draft_text,
            draft_from=draft_from,
        )

    def _render(self, turns: Sequence[Turn]) -> list[str | int | Frames]:
        """All turns by the checkpoint's chat template, cut into text, ids of added tokens, and frames.

        The template sees a numbered mark in place of each text, so that nothing in a text can be taken for its syntax.
        """
        parts = [part for turn in turns for part in turn.content]
        texts = [part for part in parts if isinstance(part, str)]
        mark = "\ue000{}\ue001"
        numbers = iter(range(len(texts)))
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": mark.format(next(numbers))}
                    if isinstance(part, str)
                    else {"type": "image" if part.seconds is None else "video"}
                    for part in turn.content
                ],
            }
            for turn in turns
        ]
        rendered = self.chat_template.render(messages=messages, add_generation_prompt=True, tools=None)
        frames = iter([part for part in parts if isinstance(part, Frames)])
        special_ids = {token.content: id for id, token in self.tokenizer.get_added_tokens_decoder().items()}
        pieces: list[str | int | Frames] = []
        for piece in filter(None, re.split("(" + "|".join(map(re.escape, special_ids)) + ")", rendered)):
            if piece not in special_ids:
                pieces.append(re.sub(mark.format(r"(\d+)"), lambda found: texts[int(found[1])], piece))
            elif special_ids[piece] in (self.config.image_token_id, self.config.video_token_id):
                pieces.append(next(frames))
            else:
                pieces.append(special_ids[piece])
        return pieces

    def _pieces(self, turns: Sequence[Turn]) -> Iterator[str | int]:
        """The conversation as texts and single tokens."""
        for piece in self._marked(self._render(turns)):
            if isinstance(piece, Frames):
                yield from self._visual_pieces(piece)
            else:
                yield piece

    def _marked(self, pieces: list[str | int | Frames]) -> list[str | int | Frames]:
        """`pieces`, without what the template puts around all frames of a video where `video_marks` says so."""
        if self.video_marks == "all":
            return pieces
        kept: list[str | int | Frames] = []
        for number, piece in enumerate(pieces):
            beside = (pieces[number + 1 : number + 2], pieces[number - 1 : number])
            wanted = (self.config.vision_start_token_id, self.config.vision_end_token_id)
            is_mark = any(
                piece == mark and near and isinstance(near[0], Frames) and near[0].seconds is not None
                for mark, near in zip(wanted, beside, strict=True)
            )
            if not is_mark:
                kept.append(piece)
        return kept

    def _text_tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _visual_pieces(self, frames: Frames) -> Iterator[str | int]:
        """What stands in place of the template's one <|image_pad|> or <|video_pad|>: the image's tokens, or for every
        frame pair its time and its tokens in a start and end of their own."""
        config = self.config
        _, height, width, _ = frames.pixels_THWC.shape
        tokens = (height // config.pixel_multiple) * (width // config.pixel_multiple)
        if frames.seconds is None:
            yield from [config.image_token_id] * tokens
            return
        for first, second in self._pairs(frames):
            middle = (frames.seconds[first] + frames.seconds[second]) / 2
            yield f"<{middle:.1f} seconds>"
            yield config.vision_start_token_id
            yield from [config.video_token_id] * tokens
            yield config.vision_end_token_id

    def _pairs(self, frames: Frames) -> list[tuple[int, int]]:
        """Indexes of the frames shown together; an odd last frame is shown twice."""
        count = len(frames.pixels_THWC)
        if frames.seconds is not None and len(frames.seconds) != count:
            raise ValueError(f"{count} frames have {len(frames.seconds)} times")
        if frames.seconds is not None and any(later < earlier for earlier, later in pairwise(frames.seconds)):
            raise ValueError("the times of the frames must not decrease")
        return [(first, min(first + 1, count - 1)) for first in range(0, count, 2)]

    def _grids(self, frames: Frames) -> list[tuple[int, int, int]]:
        count, height, width, _ = frames.pixels_THWC.shape
        rows, columns = height // self.config.vision.patch_size, width // self.config.vision.patch_size
        if frames.seconds is None:
            if count != 1:
                raise ValueError(f"an image has one frame, not {count}; frames of a video come with their times")
            return [(1, rows, columns)]
        return [(2, rows, columns)] * len(self._pairs(frames))

    def _patches(self, frames: Frames) -> NDArray[np.uint8]:
        pixels_THWC = frames.pixels_THWC
        if frames.seconds is not None and len(pixels_THWC) % 2:
            pixels_THWC = np.concatenate([pixels_THWC, pixels_THWC[-1:]])
        vision = self.config.vision
        return frame_patches(pixels_THWC, patch_size=vision.patch_size, merge_size=vision.spatial_merge_size)
