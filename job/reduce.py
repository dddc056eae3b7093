"""The last step: verify the shards and merge what they hold.

Shards are contiguous slices of the plan, each sorted: one after the other they are the result. They are
streamed, a row group at a time. ``summary.json`` is written last, and says which commit records were used:
while these are the same and its files are there, there is nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import structlog

from job import layout
from job.attempts import last_attempt
from job.errors import DamagedError, NotReadyError, UsageError
from job.plan.plan import Plan
from job.results import schemas
from job.results.columns import Layout, finalise
from job.results.commit import CommitRecord, describe, verify
from job.results.ledger import Ledger
from job.storage import LocalStorage
from job.summary import merged, summarise

POLL: Final = 1.0
"""Seconds between two looks for missing shards."""

_NAMED: Final = 10
"""Missing shards that a message names."""

Merge = Callable[[Iterator[pa.RecordBatch]], Any]


@dataclass(frozen=True, slots=True)
class Reduced:
    """What reduce has made, or found made.

    Attributes:
        summary: The content of ``summary.json``.
        current: Whether it was all there already.
    """

    summary: Mapping[str, Any]
    current: bool


def reduce(storage: LocalStorage, plan: Plan, *, merge: Merge | None, wait: float = 0.0) -> Reduced:
    """Verify every shard of the plan and write the results of the run.

    Args:
        storage: OUT.
        plan: Its plan.
        merge: The processor's ``merge``, if it has one.
        wait: Seconds to wait for missing shards.

    Raises:
        NotReadyError: Shards are missing; it names them.
        DamagedError: A commit record or a data file is damaged, missing, or of another plan.
        UsageError: A missing shard cannot come: its last attempt ended with exit code 2.
        InvariantError: The shards do not hold every file exactly once.
    """
    log = structlog.get_logger()
    records = _wait_for_records(storage, plan, wait)
    used = {name: _sha256(data) for name, (_, data) in records.items()}
    shards = [record for record, _ in records.values()]
    summary = _current(storage, plan, used)
    if summary is not None:
        _remove_leftovers(storage, plan, shards)
        return Reduced(summary, current=True)
    for record in shards:
        for file in record.data.values():
            verify(storage, file)
    storage.remove(layout.SUMMARY_JSON)
    ledger = Ledger(0, plan.files, "the run")
    outputs = {
        layout.RESULT: _write_results(storage, shards),
        layout.FAILURES: _write(storage, layout.FAILURES, schemas.FAILURES, _rows(storage, shards, "failures")),
        layout.FILES: _write(
            storage, layout.FILES, schemas.FILES, ledger.watch(_rows(storage, shards, "files"))
        ),
    }
    ledger.check(results=outputs[layout.RESULT], failures=outputs[layout.FAILURES])
    outputs[layout.SUMMARY] = _write_summary(storage, merge)
    summary = _summary(storage, plan, ledger, outputs, used)
    storage.replace(layout.SUMMARY_JSON, json.dumps(summary, indent=1).encode() + b"\n")
    _remove_leftovers(storage, plan, shards)
    log.info("reduced", files=plan.files, results=ledger.rows, failures=ledger.failed)
    return Reduced(summary, current=False)


def _wait_for_records(storage: LocalStorage, plan: Plan, wait: float) -> dict[str, tuple[CommitRecord, bytes]]:
    deadline = time.monotonic() + wait
    found: dict[str, tuple[CommitRecord, bytes]] = {}
    while True:
        missing = []
        for shard in range(plan.shards):
            name = layout.commit_record(shard, plan.shards)
            if name in found:
                continue
            try:
                found[name] = _read_record(storage, plan, shard, name)
            except FileNotFoundError:
                missing.append(shard)
        if not missing:
            return {name: found[name] for name in sorted(found)}
        if wait:
            _refuse_hopeless(storage, missing)
        if (left := deadline - time.monotonic()) <= 0:
            names = ", ".join(map(str, missing[:_NAMED]))
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise NotReadyError(
                f"{len(missing)} of {plan.shards} shards are missing in {storage.root}: "
                f"{names}{more}; run `job map` for them"
            )
        time.sleep(min(POLL, left))


def _refuse_hopeless(storage: LocalStorage, missing: list[int]) -> None:
    for shard in missing:
        attempt = last_attempt(storage, shard)
        if attempt and attempt.get("exit_code") == UsageError.exit_code:
            raise UsageError(f"shard {shard} cannot come: its last attempt said: {attempt['message']}")


def _read_record(storage: LocalStorage, plan: Plan, shard: int, name: str) -> tuple[CommitRecord, bytes]:
    data = storage.read(name)
    record = CommitRecord.from_json(str(storage.path(name)), data)
    if record.plan_id != plan.plan_id or record.shard != shard or record.shards != plan.shards:
        raise DamagedError(
            f"{storage.path(name)} is of another plan than {storage.path(layout.PLAN)}: "
            "map the shard again, or plan anew with --replan"
        )
    return record, data


def _current(storage: LocalStorage, plan: Plan, used: Mapping[str, str]) -> dict[str, Any] | None:
    """Return ``summary.json`` if it is of these commit records and its files are there."""
    try:
        summary: dict[str, Any] = json.loads(storage.read(layout.SUMMARY_JSON))
        same = summary["plan_id"] == plan.plan_id and summary["commit_records"] == dict(used)
        for name, file in summary["outputs"].items():
            same = same and storage.size(name) == file["size"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return summary if same else None


def _rows(
    storage: LocalStorage,
    shards: list[CommitRecord],
    kind: str,
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
) -> Iterator[pa.Table]:
    for record in shards:
        name = record.data[kind].name
        with storage.source(name) as source:
            with schemas.damaged_as(str(storage.path(name))):
                file = schemas.open_parquet(source)
            for number in range(file.num_row_groups):
                with schemas.damaged_as(str(storage.path(name))):
                    table = file.read_row_group(number)
                yield change(table)


def _write(storage: LocalStorage, name: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
    with storage.sink(name) as sink:
        return schemas.write_all(sink, schema, tables)


def _write_results(storage: LocalStorage, shards: list[CommitRecord]) -> int:
    """Write ``result.parquet``: the types of its columns are those that hold all rows of all shards."""
    joined: Layout | None = None
    for record in shards:
        name = record.data["results"].name
        with schemas.damaged_as(str(storage.path(name))), storage.source(name) as source:
            found = Layout.of(schemas.open_parquet(source).schema_arrow)
        joined = found if joined is None else joined.join(found)
    final = joined or Layout.empty()
    schema = final.final_schema().insert(1, pa.field("path", pa.string()))

    def finish(table: pa.Table) -> pa.Table:
        path = table.column("path")
        rows = finalise(table.drop_columns(["path"]), final)
        return rows.add_column(1, "path", path).cast(schema)

    return _write(storage, layout.RESULT, schema, _rows(storage, shards, "results", finish))


def _write_summary(storage: LocalStorage, merge: Merge | None) -> int:
    with storage.source(layout.RESULT) as source:
        file = schemas.open_parquet(source)
        table = merged(merge, file) if merge else summarise(file)
    return _write(storage, layout.SUMMARY, table.schema, iter([table]))


def _summary(
    storage: LocalStorage,
    plan: Plan,
    ledger: Ledger,
    outputs: Mapping[str, int],
    used: Mapping[str, str],
) -> dict[str, Any]:
    counts = ledger.counts()
    described = {name: describe(storage, name, rows) for name, rows in outputs.items()}
    return {
        "plan_id": plan.plan_id,
        "run_id": plan.run_id,
        "processor": plan.arguments.processor,
        "options": dict(plan.arguments.options),
        "shards": plan.shards,
        "files": counts["files"],
        "ok": counts["ok"],
        "results": counts["rows"],
        "failures": counts["failed"],
        "bytes": counts["bytes"],
        "seconds": counts["seconds"],
        "planned": plan.created,
        "reduced": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "versions": dict(plan.versions),
        "outputs": {
            name: {"size": file.size, "rows": file.rows, "checksum": file.checksum}
            for name, file in described.items()
        },
        "commit_records": dict(used),
    }


def _remove_leftovers(storage: LocalStorage, plan: Plan, shards: list[CommitRecord]) -> None:
    """Remove what attempts have left that did not publish: parts, and data files nobody names."""
    named = {file.name for record in shards for file in record.data.values()}
    for kind in layout.DATA_KINDS:
        for name in storage.list(kind):
            if name not in named:
                storage.remove(name)
    for shard in range(plan.shards):
        storage.remove_folder(layout.parts_folder(shard))
    storage.remove_folder("parts")


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
