"""Checks in one go what only a GPU can show: python -m jobs.gpu_check

Correctness first, in order of risk (kernels, FP8, networks, engines, CUDA graphs, two GPUs), then memory, then speed.
Each check runs in a process of its own with a time limit, so that a fault or a hang in one does not end the others. A
line for each: PASS, FAIL, or SKIPPED and why. No download: a tiny checkpoint of random weights is made on the spot.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jobs import gpu_answers, gpu_kernels, gpu_memory
from jobs.gpu_kernels import CannotRunError, CheckFailedError, Numbers, Settings
from jobs.gpu_processes import SECONDS_IN_ALL, Check, run_all, run_one
from jobs.options import CommandParser

EXAMPLES = """\
examples:
  python -m jobs.gpu_check                              everything, on the GPU that torch sees first
  python -m jobs.gpu_check --model ~/Qwen3-VL-8B-Instruct --memory-gb 60
  python -m jobs.gpu_check --only graphs --json out.json  checks with this word in their names
  python -m jobs.gpu_check --device cpu                 rehearses what a CPU can run

Exit status: 0, or 1 when a check failed, or 2 for arguments that cannot be."""


def checks() -> list[Check]:
    paged, packed = gpu_kernels.check_paged, gpu_kernels.check_packed
    answers, roofline = gpu_answers.check_answers, gpu_memory.check_roofline
    bf16 = torch.bfloat16
    return [
        Check("copies to the device", gpu_kernels.check_copies),
        Check("paged attention, sdpa", partial(paged, implementation="sdpa")),
        Check("paged attention, sdpa, FP8 cache", partial(paged, implementation="sdpa", fp8=True)),
        Check("paged attention, numba", partial(paged, implementation="numba")),
        Check("paged attention, triton", partial(paged, implementation="triton", dtype=bf16)),
        Check("paged attention, triton, FP8 cache", partial(paged, implementation="triton", dtype=bf16, fp8=True)),
        Check("paged attention, triton, 2.5 million tokens", gpu_kernels.check_far_blocks),
        Check("paged attention, flash-attn", partial(paged, implementation="flash-attn")),
        Check("paged attention, varlen_attn", partial(paged, implementation="varlen_attn")),
        Check("packed attention, sdpa", partial(packed, implementation="sdpa")),
        Check("packed attention, flash-attn", partial(packed, implementation="flash-attn")),
        Check("packed attention, varlen_attn", partial(packed, implementation="varlen_attn")),
        Check("FP8 products", gpu_kernels.check_fp8_products),
        Check("experts", gpu_kernels.check_experts),
        Check("logits", gpu_answers.check_network),
        Check("answers", answers),
        Check("answers, drafts", partial(answers, drafts=True)),
        Check("answers, FP8 cache", partial(answers, kv_cache_dtype="fp8", scale=4.0)),
        Check("answers, FP8 weights", partial(answers, quantization="fp8", scale=4.0)),
        Check("answers, two lanes", partial(answers, overlap=True)),
        Check("answers, CUDA graphs", partial(answers, cuda_graphs=True)),
        Check("answers, CUDA graphs and drafts", partial(answers, cuda_graphs=True, drafts=True)),
        Check("answers, CUDA graphs and two lanes", partial(answers, cuda_graphs=True, overlap=True)),
        Check("answers, flash-attn", partial(answers, attn_implementation="flash-attn")),
        Check("answers, varlen_attn", partial(answers, attn_implementation="varlen_attn")),
        Check("answers, tensor parallel 2", partial(answers, tensor_parallel=2, devices=2)),
        Check("answers, second GPU", partial(on_second, answers)),
        Check("answers, second GPU, CUDA graphs", partial(on_second, partial(answers, cuda_graphs=True))),
        Check("answers, own checkpoint", gpu_answers.check_own_model, 150.0),
        Check("memory, weights", gpu_memory.check_weights),
        Check("memory, largest pass", gpu_memory.check_pass),
        Check("memory, CUDA graphs", gpu_memory.check_graphs, 90.0),
        Check("roofline, demo", partial(roofline, config="demo")),
        Check("roofline, 2b", partial(roofline, config="2b", cuda_graphs=True), 90.0),
        Check("roofline, 8b", partial(roofline, config="8b", cuda_graphs=True), 120.0),
        Check("roofline, 8b, FP8 cache", partial(roofline, config="8b", cuda_graphs=True, fp8_cache=True), 120.0),
    ]


def on_second(check: Callable[[Settings], Numbers], settings: Settings) -> Numbers:
    """The check on GPU 1, while GPU 0 stays this thread's current one, as an engine's thread finds it."""
    settings.needs_cuda()
    if torch.cuda.device_count() < 2:
        raise CannotRunError(f"needs 2 GPUs, and torch sees {torch.cuda.device_count()}")
    return check(replace(settings, device="cuda:1"))


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser().parse_args(argv)
    chosen = [check for check in checks() if flags.only in check.name]
    if not chosen:
        names = "\n  ".join(check.name for check in checks())
        print(f"gpu_check: --only {flags.only!r} is in no name:\n  {names}", file=sys.stderr)
        return 2
    if flags.model and not (flags.model / "config.json").is_file():
        print(f"gpu_check: --model {flags.model}: there is no {flags.model / 'config.json'}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        settings = Settings(flags.device, Path(scratch) / "tiny", int(flags.memory_gb * 1e9), flags.model)
        if settings.is_cuda:
            print(
                f"at most {flags.memory_gb:g} GB of the GPU's memory, and {SECONDS_IN_ALL / 60:.1f} minutes", flush=True
            )
        first = run_one(Check("machine", machine), settings, Path(scratch))
        print(first, flush=True)
        results = [first]
        if first.status == "PASS":
            with open(os.devnull, "w") as nowhere:
                gpu_answers.write_tiny_checkpoint(settings.folder, nowhere)
            results += run_all(chosen, settings, Path(scratch))
    for result in results:
        if "table" in result.numbers:
            print(f"\n{result.numbers['table']}\n")
    counts = {status: sum(result.status == status for result in results) for status in ("PASS", "FAIL", "SKIPPED")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if flags.json:
        found = {"machine": first.numbers, "checks": [asdict(result) for result in results[1:]], "counts": counts}
        flags.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if counts["FAIL"] else 0


def machine(settings: Settings) -> Numbers:
    """What all of this runs on. Raises CheckFailedError where torch sees no GPU that was asked for."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    found: dict[str, Any] = {"platform": platform.platform(), "python": platform.python_version(), "commit": commit}
    for package in ("torch", "triton", "flash-attn", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()}
    if settings.is_cuda:
        if not torch.cuda.is_available():
            raise CheckFailedError("torch sees no CUDA device here: --device cpu rehearses", found)
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["gpus"] = [_gpu(index) for index in range(torch.cuda.device_count())]
    return found


def _gpu(index: int) -> dict[str, Any]:
    known = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    capability = f"{known.major}.{known.minor}"
    return {"name": known.name, "capability": capability, "memory": total, "free": free}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said[0] if said else None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m jobs.gpu_check",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="a checkpoint whose answers are checked too")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--json", metavar="FILE", type=Path, help="the machine and every check's numbers go there")
    parser.add_argument("--only", metavar="WORD", default="", help="checks with this in their names")
    parser.add_argument(
        "--memory-gb", metavar="N", type=float, default=40.0, help="most GPU memory a check may take (default: 40)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
