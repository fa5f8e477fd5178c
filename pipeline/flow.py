"""Survey, read, close: a whole job on one screen, and the only room that knows the order."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TextIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray

from model.checkpoint import checkpoint_folder, weight_files
from model.processor import Processor, VideoMarks
from model.request import Sampling
from pipeline.books import Books, FrozenSurvey, count_survey
from pipeline.changes import Changes, changes_since
from pipeline.close import close_shards
from pipeline.decode import DecodeOptions
from pipeline.documents import DocumentOptions
from pipeline.job import INSTRUCTION_TOKENS, IndexJob, Job, ParseJob, answer_settings, job_record, resolve_model
from pipeline.kinds import DOCUMENT_KIND, VIDEO_KIND, Kind
from pipeline.listing import Entry, list_inputs
from pipeline.manifest import ClosedShard, Manifest, finished_manifest, make_manifest, reopen, write_manifest
from pipeline.progress import Progress
from pipeline.prompts import PagePrompt, VideoPrompt, page_prompt, video_prompt
from pipeline.read import read_units
from pipeline.replica import Engine, EngineLoader
from pipeline.resources import STEP_TOKENS, Cluster, Load, Resources, allocate, with_memory
from pipeline.rows import Receipt, ReplicaLoad
from pipeline.sink import SinkOptions
from pipeline.store import Store, absolute, join
from pipeline.survey import count_pages, cut_shards, cut_units, listing_table, open_assets
from pipeline.video_windows import VideoOptions, video_options

MAX_PASSES = 3  # over what is still missing; one is enough when nothing is lost


class Superseded(Exception):  # noqa: N818 - no error: somebody else goes on with the job
    """Another run of the same job began after this one: what this one would still write does not count."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A job and what can be known of it before Ray is asked."""

    job: ParseJob | IndexJob
    kind: Kind
    books: Books
    prompt: PagePrompt | VideoPrompt
    media: DocumentOptions | VideoOptions
    sampling: Sampling
    load: Load
    settings: dict[str, str]  # of the answers, by name
    record: dict[str, str]  # what the output is for
    listing: pa.Table | None  # the inputs in the shape of ASSETS; None when the survey is frozen already
    changes: Changes  # of the inputs, since the survey was frozen
    finished: Manifest | None  # of a job that is done


def prepare(job: ParseJob | IndexJob, cluster: Cluster | None = None) -> Setup:
    """Checks the job against its checkpoint, what its output was begun with, and what the `cluster` will have where
    that is known before Ray is started; then lists the inputs. Writes nothing.

    Raises ValueError.
    """
    processor = Processor.from_pretrained(resolve_model(job.model))
    weight_files(checkpoint_folder(resolve_model(job.model)))
    sampling = job.sampling(processor.sampling)
    processor.config.check_tensor_parallel(job.tensor_parallel)
    prompt: PagePrompt | VideoPrompt
    media: DocumentOptions | VideoOptions
    if isinstance(job, IndexJob):
        kind = VIDEO_KIND
        prompt = video_prompt(job.prompt, job.query, job.question, checkpoint_folder(resolve_model(job.model)))
        media = video_media(job, prompt, processor)
        prompt_tokens = media.prompt_tokens
    else:
        kind, prompt, media = DOCUMENT_KIND, page_prompt(job.prompt), document_media(job, processor)
        prompt_tokens = job.max_tokens_per_page
    longest = prompt_tokens + job.max_new_tokens + INSTRUCTION_TOKENS
    processor.check_context(job.max_context or None, job.rope_scaling or None, longest)
    context = job.max_context or processor.config.text.max_position_embeddings
    load = Load(processor.config, min(longest, context), media.largest_image)
    if cluster:
        with_memory(job, load, allocate(job, cluster), cluster)
    settings = answer_settings(job, prompt, sampling)
    record = job_record(job, settings)
    store = Store(job.store_options)
    books = Books(store, job.output)
    try:
        books.check(record)
        survey = books.survey()
        listing = None if survey else listing_table(listed(store, job))
        changes = changes_since(books, survey, lambda: listed(store, job)) if survey else Changes()
        finished = finished_manifest(store, job.output, survey)
    except OSError as error:
        raise ValueError(f"output {job.output} cannot be used: {error}") from error
    return Setup(job, kind, books, prompt, media, sampling, load, settings, record, listing, changes, finished)


