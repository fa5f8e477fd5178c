"""The nouns of the pipeline: Asset -> Unit -> Page -> Prompt -> Completion -> PageRow, and what can go wrong.

Frozen values inside a process; `tables` says how they look in Arrow. Boxes everywhere: (left, top, right, bottom), 0 to
1, origin top left, in the upright page as displayed (after /Rotate, CropBox, EXIF).
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]


class Stage(StrEnum):
    """Where something went wrong."""

    LIST = "list"
    READ = "read"
    OPEN = "open"
    RENDER = "render"
    INFER = "infer"


MESSAGE_CHARACTERS = 500  # of the reason why an input or a page could not be done


class ErrorCode(StrEnum):
    """Why an input or a page could not be done. The strings are stable: they stand in the tables."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    THROTTLED = "throttled"
    READ_TIMEOUT = "read_timeout"
    CHANGED_DURING_RUN = "changed_during_run"
    EMPTY_FILE = "empty_file"
    UNSUPPORTED_TYPE = "unsupported_type"
    ENCRYPTED = "encrypted"
    WRONG_PASSWORD = "wrong_password"
    CORRUPT = "corrupt"
    NO_PAGES = "no_pages"
    PAGE_LOAD_FAILED = "page_load_failed"
    ZERO_SIZE_PAGE = "zero_size_page"
    PAGE_TOO_LARGE = "page_too_large"
    NO_VIDEO = "no_video"
    NO_DECODER = "no_decoder"
    NO_FRAMES = "no_frames"
    BAD_DIMENSIONS = "bad_dimensions"
    TRUNCATED_FILE = "truncated_file"
    FRAMES_MISSING = "frames_missing"
    IMAGE_BOMB = "image_bomb"
    TOO_MANY_PAGES = "too_many_pages"
    TOO_MANY_WINDOWS = "too_many_windows"
    DECODER_ERROR = "decoder_error"
    RENDER_TIMEOUT = "render_timeout"
    RENDER_CRASH = "render_crash"
    RENDER_OOM = "render_oom"
    INFER_REJECTED = "infer_rejected"
    INFER_CRASH = "infer_crash"
    OUTPUT_TRUNCATED = "output_truncated"
    OUTPUT_REPEATED = "output_repeated"
    UNPARSEABLE = "unparseable"

    @property
    def retryable(self) -> bool:
        """Whether trying the same input again may help."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.ACCESS_DENIED,
        ErrorCode.THROTTLED,
        ErrorCode.READ_TIMEOUT,
        ErrorCode.CHANGED_DURING_RUN,
        ErrorCode.RENDER_TIMEOUT,
        ErrorCode.RENDER_CRASH,
        ErrorCode.RENDER_OOM,
        ErrorCode.INFER_CRASH,
    }
)


class DocumentStatus(StrEnum):
    OK = "ok"  # every page wanted is ok or blank
    PARTIAL = "partial"  # some page failed or was cut off
    FAILED = "failed"  # it could not be opened, or no page could be read


class WindowStatus(StrEnum):
    OK = "ok"
    TRUNCATED = "truncated"  # the answer reached max_new_tokens, or repeats itself
    UNPARSEABLE = "unparseable"  # nothing can be read in the answer, not even that nothing happens
    FAILED = "failed"


class PageStatus(StrEnum):
    OK = "ok"
    BLANK = "blank"  # recognised before the model: nothing to read
    TRUNCATED = "truncated"  # the answer reached max_new_tokens, or repeats itself
    FAILED = "failed"
    SKIPPED = "skipped"  # outside the page ranges the job asked for


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be done, and why, in words a user can act on. Never contains a password."""

    stage: Stage
    code: ErrorCode
    message: str
    attempts: int = 1  # that were made before it was given up


