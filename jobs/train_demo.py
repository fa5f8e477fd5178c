"""Trains the demonstration checkpoint: `python -m jobs.train_demo --minutes 60`. Run it again and it goes on.

The curriculum climbs the ladder of `jobs.samples`: short lines first, the next rung joins when the newest one is read
well enough (teacher-forced accuracy of held-out tokens), and all earlier rungs stay in the mix. The forward pass is the
project's own network, so training also proves it.

Beside the answer, a linear probe on the visual tokens has to name the characters printed in each quarter of a token. It
is thrown away in the end, but it teaches the tower to see letters long before the decoder knows where to look; the
first steps train the tower by it alone, on dense text, which costs a fraction of a whole step.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import queue as queue_module
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jobs.demo_checkpoint import write_new_checkpoint
from jobs.sample_truth import SamplePage
from jobs.samples import LADDER, PLAIN_LADDER, Glyph, render_with_glyphs
from model.attention import PackedCausal
from model.processor import Processor
from model.qwen3_vl import Qwen3VL
from model.request import Frames, Prompt, Sampling
from model.weights import from_pretrained, save_weights

RUNGS = (*PLAIN_LADDER, *LADDER)
PEAK_LEARNING_RATE = 1e-3
WARM_UP_STEPS = 300
PASS_MARK = 0.9  # accuracy on the newest rung that lets the next one in
HTML_FROM_RUNG = 7  # the rungs that also ask for `qwenvl html`
ALPHABET = [chr(code) for code in range(33, 127)]
QUARTERS = 4  # of a visual token: its 2 x 2 patches
PROBE_WEIGHT = 0.5
TOWER_STEPS = 8000  # at most so many first steps train only the vision tower, by the probe,
TOWER_MARK = 1.0  # until its running loss is below this
TOWER_RUNG = 0  # several lines: many letters on few patches
ONLY_TOWER = -1  # in place of a rung, as long as the tower is trained alone
INSTRUCTIONS = {"markdown": "qwenvl markdown", "html": "qwenvl html"}


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Pages of one size with their answers, packed. N tokens of all pages, P patches."""

    rung: int
    token_ids_N: np.ndarray
    positions_3N: np.ndarray
    is_answer_N: np.ndarray  # the tokens the network has to predict
    lengths: list[int]
    patches_PC: np.ndarray
    grids_G3: list[tuple[int, int, int]]
    glyphs_MQA: np.ndarray  # bool: which of the alphabet is printed in which quarter of each visual token


@dataclass
class Progress:
    """What a later run needs to go on."""

    step: int = 0
    rung: int = 0
    pages: int = 0
    seconds: float = 0.0
    accuracy: float = 0.0  # running, on held-out pages of the newest rung
    probe: float = 10.0  # running loss of the probe

    @property
    def is_tower_alone(self) -> bool:
        return self.step < TOWER_STEPS and self.probe > TOWER_MARK


