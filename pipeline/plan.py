"""What reading would take: from the survey, the model, and two seconds of this machine's time. Writes nothing."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.checkpoint import checkpoint_folder, weight_files
from model.config import ModelConfig
from model.footprint import decoder_parameters, tower_parameters
from pipeline.books import FrozenSurvey
from pipeline.flow import Setup
from pipeline.job import resolve_model
from pipeline.progress import Estimate
from pipeline.resources import STEP_TOKENS, Resources, reading_speed

MEASURED_SECONDS = 1.0  # for each of the two shapes
SAMPLE_BYTES = 64 * 2**20  # of the weights, read to see how long all of them take
# Of an answer, where nothing better is known. The median of 17 sample pages with text has 2,053 characters; 3.5 to a
# token is a guess, as are the events of a window: a handful a minute, each a line of JSON.
ANSWER_TOKENS = {"pages": 600, "windows": 200}


def estimate(setup: Setup, resources: Resources, survey: FrozenSurvey, *, start_seconds: float) -> Estimate:
    """For the survey as a whole, whatever of it is read already. Takes about two seconds on a CPU."""
    answers = survey.unit_pages * len(setup.prompt.instructions)
    limit = setup.sampling.max_new_tokens
    tokens_out = answers * min(limit, ANSWER_TOKENS[setup.kind.pieces])
    if resources.device == "cpu" and not setup.job.tokens_per_second:
        prompt_rate, answer_rate = measured_rates(setup.load.config, resources.batch_size)
        tokens_in = survey.unit_tokens * len(setup.prompt.instructions)
        seconds = tokens_in / prompt_rate + tokens_out / answer_rate
        basis = f"measured on this CPU: {prompt_rate:,.0f} visual and {answer_rate:,.0f} output tokens/s"
    else:
        speed, basis = reading_speed(setup.job, resources)
        seconds = survey.unit_tokens / speed
    return Estimate(
        tokens_out=tokens_out,
        most_tokens_out=answers * limit,
        start_seconds=start_seconds,
        load_seconds=load_seconds(weight_files(checkpoint_folder(resolve_model(setup.job.model)))[0]),
        read_seconds=seconds,
        basis=basis,
    )


def measured_rates(config: ModelConfig, batch_size: int) -> tuple[float, float]:
    """(visual tokens of prompts, tokens of answers) that the cores of this machine work through in a second.

    One product of matrices as wide as the decoder's is timed, with as many rows as a pass of prompts and as a step of
    answers has, in float32, and scaled by the parameters that a token meets. Attention is left out: it is little at
    these lengths. By numpy: a job's driver loads no torch.
    """
    text = config.text
    weight = np.ones((text.hidden_size, max(text.intermediate_size, text.hidden_size)), dtype=np.float32)
    prompts, answers = (_products_per_second(weight, rows) * rows for rows in (STEP_TOKENS, batch_size))
    decoder = active_parameters(config)
    patches = config.vision.spatial_merge_size**2  # that a visual token is made of
    prompt_work = decoder + patches * tower_parameters(config.vision)
    return prompts * weight.size / prompt_work, answers * weight.size / decoder


def active_parameters(config: ModelConfig) -> int:
    """Of the decoder, those that a token meets: of experts only as many as it is sent to."""
    moe = config.text.moe
    maps, others = decoder_parameters(config)
    if moe:
        layers = sum(moe.covers(layer) for layer in range(config.text.num_hidden_layers))
        idle = moe.num_experts - moe.num_experts_per_tok
        maps -= 3 * config.text.hidden_size * moe.moe_intermediate_size * idle * layers
    return maps + others


def load_seconds(files: list[Path]) -> float:
    """How long reading the weights takes, from a sample; files in the machine's cache are as fast as they are now."""
    size = sum(file.stat().st_size for file in files)
    began = time.perf_counter()
    with files[0].open("rb") as file:
        read = len(file.read(SAMPLE_BYTES))
    return size * (time.perf_counter() - began) / max(1, read)


def _products_per_second(weight: NDArray[np.float32], rows: int) -> float:
    inputs = np.ones((rows, weight.shape[0]), dtype=np.float32)
    inputs @ weight  # the first one also starts the threads
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < MEASURED_SECONDS or not count:
        inputs @ weight
        count += 1
    return count / passed