class BadInput(Exception):  # noqa: N818 - a state of the input, not an error of ours
    """An input (or one page of it) cannot be processed: it becomes a row, never a crash."""

    def __init__(self, stage: Stage, code: ErrorCode, message: str) -> None:
        message = printable(message)[:MESSAGE_CHARACTERS]  # it may quote what a file brought a library to say
        super().__init__(stage, code, message)  # all three: the exception must survive pickling
        self.failure = Failure(stage, code, message)

    def __str__(self) -> str:
        return f"{self.failure.stage}: {self.failure.code}: {self.failure.message}"


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold written as escapes: halves of surrogate pairs, bytes of a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def stable_id(*parts: str) -> str:
    """32 hex digits that depend on nothing but the parts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Asset:
    """One object to process: a file or an object-store key, in one version."""

    uri: str
    size: int  # bytes
    etag: str  # the store's version token; on a file system "size-mtime_ns"
    user: tuple[tuple[str, str], ...] = ()  # columns of the manifest, carried through

    @property
    def asset_id(self) -> str:
        return stable_id(self.uri, self.etag)


@dataclass(frozen=True, slots=True)
class Unit:
    """What Ray moves: pages `first` to `last` (1-based, inclusive) of one asset, bounded in pixels."""

    asset_id: str
    uri: str
    size: int
    etag: str
    first: int
    last: int
    tokens: int  # visual tokens these pages will cost, estimated from their sizes
    tries: int = 0  # earlier attempts at these pages: not 0 in a retry of what failed

    @property
    def unit_id(self) -> str:
        again = [str(self.tries)] if self.tries else []
        return stable_id(self.asset_id, str(self.first), str(self.last), *again)


@dataclass(frozen=True, slots=True)
class Word:
    """A word (or run of glyphs) of a page's own text layer."""

    text: str
    box: Box


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What decoding says about a page besides its pixels."""

    page_no: int  # 1-based, the number in the source file, never renumbered
    label: str  # the printed page label of the PDF, or ""
    width_pt: float  # of the upright page as displayed; for images one pixel is one point
    height_pt: float
    rotation: int  # degrees clockwise that were applied to make it upright: /Rotate or EXIF
    rendered_width: int  # pixels, all tiles together
    rendered_height: int
    tile_boxes: tuple[Box, ...]  # one for each tile, top to bottom or left to right; (0, 0, 1, 1) alone when not tiled
    words: tuple[Word, ...]  # the text layer in the file's order; empty for images and scans
    ink_ratio: float  # share of pixels clearly darker (or lighter) than the paper
    edge_density: float  # share of neighbouring pixels that differ by more than 40 of 255
    is_blank: bool
    flags: tuple[str, ...]  # e.g. "missing_fonts", "has_forms", "has_xfa"
    decode_ms: float

    @property
    def number(self) -> int:
        """Its place among the pieces of its asset, from 1."""
        return self.page_no


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered page: its facts and one uint8 RGB image [H, W, 3] for each tile, sides multiples of 32."""

    facts: PageFacts
    tiles: tuple[NDArray[np.uint8], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a page in reading order."""

    order: int
    type: str  # title, section_header, paragraph, list_item, table, picture, chart, formula, code, caption, footnote,
    # page_header, page_footer, page_number, form, other
    level: int  # heading level, list depth; 0 where it has no meaning
    text: str  # plain text
    html: str  # of tables; "" otherwise
    box: Box | None
    box_source: str  # model, text_layer, none
    char_start: int  # span in the page's markdown
    char_end: int


@dataclass(frozen=True, slots=True)
class PageRow:
    """One row of the pages table, with its blocks."""

    doc_id: str
    page_no: int
    page_label: str
    status: PageStatus
    failure: Failure | None
    flags: tuple[str, ...]
    width_pt: float
    height_pt: float
    rotation: int
    rendered_width: int
    rendered_height: int
    tiles: int
    markdown: str
    html: str
    text_layer: str
    ink_ratio: float
    edge_density: float
    finish_reason: str  # "" when the model was not asked
    mean_logprob: float  # 0 when the model was not asked
    min_logprob: float
    tokens_in: int
    tokens_out: int
    steps: int  # forward passes that gave it tokens
    drafted_tokens: int  # proposed from the text layer
    accepted_tokens: int  # of these, the ones the model wrote itself
    resumes: int  # how often an answer was taken up again behind a loop
    decode_ms: float
    queue_ms: float
    infer_ms: float
    reasoning: str  # what a thinking model wrote before its answers
    raw_output: str  # what the model wrote, when the job keeps it; otherwise ""
    blocks: tuple[Block, ...]

    @property
    def number(self) -> int:
        return self.page_no

    @property
    def found(self) -> int:
        return len(self.blocks)

    @property
    def media_us(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """A window of a video: [start_us, end_us) on the video's clock, whose 0 is the first instant of the video track."""

    index: int  # 1-based place of the window in its video, as pages are numbered
    start_us: int
    end_us: int
    frame_us: tuple[int, ...]  # when each sampled frame begins to show, ascending, on the video's clock
    origin_us: int  # where the times in the prompt count from: a pair reads (mean of its two times - origin) / 1e6


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """What decoding says about a window besides its pixels."""

    span: WindowSpan
    core_end_us: int  # where the next window begins (for the last: end_us): what happens before is this window's alone
    width: int  # pixels of the frames the model sees, upright and with square pixels
    height: int
    decode_errors: int  # packets of [start_us, core_end_us) that could not be decoded
    corrupt_frames: int  # frames of it that the decoder marked as damaged; none of them was sampled
    cut_us: tuple[int, ...]  # when shots begin, of those that begin inside: times of sampled frames
    flags: tuple[str, ...]  # truncated_file (the file ends before the window does), held_frame (nothing new is shown),
    # frames_missing (wanted ones are not there),
    # ends_at_cut (earlier than planned, where a shot does)
    decode_ms: float

    @property
    def number(self) -> int:
        """Its place among the pieces of its asset, from 1."""
        return self.span.index


@dataclass(frozen=True, slots=True)
class Window:
    """A decoded window: its facts and its frames, uint8 RGB [T, H, W, 3], sides multiples of 32."""

    facts: WindowFacts
    frames_THWC: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class WindowEvent:
    """An event as far as one window shows it: [start_us, end_us) on the video's clock, at sampled frames."""

    start_us: int
    end_us: int
    description: str
    label: str  # "" without
    confidence: float | None  # as the model claims it, 0 to 1
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParsedEvents:
    """What an answer about a window says, in order of start, and what was wrong with it."""

    events: tuple[WindowEvent, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One row of the windows table, with its events."""

    video_id: str
    window_no: int
    status: WindowStatus
    failure: Failure | None
    flags: tuple[str, ...]
    start_us: int
    end_us: int
    core_end_us: int
    origin_us: int
    frame_us: tuple[int, ...]
    width: int
    height: int
    decode_errors: int
    corrupt_frames: int
    cut_us: tuple[int, ...]
    answer: str  # of prompts that do not ask for events
    finish_reason: str  # "" when the model was not asked
    mean_logprob: float
    min_logprob: float
    tokens_in: int
    tokens_out: int
    steps: int
    drafted_tokens: int  # proposed from the answer about the window before
    accepted_tokens: int
    resumes: int
    decode_ms: float
    queue_ms: float
    infer_ms: float
    reasoning: str  # what a thinking model wrote before its answers
    raw_output: str
    events: tuple[WindowEvent, ...]

    @property
    def number(self) -> int:
        return self.window_no

    @property
    def found(self) -> int:
        return len(self.events)

    @property
    def media_us(self) -> int:
        """Time that only this window stands for."""
        return self.core_end_us - self.start_us


@dataclass(frozen=True, slots=True)
class EventSource:
    """One window's view of an event, with the words of that window."""

    window: int  # the index of its WindowSpan
    start_us: int
    end_us: int
    description: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in a video: [start_us, end_us) on its clock, from every window that shows it."""

    event_id: str
    video_id: str
    chapter_id: str
    start_us: int
    end_us: int
    label: str  # "" without
    description: str
    confidence: float | None  # as the model claims it, 0 to 1
    flags: tuple[str, ...]
    sources: tuple[EventSource, ...]  # in order of window


@dataclass(frozen=True, slots=True)
class Chapter:
    """A run of related events: [start_us, end_us) from the first start to the last end."""

    chapter_id: str
    video_id: str
    start_us: int
    end_us: int
    label: str  # the one most of its events have
    title: str  # the description of its longest event
    events: int
