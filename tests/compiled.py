"""Compiles the attention kernel for GPUs that are not here: `python -m tests.compiled`. Needs triton, which brings an
assembler of its own. A line for each: capability, dtype of the cache, rows of a tile, registers, bytes spilled, shared
memory."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from model import kernels

ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
CACHES = {"bf16": "bf16", "fp8": "fp8e4nv"}
INDEXES = ("tables", "offsets", "starts", "tile_sequences", "tile_firsts")
STRIDES = ("query_token_stride", "query_head_stride", "cache_head_stride", "cache_block_stride", "cache_slot_stride")
GROUPS, HEAD_DIM = 4, 128  # of Qwen3-VL-8B


def compile_for(capability: int, cache: str, rows: int) -> Any:
    """triton's compiled kernel, for a cache in blocks of 16 tokens."""
    function = JITFunction(kernels._attend_tile_kernel)
    kinds = {"query": "*bf16", "output": "*bf16", "scale": "fp32", "table_stride": "i32"}
    kinds |= dict.fromkeys(("keys", "values"), f"*{CACHES[cache]}")
    kinds |= dict.fromkeys(INDEXES, "*i32") | dict.fromkeys(STRIDES, "i32")
    constants = {"GROUPS": GROUPS, "HEAD_DIM": HEAD_DIM, "BLOCK_SIZE": 16, "TOKENS": rows // GROUPS, "ROWS": rows}
    constants |= {"COLUMNS": HEAD_DIM, "WIDE": False}
    names = function.arg_names
    aligned = ("query", "keys", "values", "output", *INDEXES, *STRIDES)
    source = ASTSource(
        function,
        {name: kinds.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def assembled(ptx: str, capability: int) -> tuple[int, int]:
    """(registers of a thread, bytes spilled)."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    assembler = max(tools.glob("ptxas*"))  # the newest: ptxas-blackwell where there is one
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler, "-v", f"--gpu-name={ARCHITECTURES[capability]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return int(re.findall(r"Used (\d+) registers", said)[0]), spilled


def main() -> int:
    for capability in ARCHITECTURES:
        for cache in CACHES:
            if cache == "fp8" and capability < 89:
                continue  # the compiler refuses it, and so does an engine
            for rows in (kernels.SMALLEST_TILE, kernels.LARGEST_TILE):
                kernel = compile_for(capability, cache, rows)
                registers, spilled = assembled(kernel.asm["ptx"], capability)
                line = {"capability": capability, "cache": cache, "rows": rows, "registers": registers}
                line |= {"spilled": spilled, "shared": kernel.metadata.shared, "ttir": kernel.asm["ttir"]}
                shown = line if "--json" in sys.argv else {name: line[name] for name in line if name != "ttir"}
                print(json.dumps(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
