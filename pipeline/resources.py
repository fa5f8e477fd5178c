"""How many actors of which kind fit the cluster, decided once before a job starts."""

from dataclasses import dataclass, replace

from model.config import ModelConfig
from model.footprint import DTYPE_BYTES, LESS_CACHE, pass_bytes, token_bytes, weight_bytes
from pipeline.job import Job

STEP_TOKENS, DRAFT_TOKENS = 2048, 256  # of one pass of the engine, by its own defaults
REPLICA_CPUS_CUDA = 1.0  # for each GPU the thread that feeds it
WRITER_CPUS = 0.25
SPARE_CPUS = 1.0  # for Ray Data's own tasks: without it a full cluster would wait for itself
PARENT_BYTES = 768 * 2**20  # of a decoder's memory: its own process, beside the child that renders
BATCH_SIZE = {"cpu": 32, "cuda": 64}
CALLS_OVER_SLOTS = 1.5  # prompts at hand for each slot: a unit that is answered is replaced ten or more steps later
REPLICAS_PER_WRITER = 8
# Visual tokens a replica on a GPU reads each second, answers and all, until somebody measures: only --plan uses it.
ASSUMED_TOKENS_PER_SECOND = 8_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What Ray has to give."""

    cpus: float
    gpus: float
    memory_bytes: int
    node_memory_bytes: int = 0  # of the node that has most; 0: not known


@dataclass(frozen=True, slots=True)
class Load:
    """What the job asks of each replica's memory."""

    config: ModelConfig
    sequence_tokens: int  # of the longest prompt with its answer
    image_tokens: int  # visual tokens of the largest image or frame pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the job takes of it."""

    device: str  # cpu or cuda
    replicas: tuple[int, int]  # the fewest and the most
    replica_cpus: float
    replica_gpus: int
    batch_size: int
    decoders: int
    decoder_memory_bytes: int  # of each
    writers: int
    replica_memory_bytes: int = 0  # that each of them reserves: on CPUs; what a GPU has, only its replica sees

    @property
    def child_memory_bytes(self) -> int:
        """What the process that renders may take."""
        return self.decoder_memory_bytes - PARENT_BYTES

    def calls_per_replica(self, prompts_per_call: float) -> int:
        """Calls a replica works on at once, so that its batch is full across the borders of units: of a call in flight
        only the half, on the average, is still to be answered."""
        unanswered = (1 + max(1.0, prompts_per_call)) / 2
        return max(2, round(CALLS_OVER_SLOTS * self.batch_size / unanswered))


def allocate(job: Job, cluster: Cluster) -> Resources:
    """Raises ValueError, with what to change, when the job cannot fit."""
    device = job.device if job.device != "auto" else "cuda" if cluster.gpus >= 1 else "cpu"
    fewest, most = job.replica_range
    ranks = job.tensor_parallel
    if device == "cuda" and fewest * ranks > cluster.gpus:
        raise ValueError(
            f"{fewest} replicas of {ranks} GPUs need {fewest * ranks}, the cluster has {cluster.gpus:g}: "
            "give fewer replicas or less tensor_parallel, start more nodes, or use the device cpu"
        )
    if job.cuda_graphs and (device != "cuda" or ranks > 1):
        raise ValueError(
            f"cuda_graphs needs the device cuda and tensor_parallel 1, not {device} and {ranks}: leave cuda_graphs out"
        )
    writers = 1 + most // REPLICAS_PER_WRITER
    others = writers * WRITER_CPUS + SPARE_CPUS
    memory = job.decoder_memory_mb * 2**20
    if device == "cuda":
        replica_cpus = REPLICA_CPUS_CUDA * ranks
        decoders = job.decoders or max(1, int(cluster.cpus - most * replica_cpus - others))
    else:
        decoders = job.decoders or max(1, int(cluster.cpus) // 4)
        # Whole CPUs for each rank: Ray gives a process as many threads as it has CPUs, and the ranks share them.
        replica_cpus = float(ranks * max(1, int((cluster.cpus - decoders - others) / (most * ranks))))
    if not job.decoders:
        decoders = min(decoders, int(cluster.memory_bytes // memory))
    if decoders < 1 or decoders * memory > cluster.memory_bytes:
        raise ValueError(
            f"{max(1, decoders)} decoders of {job.decoder_memory_mb} MB do not fit the memory that Ray has, "
            f"{cluster.memory_bytes // 2**20} MB: give fewer decoders or less decoder_memory_mb"
        )
    cpus = decoders + fewest * replica_cpus + others
    if cpus > cluster.cpus:
        raise ValueError(
            f"{decoders} decoders, {fewest} replicas and what goes with them need {cpus:g} CPUs, the cluster has "
            f"{cluster.cpus:g}: give fewer decoders or replicas, or start more nodes"
        )
    return Resources(
        device=device,
        replicas=(fewest, most),
        replica_cpus=replica_cpus,
        replica_gpus=ranks if device == "cuda" else 0,
        batch_size=job.batch_size or BATCH_SIZE[device],
        decoders=decoders,
        decoder_memory_bytes=memory,
        writers=writers,
    )


def with_memory(job: Job, load: Load, resources: Resources, cluster: Cluster) -> Resources:
    """The resources with what a replica on CPUs takes of memory, with room for one longest prompt and its answer.

    Raises ValueError, with what to change, when it fits no node, or the fewest replicas do not fit beside the decoders.
    """
    if resources.device != "cpu":
        return resources
    dtype, ranks = "float32" if job.dtype == "auto" else job.dtype, job.tensor_parallel
    element = DTYPE_BYTES[dtype]
    weights = ranks * weight_bytes(load.config, element, ranks=ranks)
    cache = load.sequence_tokens * ranks * token_bytes(load.config, 1 if job.kv_cache_dtype else element, ranks=ranks)
    rows = resources.batch_size + DRAFT_TOKENS
    one_pass = ranks * pass_bytes(
        load.config, element, step_tokens=STEP_TOKENS, image_tokens=max(load.image_tokens, STEP_TOKENS), rows=rows
    )
    needed, fewest = weights + cache + one_pass, resources.replicas[0]
    needs = (
        f"{job.model} in {dtype} needs {needed / 1e9:.1f} GB (weights {weights / 1e9:.1f}, a pass {one_pass / 1e9:.1f},"
        f" the key/value cache of one prompt with its answer, {load.sequence_tokens:,} tokens, {cache / 1e9:.1f})"
    )
    if cluster.node_memory_bytes and needed > cluster.node_memory_bytes:
        raise ValueError(f"{needs}, and there are {cluster.node_memory_bytes / 1e9:.1f} GB on a node: {LESS_CACHE}")
    decoding = resources.decoders * resources.decoder_memory_bytes
    if fewest * needed + decoding > cluster.memory_bytes:
        raise ValueError(
            f"{needs}, and {fewest} of it beside {resources.decoders} decoders of {job.decoder_memory_mb} MB do not "
            f"fit {cluster.memory_bytes / 1e9:.1f} GB: give fewer replicas, fewer decoders, less decoder_memory_mb, "
            f"{LESS_CACHE.removeprefix('give ')}"
        )
    return replace(resources, replica_memory_bytes=needed)


def reading_speed(job: Job, resources: Resources) -> tuple[float, str]:
    """Visual tokens that all replicas read each second, and where the figure comes from."""
    replicas = resources.replicas[1]
    each = job.tokens_per_second or ASSUMED_TOKENS_PER_SECOND
    source = "as given" if job.tokens_per_second else f"assumed for {resources.device}: --tokens-per-second says better"
    return each * replicas, f"{replicas} x {each:,.0f}, {source}"
