"""Training material in rectangular batches: pages or clips of one shape with their answers, and where to look for each
token of an answer.

The decoder looks twice for each token it writes. A layer knows of the tokens before only what the layers below knew, so
where the last letter stood has to be found again by what was written: there goes the first look. What was written may
stand in two places; between the looks lies a layer that can know where the first looks of the tokens before went. The
second goes on from there: one letter to the right, or to the next line. Of a clip's times and sights `training_clips`
says it.

Letters: B samples of a batch, T tokens of one (the shorter ones are filled up), N = B x T, P patches, C values of a
patch, M visual tokens of all samples, Q cells of a visual token, A things the probes can name, L looks.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter

import numpy as np
from numpy.typing import NDArray

from jobs.sample_truth import Glyph, SamplePage
from jobs.sample_videos import SampleClip, answer_for, clip_window, disturb, is_clear, make_clip, pairs_of
from jobs.samples import PIXELS_PER_POINT, Difficulty, render_with_glyphs
from jobs.training_clips import SIGHTS, looks, sights
from model.processor import Processor
from model.request import Frames, Prompt, Sampling

NAMES = (*(chr(code) for code in range(33, 127)), *SIGHTS)  # of what the probes tell apart
LOOKS = 2
CELLS_ACROSS, CELLS_DOWN = 5, 2  # of a visual token: about one letter of the smallest type in each
MARKDOWN, HTML, EVENTS = "qwenvl markdown", "qwenvl html", "qwenvl events"
NOWHERE = -1  # in place of a target or its cell: the next token stands nowhere in the prompt, or none is asked for
CLIP_SIZES = ((160, 96), (160, 96), (128, 96), (192, 96))  # drawn from: what comes twice is seen twice as often
CLIP_SECONDS = (6, 12, 16, 16)
CLIP_FPS = 2.0
# Who was always shown the truth loses the place at its first slip (exposure bias; Bengio et al., arXiv 1506.03099).
MISREAD_SHARES = (0.01, 0.02, 0.06)  # of the places read at, one of them for each sample: slips come together
LONGEST_ALIKE = 5  # tokens before a slip that also stand before what is shown in its place
JUMPING_SHARE, LONGEST_JUMP = 0.25, 80  # of the samples; tokens
_BOX = re.compile(r'data-bbox="(\d+) (\d+) (\d+) (\d+)"')
POOL = 4  # batches made at once, so that answers of like length come together


@dataclass(frozen=True, slots=True)
class Place:
    """Where a character of an answer is read: the tokens of the prompt to look at, one for each look; in which cell of
    the visual token it stands in."""

    tokens_L: tuple[int, ...]
    cell: int
    xy: tuple[int, int]  # on its page or frame, in thousandths


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt followed by its true answer."""

    prompt: Prompt
    answer_start: int
    asked_T: NDArray[np.int64]  # the tokens that are to be written, or NOWHERE
    targets_LT: NDArray[np.int64]  # the tokens of the prompt in which token t of the answer is to be read, or NOWHERE
    cells_T: NDArray[np.int64]  # in which cell of its visual token it is read, or NOWHERE
    xy_T2: NDArray[np.int64]  # where on the page, in thousandths from the top left, or NOWHERE
    glyphs_MQA: NDArray[np.bool_]  # what is in each cell of each visual token


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    token_ids_BT: NDArray[np.int64]  # what the network is shown
    positions_3N: NDArray[np.int32]
    asked_BT: NDArray[np.int64]  # the tokens the network has to predict, or NOWHERE
    targets_LBT: NDArray[np.int64]
    cells_BT: NDArray[np.int64]
    xy_BT2: NDArray[np.int64]
    patches_PC: NDArray[np.uint8]
    grids_G3: list[tuple[int, int, int]]
    glyphs_MQA: NDArray[np.bool_]


