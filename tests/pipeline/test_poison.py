"""Real poison through the real decoder: what hangs or eats memory costs its own page, is killed, and harms nobody."""

import resource
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from model.request import Sampling
from pipeline.decode import DecodeOptions, read_unit
from pipeline.documents import DocumentOptions
from pipeline.records import ErrorCode, Page, Unit
from pipeline.sandbox import Sandbox
from pipeline.store import Store, StoreOptions
from tests.pipeline.document_files import PdfPage, pdf_bytes, text

CHILD_BYTES = 1280 * 2**20
DOCUMENT = DocumentOptions(min_tokens=16, max_tokens=256, pixel_multiple=32, max_pages=10, passwords=(), pages="")
FIRST_SPARE = 10  # objects of a three-page file: 1 to 9


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with closing(Sandbox(memory_bytes=CHILD_BYTES)) as sandbox:
        yield sandbox


def read(sandbox: Sandbox, path: Path, seconds: float) -> list[str]:
    """ "ok" or the error code of each of three pages."""
    asset = Store().stat(str(path))
    options = DecodeOptions(
        store=StoreOptions(),
        media=DOCUMENT,
        model="",
        instructions=("",),
        sampling=Sampling(max_new_tokens=1),
        memory_bytes=CHILD_BYTES,
        piece_timeout_seconds=seconds,
    )
    unit = Unit(asset.asset_id, asset.uri, asset.size, asset.etag, 1, 3, 1)
    return ["ok" if isinstance(result, Page) else result[1].code for result in read_unit(sandbox, unit, options)]


def three_pages(poison: str, objects: list[str]) -> bytes:
    """Two plain pages around one whose resources are object 10 on and whose content is `poison`."""
    plain = PdfPage(content=text("plain", 100, 500))
    entries = f"/MediaBox [0 0 612 792] /Resources <</XObject <</X {FIRST_SPARE} 0 R>>>>"
    return pdf_bytes([plain, PdfPage(entries, poison), plain], more_objects=objects)


def laughs(depth: int) -> bytes:
    """A page that draws a form that draws a form ten times over, and so on: 10 ** depth lines."""
    objects = []
    for level in range(depth):
        inner = "/X Do " * 10 if level < depth - 1 else "0 0 m 100 100 l S "
        resources = f"/Resources <</XObject <</X {FIRST_SPARE + level + 1} 0 R>>>>" if level < depth - 1 else ""
        head = f"<</Type /XObject /Subtype /Form /BBox [0 0 612 792] {resources} /Length {len(inner)}>>"
        objects.append(f"{head}\nstream\n{inner}\nendstream")
    return three_pages("/X Do", objects)


def bomb(side: int) -> bytes:
    """A page with a grey image of side x side, all one shade: a thousandth of it is in the file."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(side * side // 2**20)) + packer.flush()
    head = f"<</Type /XObject /Subtype /Image /Width {side} /Height {side} /ColorSpace /DeviceRGB /BitsPerComponent 8"
    head += f" /Filter /FlateDecode /Length {len(packed)}>>"
    return three_pages("600 0 0 700 0 0 cm /X Do", [f"{head}\nstream\n{packed.decode('latin-1')}\nendstream"])


def test_a_page_that_hangs_is_killed_at_its_limit_and_its_neighbours_are_read(sandbox, tmp_path):
    path = tmp_path / "laughs.pdf"
    path.write_bytes(laughs(12))
    began = time.monotonic()
    first, middle, last = read(sandbox, path, seconds=8.0)
    assert (first, last) == ("ok", "ok")
    # It eats memory as it goes: on a fast machine the limit of bytes comes before that of seconds.
    assert middle in (ErrorCode.RENDER_TIMEOUT, ErrorCode.RENDER_CRASH, ErrorCode.RENDER_OOM)
    assert time.monotonic() - began < 60


def test_a_bomb_stays_below_the_limit_of_the_child_and_its_neighbours_are_read(sandbox, tmp_path):
    path = tmp_path / "bomb.pdf"
    path.write_bytes(bomb(16_000))
    before = largest_child_bytes()  # of all tests so far
    first, middle, last = read(sandbox, path, seconds=30.0)
    assert (first, last) == ("ok", "ok")
    assert middle in (
        "ok",
        ErrorCode.IMAGE_BOMB,
        ErrorCode.RENDER_OOM,
        ErrorCode.RENDER_CRASH,
        ErrorCode.RENDER_TIMEOUT,
    )
    assert largest_child_bytes() <= max(before, CHILD_BYTES + 200 * 2**20)


def largest_child_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
