"""What is said at the end of a job: its counts, which inputs failed and why, and commands that show its tables."""

import shlex
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.kinds import Kind
from pipeline.manifest import Counts, Manifest
from pipeline.progress import MOST_NAMED, duration
from pipeline.store import Store, StoreOptions, join

_SHOWN = ("filename", "status", "error_code", "pages_total", "pages_ok", "windows_total", "events")
_WHY = ("filename", "error_code", "error_message")


@dataclass(frozen=True, slots=True)
class FailedInput:
    filename: str
    code: str
    message: str


def failed_inputs(store: Store, output: str, manifest: Manifest, kind: Kind) -> list[FailedInput]:
    """The first of the inputs that failed altogether, in the order of the listing."""
    found: list[FailedInput] = []
    files = [table.file for table in manifest.tables if table.file.startswith(f"{kind.assets}/")]
    for name in files if manifest.assets.by_status.get("failed") else ():
        table = pq.read_table(pa.BufferReader(store.read(join(output, name))), columns=[*_WHY, "status"])
        rows = table.filter(pc.equal(table["status"], "failed")).slice(0, MOST_NAMED).to_pylist()
        found += [FailedInput(*(row[column] for column in _WHY)) for row in rows]
        if len(found) >= MOST_NAMED:
            break
    return found[:MOST_NAMED]


def summary_text(manifest: Manifest, kind: Kind, output: str, options: StoreOptions) -> str:
    """The counts of the tables, the first inputs that failed, and how to look at all of them."""
    lines = [
        f"{kind.assets:<10} {_counts(manifest.assets)}",
        f"{kind.pieces:<10} {_counts(manifest.pieces)}",
        f"{kind.found:<10} {manifest.found:,}",
        f"tokens     {manifest.tokens_in:,} in, {manifest.tokens_out:,} out",
        f"time       {duration(manifest.wall_seconds)}",
    ]
    if manifest.occupancy:
        share = f"{100 * manifest.occupancy:.0f} %"
        lines.append(
            f"load       the model read {share} as many {kind.pieces} at once as it could have, on the average"
        )
    lines.append(f"output     {output}")
    if failed := failed_inputs(Store(options), output, manifest, kind):
        lines.append("failed")
        lines += [f"  {each.filename}: {each.code}: {each.message}" for each in failed]
        more = manifest.assets.by_status["failed"] - len(failed)
        lines += [f"  and {more:,} more"] if more else []
        lines += ["all that failed", "  " + show_command(kind, options, output, _WHY, only_failed=True)]
    columns = tuple(name for name in _SHOWN if name in kind.schemas[kind.assets].names)
    return "\n".join([*lines, "look at it with", "  " + show_command(kind, options, output, columns)])


def show_command(
    kind: Kind, options: StoreOptions, output: str, columns: tuple[str, ...], *, only_failed: bool = False
) -> str:
    """A line for the shell that prints columns of the table of inputs, wherever it lies."""
    place, imports, where = f"{output}/{kind.assets}", "import pyarrow.parquet as pq", ""
    if output.startswith("s3://"):
        settings = {"endpoint_override": options.endpoint_url, "region": options.region}
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items() if value)
        place, where = place.removeprefix("s3://"), f", filesystem=fs.S3FileSystem({given})"
        imports += ", pyarrow.fs as fs"
    chosen = f", columns={list(columns)}" + (", filters=[('status', '=', 'failed')]" if only_failed else "")
    code = f"{imports}; print(pq.read_table({place!r}{chosen}{where}).to_pandas().to_string())"
    profile = f"AWS_PROFILE={shlex.quote(options.profile)} " if options.profile else ""
    in_double_quotes = not set(code) & set('"$`\\!')  # else what a shell makes of it would have to be kept away
    return f"{profile}python -c " + (f'"{code}"' if in_double_quotes else shlex.quote(code))


def _counts(counts: Counts) -> str:
    """`25: ok 18, partial 1, failed 6 (encrypted 2, ...)`"""
    by_status = ", ".join(f"{status} {count:,}" for status, count in counts.by_status.items())
    detail = ", ".join(f"{code} {count:,}" for code, count in counts.by_error.items())
    return f"{counts.total:,}" + (f": {by_status}" if by_status else "") + (f" ({detail})" if detail else "")
