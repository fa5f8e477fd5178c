"""Real poison through the real decoder: what hangs or eats memory costs its own page, is killed, and harms nobody."""

import time
import zlib

from pipeline.documents import DocumentOptions
from pipeline.records import ErrorCode
from tests.decoding import in_fresh_process, read_pages
from tests.pipeline.document_files import PdfPage, pdf_bytes, text

CHILD_BYTES = 1280 * 2**20
DOCUMENT = DocumentOptions(min_tokens=16, max_tokens=256, pixel_multiple=32, max_pages=10, passwords=(), pages="")
FIRST_SPARE = 10  # objects of a three-page file: 1 to 9


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


def test_a_page_that_hangs_is_killed_at_its_limit_and_its_neighbours_are_read(tmp_path):
    path = tmp_path / "laughs.pdf"
    path.write_bytes(laughs(12))
    began = time.monotonic()
    # It eats memory as it goes, about half a GiB a second: the limit of bytes must not come before that of seconds.
    codes, _ = read_pages(path, 3, DOCUMENT, memory_bytes=8 * 2**30, seconds=3.0)
    assert codes == ["ok", ErrorCode.RENDER_TIMEOUT, "ok"]
    assert time.monotonic() - began < 60


def test_a_bomb_stays_below_the_limit_of_the_child_and_its_neighbours_are_read(tmp_path):
    path = tmp_path / "bomb.pdf"
    path.write_bytes(bomb(16_000))
    (first, middle, last), child_bytes = in_fresh_process(read_pages, path, 3, DOCUMENT, CHILD_BYTES, 30.0)
    assert (first, last) == ("ok", "ok")
    assert middle in (
        "ok",
        ErrorCode.IMAGE_BOMB,
        ErrorCode.RENDER_OOM,
        ErrorCode.RENDER_CRASH,
        ErrorCode.RENDER_TIMEOUT,
    )
    assert child_bytes < CHILD_BYTES + 200 * 2**20
