"""Memory while jobs run, against stated bounds:

python -m tests.flat_memory --pages 5000 --one-pagers 10000 --video-mb 2000 --plot memory.svg

A parse job and an index job run side by side on one Ray, with the real decoders and a stub engine: a PDF of many pages,
many PDFs of one page, pictures of 48 megapixels, one large video; pages are as large as those of the official
checkpoints. Twice a second it is noted what each process has to itself (resident, without what is shared) and what lies
in the object store. Ends with 1 when a bound is broken.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.process import BaseProcess
from pathlib import Path

import av
import numpy as np
import psutil
import ray
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from pipeline.close import SHARD_MEMORY_BYTES
from pipeline.resources import PARENT_BYTES
from tests.drive import SMALL, logged
from tests.grid import ray_folder
from tests.line_chart import line_chart

DEMO = Path(__file__).parents[1] / "model" / "demo"
MB = 2**20
STORE_BYTES = 512 * MB
SECONDS_BETWEEN = 0.5
FRAME = (480, 640)
# A process's title or command -> its name here, and the most it may have to itself. Some bounds are those that the code
# works with, the others what no number of inputs may move.
ACTORS = {
    "ray::MapWorker(MapBatches(Surveyor))": ("surveyor", PARENT_BYTES),
    "ray::MapWorker(Map(Decoder))": ("decoder", PARENT_BYTES),
    "from pipeline.sandbox import": ("its child", SMALL.child_memory_bytes),
    "ray::MapWorker(Map(Replica))": ("replica", 1024 * MB),
    "ray::MapWorker(MapBatches(PartWriter))": ("writer", 512 * MB),
    "ray::Ledger": ("ledger", 256 * MB),
    "ray::Map(_close_row)": ("closer", SHARD_MEMORY_BYTES),
}
DRIVER_BYTES = 768 * MB
STORE_SHARE = 0.5  # of the object store: Ray Data's own limit; beyond it things would spill to disk


@dataclass
class Memory:
    """What was seen: (seconds, bytes) by name, and what may be."""

    lines: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    bounds: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, seconds: float, used: float, bound: float) -> None:
        self.lines[name].append((seconds, used))
        self.bounds[name] = bound

    @property
    def broken(self) -> list[str]:
        return [name for name, line in self.lines.items() if max(used for _, used in line) > self.bounds[name]]

    def table(self) -> str:
        rows = [f"{'':18} {'at most':>9} {'bound':>9} {'median':>9} {'samples':>8}"]
        for name, line in sorted(self.lines.items()):
            used = sorted(used for _, used in line)
            most, median = used[-1] / MB, used[len(used) // 2] / MB
            bound = f"{self.bounds[name] / MB:6.0f} MB" + (" BROKEN" if name in self.broken else "")
            rows.append(f"{name:18} {most:6.0f} MB {bound:>9} {median:6.0f} MB {len(line):8}")
        return "\n".join(rows)


def write_documents(folder: Path, pages: int, one_pagers: int, pictures: int) -> None:
    folder.mkdir()
    _write_pdf(folder / "long.pdf", pages)
    for number in range(one_pagers):
        _write_pdf(folder / f"{number:06d}.pdf", 1)
    for number in range(pictures):
        Image.linear_gradient("L").resize((6000, 8000)).save(folder / f"picture-{number}.png", compress_level=1)


def _write_pdf(path: Path, pages: int) -> None:
    canvas = Canvas(str(path))
    for page_no in range(1, pages + 1):
        canvas.drawString(100, 500, f"Page {page_no} of {path.name}")
        canvas.showPage()
    canvas.save()


def write_video(folder: Path, megabytes: int) -> None:
    """Raw frames, two a second: as large as asked for, and soon written."""
    folder.mkdir()
    height, width = FRAME
    with av.open(str(folder / "large.mkv"), "w") as container:
        stream = container.add_stream("rawvideo", rate=2)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 2)
        for number in range(megabytes * MB // (height * width * 3 // 2)):
            pixels = np.full((height * 3 // 2, width), 30 + 200 * (number // 20 % 2), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def model_with_large_pages(folder: Path) -> Path:
    """The processor of the demonstration checkpoint with the page sizes of the official ones."""
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config["size"]["longest_edge"] = 2**24
    path.write_text(json.dumps(config))
    return folder


@contextmanager
def one_node() -> Iterator[tuple[str, Path]]:
    """The address of a Ray on this machine, to which this process is connected, and the folder of its files."""
    with ray_folder() as folder:
        options = {"num_cpus": 8, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        try:
            yield ray.init(address="local", log_to_driver=False, **options).address_info["gcs_address"], folder
        finally:
            ray.shutdown()


def watch(drivers: dict[str, BaseProcess], ray_folder: Path) -> Memory:
    """Notes memory until all drivers have ended."""
    memory, began = Memory(), time.monotonic()
    while any(driver.is_alive() for driver in drivers.values()):
        now = time.monotonic() - began
        for name, driver in drivers.items():
            _note_process(memory, f"driver, {name}", now, driver.pid, DRIVER_BYTES)
        seen: dict[str, int] = {}
        for process in psutil.Process().children(recursive=True):
            for title, (name, _) in ACTORS.items():
                if title in _command(process):
                    seen[name] = max(seen.get(name, 0), _own_bytes(process.pid))
        for name, bound in ACTORS.values():
            if seen.get(name):
                memory.note(name, now, seen[name], bound)
        store = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
        memory.note("object store", now, store, STORE_SHARE * STORE_BYTES)
        spilled = sum(path.stat().st_size for path in ray_folder.glob("**/ray_spilled_objects*/*"))
        memory.note("spilled", now, spilled, 0)
        time.sleep(SECONDS_BETWEEN)
    return memory


def _note_process(memory: Memory, name: str, now: float, pid: int | None, bound: float) -> None:
    assert pid is not None
    if used := _own_bytes(pid):
        memory.note(name, now, used, bound)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _own_bytes(pid: int) -> int:
    """Resident, without files and the object store; 0 when the process has gone."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return memory.rss - memory.shared


