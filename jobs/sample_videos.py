"""Sample clips with exact truth: title cards and coloured shapes between cuts, drawn for any instant.

Lengths are pixels of a frame of 160 x 96 and grow with the frame. Times are seconds on the clip's clock; an event is
seen at every instant of the half-open [start, end) and at no other.
"""

import itertools
import json
import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import reportlab
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jobs.sample_text import draw_vocabulary, invent_word
from jobs.sample_truth import Glyph

Color = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star")
COLORS: Mapping[str, Color] = {
    "red": (215, 30, 40),
    "green": (30, 150, 50),
    "blue": (30, 70, 225),
    "yellow": (245, 225, 40),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "orange": (245, 135, 20),
    "purple": (135, 40, 170),
}
BACKGROUNDS: tuple[Color, ...] = (
    (20, 22, 28),
    (50, 54, 62),
    (95, 98, 104),
    (150, 152, 158),
    (200, 204, 210),
    (236, 236, 232),
    (190, 212, 236),
    (205, 228, 205),
    (228, 212, 176),
    (22, 34, 72),
    (24, 64, 46),
    (84, 62, 48),
)
DIRECTIONS: Mapping[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
SHORTEST_SECONDS = 1.5  # of an event or a scene: three frames at 2 fps
SHORTEST_GAP_SECONDS = 3.0  # between two events of one subject: two frame pairs without it at 2 fps
SLOWEST_SPEED = 12.0  # pixels a second: 6 pixels from frame to frame at 2 fps
LONGEST_WORD = 12  # letters, of a title card
_FONTS = Path(reportlab.__file__).parent / "fonts"


@dataclass(frozen=True, slots=True)
class SampleEvent:
    start_seconds: float
    end_seconds: float
    description: str

    def is_seen(self, seconds: float) -> bool:
        return self.start_seconds <= seconds < self.end_seconds

    def shown_in(self, pair_seconds: Sequence[tuple[float, float]]) -> list[int]:
        """The indexes of the frame pairs of which at least one frame shows it."""
        return [index for index, pair in enumerate(pair_seconds) if any(map(self.is_seen, pair))]


@dataclass(frozen=True, slots=True)
class MovingShape:
    """A shape of one colour that appears, moves evenly from one top left corner to another, and disappears."""

    event: SampleEvent
    color: Color
    mask_HW: NDArray[np.bool_]
    first_xy: tuple[float, float]
    last_xy: tuple[float, float]

    def corner(self, seconds: float) -> tuple[int, int]:
        """Left and top at an instant of its event."""
        share = (seconds - self.event.start_seconds) / (self.event.end_seconds - self.event.start_seconds)
        left, top = (first + share * (last - first) for first, last in zip(self.first_xy, self.last_xy, strict=True))
        return round(left), round(top)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is seen from one cut to the next: a still, uint8 [H, W, 3], and shapes before it."""

    start_seconds: float
    still_HWC: NDArray[np.uint8]
    shapes: tuple[MovingShape, ...]
    glyphs: tuple[Glyph, ...] = ()  # of a title card


@dataclass(frozen=True, slots=True)
class SampleClip:
    seconds: float
    size: tuple[int, int]  # width, height
    scenes: tuple[Scene, ...]
    events: tuple[SampleEvent, ...]  # in order of start

    def frame(self, seconds: float) -> NDArray[np.uint8]:
        """What is seen at an instant, uint8 RGB [height, width, 3]."""
        scene = self.scene(seconds)
        pixels = scene.still_HWC.copy()
        for shape in scene.shapes:
            if shape.event.is_seen(seconds):
                left, top = shape.corner(seconds)
                height, width = shape.mask_HW.shape
                pixels[top : top + height, left : left + width][shape.mask_HW] = shape.color
        return pixels

    def scene(self, seconds: float) -> Scene:
        """The scene at an instant."""
        return self.scenes[max(bisect_right(self.scenes, seconds, key=lambda scene: scene.start_seconds) - 1, 0)]


def make_clip(rng: np.random.Generator, *, seconds: float, size: tuple[int, int], held_out: bool) -> SampleClip:
    """A random clip of a (width, height): scenes of 1.5 s and more, one in twenty clips without any event."""
    return _ClipMaker(random.Random(int(rng.integers(1 << 62))), size, held_out=held_out).clip(seconds)


class _ClipMaker:
    """Draws the scenes of one clip in order of time."""

    def __init__(self, draw: random.Random, size: tuple[int, int], *, held_out: bool) -> None:
        self._draw = draw
        self._size = size
        self._scale = min(size[0] / 160, size[1] / 96)
        self._held_out = held_out
        self._words = [word for word in draw_vocabulary(draw, held_out=held_out) if len(word) <= LONGEST_WORD]
        # The more happens at once and soon after, the more a window teaches; so half of those trained on are crowded.
        self._is_crowded = not held_out and draw.random() < 0.5
        self._last_seen: dict[str, float] = {}  # subject -> end of its last event
        self._background: Color | None = None
        self._events: list[SampleEvent] = []

    def clip(self, seconds: float) -> SampleClip:
        is_empty = self._draw.random() < 0.05
        scenes, start = [], 0.0
        shares = (35, 50, 15) if self._held_out else (50, 40, 10)  # letters take the longest to learn
        while start < seconds:
            kind = "empty" if is_empty else self._draw.choices(("card", "shapes", "empty"), shares)[0]
            end = round(start + self._scene_seconds(kind), 3)
            if seconds - end < SHORTEST_SECONDS:
                end = seconds
            if end - start < SHORTEST_SECONDS:
                kind = "empty"
            scenes.append(self._scene(kind, start, end))
            start = end
        events = sorted(self._events, key=lambda event: (event.start_seconds, event.description))
        return SampleClip(seconds, self._size, tuple(scenes), tuple(events))

    def _scene_seconds(self, kind: str) -> float:
        if kind == "shapes" and not self._is_crowded and self._draw.random() < 0.1:
            return self._draw.uniform(10.0, 25.0)
        cards, empty, shapes = (3.0, 3.0, 5.0) if self._is_crowded else (5.0, 6.0, 9.0)
        longest = {"card": cards, "empty": empty, "shapes": shapes}[kind]
        return self._draw.uniform(2 * SHORTEST_SECONDS if kind == "shapes" else SHORTEST_SECONDS, longest)

    def _scene(self, kind: str, start: float, end: float) -> Scene:
        if kind == "card":
            return self._card(start, end)
        tones = self._next_background()
        still = self._still(tones)
        shapes: list[MovingShape] = []
        if kind == "shapes":
            for lane in self._lanes():
                if shape := self._shape(tones, lane, (start, end), [shape.color for shape in shapes]):
                    shapes.append(shape)
        return Scene(start, still, tuple(shapes))

    def _next_background(self) -> tuple[Color, Color]:
        """Two tones, mostly the same, clearly unlike those of the last scene."""
        far = [tone for tone in BACKGROUNDS if self._background is None or _distance(tone, self._background) > 60]
        first = self._background = self._draw.choice(far)
        if self._draw.random() < 0.6:
            return first, first
        shift = self._draw.choice((-22, 22))
        red, green, blue = (min(max(value + shift, 0), 255) for value in first)
        return first, (red, green, blue)

    def _still(self, tones: tuple[Color, Color]) -> NDArray[np.uint8]:
        width, height = self._size
        still_HWC = np.empty((height, width, 3), np.uint8)
        still_HWC[:] = tones[0]
        share = self._draw.uniform(0.3, 0.7)
        if self._draw.random() < 0.5:
            still_HWC[round(share * height) :] = tones[1]
        else:
            still_HWC[:, round(share * width) :] = tones[1]
        return still_HWC

    def _card(self, start: float, end: float) -> Scene:
        """A still with one to three words on it, and its event."""
        while True:
            tones = self._next_background()
            brightness = sum(tones[0]) / 3
            if not 90 < brightness < 170:
                break
        still = Image.fromarray(self._still(tones))
        while True:
            text = " ".join(self._word() for _ in range(self._draw.randint(1, 3))).capitalize()
            lines = self._typeset(text) if self._is_unseen(text, start) else None
            if lines:
                break
        font, line_texts = lines
        ink = self._draw.randint(225, 255) if brightness < 128 else self._draw.randint(0, 30)
        line_height = 1.3 * font.size
        top = (self._size[1] - line_height * len(line_texts)) / 2 * self._draw.uniform(0.5, 1.5)
        canvas = ImageDraw.Draw(still)
        glyphs: list[Glyph] = []
        for number, line in enumerate(line_texts):
            left, upper = (self._size[0] - font.getlength(line)) / 2, top + number * line_height
            canvas.text((left, upper), line, (ink, ink, ink), font)
            edges = [left + font.getlength(line[:count]) for count in range(len(line) + 1)]
            middles = ((before + after) / 2 for before, after in itertools.pairwise(edges))
            glyphs += [Glyph(letter, x, upper + 0.65 * font.size) for letter, x in zip(line, middles, strict=True)]
        self._seen(text, SampleEvent(start, end, f'title card "{text}"'))
        return Scene(start, np.array(still), (), tuple(glyph for glyph in glyphs if glyph.character != " "))

    def _word(self) -> str:
        """A word of the vocabulary; of clips that are trained on, every other one is invented: the known ones alone
        would be learned by heart."""
        while not self._held_out and self._draw.random() < 0.5:
            word = invent_word(self._draw, self._words, held_out=False)
            if len(word) <= LONGEST_WORD:
                return word
        return self._draw.choices(self._words)[0]

    def _typeset(self, text: str) -> tuple[ImageFont.FreeTypeFont, list[str]] | None:
        """A font and the lines of a text that fit into the frame, or None."""
        size = self._draw.uniform(14, 24) * self._scale
        font = _font(self._draw.choice(("Vera.ttf", "VeraBd.ttf")), round(size))
        room = self._size[0] - 10 * self._scale
        lines: list[str] = []
        for word in text.split():
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and font.getlength(joined) <= room:
                lines[-1] = joined
            elif font.getlength(word) <= room:
                lines.append(word)
            else:
                return None
        return (font, lines) if 1.3 * font.size * len(lines) <= self._size[1] - 6 * self._scale else None

    def _lanes(self) -> list[tuple[float, float, float, float]]:
        """Where shapes may be, (left, top, right, bottom): in all of the frame, or one in each half."""
        width, height = self._size
        match self._draw.randrange(2 if self._is_crowded else 5):
            case 0:
                return [(0, 0, width, height / 2), (0, height / 2, width, height)]
            case 1:
                return [(0, 0, width / 2, height), (width / 2, 0, width, height)]
            case _:
                return [(0, 0, width, height)]

    def _shape(
        self,
        tones: tuple[Color, Color],
        lane: tuple[float, float, float, float],
        scene_span: tuple[float, float],
        used: Sequence[Color],
    ) -> MovingShape | None:
        """A shape inside a lane and a scene, or None where every subject was seen too shortly before."""
        start, end = self._span(*scene_span)
        subjects = [
            (color, shape)
            for color, rgb in COLORS.items()
            for shape in SHAPES
            if min(_distance(rgb, tone) for tone in tones) > 130 and rgb not in used
            if self._is_unseen(f"{color} {shape}", start)
        ]
        if not subjects:
            return None
        color, name = self._draw.choice(subjects)
        left, top, right, bottom = lane
        side = min(round(self._draw.uniform(24, 40) * self._scale), int(right - left) - 2, int(bottom - top) - 2)
        free_x, free_y = right - left - side, bottom - top - side
        slowest = SLOWEST_SPEED * self._scale * (end - start)
        motions = [motion for motion, (x, y) in DIRECTIONS.items() if abs(x * free_x + y * free_y) >= slowest]
        motion = self._draw.choice(motions) if motions and self._draw.random() < 0.75 else ""
        x, y = DIRECTIONS.get(motion, (0, 0))
        travel = self._draw.uniform(slowest, abs(x * free_x + y * free_y)) if motion else 0.0
        first_x = left + self._draw.uniform(travel * (x < 0), free_x - travel * (x > 0))
        first_y = top + self._draw.uniform(travel * (y < 0), free_y - travel * (y > 0))
        article = "an" if color == "orange" else "a"
        event = SampleEvent(start, end, f"{article} {color} {name} {f'moves {motion}' if motion else 'stays'}")
        self._seen(f"{color} {name}", event)
        last_xy = first_x + x * travel, first_y + y * travel
        return MovingShape(event, COLORS[color], _mask(name, side), (first_x, first_y), last_xy)

    def _span(self, scene_start: float, scene_end: float) -> tuple[float, float]:
        """A part of a scene, often from its first or to its last instant."""
        start, end = scene_start, scene_end
        if self._draw.random() < 0.6:
            start = round(self._draw.uniform(start, end - SHORTEST_SECONDS), 3)
        if self._draw.random() < 0.7:
            end = round(self._draw.uniform(start + SHORTEST_SECONDS, end), 3)
        return (start, end) if end - start >= SHORTEST_SECONDS else (scene_start, scene_end)

    def _is_unseen(self, subject: str, start: float) -> bool:
        return start - self._last_seen.get(subject, -math.inf) >= SHORTEST_GAP_SECONDS

    def _seen(self, subject: str, event: SampleEvent) -> None:
        self._last_seen[subject] = event.end_seconds
        self._events.append(event)


def _distance(first: Color, second: Color) -> float:
    return math.dist(first, second)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONTS / name), size)


@cache
def _mask(name: str, side: int) -> NDArray[np.bool_]:
    """The pixels of a shape in a square of `side` pixels."""
    image = Image.new("1", (side, side))
    canvas, last = ImageDraw.Draw(image), side - 1
    match name:
        case "circle":
            canvas.ellipse((0, 0, last, last), 1)
        case "square":
            canvas.rectangle((0, 0, last, last), 1)
        case "triangle":
            canvas.polygon(((last / 2, 0), (last, last), (0, last)), 1)
        case _:  # a star of five points
            turns = [math.pi * number / 5 for number in range(10)]
            radii = [last / 2 * (0.4 if number % 2 else 1.0) for number in range(10)]
            points = zip(radii, turns, strict=True)
            canvas.polygon([(last / 2 + r * math.sin(turn), last / 2 - r * math.cos(turn)) for r, turn in points], 1)
    return np.array(image)


def frame_times(start: float, end: float, fps: float) -> tuple[float, ...]:
    """start, start + 1 / fps, ... before `end`; at least the first."""
    return tuple(start + index / fps for index in range(max(math.ceil((end - start) * fps - 1e-9), 1)))


def clip_window(
    clip: SampleClip, start: float, seconds: float, fps: float = 2.0
) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """Frames uint8 [T, H, W, 3] at start, start + 1 / fps, ... before start + seconds and the clip's end, and their
    times on the clip's clock."""
    times = frame_times(start, min(start + seconds, clip.seconds), fps)
    return np.stack([clip.frame(time) for time in times]), times


def pairs_of(times: Sequence[float]) -> list[tuple[float, float]]:
    """The times of the frames shown together, as the processor pairs them: an odd last one is shown twice."""
    return [(first, times[min(2 * index + 1, len(times) - 1)]) for index, first in enumerate(times[::2])]


def is_clear(clip: SampleClip, times: Sequence[float]) -> bool:
    """Whether frames at these times show each event either not at all or at least twice: one frame of a shape does not
    say where it moves."""
    counts = (sum(map(event.is_seen, times)) for event in clip.events)
    return 1 not in counts


def answer_for(clip: SampleClip, pair_seconds: Sequence[tuple[float, float]], origin: float = 0.0) -> str:
    """What a model should answer when it sees these frame pairs, whose time texts count from `origin`.

    A JSON list of {"start", "description", "end"}: start and end are the time texts of the first and the last pair of
    which at least one frame shows the event, so an event partly outside is given as far as it is seen. The end comes
    last, for only what has been named can be followed to its end. In order of start, then of description. "" when no
    frame shows anything.
    """
    texts = [f"{(first + second) / 2 - origin:.1f}" for first, second in pair_seconds]
    answer = [
        {"start": float(texts[shown[0]]), "description": event.description, "end": float(texts[shown[-1]])}
        for event, shown in shown_events(clip, pair_seconds)
    ]
    return json.dumps(answer) if answer else ""


def shown_events(clip: SampleClip, pair_seconds: Sequence[tuple[float, float]]) -> list[tuple[SampleEvent, list[int]]]:
    """The events that these frame pairs show, in the order of the answer, each with the indexes of its pairs."""
    found = [(event, event.shown_in(pair_seconds)) for event in clip.events]
    return sorted(
        ((event, shown) for event, shown in found if shown), key=lambda item: (item[1][0], item[0].description)
    )


def disturb(rng: np.random.Generator, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What an encoder and a camera do to uint8 RGB frames [T, H, W, 3]: another brightness, noise, JPEG's blocks."""
    light = rng.integers(-10, 11)
    strength, quality = rng.uniform(0, 5), int(rng.integers(45, 96))
    disturbed_THWC = np.empty_like(frames_THWC)
    for index, pixels_HWC in enumerate(frames_THWC):
        noise = strength * rng.standard_normal(pixels_HWC.shape[:2], np.float32)[..., None]
        noisy = np.clip(pixels_HWC + (light + noise), 0, 255).astype(np.uint8)
        jpeg = BytesIO()
        Image.fromarray(noisy).save(jpeg, "JPEG", quality=quality)
        disturbed_THWC[index] = np.asarray(Image.open(jpeg))
    return disturbed_THWC


def write_video(
    path: Path,
    clip: SampleClip,
    *,
    fps: int | Fraction = 24,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
) -> None:
    """The clip as a file whose frame k is what is seen at k / fps; container by the path's suffix, yuv420p."""
    width, height = clip.size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(math.ceil(clip.seconds * fps - 1e-9)):
            picture = av.VideoFrame.from_ndarray(clip.frame(float(index / fps)), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
