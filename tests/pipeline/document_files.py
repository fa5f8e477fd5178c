"""PDF files written by hand, object by object, so that a test decides every box, rotation and fault itself; and the
sample documents, where they are at hand.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import DocumentInfo, DocumentOptions, inspect, read_pages
from pipeline.records import BadInput, ErrorCode, Failure, Page, Stage

SAMPLES = Path(__file__).parents[2].parent / "shared" / "data" / "documents"
Box = tuple[float, float, float, float]
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


@dataclass(frozen=True)
class PdfPage:
    """One page: the entries of its dictionary besides type and content, and the content stream."""

    entries: str = "/MediaBox [0 0 612 792]"
    content: str = ""


def pdf_bytes(pages: Sequence[PdfPage], *, catalog: str = "", more_objects: Sequence[str] = ()) -> bytes:
    """A whole PDF. Helvetica is /F1. Objects: 1 catalog, 2 page tree, 3 font, then page, content, page, content, ...,
    then `more_objects`.
    """
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        f"<</Type /Catalog /Pages 2 0 R {catalog}>>",
        f"<</Type /Pages /Kids [{kids}] /Count {len(pages)}>>",
        "<</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>",
    ]
    for i, page in enumerate(pages):
        resources = "/Resources <</Font <</F1 3 0 R>>>>"
        objects.append(f"<</Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * i} 0 R {page.entries}>>")
        objects.append(f"<</Length {len(page.content)}>>\nstream\n{page.content}\nendstream")
    return pdf_of([*objects, *more_objects])


def pdf_of(objects: Sequence[str]) -> bytes:
    """A PDF of these objects, numbered from 1, the first its catalog."""
    data, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(offsets) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<</Root 1 0 R /Size {size}>>\nstartxref\n{len(data)}\n"
    return data + end.encode() + b"%%EOF\n"


def text(words: str, x: float, y: float, *, size: float = 24, colour: str = "") -> str:
    """Content that writes `words` with the start of their baseline at (x, y) of user space."""
    red, green, blue = COLOURS.get(colour, (0, 0, 0))
    return f"{red} {green} {blue} rg BT /F1 {size} Tf {x} {y} Td ({words}) Tj ET\n"


def ink_box(pixels_HWC: NDArray[np.uint8], colour: str) -> Box:
    """The box, 0 to 1, around everything of that pure colour on white."""
    paper = [channel for channel, value in enumerate(COLOURS[colour]) if value == 0]
    own = [channel for channel, value in enumerate(COLOURS[colour]) if value == 1]
    wide_HWC = pixels_HWC.astype(int)
    inked_HW = (wide_HWC[..., paper].max(axis=-1) < 128) & (wide_HWC[..., own].min(axis=-1) > 200)
    rows, columns = np.flatnonzero(inked_HW.any(axis=1)), np.flatnonzero(inked_HW.any(axis=0))
    height, width = inked_HW.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def largest_difference(one: Box, other: Box) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def read_sample(name: str, options: DocumentOptions) -> tuple[DocumentInfo, list[Page | tuple[int, Failure]]]:
    """What a sample document tells, and all its pages. Raises BadInput."""
    with (SAMPLES / name).open("rb") as file:
        info = inspect(file, options)
        return info, list(read_pages(file, range(1, len(info.page_sizes) + 1), options))


class FailingFile(io.BytesIO):
    """A file on a store that stops answering after a number of reads."""

    def __init__(self, data: bytes, reads: int) -> None:
        super().__init__(data)
        self.reads = reads

    def read(self, size: int | None = -1) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise BadInput(Stage.READ, ErrorCode.THROTTLED, "slow down")
        return super().read(size)
