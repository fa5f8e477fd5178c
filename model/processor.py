"""The CPU door: frames and an instruction become a Prompt. No torch.

Shapes: T tokens, P patches, C values of a patch, G grids, H x W pixels.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from model.config import ModelConfig, extended, read_config
from model.positions import mrope_positions
from model.request import Frames, Prompt, Sampling

MAX_ASPECT = 200  # beyond it Qwen2-VL's resize rule is undefined


def resize_dimensions(
    height: int, width: int, *, multiple: int, min_pixels: float, max_pixels: float
) -> tuple[int, int]:
    """The size an image is resized to: both sides multiples of `multiple`, the area within the bounds where the rule
    allows it, the aspect nearly kept (`smart_resize` of Qwen2-VL, which rounds half to even as Python does).

    Raises ValueError for an empty image and for an aspect over 200.
    """
    if height < 1 or width < 1 or max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError(f"an image of {width} x {height} pixels cannot be resized: aspect over {MAX_ASPECT} or empty")
    new_height, new_width = round(height / multiple) * multiple, round(width / multiple) * multiple
    if new_height * new_width > max_pixels:
        shrink = (height * width / max_pixels) ** 0.5
        new_height = max(multiple, int(height / shrink / multiple) * multiple)
        new_width = max(multiple, int(width / shrink / multiple) * multiple)
    elif new_height * new_width < min_pixels:
        grow = (min_pixels / (height * width)) ** 0.5
        new_height = -int(-height * grow // multiple) * multiple
        new_width = -int(-width * grow // multiple) * multiple
    return new_height, new_width


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


def checkpoint_folder(model: str) -> Path:
    """`model` when it is a folder, otherwise the local snapshot of that hub repository, downloaded when it is missing.

    Raises ValueError when it is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(f"model {model!r} is neither a folder nor a hub id such as Qwen/Qwen3-VL-8B-Instruct")
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except OSError as error:
        raise ValueError(f"model {model!r} is no folder here and could not be had from the hub: {error}") from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer, for which `<|image_pad|>` in a text is 13 characters and not an image."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
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
        source = json.loads(path.read_text()).get("chat_template") if path.is_file() else None
        if source:
            return environment.from_string(source)
    raise ValueError(f"{folder} has no chat template")


@dataclass(frozen=True, slots=True)
class VideoSizes:
    """What the checkpoint wants of videos."""

    fps: float
    max_frames: int
    min_pixels: int  # of all frames of a clip together
    max_pixels: int

    def frame_dimensions(self, frames: int, height: int, width: int, *, multiple: int) -> tuple[int, int]:
        """The size each of an even number of frames is resized to (`smart_resize` of Qwen3-VL's video processor).

        Raises ValueError as `resize_dimensions` does.
        """
        assert frames % 2 == 0, f"{frames} frames make no pairs"
        if 0 < min(height, width) < multiple:  # enlarged before the bounds are looked at
            scale = multiple / min(height, width)
            height, width = int(height * scale), int(width * scale)
        return resize_dimensions(
            height,
            width,
            multiple=multiple,
            min_pixels=self.min_pixels / frames,
            max_pixels=self.max_pixels / frames,
        )


def read_video_sizes(folder: Path) -> VideoSizes | None:
    """What the checkpoint's own file says; None when it has none."""
    path = folder / "video_preprocessor_config.json"
    if not path.is_file():
        return None
    sizes = json.loads(path.read_text())
    bounds = sizes["size"]
    return VideoSizes(float(sizes["fps"]), sizes["max_frames"], bounds["shortest_edge"], bounds["longest_edge"])


