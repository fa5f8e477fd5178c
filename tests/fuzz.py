"""Mutated files, videos and answers, thousands of them:

python -m tests.fuzz --files 10000 --videos 2000 --answers 10000 --seed 7

Each file must end as one row: opened and each of its pages or windows decoded or failed with a code, or refused with a
code; in bounded time, with the memory of child and parent flat, and this process alive. Each answer must parse into a
row that fits its table. Seeds are generated; samples beside the checkout are taken too when they are there.
"""

import argparse
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import imagecodecs
import numpy as np
import pikepdf
import psutil
import tifffile
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from model.preprocessing import VideoSizes
from model.request import Completion
from pipeline.decode import DecodeOptions, read_unit
from pipeline.documents import DocumentInfo, DocumentOptions
from pipeline.native import inspect_asset
from pipeline.parse_pages import parse_page
from pipeline.records import BadInput, PageFacts, PageRow, Unit
from pipeline.sandbox import Sandbox
from pipeline.store import Store
from pipeline.tables import parts_table
from pipeline.video_windows import VideoOptions, video_options
from tests.decoding import decode_options, in_fresh_process, largest_child_bytes
from tests.pipeline.video_files import write_frames

SAMPLES = Path(__file__).parents[2] / "shared" / "data"
MAX_SAMPLE_BYTES = 2**20
MAX_PIECES = 3  # of each file
PIECE_SECONDS = 10.0
CHILD_BYTES = 1280 * 2**20
DOCUMENTS = DocumentOptions(min_tokens=16, max_tokens=64, pixel_multiple=32, max_pages=1000, passwords=(), pages="")
VIDEOS = video_options(
    VideoSizes(fps=2.0, max_frames=16, min_pixels=4096, max_pixels=2**16),
    fps=0, window_seconds=4, overlap_seconds=1, max_tokens_per_window=0, pixel_multiple=32, prompts_per_window=1,
)  # fmt: skip
# Every demuxer that people's archives hold, and the decoders that are native code of their own.
CODECS = {
    "a.mp4": "libx264", "b.mov": "mpeg4", "c.mkv": "libx265", "d.webm": "libvpx-vp9", "e.ts": "mpeg2video",
    "f.avi": "mpeg4", "g.flv": "flv", "h.mkv": "libsvtav1", "i.mxf": "mpeg2video", "j.mkv": "ffv1",
    "k.mpg": "mpeg1video", "l.h264": "libx264", "m.webm": "libvpx",
}  # fmt: skip
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
    seeds = _samples("documents", {".pdf", ".png", ".jpg", ".tif", ".tiff"})
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
    grey = np.asarray(picture.convert("L"))
    for samples, how in (
        (
            grey.astype("u2") * 16,
            {"photometric": "miniswhite", "compression": "lzw", "predictor": True, "byteorder": ">"},
        ),
        (np.stack([grey] * 3).astype("u2") * 257, {"photometric": "rgb", "planarconfig": 2, "tile": (32, 32)}),
        (grey.astype("f4") / 255, {"compression": "deflate", "predictor": 3, "bigtiff": True}),
        (
            np.stack([grey, 255 - grey], 2),
            {"photometric": "minisblack", "planarconfig": 1, "extrasamples": ["assocalpha"]},
        ),
    ):
        file = io.BytesIO()
        with tifffile.TiffWriter(file, bigtiff=how.pop("bigtiff", False), byteorder=how.pop("byteorder", "<")) as tiff:
            tiff.write(samples, subifds=1, **how)
            tiff.write(samples, subfiletype=1, **how)
        seeds.append(file.getvalue())
    seeds.append(imagecodecs.png_encode(np.stack([grey] * 4, 2).astype("u2")))
    seeds.append(_layered_pdf())
    rng.shuffle(seeds)
    return seeds


