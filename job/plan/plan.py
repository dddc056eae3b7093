"""The plan on disk: ``plan.parquet``, made once, never changed."""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job import layout
from job.errors import DamagedError, NotReadyError, UsageError
from job.plan.arguments import Arguments
from job.plan.cut import cut
from job.plan.scan import Warn, scan
from job.results.schemas import damaged_as
from job.storage import LocalStorage

SCHEMA: Final = pa.schema(
    [
        ("file_index", pa.int64()),
        ("path", pa.string()),
        ("path_raw", pa.binary()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("ns", tz="UTC")),
        ("etag", pa.string()),
        ("shard", pa.int32()),
    ]
)

GROUP_ROWS: Final = 10_000
"""Files in a row group: a pod reads at most two groups beyond its slice, well below 2 MB."""

_METADATA: Final = b"job"
_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the plan's file says of itself.

    Attributes:
        plan_id: SHA-256 of the list and the arguments: equal plans have equal ids.
        run_id: Random; names the run in the logs.
        files: Number of files.
        bytes: Sum of their sizes.
        created: When it was made (ISO 8601, UTC).
        versions: Of job, python and pyarrow.
        arguments: All that was frozen.
    """

    plan_id: str
    run_id: str
    files: int
    bytes: int
    created: str
    versions: Mapping[str, str]
    arguments: Arguments

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.arguments.shards


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """What came of planning.

    Attributes:
        plan: The plan that is (or, in a dry run, would be) in OUT.
        created: Whether it is new.
        table: Its files (`SCHEMA`), where they were scanned.
    """

    plan: Plan
    created: bool
    table: pa.Table | None


def read_plan(storage: LocalStorage) -> Plan:
    """Return the plan in OUT; only the file's end is read.

    Raises:
        NotReadyError: There is none.
        DamagedError: It is damaged.
    """
    name = str(storage.path(layout.PLAN))
    try:
        with damaged_as(name), storage.source(layout.PLAN) as source:
            metadata = pq.read_metadata(source)
            fields = json.loads((metadata.metadata or {})[_METADATA])
            fields["arguments"] = Arguments.from_json(fields["arguments"])
            plan = Plan(**fields)
    except FileNotFoundError:
        raise NotReadyError(f"there is no plan in {storage.root} yet: run `job plan` first") from None
    except TypeError as error:
        raise DamagedError(f"{name} is damaged: {error}") from error
    if metadata.num_rows != plan.files:
        raise DamagedError(f"{name} is damaged: {metadata.num_rows} files, not {plan.files}")
    return plan


def load_files(storage: LocalStorage, shard: int | None) -> pa.Table:
    """Return the files (`SCHEMA`) of a shard, or of all: only the row groups that hold them are read.

    Raises:
        DamagedError: The plan's file is damaged.
    """
    name = str(storage.path(layout.PLAN))
    with damaged_as(name), storage.source(layout.PLAN) as source:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        groups = [number for number in range(file.num_row_groups) if _holds(file.metadata, number, shard)]
        table = file.read_row_groups(groups, columns=SCHEMA.names).cast(SCHEMA)
    if shard is not None:
        table = table.filter(pc.equal(table.column("shard"), shard))
    indexes = table.column("file_index").to_numpy()
    if len(indexes) and not np.array_equal(indexes, np.arange(indexes[0], indexes[0] + len(indexes))):
        raise DamagedError(f"{name} is damaged: its files are not in order")
    return table


def _holds(metadata: pq.FileMetaData, group: int, shard: int | None) -> bool:
    if shard is None:
        return True
    statistics = metadata.row_group(group).column(SCHEMA.names.index("shard")).statistics
    return statistics is None or bool(statistics.min <= shard <= statistics.max)


def make_plan(
    storage: LocalStorage,
    arguments: Arguments,
    *,
    stdin: BinaryIO | None,
    warn: Warn,
    allow_empty: bool = False,
    if_absent: bool = False,
    replan: bool = False,
    dry_run: bool = False,
    rescan: bool = True,
) -> PlanOutcome:
    """Plan, or find that it was done.

    Args:
        storage: OUT.
        arguments: What is to be frozen.
        stdin: Names of inputs, where they come from there.
        warn: Called for what is left out.
        allow_empty: Whether there may be no file.
        if_absent: Take a plan of the same arguments as it is.
        replan: Remove an earlier run first.
        dry_run: Write nothing.
        rescan: Whether a plan of the same arguments is compared with what is found now; `run` goes on
            without.

    Raises:
        UsageError: Nothing is found, or OUT has another plan.
        StorageError: Storage failed.
    """
    there = None if replan or dry_run else _there(storage)
    if there is not None:
        _same_arguments(there, arguments, storage)
        if if_absent or not rescan:
            return PlanOutcome(there, created=False, table=None)
    table = _files(scan(arguments, str(storage.root), stdin, warn), arguments.shards)
    if not table.num_rows and not allow_empty:
        raise UsageError(f"no file found in {_inputs(arguments)}; --allow-empty takes that as a run")
    plan = _plan(table, arguments)
    if dry_run:
        return PlanOutcome(plan, created=True, table=table)
    if there is None:
        if replan:
            _remove_run(storage)
        if storage.create(layout.PLAN, _serialise(plan, table)):
            return PlanOutcome(plan, created=True, table=table)
        there = read_plan(storage)  # another planner was faster
        _same_arguments(there, arguments, storage)
    if there.plan_id != plan.plan_id:
        raise UsageError(_other_list(storage, there, table))
    return PlanOutcome(there, created=False, table=table)


def _there(storage: LocalStorage) -> Plan | None:
    try:
        return read_plan(storage)
    except NotReadyError:
        return None


def _same_arguments(there: Plan, arguments: Arguments, storage: LocalStorage) -> None:
    if differences := there.arguments.differences(arguments):
        raise UsageError(
            f"{storage.root} holds another run ({'; '.join(differences)}): "
            "take another --output, or start over with --replan"
        )


def _inputs(arguments: Arguments) -> str:
    names = [os_text(name) for name in arguments.inputs]
    if arguments.files_from:
        names.append(f"the list {arguments.files_from}")
    return ", ".join(names[:_NAMED])


def os_text(name: str) -> str:
    """Return a name for people; undecodable bytes stand as ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _files(found: pa.Table, shards: int) -> pa.Table:
    """Return what was scanned with ``file_index`` and ``shard``."""
    indexes = pa.array(np.arange(found.num_rows, dtype=np.int64))
    return pa.table([indexes, *found.columns, cut(found.column("size"), shards)], schema=SCHEMA)