def flat_memory(*, pages: int, one_pagers: int, pictures: int, video_mb: int) -> Memory:
    """Runs both jobs. Raises AssertionError when one of them fails."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.drive"])
    with tempfile.TemporaryDirectory(prefix="flat") as name, one_node() as (address, ray_folder):
        work = Path(name)
        write_documents(work / "documents", pages, one_pagers, pictures)
        write_video(work / "videos", video_mb)
        model = str(model_with_large_pages(work / "model"))
        drivers = {}
        for kind in ("documents", "videos"):
            args = (str(work / f"{kind}.log"), address, str(work / kind), str(work / f"{kind}-out"), "0", kind)
            drivers[kind] = processes.Process(target=logged, args=args, kwargs={"model": model})
            drivers[kind].start()
        memory = watch(drivers, ray_folder)
        for kind, driver in drivers.items():
            log = (work / f"{kind}.log").read_text(errors="replace")
            assert driver.exitcode == 0, f"the driver of {kind} ended with {driver.exitcode}: {log[-4000:]}"
    return memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=200, help="of the long PDF")
    parser.add_argument("--one-pagers", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--video-mb", type=int, default=100)
    parser.add_argument("--plot", type=Path, help="an SVG to write")
    flags = vars(parser.parse_args())
    plot = flags.pop("plot")
    print(", ".join(f"{value} {name}" for name, value in flags.items()), flush=True)
    began = time.monotonic()
    memory = flat_memory(**flags)
    print(memory.table())
    print(f"{time.monotonic() - began:.0f} s; bounds broken: {', '.join(memory.broken) or 'none'}")
    if plot:
        lines = {name: [(at, used / MB) for at, used in line] for name, line in sorted(memory.lines.items())}
        plot.write_text(line_chart("Memory of each process to itself, and the object store", "MB", lines))
    return bool(memory.broken)


if __name__ == "__main__":
    sys.exit(main())
