"""The books of a job: what was planned, who is writing, which rows count.

Everything rests on files, nothing on memory:

OUTPUT/_job/job.json                       what this folder is for; written once
OUTPUT/_job/survey.json                    names the frozen survey; written once, after its shards
OUTPUT/_job/survey-000001.json             names the one that took its place when what had failed was retried
OUTPUT/_job/survey/<epoch>/assets-00000.parquet, units-00000.parquet
OUTPUT/_job/epochs/000003.claim            this epoch belongs to one driver
OUTPUT/_job/epochs/000003.sealed.parquet   the parts that count of that epoch; written once, by whoever comes first
OUTPUT/_job/parts/000003/<id>.parquet      rows of some units; each put is its own commit
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.records import Asset, stable_id
from pipeline.store import Store, join
from pipeline.tables import to_parquet

SEALED = pa.schema([pa.field("part", pa.string(), False), pa.field("unit_id", pa.string(), False)])
SEALING_THREADS = 32


@dataclass(frozen=True, slots=True)
class FrozenSurvey:
    """Where the survey lies and what it found."""

    number: int  # 0, and one more for each retry of what failed
    folder: str  # below _job
    shards: int
    assets: int
    failed: Mapping[str, int]  # assets that could not be opened, by error code
    pages: int  # of the others
    units: int
    unit_pages: int  # pages that go to the model, `pages` less those the job did not ask for
    unit_tokens: int  # visual tokens, estimated


def count_survey(shards: Iterable[tuple[pa.Table, pa.Table]], *, number: int = 0, folder: str = "") -> FrozenSurvey:
    """What (assets, units), shard after shard, come to; `folder` is "" where they are not written."""
    counts, failed = Counter[str](shards=0, assets=0, pages=0, units=0, unit_pages=0, unit_tokens=0), Counter[str]()
    for assets, units in shards:
        counts["shards"] += 1
        counts["assets"] += len(assets)
        counts["pages"] += _sum(assets["pages"])
        counts["units"] += len(units)
        first_tries = units.filter(pc.equal(units["tries"], 0))  # a retried page is still one page
        counts["unit_pages"] += _sum(pc.subtract(first_tries["last"], first_tries["first"])) + len(first_tries)
        counts["unit_tokens"] += _sum(first_tries["tokens"])
        failed.update(code for code in assets["error_code"].to_pylist() if code)
    return FrozenSurvey(number=number, folder=folder, failed=dict(failed), **counts)


class Books:
    """The books of the job whose output is `output`."""

    def __init__(self, store: Store, output: str) -> None:
        self.store = store
        self.output = output

    def open(self, record: dict[str, str]) -> None:
        """Writes job.json, or checks that this folder was begun with the same `record`. Raises ValueError."""
        if not self.store.put_if_absent(
            self._uri("job.json"), json.dumps(record, indent=2, ensure_ascii=False).encode()
        ):
            self.check(record)

    def check(self, record: dict[str, str]) -> None:
        """Whether this folder is new, or was begun with the same `record`. Writes nothing.

        Raises ValueError that names the fields which differ.
        """
        begun = self.record()
        if not begun:
            return
        names = sorted((begun.keys() | record.keys()) - {"config_hash"})  # which says nothing the others do not say
        differing = [name for name in names if begun.get(name) != record.get(name)]
        if differing:
            changes = "; ".join(
                f"{name}: {_short(begun.get(name))} -> {_short(record.get(name))}" for name in differing
            )
            raise ValueError(
                f"{self.output} was begun with other settings ({changes}): use the same, or another OUTPUT"
            )

    def record(self) -> dict[str, str]:
        """What `open` wrote: what this folder is for. Empty when there is nothing yet."""
        uri = self._uri("job.json")
        return json.loads(self.store.read(uri)) if self.store.exists(uri) else {}

    def claim_epoch(self) -> int:
        """A new epoch that no other driver has, with all earlier ones sealed."""
        newest = self.newest_epoch()
        epoch = 0 if newest is None else newest + 1
        while not self.store.put_if_absent(self._claim_uri(epoch), b"{}"):
            epoch += 1
        for earlier in range(epoch):
            self._seal(earlier)
        return epoch

    def newest_epoch(self) -> int | None:
        """The epoch claimed last, or None before the first."""
        return max(self._epochs(), default=None)

    def is_superseded(self, epoch: int) -> bool:
        """Whether another driver has claimed a later epoch: what is written to this one from now on may not count."""
        return self.store.exists(self._claim_uri(epoch + 1))

    def part_uri(self, epoch: int, unit_ids: Iterable[str]) -> str:
        """Where the rows of these units go: the same units always to the same place."""
        return self._uri("parts", _name(epoch), stable_id(*sorted(unit_ids)) + ".parquet")

    def sealed(self, epoch: int) -> pa.Table:
        """(part, unit_id) of everything that counts from the epochs before `epoch`; each unit once."""
        seals = [self._read_table(self._seal_uri(earlier)) for earlier in range(epoch)]
        table = pa.concat_tables([SEALED.empty_table(), *seals])
        _, first = np.unique(table["unit_id"].to_numpy(), return_index=True)
        return table.take(np.sort(first))

    def freeze_survey(
        self, epoch: int, shards: Iterable[tuple[pa.Table, pa.Table]], *, number: int = 0
    ) -> FrozenSurvey:
        """Writes (assets, units) shard after shard, then the mark that makes them the survey of this job.

        `number` 1 takes the place of survey 0, and so on. When another driver was first, its survey is the one that
        counts and is returned.
        """
        folder = f"survey/{_name(epoch)}"
        counted = count_survey(self._written(folder, shards), number=number, folder=folder)
        self.store.put_if_absent(self._mark_uri(number), json.dumps(asdict(counted), indent=2).encode())
        frozen = self.survey()
        assert frozen is not None
        return frozen

    def _written(self, folder: str, shards: Iterable[tuple[pa.Table, pa.Table]]) -> Iterator[tuple[pa.Table, pa.Table]]:
        for number, (assets, units) in enumerate(shards):
            self.store.put(self._shard_uri(folder, "assets", number), to_parquet(assets))
            self.store.put(self._shard_uri(folder, "units", number), to_parquet(units))
            yield assets, units

    def survey(self) -> FrozenSurvey | None:
        """The frozen survey that counts, or None when there is none yet."""
        return max(self.surveys(), key=lambda survey: survey.number, default=None)

    def surveys(self) -> Iterator[FrozenSurvey]:
        """All that were frozen, the first one first."""
        number = 0
        while self.store.exists(self._mark_uri(number)):
            yield FrozenSurvey(**json.loads(self.store.read(self._mark_uri(number))))
            number += 1

    def survey_assets(self, survey: FrozenSurvey, shard: int) -> pa.Table:
        return self._read_table(self._shard_uri(survey.folder, "assets", shard))

    def survey_units(self, survey: FrozenSurvey, shard: int) -> pa.Table:
        return self._read_table(self._shard_uri(survey.folder, "units", shard))

    def all_units(self, survey: FrozenSurvey) -> pa.Table:
        """Those of every shard, in order."""
        return pa.concat_tables(self.survey_units(survey, shard) for shard in range(survey.shards))

    def parts(self, epoch: int) -> list[str]:
        """The parts that lie in an epoch now, whether they will count or not."""
        folder = self._uri("parts", _name(epoch))
        return [f"{_name(epoch)}/{part.uri.rsplit('/', 1)[-1]}" for part in self.store.list(folder)]

    def read_part(self, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part that `sealed` or `parts` named, or only some columns of them."""
        return self._read_table(self._uri("parts", part), columns)

    def _epochs(self) -> Iterator[int]:
        for asset in self.store.list(self._uri("epochs")):
            name = asset.uri.rsplit("/", 1)[-1]
            if name.endswith(".claim"):
                yield int(name.removesuffix(".claim"))

    def _seal(self, epoch: int) -> None:
        """Freezes the list of parts of `epoch`; the first list written stays."""
        if self.store.exists(self._seal_uri(epoch)):
            return
        parts = sorted(self.store.list(self._uri("parts", _name(epoch))), key=lambda asset: asset.uri)
        with ThreadPoolExecutor(SEALING_THREADS) as threads:
            unit_ids = list(threads.map(self._unit_ids, parts))
        rows = [
            {"part": f"{_name(epoch)}/{part.uri.rsplit('/', 1)[-1]}", "unit_id": unit_id}
            for part, ids in zip(parts, unit_ids, strict=True)
            for unit_id in ids
        ]
        self.store.put_if_absent(self._seal_uri(epoch), to_parquet(pa.Table.from_pylist(rows, schema=SEALED)))

    def _unit_ids(self, part: Asset) -> list[str]:
        with self.store.open(part) as file:
            return pq.read_table(file, columns=["unit_id"])["unit_id"].unique().to_pylist()

    def _read_table(self, uri: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Raises OSError also when the bytes are not those that were written."""
        data = pa.BufferReader(self.store.read(uri))
        return pq.read_table(data, columns=columns, page_checksum_verification=True)

    def _claim_uri(self, epoch: int) -> str:
        return self._uri("epochs", f"{_name(epoch)}.claim")

    def _seal_uri(self, epoch: int) -> str:
        return self._uri("epochs", f"{_name(epoch)}.sealed.parquet")

    def _mark_uri(self, number: int) -> str:
        return self._uri(f"survey-{number:06d}.json" if number else "survey.json")

    def _shard_uri(self, folder: str, table: str, shard: int) -> str:
        return self._uri(folder, f"{table}-{shard:05d}.parquet")

    def _uri(self, *names: str) -> str:
        return join(self.output, "_job", *names)


def _name(epoch: int) -> str:
    return f"{epoch:06d}"


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0  # None of an empty column


def _short(value: str | None) -> str:
    return "not set" if value is None else value if len(value) <= 60 else value[:57] + "..."
