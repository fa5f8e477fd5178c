"""Mutated files and mutated answers, thousands of them: `python -m tests.fuzz --files 10000 --answers 10000 --seed 7`.

Each file must end as one row: opened and each of its pages rendered or failed with a code, or refused with a code; in
bounded time, with the memory of child and parent flat, and this process alive. Each answer must parse into a row that
fits its table. Seeds are generated; sample documents beside the checkout are taken too when they are there.
"""

import argparse
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from model.request import Completion
from pipeline.decode import DecodeOptions, read_unit
from pipeline.documents import DocumentOptions
from pipeline.native import inspect_asset
from pipeline.parse_pages import parse_page
from pipeline.records import BadInput, Page, PageFacts, PageRow, Unit
from pipeline.sandbox import Sandbox
from pipeline.store import Store
from pipeline.tables import parts_table
from tests.decoding import decode_options, largest_child_bytes

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "documents"
MAX_SAMPLE_BYTES = 2**20
MAX_PAGES = 3  # of each file
PAGE_SECONDS = 10.0
CHILD_BYTES = 1280 * 2**20
OPTIONS = DocumentOptions(min_tokens=16, max_tokens=64, pixel_multiple=32, max_pages=1000, passwords=(), pages="")
ANSWERS = (
    "# Title\n\nText with **bold** and $x^2$.\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "\\begin{tabular}{|l|r|}\\hline a & \\textbf{b} \\\\ \\multicolumn{2}{c}{wide} \\\\ \\end{tabular}\n\n$$E=mc^2$$",
    '<html><body><h1 data-bbox="10 20 900 60">Title</h1><p data-bbox="10 80 900 200">Text</p>'
    '<table data-bbox="10 300 900 800"><tr><td colspan="2">a</td></tr><tr><td>1</td><td>2</td></tr></table>'
    '<div class="formula" data-bbox="0 0 1000 1000"><img/><div>E=mc^2</div></div></body></html>',
    '```html\n<p data-bbox="500 500 100 100">inside out</p>\n```<|im_end|>',
)


