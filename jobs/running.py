"""How a job runs from its flags to its exit status, whatever it reads."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError

from jobs.cluster import connected, this_machine
from pipeline.flow import Setup, Superseded, allocated, planned_survey, prepare, run
from pipeline.job import CHECKOUT, DEMO_MODEL, IndexJob, Job, ParseJob, resolve_model
from pipeline.lease import Occupied, hold
from pipeline.listing import NoInputs
from pipeline.manifest import Manifest, damaged_files
from pipeline.plan import estimate
from pipeline.progress import plan_text, some_of
from pipeline.resources import Resources
from pipeline.store import absolute
from pipeline.summary import summary_text

DONE, NOT_DONE, BAD_JOB, STOPPED = 0, 1, 2, 130
EXIT_STATUS = """\
exit status: 0 done, 1 every input failed (or more than --max-failure-rate of them) or the job could not be finished,
2 the job cannot be run as given, 130 stopped (run it again to go on)"""
DEMONSTRATION = (
    "model/demo is a small demonstration model and misreads most real files; for your own give --model, such as "
    "Qwen/Qwen3-VL-2B-Instruct or the folder of an official checkpoint"
)
KEPT = "What is done is kept: the same command goes on from there."
NO_ROOM = (OutOfDiskError, ObjectStoreFullError)
AnyJob = TypeVar("AnyJob", bound=Job)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `run_job` looks at."""
    parser.add_argument(
        "--take-over", action="store_true", help="go on with a job that another run is working on: end that"
    )
    parser.add_argument(
        "--allow-empty",
        action=argparse.BooleanOptionalAction,
        help="whether no input at all is a success (left out: it is where INPUT is a manifest or in a bucket)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="open every input, say what reading would take, and stop; nothing is written or kept",
    )


def run_job(
    name: str, make: Callable[[], ParseJob | IndexJob], flags: argparse.Namespace, *, own_files: bool = True
) -> int:
    """Makes, checks and runs the job, or only plans it; what goes wrong is told on stderr under its `name`, and that
    the model is for demonstration where it is and the user's `own_files` are read with it.

    Returns the exit status.
    """
    try:
        job = make()
        setup = prepare(job, this_machine())
    except NoInputs as error:
        if not (error.is_routine if flags.allow_empty is None else flags.allow_empty):
            return _refuse(name, error)
        print(f"{name}: {error}; nothing to do")
        return DONE
    except ValueError as error:
        return _refuse(name, error)
    if changes := str(setup.changes):
        print(f"{name}: {changes}", file=sys.stderr)
    if setup.finished and (damaged := damaged_files(setup.books.store, job.output, setup.finished)):
        print(f"{name}: written anew, being gone or damaged: {some_of(damaged)}", file=sys.stderr)
        setup = replace(setup, finished=None)
    if setup.finished and not flags.plan:
        print("This job is done already; nothing to do.")
        print(summary_text(setup.finished, setup.kind, job.output, job.store_options))
        return exit_status(name, setup.finished, job)
    if own_files and Path(resolve_model(job.model)).resolve() == CHECKOUT / DEMO_MODEL:
        print(f"{name}: {DEMONSTRATION}", file=sys.stderr)
    began = time.monotonic()
    if flags.plan:
        return attended(name, setup, lambda resources: _plan(setup, resources, began), holding=nullcontext())
    holding = hold(setup.books.store, job.output, take_over=flags.take_over)
    return attended(name, setup, lambda resources: _run(name, setup, resources), holding=holding)


def attended(
    name: str, setup: Setup, work: Callable[[Resources], int], *, holding: AbstractContextManager[None]
) -> int:
    """Does the work on Ray while the output is held; whatever end can be foreseen is a line on stderr under `name`.

    Returns the exit status.
    """
    try:
        with holding, connected():
            signal.signal(signal.SIGTERM, interrupt)  # after ray.init, which sets its own
            return _worked(name, setup, work)
    except (Occupied, ConnectionError) as error:
        return _refuse(name, error)
    except OSError as error:  # the lease cannot be written
        return _broken_off(name, error)
    except KeyboardInterrupt:
        print(f"\n{name}: stopped. {KEPT}", file=sys.stderr)
        return STOPPED


def with_absolute_paths(job: AnyJob) -> AnyJob:
    """The job as actors, which live in other folders, can use it. Raises ValueError."""
    is_our_own_folder = resolve_model(job.model) == job.model and Path(job.model).is_dir()
    return replace(
        job,
        input=absolute(job.input),
        output=absolute(job.output),
        model=os.path.abspath(job.model) if is_our_own_folder else job.model,
    )


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _worked(name: str, setup: Setup, work: Callable[[Resources], int]) -> int:
    try:
        resources = allocated(setup)
    except ValueError as error:
        return _refuse(name, error)
    try:
        return work(resources)
    except Superseded as error:
        print(f"{name}: {error}", file=sys.stderr)
        return NOT_DONE
    except (OSError, *NO_ROOM) as error:
        return _broken_off(name, error)


def _plan(setup: Setup, resources: Resources, began: float) -> int:
    """Opens the inputs and says what reading would take; leaves nothing behind."""
    survey = planned_survey(setup, resources, sys.stderr)
    estimated = estimate(setup, resources, survey, start_seconds=time.monotonic() - began)
    print(plan_text(survey, setup.kind.pieces, estimated, setup.media.plan))
    return DONE


def _run(name: str, setup: Setup, resources: Resources) -> int:
    manifest = run(setup, resources, sys.stderr)
    print(summary_text(manifest, setup.kind, setup.job.output, setup.job.store_options))
    return exit_status(name, manifest, setup.job)


def exit_status(name: str, manifest: Manifest, job: Job) -> int:
    rate, limit = manifest.failure_rate, job.max_failure_rate
    if limit is None and rate == 1:
        print(f"{name}: every input failed (--max-failure-rate 1 takes that for success)", file=sys.stderr)
        return NOT_DONE
    if limit is not None and rate > limit:
        failed = f"{100 * rate:.1f} % of the inputs failed"
        print(f"{name}: {failed}, more than --max-failure-rate {limit:g}", file=sys.stderr)
        return NOT_DONE
    return DONE


def _broken_off(name: str, error: Exception) -> int:
    print(f"{name}: broken off: {_reason(error)}\n{KEPT}", file=sys.stderr)
    return NOT_DONE


def _reason(error: Exception) -> str:
    """In a line, without the stack of the actor it happened in."""
    if isinstance(error, NO_ROOM):
        return (
            "Ray's object store is full, and so is the disk it would spill to: make room there "
            "(/tmp/ray, unless Ray was started otherwise), or start Ray with more --object-store-memory"
        )
    cause = str(error.cause if isinstance(error, RayTaskError) else error)
    return cause.partition("\n")[0]  # behind it Ray tells how to set its own retries


def _refuse(name: str, error: Exception) -> int:
    print(f"{name}: {error}", file=sys.stderr)
    return BAD_JOB
