"""The CPU actor of the reading pass: a unit in, its pages or windows decoded and made into prompts out."""

from collections.abc import Iterator
from dataclasses import dataclass

from model.processor import Processor, VideoMarks
from model.request import Frames, Prompt, Sampling
from pipeline.documents import DocumentOptions
from pipeline.job import resolve_model
from pipeline.native import log_unforeseen, read_asset_pieces
from pipeline.parse_pages import text_layer
from pipeline.records import Asset, BadInput, ErrorCode, Failure, Page, Stage, Unit, Window
from pipeline.rows import MAX_ROW_BYTES, DecodedPiece, DecodedUnit, Row, unit_from_row
from pipeline.sandbox import Sandbox
from pipeline.store import StoreOptions
from pipeline.video_windows import VideoOptions

# The child died, hung or gave up at one page: the others of the unit deserve another try.
_LOST_CHILD = frozenset(
    {ErrorCode.RENDER_TIMEOUT, ErrorCode.RENDER_CRASH, ErrorCode.RENDER_OOM, ErrorCode.DECODER_ERROR}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """What a decoder needs to know of the job."""

    store: StoreOptions
    media: DocumentOptions | VideoOptions
    model: str  # the checkpoint, for its processor
    instructions: tuple[str, ...]  # each is a prompt of its own
    sampling: Sampling
    memory_bytes: int  # of the child
    piece_timeout_seconds: float
    video_marks: VideoMarks = "all"


class Decoder:
    """One row in, one row out: never later, never more, so that Ray may repeat a call."""

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._processor = Processor.from_pretrained(resolve_model(options.model), video_marks=options.video_marks)
        self._sandbox = Sandbox(memory_bytes=options.memory_bytes)

    def __call__(self, row: Row) -> Row:
        unit = unit_from_row(row)
        pieces: list[DecodedPiece] = []
        failures: list[tuple[int, Failure]] = []
        room = max(MAX_ROW_BYTES, 2 * unit.tokens * self._options.media.bytes_per_token)
        for result in read_unit(self._sandbox, unit, self._options):
            if isinstance(result, tuple):
                failures.append(result)
                continue
            piece = DecodedPiece(result.facts, self._prompts(unit, result))
            num_bytes = sum(prompt.patches_PC.nbytes for prompt in piece.prompts)
            if num_bytes <= room:
                pieces.append(piece)
                room -= num_bytes
            else:
                message = "came out larger than its document promised"
                failures.append((result.facts.number, Failure(Stage.RENDER, ErrorCode.PAGE_TOO_LARGE, message)))
        return DecodedUnit(unit, tuple(pieces), tuple(failures)).to_row()

    def _prompts(self, unit: Unit, piece: Page | Window) -> tuple[Prompt, ...]:
        """One for each instruction and tile: a page is a clip of one frame without a clock."""
        if isinstance(piece, Window):
            span, draft_text = piece.facts.span, ""
            seconds = tuple((time_us - span.origin_us) / 1_000_000 for time_us in span.frame_us)
            clips = [Frames(piece.frames_THWC, seconds)]
        elif piece.facts.is_blank:
            return ()
        else:
            draft_text = text_layer(piece.facts.words) if len(piece.tiles) == 1 else ""
            clips = [Frames(tile[None]) for tile in piece.tiles]
        contents: list[list[str | Frames]] = [
            [clip, instruction] for instruction in self._options.instructions for clip in clips
        ]
        return tuple(
            self._processor.encode(
                _key(unit, piece.facts.number, number),
                content,
                self._options.sampling,
                draft_text=draft_text,
                draft_from=_key(unit, piece.facts.number - 1, number) if isinstance(piece, Window) else None,
            )
            for number, content in enumerate(contents, start=1)
        )


def _key(unit: Unit, piece: int, number: int) -> str:
    return f"{unit.asset_id}#{piece}/{number}"


def read_unit(sandbox: Sandbox, unit: Unit, options: DecodeOptions) -> Iterator[Page | Window | tuple[int, Failure]]:
    """Every piece of the unit, in order, decoded or with the reason why not."""
    asset = Asset(unit.uri, unit.size, unit.etag)
    numbers = range(unit.first, unit.last + 1)
    while numbers:
        results = sandbox.iterate(
            read_asset_pieces, asset, numbers, options.store, options.media, seconds=options.piece_timeout_seconds
        )
        try:
            for result in results:
                number = result[0] if isinstance(result, tuple) else result.facts.number
                assert number == numbers[0], f"piece {number} of {unit.uri} came instead of {numbers[0]}"
                numbers = numbers[1:]
                yield result
            assert not numbers, f"pieces {numbers} of {unit.uri} never came"
        except BadInput as error:
            log_unforeseen(error, unit.uri)
            lost = numbers[:1] if error.failure.code in _LOST_CHILD else numbers
            yield from ((number, error.failure) for number in lost)
            numbers = numbers[len(lost) :]
