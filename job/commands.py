"""What the commands do: plan, map, reduce, and run, which is the three of them on one machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import structlog

from job import layout
from job.attempts import AttemptRecord
from job.errors import InterruptedRunError, JobError, TooManyFailuresError, UsageError
from job.pipeline.check import check
from job.pipeline.pipeline import Pipeline, Progress, ShardOutcome
from job.pipeline.runtime import Runtime
from job.plan.arguments import Arguments
from job.plan.plan import Plan, PlanOutcome, load_files, make_plan, read_plan
from job.plan.slice import share
from job.processors import BUILT_IN
from job.processors.load import ProcessorSpec, describe, load
from job.reduce import Reduced, reduce
from job.results.commit import read_record
from job.results.outcomes import ShardTask
from job.settings import Limit, MapSettings
from job.shard_index import find
from job.storage import LocalStorage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What `plan` is told.

    Attributes:
        inputs: Files, folders and globs as given.
        output: OUT.
        shards: Number of shards.
        processor: Its name, or the object itself.
        options: Its options, as text.
        files_from: A file of names, ``-`` for ``stdin``, or None.
        null: Whether those names end in NUL.
        include, exclude: Filters.
        if_absent: Take the plan that is there, if its arguments are these.
        rescan: Whether a plan that is there is compared with what is found now.
        replan: Start over.
        dry_run: Write nothing.
        allow_empty: Whether there may be no file at all.
        stdin: What ``-`` means.
    """

    inputs: tuple[str, ...]
    output: str
    shards: int = 1
    processor: Any = "text"
    options: Mapping[str, str] = field(default_factory=dict)
    files_from: str | None = None
    null: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    if_absent: bool = False
    rescan: bool = True
    replan: bool = False
    dry_run: bool = False
    allow_empty: bool = False
    stdin: BinaryIO | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """How a `map` ended.

    Attributes:
        index: The shard.
        counts: As in its commit record; empty where another attempt published it meanwhile.
        already: Whether it had been finished before.
    """

    index: int
    counts: Mapping[str, Any]
    already: bool


def plan_files(settings: PlanSettings, runtime: Runtime) -> tuple[PlanOutcome, ProcessorSpec]:
    """Freeze the file list, or find it frozen already.

    Raises:
        UsageError: An input is missing, nothing is found, the processor cannot be loaded, or OUT has another
            plan.
        StorageError: A folder cannot be listed, or OUT cannot be written.
    """
    if not settings.inputs and settings.files_from is None:
        raise UsageError("no INPUT: give files, folders, globs, or --files-from")
    if settings.shards < 1:
        raise UsageError(f"--shards {settings.shards}: there must be at least one")
    folder = str(Path.cwd())
    spec = describe(settings.processor, settings.options, folder)
    if spec.name in BUILT_IN:
        load(spec)
    else:
        check(runtime, spec)
    relative = settings.files_from is not None or any(not Path(name).is_absolute() for name in settings.inputs)
    arguments = Arguments(
        inputs=settings.inputs,
        files_from=settings.files_from,
        null=settings.null,
        include=settings.include,
        exclude=settings.exclude,
        base=folder if relative else None,
        shards=settings.shards,
        processor=spec.name,
        processor_sha256=spec.sha256,
        options=spec.options,
    )
    storage = LocalStorage(settings.output)
    if not settings.dry_run:
        storage.prepare()
    outcome = make_plan(
        storage,
        arguments,
        stdin=settings.stdin,
        warn=structlog.get_logger().warning,
        allow_empty=settings.allow_empty,
        if_absent=settings.if_absent,
        replan=settings.replan,
        dry_run=settings.dry_run,
        rescan=settings.rescan,
    )
    runtime.bind(run_id=outcome.plan.run_id)
    structlog.get_logger().info(
        "planned" if outcome.created else "plan found",
        files=outcome.plan.files,
        bytes=outcome.plan.bytes,
        shards=outcome.plan.shards,
        plan_id=outcome.plan.plan_id,
    )
    return outcome, spec


def map_shard(
    output: str,
    shard_index: int | None,
    settings: MapSettings,
    max_failures: Limit | None,
    runtime: Runtime,
    environment: Mapping[str, str],
) -> Mapped:
    """Map one shard of the plan in OUT: what a pod does.

    Raises:
        NotReadyError: There is no plan.
        UsageError: It cannot be told which shard, or the processor cannot be loaded.
        TooManyFailuresError: The shard is published, but ``max_failures`` is passed.
        InterruptedRunError: A signal ended it; what was done is stored.
        StorageError: Storage failed.
    """
    storage = LocalStorage(output)
    plan = read_plan(storage)
    runtime.bind(run_id=plan.run_id)
    shard = find(shard_index, environment, plan.shards)
    log = structlog.get_logger()
    log.info("shard", shard_index=shard.index, shard_count=plan.shards, source=shard.source)
    record = read_record(storage, shard.index, plan.shards)
    if record is not None:
        log.info("shard is finished already", shard_index=shard.index)
        _judge(record.counts, max_failures, output)
        return Mapped(index=shard.index, counts=record.counts, already=True)
    storage.prepare()
    files = load_files(storage, shard.index)
    outcome = _map(storage, plan, _spec(plan), files, [shard.index], settings, runtime)[-1]
    _judge(outcome.counts, max_failures, output)
    return Mapped(index=shard.index, counts=outcome.counts, already=False)