def with_longer_answers(setup: Setup, max_new_tokens: int) -> Setup:
    """For pages and windows that were cut off: the output stays one of the settings it was begun with.

    Raises ValueError for fewer tokens than the output was begun with, or more than the context holds.
    """
    begun = setup.sampling.max_new_tokens
    if max_new_tokens < begun:
        raise ValueError(f"max_new_tokens {max_new_tokens} is less than what this output was begun with, {begun}")
    context = setup.job.max_context or setup.load.config.text.max_position_embeddings
    longest = setup.load.sequence_tokens - begun + max_new_tokens
    if longest > context:
        raise ValueError(f"max_new_tokens {max_new_tokens} and the prompt take {longest:,}, the context is {context:,}")
    sampling = replace(setup.sampling, max_new_tokens=max_new_tokens)
    return replace(setup, sampling=sampling, load=replace(setup.load, sequence_tokens=longest))


def listed(store: Store, job: Job) -> Iterator[Entry]:
    """The inputs; an output that lies among them is none."""
    output = join(absolute(job.output), "")
    for entry in list_inputs(store, job.input):
        asset = entry[0] if isinstance(entry, tuple) else entry
        if not asset.uri.startswith(output):
            yield entry


def document_media(job: ParseJob, processor: Processor) -> DocumentOptions:
    return DocumentOptions(
        min_tokens=min(job.min_tokens_per_page, processor.max_image_tokens),
        max_tokens=min(job.max_tokens_per_page, processor.max_image_tokens),
        pixel_multiple=processor.pixel_multiple,
        max_pages=job.max_pages,
        max_image_pixels=job.max_image_megapixels * 1_000_000,
        passwords=job.password,
        pages=job.pages,
    )


def video_media(job: IndexJob, prompt: VideoPrompt, processor: Processor) -> VideoOptions:
    """Raises ValueError, also for windows that do not fit into the context."""
    if processor.video is None:
        raise ValueError(f"model {job.model} has no video_preprocessor_config.json: it does not read videos")
    options = video_options(
        processor.video,
        fps=job.fps,
        window_seconds=job.window_seconds,
        overlap_seconds=job.overlap_seconds,
        max_tokens_per_window=job.max_tokens_per_window,
        pixel_multiple=processor.pixel_multiple,
        prompts_per_window=len(prompt.instructions),
        max_frames_per_window=job.max_frames_per_window,
        shot_cuts=job.shot_cuts,
        max_windows=job.max_windows,
    )
    context = job.max_context or processor.config.text.max_position_embeddings
    if options.prompt_tokens > context:
        raise ValueError(
            f"a window takes up to {options.prompt_tokens:,} tokens, times included, and the context is {context:,}: "
            "give less fps, window_seconds or max_tokens_per_window, or more max_context with rope_scaling"
        )
    return options