@dataclass
class Report:
    """What became of the files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds, of one file
    child_bytes: int = 0  # the most a child had resident
    parent_growth: int = 0  # bytes the parent's resident memory grew by, from a tenth of the files on


def seed_files(rng: random.Random) -> list[bytes]:
    """Small PDFs and images of every kind; the samples beside the checkout."""
    seeds = []
    for compressed in (0, 1):
        file = io.BytesIO()
        canvas = Canvas(file, invariant=True, pageCompression=compressed)
        for page_no in range(1, 4):
            canvas.drawString(100, 700, f"Page {page_no}")
            canvas.drawInlineImage(Image.effect_noise((32, 32), 40), 100, 100)
            canvas.acroForm.textfield(name=f"f{page_no}", value="v", x=200, y=300)
            canvas.showPage()
        canvas.save()
        seeds.append(file.getvalue())
    picture = Image.effect_noise((90, 70), 60)
    for kind, mode in (
        ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK"), ("JPEG", "L"), ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "RGB"),
        ("TIFF", "I;16"),
    ):  # fmt: skip
        file = io.BytesIO()
        picture.convert("RGB").convert(mode if mode != "I;16" else "L").save(file, kind)
        seeds.append(file.getvalue())
    for compression in ("tiff_lzw", "group4", "jpeg", "tiff_adobe_deflate"):
        file = io.BytesIO()
        frames = [picture.convert("1" if compression == "group4" else "L") for _ in range(3)]
        frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:], compression=compression)
        seeds.append(file.getvalue())
    if SAMPLES.is_dir():
        files = sorted(path for path in SAMPLES.rglob("*") if path.suffix in {".pdf", ".png", ".jpg", ".tif", ".tiff"})
        seeds += [path.read_bytes() for path in files if path.stat().st_size <= MAX_SAMPLE_BYTES]
    rng.shuffle(seeds)
    return seeds


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four injuries: bits, bytes, runs, numbers, cuts, copies."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(max(1, len(out))), rng.choice((1, 2, 4, 16, 256))
        match rng.randrange(7):
            case 0:
                for place in range(at, min(len(out), at + length)):
                    out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + length] = rng.randbytes(min(length, max(0, len(out) - at)))
            case 2:
                out[at : at + length] = rng.choice((b"\0", b"\xff")) * length
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[max(0, at - length) : at] * rng.choice((1, 3, 50))
            case 5:
                del out[rng.randrange(max(1, len(out))) :]
            case 6:
                digits = [place for place in range(at, min(len(out), at + 400)) if 48 <= out[place] <= 57]
                for place in digits[: rng.randint(1, 6)]:
                    out[place] = rng.choice(b"0123456789-")
    return bytes(out)


def fuzz_files(count: int, seed: int, *, kinds: Sequence[bytes] = ()) -> Report:
    """Opens and renders `count` mutated files. Raises whatever comes out that is not an outcome."""
    rng, report, store = random.Random(seed), Report(), Store()
    seeds = list(kinds) or seed_files(rng)
    options = decode_options(OPTIONS, memory_bytes=CHILD_BYTES, seconds=PAGE_SECONDS)
    settled = 0
    with tempfile.TemporaryDirectory() as folder, closing(Sandbox(memory_bytes=CHILD_BYTES)) as sandbox:
        path = Path(folder) / "file"
        for number in range(count):
            path.write_bytes(mutate(seeds[number % len(seeds)], rng))
            began = time.monotonic()
            report.outcomes.update(_outcomes(sandbox, store, path, options))
            report.slowest = max(report.slowest, time.monotonic() - began)
            if number == count // 10:
                settled = psutil.Process().memory_info().rss
        report.parent_growth = max(0, psutil.Process().memory_info().rss - settled)
    report.child_bytes = largest_child_bytes()
    return report


def _outcomes(sandbox: Sandbox, store: Store, path: Path, options: DecodeOptions) -> list[str]:
    """The error code of the file, or "ok" or the error code for each of its first pages."""
    asset = store.stat(str(path))
    if not asset.size:
        return ["empty"]
    try:
        info = sandbox.run(inspect_asset, asset, options.store, options.media, seconds=PAGE_SECONDS)
    except BadInput as error:
        return [f"file {error.failure.code}"]
    last = min(MAX_PAGES, len(info.page_tokens))
    assert last, "an opened file has pages"
    unit = Unit(asset.asset_id, asset.uri, asset.size, asset.etag, 1, last, 1)
    results = list(read_unit(sandbox, unit, options))
    numbers = [result.facts.page_no if isinstance(result, Page) else result[0] for result in results]
    assert numbers == list(range(1, last + 1)), f"pages {numbers} came from 1 to {last}"
    return ["page ok" if isinstance(result, Page) else f"page {result[1].code}" for result in results]


def fuzz_answers(count: int, seed: int) -> Counter[str]:
    """Parses `count` mutated answers; how many rows had each flag. Raises whatever the parsers let through."""
    rng, flags = random.Random(seed), Counter[str]()
    rows: list[tuple[str, PageRow]] = []
    for number in range(count):
        answer = mutate(ANSWERS[number % len(ANSWERS)].encode(), rng).decode("utf-8", "surrogateescape")
        output = "html" if rng.random() < 0.5 else "markdown"
        finish = rng.choice(("stop", "length", "repetition"))
        completion = Completion("k", answer, (1, 2), 3, finish, -0.1, -0.5, 0.1, 0.2, 0)  # type: ignore[arg-type]
        row = parse_page("doc", _facts(number + 1), [completion], output, keep_raw=True)  # type: ignore[arg-type]
        flags.update(row.flags or ("none",))
        rows.append(("unit", row))
        if len(rows) == 500 or number == count - 1:
            table = parts_table(rows)
            table.validate(full=True)
            assert len(table) == len(rows)
            rows = []
    return flags


def _facts(page_no: int) -> PageFacts:
    facts = PageFacts(page_no, "", 100, 100, 0, 64, 64, ((0, 0, 1, 1),), (), 0.1, 0.1, False, (), 1.0)
    return replace(facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args()
    began = time.monotonic()
    report = fuzz_files(flags.files, flags.seed) if flags.files else Report()
    answers = fuzz_answers(flags.answers, flags.seed) if flags.answers else Counter()
    print(
        f"seed {flags.seed}: {flags.files} files {dict(report.outcomes.most_common())}, "
        f"slowest {report.slowest:.1f} s, "
        f"child at most {report.child_bytes / 2**20:.0f} MB, parent grew by {report.parent_growth / 2**20:.0f} MB; "
        f"{flags.answers} answers {dict(answers.most_common())}; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
