"""What a checkpoint's processor files want of images and videos, read as transformers 5.23 reads them.

A setting that is missing has the default of transformers' class; one that the network does not serve, or that
contradicts config.json, is refused. Official files state little: no frames per second, no resampling.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import read_json
from model.config import ModelConfig

BICUBIC = 3  # PIL's number
MAX_ASPECT = 200  # beyond it Qwen2-VL's resize rule is undefined
# Where transformers saves a processor whole, in two parts; from version 5 on, and then this file wins.
WHOLE = "processor_config.json"
# What the network has built in. A missing key is not like its being there: the classes' own defaults differ.
BUILT_IN = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": BICUBIC,
    "rescale_factor": 1 / 255,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
}
COMMON_DEFAULTS = {
    "resample": BICUBIC,
    "rescale_factor": 1 / 255,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGE_DEFAULTS = {  # of Qwen2VLImageProcessor
    **COMMON_DEFAULTS,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "patch_size": 14,
}
VIDEO_DEFAULTS = {  # of Qwen3VLVideoProcessor
    **COMMON_DEFAULTS,
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "fps": 2,
    "min_frames": 4,
    "max_frames": 768,
}


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


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Within which bounds the checkpoint wants the pixels of an image."""

    min_pixels: int
    max_pixels: int


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


def read_image_sizes(folder: Path, config: ModelConfig) -> ImageSizes:
    """From processor_config.json or preprocessor_config.json.

    Raises ValueError that names the file, and the key where it is one, for what is missing or cannot be served.
    """
    found = _read_section(folder, "image_processor", "preprocessor_config.json")
    if found is None:
        raise ValueError(f"{folder} has no preprocessor_config.json")
    source, section = found
    settings = _checked(section, IMAGE_DEFAULTS, config, source)
    # Older files state the bounds beside `size`, and there they win.
    bounds = dict(settings["size"])
    for key, old in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        if section.get(old) is not None:
            bounds[key] = section[old]
    return ImageSizes(*_bounds(bounds, source))


def read_video_sizes(folder: Path, config: ModelConfig) -> VideoSizes | None:
    """From processor_config.json or video_preprocessor_config.json; None when there is neither.

    Raises ValueError as `read_image_sizes` does.
    """
    found = _read_section(folder, "video_processor", "video_preprocessor_config.json")
    if found is None:
        return None
    source, section = found
    settings = _checked(section, VIDEO_DEFAULTS, config, source)
    least, most = _bounds(settings["size"], source)
    fps = _positive(settings, "fps", source, float)
    min_frames, max_frames = (_positive(settings, name, source, int) for name in ("min_frames", "max_frames"))
    if min_frames > max_frames:
        raise ValueError(f"{source}: min_frames is {min_frames}, more than max_frames, {max_frames}")
    return VideoSizes(float(fps), int(max_frames), least, most)


def _read_section(folder: Path, part: str, file_name: str) -> tuple[str, dict[str, Any]] | None:
    """(where it stands, settings) of one part of the processor; None when no file has it."""
    whole = folder / WHOLE
    if whole.is_file() and part in (content := read_json(whole)):
        if not isinstance(content[part], dict):
            raise ValueError(f"{whole}: {part} is {content[part]!r}, not an object")
        return f"{whole}: {part}", content[part]
    path = folder / file_name
    return (str(path), read_json(path)) if path.is_file() else None


def _checked(section: dict[str, Any], defaults: dict[str, Any], config: ModelConfig, source: str) -> dict[str, Any]:
    """`section` over `defaults`; null is as good as missing."""
    settings = defaults | {key: value for key, value in section.items() if value is not None}
    vision = config.vision
    from_config = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for expected, why in ((BUILT_IN, "this version runs"), (from_config, "config.json says")):
        for key, value in expected.items():
            if not _same(settings[key], value):
                missing = "" if section.get(key) is not None else "missing, and by default "
                raise ValueError(f"{source}: {key} is {missing}{settings[key]!r}; {why} {value!r}")
    if not isinstance(settings["size"], dict):
        raise ValueError(f"{source}: size is {settings['size']!r}, not an object with shortest_edge and longest_edge")
    return settings


def _same(found: Any, expected: Any) -> bool:
    """Numbers to seven digits, since 1 / 255 is written in many ways."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(expected, bool) or not isinstance(found, int | float):
        return found is expected
    return bool(abs(found - expected) <= 1e-7 * abs(expected))


def _bounds(size: dict[str, Any], source: str) -> tuple[int, int]:
    """(fewest, most) pixels."""
    for key in ("shortest_edge", "longest_edge"):
        if key not in size:
            raise ValueError(f"{source}: size has no {key}, only {', '.join(size) or 'nothing'}")
    least, most = (int(_positive(size, key, source, int)) for key in ("shortest_edge", "longest_edge"))
    if least > most:
        raise ValueError(f"{source}: size.shortest_edge is {least}, more than longest_edge, {most}")
    return least, most


def _positive(section: dict[str, Any], key: str, source: str, kind: type) -> float:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or kind(value) != value:
        raise ValueError(f"{source}: {key} is {value!r}, not a {'whole ' if kind is int else ''}number above 0")
    return value