def make_batch(
    processor: Processor, rng: np.random.Generator, rung: int, *, held_out: bool, token_budget: int
) -> TrainingBatch:
    """Pages of one random size of a rung, as many as the budget of visual tokens allows."""
    difficulty = RUNGS[rung]
    width, height = difficulty.sizes[int(rng.integers(len(difficulty.sizes)))]
    count = max(1, token_budget // (width * height // processor.pixel_multiple**2 + 24))
    kind = "html" if rung >= HTML_FROM_RUNG and rng.random() < 0.2 else "markdown"
    pages = render_with_glyphs(rng, difficulty, count, held_out=held_out, size=(width, height))
    prompts = [_with_answer(processor, page, pixels, kind) for page, pixels, _ in pages]
    patch_size = processor.config.vision.patch_size
    return TrainingBatch(
        rung=rung,
        token_ids_N=np.concatenate([prompt.token_ids_T for prompt, _ in prompts]),
        positions_3N=np.concatenate([prompt.positions_3T for prompt, _ in prompts], axis=1),
        is_answer_N=np.concatenate([np.arange(len(prompt.token_ids_T)) >= start for prompt, start in prompts]),
        lengths=[len(prompt.token_ids_T) for prompt, _ in prompts],
        patches_PC=np.concatenate([prompt.patches_PC for prompt, _ in prompts]),
        grids_G3=[tuple(grid) for prompt, _ in prompts for grid in prompt.grids_G3.tolist()],
        glyphs_MQA=np.concatenate([_glyphs_of_quarters(found, width, height, patch_size) for *_, found in pages]),
    )


def _glyphs_of_quarters(found: list[Glyph], width: int, height: int, patch_size: int) -> np.ndarray:
    """bool [visual tokens, 4, alphabet]: the characters whose middle lies in each quarter of a token (a patch)."""
    rows, columns = height // patch_size, width // patch_size
    seen = np.zeros((rows // 2, columns // 2, 2, 2, len(ALPHABET)), dtype=bool)
    for glyph in found:
        row, column, letter = int(glyph.y // patch_size), int(glyph.x // patch_size), ord(glyph.character) - 33
        if 0 <= row < rows and 0 <= column < columns and 0 <= letter < len(ALPHABET):
            seen[row // 2, column // 2, row % 2, column % 2, letter] = True
    return seen.reshape(-1, QUARTERS, len(ALPHABET))


def _with_answer(processor: Processor, page: SamplePage, pixels: np.ndarray, kind: str) -> tuple[Prompt, int]:
    """The prompt of a page followed by its true answer and the end token, and where the answer starts."""
    prompt = processor.encode("", [Frames(pixels[None]), INSTRUCTIONS[kind]], Sampling())
    answer = page.html() if kind == "html" else page.markdown()
    tokenizer = processor.tokenizer
    answer_ids = [*tokenizer.encode(answer, add_special_tokens=False).ids, tokenizer.token_to_id("<|im_end|>")]
    start = len(prompt.token_ids_T)
    positions = prompt.next_position + np.arange(len(answer_ids), dtype=np.int32)
    whole = replace(
        prompt,
        token_ids_T=np.concatenate([prompt.token_ids_T, np.array(answer_ids, dtype=np.int32)]),
        positions_3T=np.concatenate([prompt.positions_3T, np.tile(positions, (3, 1))], axis=1),
        next_position=prompt.next_position + len(answer_ids),
    )
    return whole, start


class Probe(nn.Linear):
    """Names the characters in the quarters of visual tokens from the features the decoder gets."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, QUARTERS * len(ALPHABET))
        nn.init.constant_(self.bias, -5.0)  # most characters are nowhere

    def loss(self, embeddings_MO: torch.Tensor, glyphs_MQA: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy for each printed character."""
        logits = self(embeddings_MO).unflatten(-1, (QUARTERS, len(ALPHABET)))
        total = F.binary_cross_entropy_with_logits(logits, glyphs_MQA.float(), reduction="sum")
        return total / glyphs_MQA.sum().clamp(min=1)


def tower_loss(network: Qwen3VL, probe: Probe, batch: TrainingBatch) -> torch.Tensor:
    """The probe's loss alone: the decoder is not run."""
    visual = network.look(torch.from_numpy(batch.patches_PC), batch.grids_G3)
    return probe.loss(visual.embeddings_MO, torch.from_numpy(batch.glyphs_MQA))


def losses_of(network: Qwen3VL, probe: Probe, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean cross-entropy of the answers' tokens, the loss of the probe, and the share of tokens guessed right."""
    token_ids_N = torch.from_numpy(batch.token_ids_N).long()
    visual = network.look(torch.from_numpy(batch.patches_PC), batch.grids_G3)
    hidden_NE = network(token_ids_N, torch.from_numpy(batch.positions_3N), PackedCausal(batch.lengths), visual)
    predicted = torch.from_numpy(batch.is_answer_N).nonzero().squeeze(1)
    logits = network.logits(hidden_NE[predicted - 1])
    targets = token_ids_N[predicted]
    accuracy = (logits.argmax(-1) == targets).float().mean().item()
    seen = probe.loss(visual.embeddings_MO, torch.from_numpy(batch.glyphs_MQA))
    return F.cross_entropy(logits, targets), seen, accuracy


def produce(
    folder: str,
    rung: "Synchronized[int]",
    queue: "Queue[tuple[bool, TrainingBatch]]",
    seed: int,
    budget: int,
) -> None:
    """The generator's process: batches for ever; every tenth is a held-out one of the newest rung."""
    processor = Processor.from_pretrained(folder)
    rng = np.random.default_rng([seed, time.time_ns()])
    trainer = os.getppid()
    number = 0
    while os.getppid() == trainer:
        newest = rung.value
        held_out = number % 10 == 9 and newest != ONLY_TOWER
        if newest == ONLY_TOWER:
            chosen = TOWER_RUNG
        else:
            chosen = newest if held_out or rng.random() < 0.6 else int(rng.integers(newest + 1))
        batch = make_batch(processor, rng, chosen, held_out=held_out, token_budget=budget)
        number += 1
        with contextlib.suppress(queue_module.Full):  # look now and then whether the trainer is still there
            queue.put((held_out, batch), timeout=10)


def batches(folder: Path, rung: "Synchronized[int]", budget: int) -> Iterator[tuple[bool, TrainingBatch]]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(maxsize=8)
    maker = context.Process(target=produce, args=(str(folder), rung, queue, 0, budget), daemon=True)
    maker.start()
    while True:
        yield queue.get()


def train(work: Path, *, minutes: float, budget: int, log_every: int) -> None:
    """Goes on from `work` (made new when it is empty) for so many minutes; writes the checkpoint there every few."""
    checkpoint, state_file = work / "checkpoint", work / "state.pt"
    if not (checkpoint / "model.safetensors").is_file():
        write_new_checkpoint(checkpoint, seed=0)
    network = from_pretrained(str(checkpoint), dtype=torch.float32).train().requires_grad_(True)
    probe = Probe(network.config.text.hidden_size)
    everything = nn.ModuleDict({"network": network, "probe": probe})
    matrices = [parameter for parameter in everything.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in everything.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    progress = Progress()
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        everything.load_state_dict(state["everything"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    rung = multiprocessing.get_context("spawn").Value("i", ONLY_TOWER)
    started, saved, last = time.monotonic(), time.monotonic(), time.monotonic()
    losses: list[tuple[float, float]] = []
    for held_out, batch in batches(checkpoint, rung, budget):
        if held_out:
            _examine(network, probe, batch, progress)
            continue
        rung.value = ONLY_TOWER if progress.is_tower_alone else progress.rung
        left = 1 - (time.monotonic() - started) / (60 * minutes)
        for group in optimizer.param_groups:
            # Warm-up, then full speed, then down to nothing in the last fifth of the time.
            group["lr"] = PEAK_LEARNING_RATE * min(1, (progress.step + 1) / WARM_UP_STEPS, max(left, 0.0) * 5)
        if progress.is_tower_alone:
            seen = tower_loss(network, probe, batch)
            loss = torch.zeros(())
        else:
            loss, seen, _ = losses_of(network, probe, batch)
        optimizer.zero_grad(set_to_none=True)
        (loss + PROBE_WEIGHT * seen).backward()
        torch.nn.utils.clip_grad_norm_(everything.parameters(), 1.0)
        optimizer.step()
        progress.step += 1
        progress.probe = 0.98 * progress.probe + 0.02 * seen.item()
        progress.pages += len(batch.lengths)
        losses.append((loss.item(), seen.item()))
        if progress.step % log_every == 0:
            now = time.monotonic()
            progress.seconds, last = progress.seconds + now - last, now
            mean_loss, mean_seen = np.mean(losses, axis=0)
            print(
                f"step {progress.step} · {progress.pages} pages · {progress.seconds / 60:.1f} min · "
                f"rung {progress.rung} {RUNGS[progress.rung].name} · loss {mean_loss:.3f} · probe {mean_seen:.3f} · "
                f"held-out accuracy {progress.accuracy:.3f}",
                flush=True,
            )
            losses.clear()
        if time.monotonic() - saved > 120 or left <= 0:
            _save(everything, optimizer, progress, state_file)
            save_weights(network, checkpoint, torch.bfloat16)
            (checkpoint / "training.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
            saved = time.monotonic()
        if left <= 0:
            return


@torch.no_grad()
def _examine(network: Qwen3VL, probe: Probe, batch: TrainingBatch, progress: Progress) -> None:
    """A held-out batch of the newest rung: its accuracy enters the running mean, and may open the next rung."""
    if batch.rung != progress.rung:
        return
    *_, accuracy = losses_of(network, probe, batch)
    progress.accuracy = 0.95 * progress.accuracy + 0.05 * accuracy
    if progress.accuracy >= PASS_MARK and progress.rung + 1 < len(RUNGS):
        progress.rung += 1
        progress.accuracy = 0.0


def _save(everything: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, state_file: Path) -> None:
    state = {
        "everything": everything.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }
    torch.save(state, state_file.with_suffix(".new"))
    state_file.with_suffix(".new").replace(state_file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder of checkpoint and optimizer state")
    parser.add_argument("--minutes", type=float, default=60, help="how long to train this time (default: 60)")
    parser.add_argument("--token-budget", type=int, default=1024, help="tokens of one batch (default: 1024)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the network (default: 1)")
    parser.add_argument("--log-every", type=int, default=50, help="steps between two lines of the log (default: 50)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.work, minutes=options.minutes, budget=options.token_budget, log_every=options.log_every)


if __name__ == "__main__":
    main()