def _plan(table: pa.Table, arguments: Arguments) -> Plan:
    digest = hashlib.sha256(json.dumps(arguments.to_json(), sort_keys=True).encode())
    for batch in table.to_batches(max_chunksize=GROUP_ROWS):
        for column in batch.columns:
            digest.update(_bytes_of(column))
    return Plan(
        plan_id=digest.hexdigest(),
        run_id=uuid.uuid4().hex,
        files=table.num_rows,
        bytes=pc.sum(table.column("size")).as_py() or 0,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        versions={
            "job": version("job"),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
        },
        arguments=arguments,
    )


def _bytes_of(column: pa.Array) -> bytes:
    """Return bytes that are equal for equal columns, wherever these came from."""
    if pa.types.is_binary(column.type) or pa.types.is_string(column.type):
        lengths = pc.binary_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
        joined = b"".join(
            value.encode() if isinstance(value, str) else value for value in column.drop_null().to_pylist()
        )
        return bytes(lengths.astype(np.int32).tobytes() + joined)
    return bytes(column.cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())


def _serialise(plan: Plan, table: pa.Table) -> bytes:
    fields = asdict(plan) | {"arguments": plan.arguments.to_json()}
    schema = SCHEMA.with_metadata({_METADATA: json.dumps(fields)})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=["shard"],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table.cast(schema), row_group_size=GROUP_ROWS)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _other_list(storage: LocalStorage, there: Plan, found: pa.Table) -> str:
    """Return in words how the list that was found differs from the plan's."""
    planned = load_files(storage, None)
    keys = ("size", "modified", "etag")
    before, after = (
        dict(zip(table.column("path").to_pylist(), table.select(keys).to_pylist(), strict=True))
        for table in (planned, found)
    )
    changes = [f"added {path}" for path in after if path not in before]
    changes += [f"removed {path}" for path in before if path not in after]
    changes += [f"changed {path}" for path in after if path in before and before[path] != after[path]]
    more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    return (
        f"the files are not those of the plan in {storage.root}: {', '.join(changes[:_NAMED])}{more}; "
        "`job map` goes on with the plan as it is, --replan starts over"
    )


def _remove_run(storage: LocalStorage) -> None:
    """Remove an earlier run: first what makes its shards count, the plan last."""
    for folder in layout.FOLDERS:
        storage.remove_folder(folder)
    for name in (
        layout.SUMMARY_JSON,
        layout.SUMMARY,
        layout.RESULT,
        layout.FAILURES,
        layout.FILES,
        layout.PLAN,
    ):
        storage.remove(name)
