"""Runs in the environment of vLLM, not in ours: python bench_vllm.py DESCRIPTOR, of the pipe to bench_peers."""

import json
import sys
import time
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image


def serve(connection: Connection) -> None:
    """Answers one batch to warm up; from then on, as often as asked: the seconds and CPU seconds that all prompts took,
    and the tokens of each."""
    from vllm import LLM, SamplingParams  # only the other environment has it

    question: dict[str, Any] = connection.recv()
    engine = LLM(
        model=question["model"],
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=question["batch_size"],
        max_model_len=question["longest"] + 8,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,  # or the pages of the warm-up would be found again, seen already
        limit_mm_per_prompt={"image": 1, "video": 0},
        # Pages come in their size: the checkpoint's own limits would make the larger ones smaller.
        mm_processor_kwargs={"size": {"shortest_edge": 32 * 32, "longest_edge": 2**26}},
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=question["max_new_tokens"], detokenize=False)
    config = json.loads((Path(question["model"]) / "config.json").read_text())
    image_token_id = config["image_token_id"]
    inputs = [
        {
            "prompt_token_ids": one_mark(token_ids, image_token_id),
            "multi_modal_data": {"image": Image.frombytes("RGB", (width, height), pixels)},
        }
        for token_ids, (pixels, width, height) in zip(question["token_ids"], question["images"], strict=True)
    ]
    engine.generate(inputs[: question["batch_size"]], sampling)
    connection.send("ready")
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        start, cpu_start = time.perf_counter(), time.process_time()
        outputs = engine.generate(inputs, sampling)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        connection.send((seconds, cpu_seconds, dict(zip(question["keys"], tokens, strict=True))))


def one_mark(token_ids: list[int], image_token_id: int) -> list[int]:
    """vLLM puts in the visual tokens of an image itself, at one mark."""
    short: list[int] = []
    for token_id, run in groupby(token_ids):
        short += [token_id] if token_id == image_token_id else run
    return short


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
