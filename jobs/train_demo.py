"""Trains the demonstration checkpoint: `python -m jobs.train_demo --minutes 60`. Run it again and it goes on.

The first minutes teach the vision tower alone, by a probe that names the letters it sees. Then the curriculum climbs
the rungs: plain lines in one typeface first; the next rung joins when the newest is read well enough (teacher-forced
accuracy of held-out tokens), and all earlier rungs, and clips, stay in the mix. The forward pass is the project's own
network, so training also proves it. Matrices are trained by Muon, everything else by AdamW; the checkpoint has the
running mean of the weights (Polyak and Juditsky 1992), which reads better than any one step's.

On a GPU: `--device cuda --generators 15 --token-budget 32768`, for it learns faster than one process draws.
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import queue as queue_module
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jobs.demo_checkpoint import write_new_checkpoint
from jobs.muon import Muon
from jobs.options import CommandParser
from jobs.samples import DENSE_LADDER, READABLE, Difficulty
from jobs.training_batches import TrainingBatch, clip_batches, page_batches, sight_batch
from jobs.training_losses import Probes, losses_of, tower_losses
from model.processor import Processor
from model.qwen3_vl import Qwen3VL
from model.weights import from_pretrained, save_weights

ADAMW_SHARE = 0.3  # of the learning rate: Muon's steps are a fifth of AdamW's at the same rate
WARM_UP_STEPS = 100
MEAN_DECAY = 0.998  # of the weights of earlier steps in the running mean
PROBE_STEPS, PROBE_LEARNING_RATE = 200, 3e-3  # of new probes alone, beside a trained tower
COOL_DOWN_SHARE = 0.6  # of the time, at its end: the learning rate falls to nothing
PASS_MARKS = (0.4, 0.5, 0.6)  # accuracy on a rung that lets the next one in; the last mark is that of all further ones
HTML_SHARE = 0.35  # of the batches of pages that are trained on: they ask for `qwenvl html`
CLIPS_FROM_RUNG, CLIP_SHARE = 0, 0.4
FOCUS_SHARE = 0.3  # of the pages: of the rungs in focus; the others come from all rungs so far, most from the newest
WEIGHTS = {"answer": 1.0, "pointing": 0.3, "cell": 0.3, "letters": 0.15, "xy": 0.1, "pointed xy": 0.3}
TOWER_SHARE = 0.15  # of the batches: they teach the tower alone when its own time is over
SIGHT_SHARE = 0.5  # of these: frames of clips; the others are dense pages
PLAIN_SHARE = 0.25  # of the dense pages
# Of the pages: their type is at most so many points larger than the rung's smallest, where most letters are misread.
SMALL_TYPE_SHARE, SMALL_TYPE_RANGE = 0.5, 3.0
ONLY_TOWER = -1  # in place of a rung, as long as the tower is trained alone
TOLD_FILE = "training.json"  # of a checkpoint: how far it is
CLIPS = -1  # the rung of a batch of clips
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of <malloc.h>


@dataclass
class Progress:
    """What a later run needs to go on."""

    step: int = 0
    rung: int = 0
    samples: int = 0
    seconds: float = 0.0
    accuracy: dict[str, float] = field(default_factory=dict)  # running, on held-out batches, by rung


@dataclass(frozen=True, slots=True)
class Produced:
    rung: int
    held_out: bool
    batch: TrainingBatch
    is_for_tower: bool = False  # the loss of its probe alone


def produce(
    folder: str, rung: "Synchronized[int]", focus: Sequence[int], queue: "Queue[Produced]", seed: int, budget: int
) -> None:
    """The generator's process: batches for ever; some are held-out ones of the rungs in focus or of clips."""
    os.nice(5)
    queue.cancel_join_thread()  # or it would wait at its end for a trainer that is gone to fetch the rest
    processor = Processor.from_pretrained(folder)
    rng = np.random.default_rng([seed, time.time_ns()])
    trainer = os.getppid()
    while os.getppid() == trainer:
        for produced in _next_batches(processor, rng, rung.value, focus, budget):
            while os.getppid() == trainer:  # look now and then whether the trainer is still there
                with contextlib.suppress(queue_module.Full):
                    queue.put(produced, timeout=10)
                    break