@dataclass(frozen=True)
class Processor:
    """Makes Prompts for one checkpoint, with its own tokenizer, chat template and sizes."""

    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: Template
    min_image_pixels: int
    max_image_pixels: int
    video: VideoSizes | None  # None: the checkpoint says nothing about videos

    @classmethod
    def from_pretrained(cls, model: str) -> "Processor":
        """`model`: a folder or a hub id. Raises ValueError for what is missing in it."""
        folder = checkpoint_folder(model)
        sizes_file = folder / "preprocessor_config.json"
        if not sizes_file.is_file():
            raise ValueError(f"{folder} has no preprocessor_config.json")
        sizes = json.loads(sizes_file.read_text())
        return cls(
            config=read_config(folder),
            tokenizer=read_tokenizer(folder),
            chat_template=read_chat_template(folder),
            min_image_pixels=sizes["size"]["shortest_edge"],
            max_image_pixels=sizes["size"]["longest_edge"],
            video=read_video_sizes(folder),
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
        return self.max_image_pixels // self.pixel_multiple**2

    def fit_image(self, image: Image.Image) -> Frames:
        """An image of any size as Frames, resized (bicubic, antialiased) by the checkpoint's own rule."""
        rgb = image.convert("RGB")
        height, width = resize_dimensions(
            rgb.height,
            rgb.width,
            multiple=self.pixel_multiple,
            min_pixels=self.min_image_pixels,
            max_pixels=self.max_image_pixels,
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
        """One user turn of texts and frames, in order, as a Prompt. Special tokens written out in a text are read as
        the characters they are made of.

        Raises ValueError for frames whose sides are no multiples of `pixel_multiple` or whose times do not fit.
        """
        token_ids: list[int] = []
        for piece in self._render(content):
            if isinstance(piece, Frames):
                token_ids += self._visual_tokens(piece)
            else:
                token_ids += [piece] if isinstance(piece, int) else self._text_tokens(piece)
        token_ids_T = np.array(token_ids, dtype=np.int32)
        grids, patches = [], []
        for frames in (part for part in content if isinstance(part, Frames)):
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

    def _render(self, content: Sequence[str | Frames]) -> list[str | int | Frames]:
        """The whole turn by the checkpoint's chat template, cut into text, ids of special tokens, and frames.

        The template sees a numbered mark in place of each text, so that nothing in a text can be taken for its syntax.
        """
        texts = [part for part in content if isinstance(part, str)]
        mark = "\ue000{}\ue001"
        numbers = iter(range(len(texts)))
        parts = [
            {"type": "text", "text": mark.format(next(numbers))}
            if isinstance(part, str)
            else {"type": "image" if part.seconds is None else "video"}
            for part in content
        ]
        rendered = self.chat_template.render(
            messages=[{"role": "user", "content": parts}], add_generation_prompt=True, tools=None
        )
        frames = iter([part for part in content if isinstance(part, Frames)])
        special_ids = {token.content: id for id, token in self.tokenizer.get_added_tokens_decoder().items()}
        pieces: list[str | int | Frames] = []
        for piece in re.split("(" + "|".join(re.escape(token) for token in special_ids) + ")", rendered):
            if piece not in special_ids:
                pieces.append(re.sub(mark.format(r"(\d+)"), lambda found: texts[int(found[1])], piece))
            elif special_ids[piece] in (self.config.image_token_id, self.config.video_token_id):
                pieces.append(next(frames))
            else:
                pieces.append(special_ids[piece])
        return pieces

    def _text_tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _visual_tokens(self, frames: Frames) -> list[int]:
        """What stands between <|vision_start|> and <|vision_end|> of the template: the image's tokens, or for every
        frame pair its time and its tokens in a start and end of their own (as transformers has it since 5.10)."""
        config = self.config
        _, height, width, _ = frames.pixels_THWC.shape
        tokens = (height // config.pixel_multiple) * (width // config.pixel_multiple)
        if frames.seconds is None:
            return [config.image_token_id] * tokens
        pair = [config.vision_start_token_id, *[config.video_token_id] * tokens, config.vision_end_token_id]
        token_ids: list[int] = []
        for first, second in self._pairs(frames):
            middle = (frames.seconds[first] + frames.seconds[second]) / 2
            token_ids += self._text_tokens(f"<{middle:.1f} seconds>") + pair
        return token_ids

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