def _layered_pdf() -> bytes:
    """Object streams, a layer that is off and a membership."""
    with pikepdf.new() as pdf:
        layer = pdf.make_indirect(pikepdf.Dictionary(Type=pikepdf.Name.OCG, Name=pikepdf.String("off")))
        member = pikepdf.Dictionary(Type=pikepdf.Name.OCMD, VE=pikepdf.Array([pikepdf.Name.Not, layer]))
        pdf.Root.OCProperties = pikepdf.Dictionary(OCGs=[layer], D=pikepdf.Dictionary(OFF=[layer]))
        font = pikepdf.Dictionary(Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Helvetica)
        for word in (b"one", b"two", b"three"):
            page = pdf.add_blank_page(page_size=(300, 200))
            page.Resources = pikepdf.Dictionary(
                Font=pikepdf.Dictionary(F=font), Properties=pikepdf.Dictionary(a=layer, b=member)
            )
            content = (
                b"/OC /a BDC BT /F 20 Tf 9 99 Td (off) Tj ET EMC /OC /b BDC BT /F 20 Tf 9 50 Td (%s) Tj ET EMC" % word
            )
            page.Contents = pdf.make_stream(content)
        file = io.BytesIO()
        pdf.save(file, object_stream_mode=pikepdf.ObjectStreamMode.generate)
        return file.getvalue()


def seed_videos(rng: random.Random) -> list[bytes]:
    """Six seconds in each container and codec; the samples beside the checkout."""
    seeds = _samples("video", {".mp4", ".mkv", ".ts", ".m3u8"})
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in CODECS.items():
            path = Path(folder) / name
            write_frames(path, range(150), Fraction(1, 25), codec=codec, codec_options={"g": "25"})
            seeds.append(path.read_bytes())
    rng.shuffle(seeds)
    return seeds


def _samples(folder: str, suffixes: Collection[str]) -> list[bytes]:
    files = sorted(path for path in (SAMPLES / folder).rglob("*") if path.suffix in suffixes)
    return [path.read_bytes() for path in files if path.stat().st_size <= MAX_SAMPLE_BYTES]


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


def fuzz_files(count: int, seed: int) -> Report:
    """Opens and renders `count` mutated documents and images. Raises whatever comes out that is not an outcome."""
    rng = random.Random(seed)
    return _fuzz(count, rng, seed_files(rng), DOCUMENTS)


def fuzz_videos(count: int, seed: int) -> Report:
    """Opens `count` mutated videos and decodes their windows. Raises whatever comes out that is not an outcome."""
    rng = random.Random(seed)
    return _fuzz(count, rng, seed_videos(rng), VIDEOS)


def _fuzz(count: int, rng: random.Random, seeds: Sequence[bytes], media: DocumentOptions | VideoOptions) -> Report:
    report, store = Report(), Store()
    options = decode_options(media, memory_bytes=CHILD_BYTES, seconds=PIECE_SECONDS)
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
    """The error code of the file, or "ok" or the error code for each of its first pages or windows."""
    asset = store.stat(str(path))
    if not asset.size:
        return ["empty"]
    try:
        info = sandbox.run(inspect_asset, asset, options.store, options.media, seconds=PIECE_SECONDS)
    except BadInput as error:
        return [f"file {error.failure.code}"]
    last = min(MAX_PIECES, len(info.page_tokens if isinstance(info, DocumentInfo) else info.piece_tokens))
    assert last, "an opened file has something to read"
    unit = Unit(asset.asset_id, asset.uri, asset.size, asset.etag, 1, last, 1)
    results = list(read_unit(sandbox, unit, options))
    numbers = [result[0] if isinstance(result, tuple) else result.facts.number for result in results]
    assert numbers == list(range(1, last + 1)), f"pieces {numbers} came from 1 to {last}"
    return [f"piece {result[1].code}" if isinstance(result, tuple) else "piece ok" for result in results]


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
    return PageFacts(page_no, "", 100, 100, 0, 64, 64, ((0, 0, 1, 1),), (), 0.1, 0.1, False, (), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="documents and images")
    parser.add_argument("--videos", type=int, default=2_000)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args()
    for fuzz, count, what in ((fuzz_files, flags.files, "files"), (fuzz_videos, flags.videos, "videos")):
        if count:
            began, report = time.monotonic(), in_fresh_process(fuzz, count, flags.seed)
            print(
                f"seed {flags.seed}: {count} {what} {dict(report.outcomes.most_common())}, "
                f"slowest {report.slowest:.1f} s, child at most {report.child_bytes / 2**20:.0f} MB, "
                f"parent grew by {report.parent_growth / 2**20:.0f} MB; {time.monotonic() - began:.0f} s",
                flush=True,
            )
    if flags.answers:
        print(
            f"seed {flags.seed}: {flags.answers} answers {dict(fuzz_answers(flags.answers, flags.seed).most_common())}"
        )


if __name__ == "__main__":
    main()