def run(
    setup: Setup, resources: Resources, stream: TextIO, *, load_engine: Callable[[], Engine] | None = None
) -> Manifest:
    """Does what is left of the job, be it all or nothing, and says what it made; progress goes to `stream`.

    `load_engine` makes what the replicas answer with; None: the engine of the job's checkpoint. Raises Superseded.
    """
    if setup.finished:
        return setup.finished
    began = time.monotonic()
    books = setup.books
    survey = find_survey(setup, resources, stream)
    loads: dict[str, ReplicaLoad] = {}
    for passes in range(MAX_PASSES + 1):
        epoch = books.claim_epoch()
        sealed = books.sealed(epoch)
        missing = missing_units(books, survey, sealed)
        if not len(missing):
            break
        assert passes < MAX_PASSES, f"{len(missing)} units have no rows, such as {missing.slice(0, 3).to_pylist()}"
        copies = "" if resources.replicas == (1, 1) else f", copies of it: {setup.job.replicas}"
        print(f"loading {setup.job.model}{copies}", file=stream, flush=True)
        pipeline = read_units(
            missing,
            decode=decode_options(setup, resources),
            load_engine=load_engine or engine_loader(setup, resources),
            step_timeout_seconds=setup.job.step_timeout_seconds,
            sink=sink_options(setup, epoch),
            resources=resources,
        )
        with closing(pipeline):
            loads |= follow(pipeline, setup, survey, epoch, missing, stream)
        # The newest run owns the job: two that went on claiming would seal each other's epochs for ever.
        check_ownership(books, epoch)
    reopen(books.store, books.output)
    closed = close(setup, survey, sealed, stream)
    manifest = make_manifest(
        setup.job, setup.settings, survey, closed, list(loads.values()), wall_seconds=time.monotonic() - began
    )
    write_manifest(books.store, books.output, manifest)
    return manifest


def find_survey(setup: Setup, resources: Resources, stream: TextIO) -> FrozenSurvey:
    """The frozen survey of the job, made now when there is none. Raises ValueError for an output of another job."""
    books = setup.books
    if survey := books.survey():
        return survey
    books.open(setup.record)
    return books.freeze_survey(books.claim_epoch(), open_inputs(setup, resources, stream))


def planned_survey(setup: Setup, resources: Resources, stream: TextIO) -> FrozenSurvey:
    """The frozen survey, or what it would be now: nothing is written."""
    return setup.books.survey() or count_survey(open_inputs(setup, resources, stream))


