"""What the pipeline's decoders do for a page or a frame, beside the bare libraries under them, on one core."""

import argparse
import tempfile
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pypdfium2 as pdfium

from jobs.bench_peers import in_turns, timed
from jobs.sample_videos import make_clip, write_video
from jobs.samples import LADDER, make_page, write_pdf
from model.preprocessing import VideoSizes
from model.processor import Processor
from model.request import Frames, Sampling
from pipeline.documents import DocumentOptions, read_pages
from pipeline.records import Page, Window
from pipeline.video_windows import video_options
from pipeline.videos import inspect_video, read_windows

VIDEO_SIZE = (640, 352)
VIDEO_FPS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="model/demo", help="checkpoint whose processor is used (default: model/demo)"
    )
    parser.add_argument("--pages", type=int, default=16, help="pages of the PDF (default: 16)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the video (default: 30)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often each is timed, in turns; the least counts (default: 3)"
    )


def run(options: argparse.Namespace) -> None:
    """CPU time, so that what else the machine does counts for nobody."""
    processor = Processor.from_pretrained(options.model)
    print(f"{'':28}{'CPU s':>8}{'a second':>10}{'ratio':>7}")
    bench_pages(processor, options.pages, options.repeats)
    bench_video(options.seconds, options.repeats)


def bench_pages(processor: Processor, count: int, repeats: int) -> None:
    """Rendered at the size the model wants, text layer read, patches made; and only rendered, at the same size."""
    rng = np.random.default_rng(0)
    pdf = write_pdf([make_page(rng, LADDER[-1], held_out=True) for _ in range(count)])

    def ours() -> list[int]:
        pages = list(read_pages(BytesIO(pdf), range(1, count + 1), DocumentOptions()))
        tiles = [tile for page in pages if isinstance(page, Page) for tile in page.tiles]
        return [processor.encode("", [Frames(tile[None]), ""], Sampling()).patches_PC.nbytes for tile in tiles]

    sizes = ours()
    pixels = sum(sizes) / len(sizes) / 3

    def bare() -> None:
        document = pdfium.PdfDocument(pdf)
        for page in document:
            width, height = page.get_size()
            page.render(scale=(pixels / (width * height)) ** 0.5).to_numpy()
            page.close()
        document.close()

    (theirs, _), (took, _) = in_turns(repeats, [timed(bare), timed(ours)])
    print(f"{'pypdfium2, rendered':28}{theirs.cpu_seconds:8.2f}{count / theirs.cpu_seconds:8.1f} p")
    ratio = theirs.cpu_seconds / took.cpu_seconds
    print(f"{'rendered, words, patches':28}{took.cpu_seconds:8.2f}{count / took.cpu_seconds:8.1f} p{ratio:7.2f}")
    print(f"{sum(sizes) / len(sizes) / 1e6:.2f} MB of patches a page")


def bench_video(seconds: float, repeats: int) -> None:
    """Windows of sampled frames at the size the model wants; and every frame decoded, no more."""
    clip = make_clip(np.random.default_rng(0), seconds=seconds, size=VIDEO_SIZE, held_out=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "clip.mp4"
        write_video(path, clip, fps=VIDEO_FPS)
        content = path.read_bytes()
    pixels = 256 * 160
    options = video_options(
        VideoSizes(fps=2.0, max_frames=768, min_pixels=pixels, max_pixels=768 * pixels),
        fps=2.0,
        window_seconds=20.0,
        overlap_seconds=5.0,
        max_tokens_per_window=0,
        pixel_multiple=32,
        prompts_per_window=1,
    )
    info = inspect_video(BytesIO(content), options)

    def ours() -> int:
        windows = read_windows(BytesIO(content), range(1, len(info.piece_tokens) + 1), info)
        return sum(len(window.frames_THWC) for window in windows if isinstance(window, Window))

    def bare() -> int:
        with av.open(BytesIO(content), "r") as container:
            return sum(1 for _ in container.decode(container.streams.video[0]))

    (theirs, frames), (took, sampled) = in_turns(repeats, [timed(bare), timed(ours)])
    print(f"{'PyAV, decoded':28}{theirs.cpu_seconds:8.2f}{frames / theirs.cpu_seconds:8.1f} f")
    ratio = theirs.cpu_seconds / took.cpu_seconds
    print(f"{'decoded, windows sampled':28}{took.cpu_seconds:8.2f}{frames / took.cpu_seconds:8.1f} f{ratio:7.2f}")
    print(f"{sampled} frames of {frames} are shown, those in overlaps twice")
