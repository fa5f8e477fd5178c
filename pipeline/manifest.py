"""What a finished job says about itself: OUTPUT/_job.json, written after every table, and OUTPUT/_SUCCESS last."""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from pipeline.books import FrozenSurvey
from pipeline.job import CHECKOUT, SCHEMA_VERSION, Job, config_hash, redacted
from pipeline.rows import ReplicaLoad
from pipeline.store import Store, join

READING_THREADS = 8  # each holds one file of a table


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file of a table, relative to the output."""

    file: str
    rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows of a table have each status, and each error code."""

    by_status: Mapping[str, int]
    by_error: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_status.values())


@dataclass(frozen=True, slots=True)
class ClosedShard:
    """What one shard brought to the tables, counted in the files as they were written."""

    tables: tuple[TableFile, ...]
    assets: Counts
    pieces: Counts
    found: int  # blocks or events
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Manifest:
    schema_version: int
    survey: str  # the one that was closed; a retry has another
    config_hash: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    assets: Counts
    pieces: Counts
    found: int  # blocks or events
    tokens_in: int
    tokens_out: int
    wall_seconds: float  # of the run that finished the job
    occupancy: float  # mean share of the engines' batches in use during that run; 0 when it read nothing
    tables: tuple[TableFile, ...]
    engine_seconds: float = 0.0  # that the engines of all replicas were in steps during that run

    @property
    def failure_rate(self) -> float:
        """Share of the inputs that failed altogether."""
        return self.assets.by_status.get("failed", 0) / max(1, self.assets.total)


def make_manifest(
    job: Job,
    settings: dict[str, str],
    survey: FrozenSurvey,
    shards: Sequence[ClosedShard],
    loads: Sequence[ReplicaLoad],
    *,
    wall_seconds: float,
) -> Manifest:
    """The sums over the shards, and the mean occupancy over the engines' steps."""
    steps = sum(load.steps for load in loads)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        survey=survey.folder,
        config_hash=config_hash(settings),
        config=settings | redacted(job),
        versions=versions(),
        assets=_sum_counts([shard.assets for shard in shards]),
        pieces=_sum_counts([shard.pieces for shard in shards]),
        found=sum(shard.found for shard in shards),
        tokens_in=sum(shard.tokens_in for shard in shards),
        tokens_out=sum(shard.tokens_out for shard in shards),
        wall_seconds=wall_seconds,
        occupancy=sum(load.occupancy * load.steps for load in loads) / steps if steps else 0.0,
        tables=tuple(sorted((table for shard in shards for table in shard.tables), key=lambda table: table.file)),
        engine_seconds=sum(load.seconds for load in loads),
    )


def write_manifest(store: Store, output: str, manifest: Manifest) -> None:
    """Marks the job as done: whoever sees _SUCCESS can read everything the manifest lists."""
    store.put(join(output, "_job.json"), json.dumps(asdict(manifest), indent=2, ensure_ascii=False).encode())
    store.put(join(output, "_SUCCESS"), b"")


def reopen(store: Store, output: str) -> None:
    """Takes the mark away, before tables are written that the manifest does not know."""
    store.delete(join(output, "_SUCCESS"))


def finished_manifest(store: Store, output: str, survey: FrozenSurvey | None) -> Manifest | None:
    """The manifest of a job that is done with this survey, or None when it is not."""
    manifest = read_manifest(store, output) if store.exists(join(output, "_SUCCESS")) else None
    return manifest if manifest and survey and manifest.survey == survey.folder else None


def read_manifest(store: Store, output: str) -> Manifest | None:
    """The manifest written last, or None before the first. A retry may have begun since."""
    if not store.exists(join(output, "_job.json")):
        return None
    fields = json.loads(store.read(join(output, "_job.json")))
    counted = {name: Counts(**fields[name]) for name in ("assets", "pieces")}
    return Manifest(**fields | counted | {"tables": tuple(TableFile(**file) for file in fields["tables"])})


def damaged_files(store: Store, output: str, manifest: Manifest) -> list[str]:
    """The files of tables that are gone, or hold other bytes than were written. Reads all of them."""

    def is_whole(table: TableFile) -> bool:
        try:
            return hashlib.sha256(store.read(join(output, table.file))).hexdigest() == table.sha256
        except OSError:
            return False

    with ThreadPoolExecutor(READING_THREADS) as threads:
        whole = list(threads.map(is_whole, manifest.tables))
    return [table.file for table, fine in zip(manifest.tables, whole, strict=True) if not fine]


def versions() -> dict[str, str]:
    """Of what the rows were made with."""
    own = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    names = ("torch", "transformers", "ray", "pyarrow", "pypdfium2", "pillow", "av")
    return {"pagereel": own} | {name: version(name) for name in names}


def _sum_counts(counts: Sequence[Counts]) -> Counts:
    by_status, by_error = Counter[str](), Counter[str]()
    for count in counts:
        by_status.update(count.by_status)
        by_error.update(count.by_error)
    return Counts(dict(sorted(by_status.items())), dict(sorted(by_error.items())))