def open_inputs(setup: Setup, resources: Resources, stream: TextIO) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Opens every input: (assets, units) of each shard."""
    job, listing = setup.job, setup.listing
    assert listing is not None, "there was a survey, and it is gone"
    progress = Progress("inputs", len(listing), stream)
    opened = []
    for assets in open_assets(
        listing, job.store_options, setup.media, seconds=job.piece_timeout_seconds, resources=resources
    ):
        opened.append(assets)
        progress.add(len(assets), failed=filter(None, assets["error_code"].to_pylist()))
    progress.finish()
    table = pa.concat_tables(opened)
    assert sorted(table["order"].to_pylist()) == listing["order"].to_pylist(), "an input was lost, or came back twice"
    for assets in cut_shards(table):
        yield assets, cut_units(assets, job.piece_ranges, bytes_per_token=setup.media.bytes_per_token)


def missing_units(books: Books, survey: FrozenSurvey, sealed: pa.Table) -> pa.Table:
    """The units of the survey that have no rows yet, in its order."""
    units = books.all_units(survey)
    return units.filter(pc.invert(pc.is_in(units["unit_id"], value_set=sealed["unit_id"].combine_chunks())))


def follow(
    receipts: Iterator[Receipt],
    setup: Setup,
    survey: FrozenSurvey,
    epoch: int,
    missing: pa.Table,
    stream: TextIO,
    *,
    seconds_between_checks: float = 30.0,
) -> dict[str, ReplicaLoad]:
    """Runs the reading pass and shows how far it is; what each replica did, by its id. Raises Superseded."""
    left = Counter(missing["asset_id"].to_pylist())  # units of each asset that is not done
    progress = Progress(
        setup.kind.pieces,
        survey.unit_pages,
        stream,
        done=survey.unit_pages - count_pages(missing),
        failed=survey.failed,
        assets=setup.kind.assets,
        assets_total=survey.assets,
        found=setup.kind.found,
    )
    loads: dict[str, ReplicaLoad] = {}
    checked = time.monotonic()
    for receipt in receipts:
        left.subtract(receipt.asset_ids)
        progress.add(
            receipt.pieces,
            tokens=receipt.tokens_out,
            failed=receipt.failed,
            found=receipt.found,
            media_us=receipt.media_us,
            assets_left=sum(units > 0 for units in left.values()),
        )
        for load in receipt.loads:
            loads[load.replica_id] = max(load, loads.get(load.replica_id, load), key=lambda load: load.steps)
        if time.monotonic() - checked > seconds_between_checks:
            checked = time.monotonic()
            check_ownership(setup.books, epoch)
    progress.finish()
    return loads


def check_ownership(books: Books, epoch: int) -> None:
    """Raises Superseded when another run of the job has claimed a later epoch."""
    if books.is_superseded(epoch):
        raise Superseded(f"another run of this job began after this one and goes on with {books.output}")


def close(setup: Setup, survey: FrozenSurvey, sealed: pa.Table, stream: TextIO) -> list[ClosedShard]:
    """Writes the tables."""
    progress = Progress("table files", len(setup.kind.schemas) * survey.shards, stream)
    closed = []
    shards = close_shards(setup.job.store_options, setup.job.output, survey, sealed, setup.kind)
    with closing(shards):
        for shard in shards:
            closed.append(shard)
            progress.add(len(shard.tables))
    progress.finish()
    assert len(closed) == survey.shards, f"{len(closed)} shards came back from {survey.shards}"
    assets, pieces = sum(shard.assets.total for shard in closed), sum(shard.pieces.total for shard in closed)
    assert (assets, pieces) == (survey.assets, survey.pages), f"{assets} inputs and {pieces} pieces: not {survey}"
    return closed


def decode_options(setup: Setup, resources: Resources) -> DecodeOptions:
    return DecodeOptions(
        store=setup.job.store_options,
        media=setup.media,
        model=setup.job.model,
        instructions=setup.prompt.instructions,
        video_marks=cast(VideoMarks, setup.job.video_marks) if isinstance(setup.job, IndexJob) else "all",
        sampling=setup.sampling,
        memory_bytes=resources.child_memory_bytes,
        piece_timeout_seconds=setup.job.piece_timeout_seconds,
    )


def engine_loader(setup: Setup, resources: Resources) -> EngineLoader:
    return EngineLoader(
        model=setup.job.model,
        device=resources.device,
        dtype=None if setup.job.dtype == "auto" else setup.job.dtype,
        max_batch_size=resources.batch_size,
        max_sequence_tokens=setup.load.sequence_tokens,
        max_image_tokens=max(setup.load.image_tokens, STEP_TOKENS),
        quantization=setup.job.quantization,
        kv_cache_dtype=setup.job.kv_cache_dtype,
        cuda_graphs=setup.job.cuda_graphs,
        overlap=setup.job.overlap,
        max_context=setup.job.max_context or None,
        rope_scaling_factor=setup.job.rope_scaling or None,
        tensor_parallel=setup.job.tensor_parallel,
    )


def sink_options(setup: Setup, epoch: int) -> SinkOptions:
    return SinkOptions(
        store=setup.job.store_options,
        output=setup.job.output,
        epoch=epoch,
        kind=setup.kind,
        prompt=setup.prompt,
        keep_raw=setup.job.keep_raw,
    )


def cluster() -> Cluster:
    """What Ray has now."""
    found = ray.cluster_resources()
    nodes = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    return Cluster(
        cpus=found.get("CPU", 0),
        gpus=found.get("GPU", 0),
        memory_bytes=int(found.get("memory", 0)),
        node_memory_bytes=int(max(nodes, default=0)),
    )


def allocated(setup: Setup) -> Resources:
    """What the job takes of the cluster that Ray is connected to. Raises ValueError when it does not fit."""
    found = cluster()
    return with_memory(setup.job, setup.load, allocate(setup.job, found), found)
