"""The CPU actor of the reading pass: a unit in, its pages rendered and made into prompts out."""

from collections.abc import Iterator
from dataclasses import dataclass

from model.processor import Processor
from model.request import Frames, Prompt, Sampling
from pipeline.documents import DocumentOptions
from pipeline.job import resolve_model
from pipeline.native import read_asset_pages
from pipeline.parse_pages import text_layer
from pipeline.records import Asset, BadInput, ErrorCode, Failure, Page, Stage, Unit
from pipeline.rows import MAX_ROW_BYTES, DecodedPage, DecodedUnit, Row, unit_from_row
from pipeline.sandbox import Sandbox
from pipeline.store import StoreOptions

# The child died or hung at one page: the others of the unit deserve another child.
_LOST_CHILD = frozenset({ErrorCode.RENDER_TIMEOUT, ErrorCode.RENDER_CRASH, ErrorCode.RENDER_OOM})


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """What a decoder needs to know of the job."""

    store: StoreOptions
    document: DocumentOptions
    model: str  # the checkpoint, for its processor
    instruction: str
    sampling: Sampling
    memory_bytes: int  # of the child
    page_timeout_seconds: float


class Decoder:
    """One row in, one row out: never later, never more, so that Ray may repeat a call."""

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._processor = Processor.from_pretrained(resolve_model(options.model))
        self._sandbox = Sandbox(memory_bytes=options.memory_bytes)

    def __call__(self, row: Row) -> Row:
        unit = unit_from_row(row)
        pages: list[DecodedPage] = []
        failures: list[tuple[int, Failure]] = []
        room = max(MAX_ROW_BYTES, 2 * unit.tokens * 3 * self._processor.pixel_multiple**2)
        for result in read_unit(self._sandbox, unit, self._options):
            if not isinstance(result, Page):
                failures.append(result)
                continue
            page = DecodedPage(result.facts, self._prompts(unit, result))
            num_bytes = sum(prompt.patches_PC.nbytes for prompt in page.prompts)
            if num_bytes <= room:
                pages.append(page)
                room -= num_bytes
            else:
                message = "came out larger than its document promised"
                failures.append((result.facts.page_no, Failure(Stage.RENDER, ErrorCode.PAGE_TOO_LARGE, message)))
        return DecodedUnit(unit, tuple(pages), tuple(failures)).to_row()

    def _prompts(self, unit: Unit, page: Page) -> tuple[Prompt, ...]:
        if page.facts.is_blank:
            return ()
        draft_text = text_layer(page.facts.words) if len(page.tiles) == 1 else ""
        return tuple(
            self._processor.encode(
                f"{unit.asset_id}#{page.facts.page_no}/{number}",
                [Frames(tile[None]), self._options.instruction],
                self._options.sampling,
                draft_text=draft_text,
            )
            for number, tile in enumerate(page.tiles, start=1)
        )


def read_unit(sandbox: Sandbox, unit: Unit, options: DecodeOptions) -> Iterator[Page | tuple[int, Failure]]:
    """Every page of the unit, in order, rendered or with the reason why not."""
    asset = Asset(unit.uri, unit.size, unit.etag)
    page_nos = range(unit.first, unit.last + 1)
    while page_nos:
        results = sandbox.iterate(
            read_asset_pages, asset, page_nos, options.store, options.document, seconds=options.page_timeout_seconds
        )
        try:
            for result in results:
                page_no = result.facts.page_no if isinstance(result, Page) else result[0]
                assert page_no == page_nos[0], f"page {page_no} of {unit.uri} came instead of {page_nos[0]}"
                page_nos = page_nos[1:]
                yield result
            assert not page_nos, f"pages {page_nos} of {unit.uri} never came"
        except BadInput as error:
            lost = page_nos[:1] if error.failure.code in _LOST_CHILD else page_nos
            yield from ((page_no, error.failure) for page_no in lost)
            page_nos = page_nos[len(lost) :]