def _next_batches(
    processor: Processor, rng: np.random.Generator, newest: int, focus: Sequence[int], budget: int
) -> list[Produced]:
    held_out = newest != ONLY_TOWER and rng.random() < 0.08
    if newest >= CLIPS_FROM_RUNG and rng.random() < CLIP_SHARE:
        made = clip_batches(processor, rng, held_out=held_out, token_budget=budget)
        return [Produced(CLIPS, held_out, batch) for batch in made]
    if newest == ONLY_TOWER or (not held_out and rng.random() < TOWER_SHARE):
        if rng.random() < SIGHT_SHARE:
            return [Produced(newest, False, sight_batch(processor, rng, token_budget=budget), is_for_tower=True)]
        dense = _sometimes_small(DENSE_LADDER[0 if rng.random() < PLAIN_SHARE else 1], rng)
        made = page_batches(processor, rng, dense, held_out=False, token_budget=2 * budget)
        return [Produced(newest, False, batch, is_for_tower=True) for batch in made]
    in_focus = min(focus[int(rng.integers(len(focus)))], newest)
    chosen = in_focus if held_out or rng.random() < FOCUS_SHARE else int(rng.integers(newest + 1, size=2).max())
    html_share = 0.0 if held_out else HTML_SHARE
    layout = READABLE[chosen] if held_out else _sometimes_small(READABLE[chosen], rng)
    made = page_batches(processor, rng, layout, held_out=held_out, token_budget=budget, html_share=html_share)
    batches = [Produced(chosen, held_out, batch) for batch in made]
    rng.shuffle(batches)
    return batches[:2] if held_out else batches


def _sometimes_small(layout: Difficulty, rng: np.random.Generator) -> Difficulty:
    smallest, largest = layout.font_sizes
    if rng.random() < SMALL_TYPE_SHARE:
        largest = min(largest, smallest + SMALL_TYPE_RANGE)
    return replace(layout, font_sizes=(smallest, largest))


@dataclass(frozen=True, slots=True)
class Assistant:
    """What the trainer shares with a process that computes gradients of batches of its own, as fast as it can: one that
    shares its core with others does not slow the trainer. Its gradients are a step or two old, which does no harm."""

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor]  # summed over the batches
    batches: "Synchronized[int]"  # whose gradients wait to be taken; 0: the place is free

    def take(self, parameters: list[nn.Parameter]) -> None:
        """Averages the gradients that wait, if any, into those of the trainer's one batch."""
        batches = self.batches.value
        if batches == 0:
            return
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(gradient).div_(1 + batches)
        self.batches.value = 0


def keep_freed_memory() -> None:
    """Lets glibc keep for the next step what a step frees: it would give every buffer of more than 32 MiB back to the
    kernel at once, and a third of a CPU's time would go into fresh pages for as many again."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def assist(folder: str, assistant: Assistant, queue: "Queue[Produced]") -> None:
    """The assistant's process."""
    torch.set_num_threads(1)
    keep_freed_memory()
    trainer = os.getppid()
    network = from_pretrained(folder, dtype=torch.float32).train().requires_grad_(True)
    probes = Probes(network.config)
    parameters = [*network.parameters(), *probes.parameters()]
    batches = 0  # whose gradients are summed here, while those before wait to be taken
    while os.getppid() == trainer:
        try:
            produced = queue.get(timeout=10)  # look now and then whether the trainer is still there
        except queue_module.Empty:
            continue
        if produced.held_out:
            continue
        with torch.no_grad():
            for parameter, shared in zip(parameters, assistant.weights, strict=True):
                parameter.copy_(shared)
        compute_gradients(network, probes, produced)
        batches += 1
        if assistant.batches.value > 0:
            continue
        for parameter, gradient in zip(parameters, assistant.gradients, strict=True):
            gradient.copy_(parameter.grad if parameter.grad is not None else torch.zeros(()))
            parameter.grad = None
        assistant.batches.value, batches = batches, 0