def page_batches(
    processor: Processor,
    rng: np.random.Generator,
    difficulty: Difficulty,
    *,
    held_out: bool,
    token_budget: int,
    html_share: float = 0.0,
) -> Iterator[TrainingBatch]:
    """A few batches of pages of one random size, each of about `token_budget` tokens."""
    width, height = difficulty.sizes[int(rng.integers(len(difficulty.sizes)))]
    tokens = int(width * height * (PIXELS_PER_POINT / processor.pixel_multiple) ** 2)
    count = max(POOL, POOL * token_budget // (2 * tokens + 24))
    instruction = HTML if rng.random() < html_share else MARKDOWN
    pages = render_with_glyphs(rng, difficulty, count, held_out=held_out, size=(width, height))
    samples = [page_sample(processor, page, pixels, found, instruction) for page, pixels, found in pages]
    yield from _cut(samples if held_out else _with_slips(samples, rng), token_budget)


def clip_batches(
    processor: Processor, rng: np.random.Generator, *, held_out: bool, token_budget: int
) -> Iterator[TrainingBatch]:
    """A few batches of windows of clips, all of one size and length."""
    size = CLIP_SIZES[int(rng.integers(len(CLIP_SIZES)))]
    seconds = CLIP_SECONDS[int(rng.integers(len(CLIP_SECONDS)))]
    tokens = int(seconds * CLIP_FPS / 2) * (size[0] * size[1] // processor.pixel_multiple**2 + 12) + 60
    count = max(POOL, POOL * token_budget // tokens)
    samples: list[Sample] = []
    while len(samples) < count:
        clip = make_clip(rng, seconds=3.0 * seconds, size=size, held_out=held_out)
        # Windows of the pipeline start anywhere in a video, but their own clocks start near 0.
        start = float(rng.uniform(0, 2.0 * seconds))
        frames_THWC, times = clip_window(clip, start, seconds, fps=CLIP_FPS)
        if not is_clear(clip, times):
            continue
        origin = start if rng.random() < 0.7 else 0.0
        if rng.random() < 0.7:
            frames_THWC = disturb(rng, frames_THWC)
        frames = Frames(frames_THWC, tuple(time - origin for time in times))
        samples.append(clip_sample(processor, clip, frames, times, origin))
    yield from _cut(samples if held_out else _with_slips(samples, rng), token_budget)


def sight_batch(processor: Processor, rng: np.random.Generator, *, token_budget: int) -> TrainingBatch:
    """For the tower alone: frame pairs from all over long clips, so that nearly each shows something else."""
    width, height = CLIP_SIZES[int(rng.integers(len(CLIP_SIZES)))]
    pairs, apart = 16, 5.0
    samples: list[Sample] = []
    for _ in range(max(1, token_budget // (pairs * (width * height // processor.pixel_multiple**2)))):
        clip = make_clip(rng, seconds=pairs * apart, size=(width, height), held_out=False)
        first_P = apart * (np.arange(pairs) + rng.uniform(0, 0.9, pairs))
        times = np.stack([first_P, first_P + 1 / CLIP_FPS], axis=1).flatten().tolist()
        frames_THWC = disturb(rng, np.stack([clip.frame(time) for time in times]))
        samples.append(clip_sample(processor, clip, Frames(frames_THWC, tuple(times)), times, 0.0))
    return _joined(samples)


def page_sample(
    processor: Processor, page: SamplePage, pixels_HWC: NDArray[np.uint8], glyphs: list[Glyph], instruction: str
) -> Sample:
    prompt = processor.encode("", [Frames(pixels_HWC[None]), instruction], Sampling())
    answer = page.html() if instruction == HTML else page.markdown()
    multiple = processor.pixel_multiple
    height, width = pixels_HWC.shape[:2]
    first = int(np.flatnonzero(prompt.token_ids_T == processor.config.image_token_id)[0])
    places = {}
    found = aligned(answer, glyphs, is_html=instruction == HTML)
    last: int | None = None  # the token with the character that was read last
    for index, glyph in sorted((found | box_ends(answer, found)).items(), key=itemgetter(0)):
        if 0 <= glyph.x < width and 0 <= glyph.y < height:
            number, cell, xy = _located(glyph.x, glyph.y, width, height, multiple)
            token = first + number
            if index in found:
                both, last = (last or token, token), token
            else:  # a digit of a box
                both = token, token
            places[index] = Place(both, cell, xy)
    return _with_answer(processor, prompt, answer, places, glyphs_of_cells(glyphs, width, height, multiple))


def clip_sample(
    processor: Processor, clip: SampleClip, frames: Frames, times: Sequence[float], origin: float
) -> Sample:
    """`times`: of the frames, on the clip's clock; `frames` has them counted from `origin`."""
    prompt = processor.encode("", [frames, EVENTS], Sampling())
    pairs, multiple = pairs_of(times), processor.pixel_multiple
    answer = answer_for(clip, pairs, origin)
    height, width = frames.pixels_THWC.shape[1:3]
    visual = np.flatnonzero(prompt.token_ids_T == processor.config.video_token_id).reshape(len(pairs), -1)
    digits = _time_tokens(processor, prompt.token_ids_T, visual[:, 0])
    places = {}
    last: int | None = None  # the token with the letter of a card that was read last
    for index, look in looks(clip, pairs, answer).items():
        x, y = (float(np.clip(at, 0, side - 1)) for at, side in ((look.x, width), (look.y, height)))
        number, cell, xy = _located(x, y, width, height, multiple)
        token = int(visual[look.pair, number])
        if look.time_pair is None:
            both, last = (last or token, token), token
        else:
            both, last = (token, digits[look.time_pair][look.digit]), None
        places[index] = Place(both, cell, xy)
    cells = [glyphs_of_cells(seen, width, height, multiple) for seen in sights(clip, pairs)]
    return _with_answer(processor, prompt, answer, places, np.concatenate(cells))


def _located(x: float, y: float, width: int, height: int, multiple: int) -> tuple[int, int, tuple[int, int]]:
    """In which visual token of an image a point in pixels lies, in which of its cells, and where in thousandths."""
    row, down = divmod(int(y * CELLS_DOWN / multiple), CELLS_DOWN)
    column, across = divmod(int(x * CELLS_ACROSS / multiple), CELLS_ACROSS)
    xy = int(1000 * x / width), int(1000 * y / height)
    return row * (width // multiple) + column, down * CELLS_ACROSS + across, xy


def _time_tokens(processor: Processor, token_ids_T: NDArray[np.int32], firsts: NDArray[np.intp]) -> list[list[int]]:
    """The tokens of each pair's time, "<12.5 seconds>": one for each of its digits and its point. `firsts` are the
    pairs' first visual tokens."""
    opening = processor.tokenizer.token_to_id("<")
    digits = {processor.tokenizer.token_to_id(character) for character in "0123456789."}
    found = []
    for first in firsts.tolist():
        start = first - 1 - token_ids_T[:first][::-1].tolist().index(opening)
        found.append([token for token in range(start, first) if int(token_ids_T[token]) in digits])
    return found


def aligned(answer: str, glyphs: Sequence[Glyph], *, is_html: bool) -> dict[int, Glyph]:
    """Which printed character each character of the answer is read from. What only Markdown or HTML writes stands
    nowhere; what only the page shows (the numbers of HTML lists) is passed over."""
    if is_html:
        answer = re.sub(r"```\w*|<[^>]*>", lambda mark: " " * len(mark[0]), answer)
        answer = re.sub(r"&\w+;", lambda escaped: html.unescape(escaped[0]).ljust(len(escaped[0])), answer)
    reach = 4 if is_html else 1
    found: dict[int, Glyph] = {}
    cursor = 0
    for index, character in enumerate(answer):
        for ahead in range(cursor, min(cursor + reach, len(glyphs))):
            if character == glyphs[ahead].character:
                found[index] = glyphs[ahead]
                cursor = ahead + 1
                break
    return found


def box_ends(answer: str, found: Mapping[int, Glyph]) -> dict[int, Glyph]:
    """Which printed character says what each digit of the boxes in HTML is: the first of the block for its left and its
    top, the rightmost for its right, the last for its bottom. These can be found; which letter of a line reaches a
    pixel higher than the others can not. `found`: of the characters of the answer by their index."""
    ends: dict[int, Glyph] = {}
    boxes = list(_BOX.finditer(answer))
    for box, following in zip(boxes, [*(later.start() for later in boxes[1:]), len(answer)], strict=False):
        inside = [glyph for index, glyph in found.items() if box.end() <= index < following]
        if not inside:
            continue
        rightmost = max(inside, key=attrgetter("x"))
        for number, glyph in enumerate((inside[0], inside[0], rightmost, inside[-1]), start=1):
            ends |= dict.fromkeys(range(*box.span(number)), glyph)
    return ends


def glyphs_of_cells(glyphs: Sequence[Glyph], width: int, height: int, multiple: int) -> NDArray[np.bool_]:
    """bool [visual tokens, cells, names]: the characters, or things with a name, whose middle lies in each cell."""
    number_of = {name: number for number, name in enumerate(NAMES)}
    seen = np.zeros((height // multiple * (width // multiple), CELLS_DOWN * CELLS_ACROSS, len(NAMES)), dtype=bool)
    for glyph in glyphs:
        number = number_of.get(glyph.character)
        if 0 <= glyph.x < width and 0 <= glyph.y < height and number is not None:
            token, cell, _ = _located(glyph.x, glyph.y, width, height, multiple)
            seen[token, cell, number] = True
    return seen


def _with_answer(
    processor: Processor,
    prompt: Prompt,
    answer: str,
    places: Mapping[int, Place],
    glyphs_MQA: NDArray[np.bool_],
) -> Sample:
    """`places`: of characters of the answer by their index."""
    tokenizer = processor.tokenizer
    encoded = tokenizer.encode(answer, add_special_tokens=False)
    answer_ids = [*encoded.ids, tokenizer.token_to_id("<|im_end|>")]
    start = len(prompt.token_ids_T)
    targets_LT = np.full((LOOKS, start + len(answer_ids)), NOWHERE, dtype=np.int64)
    cells_T = np.full(start + len(answer_ids), NOWHERE, dtype=np.int64)
    xy_T2 = np.full((start + len(answer_ids), 2), NOWHERE, dtype=np.int64)
    for index, (first, end) in enumerate(encoded.offsets):
        if place := next((places[at] for at in range(first, end) if at in places), None):
            targets_LT[:, start + index] = place.tokens_L
            cells_T[start + index] = place.cell
            xy_T2[start + index] = place.xy
    asked_T = np.full(start + len(answer_ids), NOWHERE, dtype=np.int64)
    asked_T[start:] = np.array(answer_ids, dtype=np.int64)
    positions = prompt.next_position + np.arange(len(answer_ids), dtype=np.int32)
    whole = replace(
        prompt,
        token_ids_T=np.concatenate([prompt.token_ids_T, np.array(answer_ids, dtype=np.int32)]),
        positions_3T=np.concatenate([prompt.positions_3T, np.tile(positions, (3, 1))], axis=1),
        next_position=prompt.next_position + len(answer_ids),
    )
    return Sample(whole, start, asked_T, targets_LT, cells_T, xy_T2, glyphs_MQA)


def _with_slips(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    jumped = [jumping(sample, rng) if rng.random() < JUMPING_SHARE else sample for sample in samples]
    return [misread(sample, rng, float(rng.choice(MISREAD_SHARES))) for sample in jumped]


def misread(sample: Sample, rng: np.random.Generator, share: float) -> Sample:
    """At a share of the places read at, a few tokens are shown as others that are read in the prompt, mostly as those
    that follow the same few tokens elsewhere: who finds the place by these alone goes wrong like that. Asked for is
    the truth."""
    told_T, shown_T = sample.prompt.token_ids_T, sample.prompt.token_ids_T.copy()
    is_read_T = (sample.targets_LT[0] != NOWHERE) & (sample.asked_T == told_T)
    read_R = np.flatnonzero(is_read_T)
    for place in read_R[rng.random(len(read_R)) < share].tolist():
        others = read_R[told_T[read_R] != told_T[place]]
        for back in range(1, 1 + int(rng.integers(LONGEST_ALIKE + 1))):
            alike = others[told_T[others - back] == told_T[place - back]]
            others = alike if len(alike) else others
        if len(others):
            other = int(rng.choice(others))
            steps = np.arange(min(int(rng.geometric(0.5)), len(told_T) - max(place, other)))
            steps = steps[is_read_T[place + steps] & is_read_T[other + steps]]
            shown_T[place + steps] = told_T[other + steps]
    return replace(sample, prompt=replace(sample.prompt, token_ids_T=shown_T))


def jumping(sample: Sample, rng: np.random.Generator) -> Sample:
    """The answer is shown with a jump, as if the network had lost its place: a few tokens or some lines are shown twice
    or left out. Asked for is, where it jumps, what comes there, and then what comes after what is shown; but nothing
    twice of a part that is shown twice."""
    prompt, length = sample.prompt, len(sample.prompt.token_ids_T)
    if length - sample.answer_start < 4:
        return sample
    place = int(rng.integers(sample.answer_start + 1, length))
    distance = round(LONGEST_JUMP ** rng.random()) * int(rng.choice((-1, 1)))
    goal = int(np.clip(place + distance, sample.answer_start, length - 2))
    order_T = np.concatenate([np.arange(place), np.arange(goal, length)])
    from_T = order_T.copy()
    from_T[place] = place
    is_asked_T = (np.arange(len(order_T)) <= place) | (order_T >= place)
    asked_T, cells_T = (np.where(is_asked_T, of_T[from_T], NOWHERE) for of_T in (sample.asked_T, sample.cells_T))
    targets_LT = np.where(is_asked_T, sample.targets_LT[:, from_T], NOWHERE)
    xy_T2 = np.where(is_asked_T[:, None], sample.xy_T2[from_T], NOWHERE)
    positions_T = prompt.positions_3T[0, place] + np.arange(length - goal, dtype=np.int32)
    shown = replace(
        prompt,
        token_ids_T=prompt.token_ids_T[order_T],
        positions_3T=np.concatenate([prompt.positions_3T[:, :place], np.tile(positions_T, (3, 1))], axis=1),
        next_position=prompt.next_position + place - goal,
    )
    return replace(sample, prompt=shown, asked_T=asked_T, targets_LT=targets_LT, cells_T=cells_T, xy_T2=xy_T2)


def _cut(samples: Sequence[Sample], token_budget: int) -> Iterator[TrainingBatch]:
    """Samples of like length together, as many as fill the budget."""
    ordered = sorted(samples, key=lambda sample: -len(sample.prompt.token_ids_T))
    while ordered:
        count = max(1, token_budget // len(ordered[0].prompt.token_ids_T))
        yield _joined(ordered[:count])
        ordered = ordered[count:]


def _joined(samples: Sequence[Sample]) -> TrainingBatch:
    count, longest = len(samples), max(len(sample.prompt.token_ids_T) for sample in samples)
    token_ids_BT = np.zeros((count, longest), dtype=np.int64)
    asked_BT = np.full((count, longest), NOWHERE, dtype=np.int64)
    targets_LBT = np.full((LOOKS, count, longest), NOWHERE, dtype=np.int64)
    cells_BT = np.full((count, longest), NOWHERE, dtype=np.int64)
    xy_BT2 = np.full((count, longest, 2), NOWHERE, dtype=np.int64)
    positions_B3T = np.zeros((count, 3, longest), dtype=np.int32)
    for row, sample in enumerate(samples):
        length = len(sample.prompt.token_ids_T)
        token_ids_BT[row, :length] = sample.prompt.token_ids_T
        asked_BT[row, :length] = sample.asked_T
        targets_LBT[:, row, :length] = sample.targets_LT
        cells_BT[row, :length] = sample.cells_T
        xy_BT2[row, :length] = sample.xy_T2
        positions_B3T[row, :, :length] = sample.prompt.positions_3T
    return TrainingBatch(
        token_ids_BT=token_ids_BT,
        positions_3N=positions_B3T.transpose(1, 0, 2).reshape(3, -1),
        asked_BT=asked_BT,
        targets_LBT=targets_LBT,
        cells_BT=cells_BT,
        xy_BT2=xy_BT2,
        patches_PC=np.concatenate([sample.prompt.patches_PC for sample in samples]),
        grids_G3=[tuple(grid) for sample in samples for grid in sample.prompt.grids_G3.tolist()],
        glyphs_MQA=np.concatenate([sample.glyphs_MQA for sample in samples]),
    )