def reduce_shards(
    output: str,
    runtime: Runtime,
    *,
    wait: float = 0.0,
    max_failures: Limit | None = None,
    spec: ProcessorSpec | None = None,
) -> Reduced:
    """Verify the shards in OUT and merge them.

    Raises:
        NotReadyError: There is no plan, or shards are missing.
        DamagedError: A shard is damaged or of another plan.
        UsageError: The processor's ``merge`` cannot be loaded or fails.
        TooManyFailuresError: All is written, but ``max_failures`` is passed.
        StorageError: Storage failed.
    """
    storage = LocalStorage(output)
    plan = read_plan(storage)
    runtime.bind(run_id=plan.run_id, shard_index=None, shard_count=None, attempt=None)
    spec = spec or _spec(plan)
    reduced = reduce(storage, plan, merge=load(spec).merge, wait=wait)
    summary = reduced.summary
    counts = {"files": summary["files"], "failed": summary["failures"]}
    _judge(counts, max_failures or Limit(0), output)
    return reduced


def run_all(
    plan_settings: PlanSettings,
    map_settings: MapSettings,
    runtime: Runtime,
    *,
    max_failures: Limit | None = None,
) -> Reduced:
    """Plan, map every shard that is not finished, and reduce: all on this machine.

    Raises:
        JobError: As `plan_files`, `map_shard` and `reduce_shards`.
    """
    outcome, spec = plan_files(plan_settings, runtime)
    plan = outcome.plan
    storage = LocalStorage(plan_settings.output)
    missing = [shard for shard in range(plan.shards) if read_record(storage, shard, plan.shards) is None]
    if missing:
        files = outcome.table
        if files is None:
            files = load_files(storage, None)
        _map(storage, plan, spec, files, missing, map_settings, runtime)
    return reduce_shards(plan_settings.output, runtime, max_failures=max_failures, spec=spec)


def _map(
    storage: LocalStorage,
    plan: Plan,
    spec: ProcessorSpec,
    files: pa.Table,
    shards: Sequence[int],
    settings: MapSettings,
    runtime: Runtime,
) -> list[ShardOutcome]:
    """Map shards with one set of processes; keep a record of the attempt at each."""
    attempt = layout.new_attempt()
    tasks = _tasks(plan, files, shards, attempt)
    records = {task.shard: AttemptRecord(storage, task) for task in tasks}
    current = tasks[0].shard
    ended: set[int] = set()

    def heartbeat(task: ShardTask, progress: Progress) -> None:
        nonlocal current
        if task.shard != current and current not in ended:
            records[current].end(0, "published")
            ended.add(current)
        current = task.shard
        records[current].update(progress)

    slice_descriptor = share(files, plan.arguments.base)
    try:
        with Pipeline(runtime, settings, spec, slice_descriptor, str(storage.root), heartbeat) as pipeline:
            outcomes = pipeline.map(tasks)
            _raise_if_cut_short(pipeline, settings)
    except JobError as error:
        with contextlib.suppress(JobError):  # the first error is the one to tell
            records[current].end(_exit_code(error), str(error))
        raise
    finally:
        os.close(slice_descriptor)
    for outcome in outcomes:
        if outcome.task.shard not in ended:
            records[outcome.task.shard].end(0, "published")
    return outcomes


def _raise_if_cut_short(pipeline: Pipeline, settings: MapSettings) -> None:
    if pipeline.interrupted_by is not None:
        raise InterruptedRunError(
            pipeline.interrupted_by,
            "ended by a signal; what was done is stored, the same command goes on",
        )
    if pipeline.failed_fast:
        raise TooManyFailuresError(
            f"{settings.fail_fast} files failed (--fail-fast): ended early, nothing is published"
        )


def _exit_code(error: JobError) -> int:
    if isinstance(error, InterruptedRunError):
        return 128 + error.signal_number
    return error.exit_code


def _tasks(plan: Plan, files: pa.Table, shards: Sequence[int], attempt: str) -> list[ShardTask]:
    found = []
    column = files.column("shard").to_numpy()
    first = files.column("file_index")[0].as_py() if files.num_rows else 0
    for shard in shards:
        start, stop = (first + int(column.searchsorted(shard, side)) for side in ("left", "right"))
        found.append(
            ShardTask(
                plan_id=plan.plan_id,
                shard=shard,
                shards=plan.shards,
                start=start,
                stop=stop,
                attempt=attempt,
            )
        )
    return found


def _spec(plan: Plan) -> ProcessorSpec:
    arguments = plan.arguments
    return ProcessorSpec(
        name=arguments.processor,
        sha256=arguments.processor_sha256,
        options=arguments.options,
        pickled=None,
    )


def _judge(counts: Mapping[str, Any], limit: Limit | None, output: str) -> None:
    failed, files = counts.get("failed", 0), counts.get("files", 0)
    if limit is not None and not limit.allows(failed, files):
        raise TooManyFailuresError(
            f"{failed} of {files} files failed, more than --max-failures {limit} allows: "
            f"see {output}/{layout.FAILURES}"
        )