@contextlib.contextmanager
def fast_precision(device: torch.device) -> Iterator[None]:
    """bf16 products on GPUs and CPUs with instructions for them; fp32 elsewhere, emulated ones are ten times slower."""
    on_cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    has_bf16 = device.type == "cuda" or any(on_cpu.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16):
        yield


def compute_gradients(network: Qwen3VL, probes: Probes, produced: Produced) -> dict[str, float]:
    """Adds the gradients of the weighted losses to the parameters -> the losses."""
    with fast_precision(probes.device):
        if produced.is_for_tower:
            losses = tower_losses(network, probes, produced.batch)
        else:
            losses, _ = losses_of(network, probes, produced.batch)
    _weighted(losses).backward()
    return {name: loss.item() for name, loss in losses.items()}


def _weighted(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


class Trainer:
    """Network, probes and optimizers, kept in a folder."""

    def __init__(self, work: Path, start: Path | None = None, *, device: str = "cpu") -> None:
        """`start`: a checkpoint to begin from where `work` holds none yet; otherwise a new one is made."""
        self.checkpoint, self._state_file = work / "checkpoint", work / "state.pt"
        if not (self.checkpoint / "model.safetensors").is_file():
            if start is not None:
                shutil.copytree(start, self.checkpoint, dirs_exist_ok=True)
            else:
                write_new_checkpoint(self.checkpoint, seed=0)
        network: Qwen3VL = from_pretrained(str(self.checkpoint), device=device, dtype=torch.float32)
        self.network = network.train().requires_grad_(True)
        self.probes = Probes(self.network.config).to(device)
        self._everything = nn.ModuleDict({"network": self.network, "probes": self.probes})
        named = list(self._everything.named_parameters())
        matrices = [value for name, value in named if value.ndim == 2 and not ("embed" in name or "probe" in name)]
        # A page is white nearly everywhere: AdamW would spend its steps on the one direction all pixels share. The
        # convolution's weight as the matrix it is, with the same memory.
        self._patches = self.network.model.visual.patch_embed.proj.weight
        self._patches_EC = nn.Parameter(self._patches.detach().view(len(self._patches), -1))
        matrices.append(self._patches_EC)
        taken = set(map(id, [*matrices, self._patches]))
        tables = [value for _, value in named if value.ndim > 1 and id(value) not in taken]
        vectors = [value for _, value in named if value.ndim == 1]
        self._optimizers = [
            Muon(matrices, weight_decay=0.02),
            torch.optim.AdamW(
                [{"params": tables, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}],
                betas=(0.9, 0.98),
                fused=True,
            ),
        ]
        self._assistants: list[Assistant] = []
        self.has_new_probes = start is not None and not self._state_file.is_file()
        told = self.checkpoint / TOLD_FILE
        self.progress = Progress(**json.loads(told.read_text())) if told.is_file() else Progress()
        state: dict[str, Any] = {}
        if self._state_file.is_file():
            state = torch.load(self._state_file, weights_only=True, map_location=device)
            self._everything.load_state_dict(state["everything"])
            for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.progress = Progress(**state["progress"])
        self._mean = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(MEAN_DECAY))
        if "mean" in state:
            self._mean.load_state_dict(state["mean"])

    @property
    def mean_network(self) -> Qwen3VL:
        """The network with the running mean of its weights: what is examined and saved."""
        network = self._mean.module
        assert isinstance(network, Qwen3VL)
        return network

    def start_assistants(self, count: int, queue: "Queue[Produced]") -> None:
        context = multiprocessing.get_context("spawn")
        parameters = list(self._everything.share_memory().parameters())
        for _ in range(count):
            gradients = [torch.zeros_like(parameter).share_memory_() for parameter in parameters]
            weights = [parameter.detach() for parameter in parameters]
            assistant = Assistant(weights, gradients, context.Value("i", 0))
            context.Process(target=assist, args=(str(self.checkpoint), assistant, queue), daemon=True).start()
            self._assistants.append(assistant)

    def learn(self, produced: Produced, learning_rate: float) -> dict[str, float]:
        """One step -> the losses."""
        losses = compute_gradients(self.network, self.probes, produced)
        for assistant in self._assistants:
            assistant.take(list(self._everything.parameters()))
        torch.nn.utils.clip_grad_norm_(self._everything.parameters(), 1.0)
        if self._patches.grad is not None:
            self._patches_EC.grad, self._patches.grad = self._patches.grad.view_as(self._patches_EC), None
        for optimizer, share in zip(self._optimizers, (1.0, ADAMW_SHARE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * learning_rate
            with fast_precision(self.probes.device):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._mean.update_parameters(self.network)
        self.progress.step += 1
        self.progress.samples += len(produced.batch.token_ids_BT)
        return losses

    def fit_letters(self, batches: Iterator[Produced]) -> None:
        """A new probe learns to read what the trained tower says; before it can, its gradients would harm the tower."""
        optimizer = torch.optim.AdamW(self.probes.parameters(), lr=PROBE_LEARNING_RATE)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, PROBE_STEPS)
        self.network.requires_grad_(False)
        for produced in islice(batches, PROBE_STEPS):
            with fast_precision(self.probes.device):
                loss = _weighted(tower_losses(self.network, self.probes, produced.batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            decay.step()
        self.network.requires_grad_(True)
        self.has_new_probes = False

    @torch.no_grad()
    def examine(self, produced: Produced) -> None:
        """A held-out batch: its accuracy enters the running mean of its rung, and may open the next rung."""
        with fast_precision(self.probes.device):
            _, accuracy = losses_of(self.mean_network, self.probes, produced.batch)
        progress = self.progress
        name = "clips" if produced.rung == CLIPS else READABLE[produced.rung].name
        progress.accuracy[name] = 0.8 * progress.accuracy.get(name, 0.0) + 0.2 * accuracy
        newest = READABLE[progress.rung].name
        mark = PASS_MARKS[min(progress.rung, len(PASS_MARKS) - 1)]
        if progress.accuracy.get(newest, 0.0) >= mark and progress.rung + 1 < len(READABLE):
            progress.rung += 1

    @torch.no_grad()
    def log_ablation(self, batches: Iterable[TrainingBatch]) -> None:
        """What DeepStack is worth: the accuracy on held-out batches with its levels, and with zeros in their place."""
        with fast_precision(self.probes.device):
            whole, ablated = (
                np.mean([losses_of(self.mean_network, self.probes, batch, has_deepstack=has)[1] for batch in batches])
                for has in (True, False)
            )
        print(f"held-out accuracy {whole:.3f}, without DeepStack {ablated:.3f}", flush=True)

    def save(self) -> None:
        """The checkpoint, and beside it what a later run needs."""
        state = {
            "everything": self._everything.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "mean": self._mean.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, self._state_file.with_suffix(".new"))
        self._state_file.with_suffix(".new").replace(self._state_file)
        save_weights(self.mean_network, self.checkpoint, torch.bfloat16)
        (self.checkpoint / TOLD_FILE).write_text(json.dumps(asdict(self.progress), indent=2) + "\n")


def train(
    work: Path,
    start: Path | None,
    *,
    minutes: float,
    tower_minutes: float,
    peak_learning_rate: float,
    focus: Sequence[int],
    device: str,
    assistants: int,
    generators: int,
    budget: int,
    log_every: int,
) -> None:
    """Goes on from `work` (made new when it is empty) for so many minutes; writes the checkpoint there every few."""
    trainer = Trainer(work, start, device=device)
    progress = trainer.progress
    before = progress.seconds
    context = multiprocessing.get_context("spawn")
    # Said before the generator starts: a run that goes on must not begin with batches for the tower.
    is_tower_alone = before < 60 * tower_minutes
    rung, queue = context.Value("i", ONLY_TOWER if is_tower_alone else progress.rung), context.Queue(maxsize=24)
    for number in range(generators):
        told = (str(trainer.checkpoint), rung, focus, queue, number, budget)
        context.Process(target=produce, args=told, daemon=True).start()
    if trainer.has_new_probes:
        trainer.fit_letters(iter(queue.get, None))
    trainer.start_assistants(assistants, queue)
    started = saved = time.monotonic()
    kept: dict[str, list[float]] = {}
    examined: deque[TrainingBatch] = deque(maxlen=8)
    for produced in iter(queue.get, None):
        progress.seconds = before + time.monotonic() - started
        left = 1 - (time.monotonic() - started) / (60 * minutes)
        is_tower_alone = progress.seconds < 60 * tower_minutes
        rung.value = ONLY_TOWER if is_tower_alone else progress.rung
        if produced.held_out:
            trainer.examine(produced)
            examined.append(produced.batch)
            continue
        rate = peak_learning_rate * min(1, (progress.step + 1) / WARM_UP_STEPS, max(left, 0.0) / COOL_DOWN_SHARE)
        for name, loss in trainer.learn(produced, rate).items():
            owner = "dense " if produced.is_for_tower else "clips' " if produced.rung == CLIPS else ""
            kept.setdefault(owner + name, []).append(loss)
        if progress.step % log_every == 0:
            _log(progress, kept)
            kept.clear()
        if time.monotonic() - saved > 120 or left <= 0:
            trainer.save()
            saved = time.monotonic()
        if left <= 0:
            break
    trainer.log_ablation(examined)


def _log(progress: Progress, losses: dict[str, list[float]]) -> None:
    means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in losses.items())
    read = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in progress.accuracy.items())
    print(
        f"step {progress.step} · {progress.samples} samples · {progress.seconds / 60:.1f} min · "
        f"rung {progress.rung} {READABLE[progress.rung].name} · loss: {means} · held-out accuracy: {read}",
        flush=True,
    )


def main() -> None:
    rungs = {rung.name: number for number, rung in enumerate(READABLE)}
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder of checkpoint and optimizer state")
    parser.add_argument(
        "--start-from", type=Path, metavar="FOLDER", help="a trained checkpoint to begin with, such as model/demo"
    )
    parser.add_argument("--minutes", type=float, default=60, help="how long to train this time (default: 60)")
    parser.add_argument(
        "--tower-minutes", type=float, default=8, help="how long the tower learns alone, over all runs (default: 8)"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the highest (default: 0.002)")
    parser.add_argument(
        "--focus",
        nargs="+",
        choices=list(rungs),
        default=list(rungs)[-1:],
        metavar="RUNG",
        help=f"a share of {FOCUS_SHARE} of the pages: {', '.join(rungs)} (default: the newest)",
    )
    parser.add_argument("--token-budget", type=int, default=2048, help="tokens of one batch (default: 2048)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the network (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--assistants",
        type=int,
        help="processes that compute gradients beside the trainer, on CPUs (default: 1 with --device cpu)",
    )
    parser.add_argument(
        "--generators", type=int, default=1, help="processes that draw pages and clips; a GPU wants many (default: 1)"
    )
    parser.add_argument("--log-every", type=int, default=50, help="steps between two lines of the log (default: 50)")
    options = parser.parse_args()
    is_on_cpu = options.device == "cpu"
    if options.assistants and not is_on_cpu:
        parser.error(
            f"--assistants {options.assistants} computes on a CPU: leave it out with --device {options.device}"
        )
    assistants = int(is_on_cpu) if options.assistants is None else options.assistants
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    train(
        options.work,
        options.start_from,
        minutes=options.minutes,
        tower_minutes=options.tower_minutes,
        peak_learning_rate=options.learning_rate,
        focus=[rungs[name] for name in options.focus],
        device=options.device,
        assistants=assistants,
        generators=options.generators,
        budget=options.token_budget,
        log_every=options.log_every,
    )


if __name__ == "__main__":
    main()
