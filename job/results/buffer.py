"""Outcomes in memory, on their way to a part or to the shard's data files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from job.plan.slice import PlanSlice
from job.results import schemas
from job.results.columns import Layout, convert
from job.results.merge import sort
from job.results.outcomes import Failure, Outcomes, ShardTask


@dataclass(frozen=True, slots=True)
class Piece:
    """The outcomes of some files, each of its tables sorted by ``file_index``.

    Attributes:
        results: ``file_index`` and the stored columns of ``layout``.
        layout: What is in them; None where there is no row.
        failures: As `schemas.FAILURES`.
        files: As `schemas.FILES`.
    """

    results: pa.Table | None
    layout: Layout | None
    failures: pa.Table
    files: pa.Table

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The ``file_index``es covered, as ranges (start, stop)."""
        return ranges_of(self.files.column("file_index").to_numpy())


def ranges_of(indexes: npt.NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Return sorted indexes as ranges (start, stop)."""
    if not len(indexes):
        return ()
    breaks = np.flatnonzero(np.diff(indexes) != 1) + 1
    starts = indexes[np.concatenate(([0], breaks))]
    stops = indexes[np.concatenate((breaks - 1, [len(indexes) - 1]))] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


class Buffer:
    """Outcomes as they arrive; the first outcome of a file counts.

    Attributes:
        files: Number of files whose outcomes it holds.
        bytes: About their size in memory.
    """

    def __init__(self, task: ShardTask, plan: PlanSlice) -> None:
        """Begin empty."""
        self._task = task
        self._plan = plan
        self.clear()

    def clear(self) -> None:
        """Forget all outcomes; they are stored."""
        self.files = 0
        self.bytes = 0
        self._parts: list[tuple[int, Any, Any, Any]] = []
        self._results: list[tuple[pa.Table, Layout]] = []
        self._failures: list[Failure] = []

    def add(self, outcomes: Outcomes, first: npt.NDArray[np.bool_]) -> None:
        """Take outcomes; ``first`` says of each file whether this is its first outcome."""
        indexes = np.frombuffer(outcomes.indexes, np.int64)
        started = np.frombuffer(outcomes.started, np.float64)
        seconds = np.frombuffer(outcomes.seconds, np.float64)
        failures: tuple[Failure, ...] = outcomes.failures
        table = _table(outcomes.results)
        if not first.all():
            kept = set(indexes[first].tolist())
            indexes, started, seconds = indexes[first], started[first], seconds[first]
            failures = tuple(failure for failure in failures if failure.file_index in kept)
            if table is not None:
                mask = np.isin(table.column("file_index").to_numpy(), indexes)
                table = table.filter(pa.array(mask))
        self._parts.append((outcomes.worker, indexes, started, seconds))
        self._failures += failures
        self.files += len(indexes)
        self.bytes += 64 * len(indexes) + sum(_size(failure) for failure in failures)
        if table is not None and table.num_rows:
            self._results.append((table, Layout.of(table.schema)))
            self.bytes += table.nbytes

    def piece(self) -> Piece:
        """Return all outcomes, sorted."""
        layout, results = None, None
        if self._results:
            layout = self._results[0][1]
            for _, other in self._results[1:]:
                layout = layout.join(other)
            results = sort(pa.concat_tables([convert(table, layout) for table, _ in self._results]))
        return Piece(results, layout, self._failure_rows(), self._file_rows(results))

    def _failure_rows(self) -> pa.Table:
        failures = sorted(self._failures, key=lambda failure: failure.file_index)
        indexes = pa.array([failure.file_index for failure in failures], pa.int64())
        columns = {
            "file_index": indexes,
            "path": self._plan.paths(indexes),
            "size": self._plan.sizes(indexes),
            "shard": pa.array([self._task.shard] * len(failures), pa.int32()),
        }
        for name in ("error_type", "message", "traceback"):
            columns[name] = pa.array([_text(getattr(failure, name)) for failure in failures], pa.string())
        columns["attempts"] = pa.array([failure.attempts for failure in failures], pa.int32())
        return pa.table({name: columns[name] for name in schemas.FAILURES.names}).cast(schemas.FAILURES)

    def _file_rows(self, results: pa.Table | None) -> pa.Table:
        def joined(position: int, kind: type) -> npt.NDArray[Any]:
            return np.concatenate([np.empty(0, kind), *(part[position] for part in self._parts)])

        indexes = joined(1, np.int64)
        order = np.argsort(indexes, kind="stable")
        indexes = indexes[order]
        workers = np.concatenate(
            [np.empty(0, np.int32), *(np.full(len(part[1]), part[0]) for part in self._parts)]
        )[order]
        rows = np.zeros(len(indexes), np.int64)
        if results is not None:
            found, counts = np.unique(results.column("file_index").to_numpy(), return_counts=True)
            rows[np.searchsorted(indexes, found)] = counts
        failed = np.zeros(len(indexes), bool)
        positions = [failure.file_index for failure in self._failures]
        failed[np.searchsorted(indexes, np.array(positions, np.int64))] = True
        column = pa.array(indexes)
        microseconds = (joined(2, np.float64)[order] * 1e6).astype(np.int64)
        return pa.table(
            {
                "file_index": column,
                "path": self._plan.paths(column),
                "size": self._plan.sizes(column),
                "status": pc.if_else(pa.array(failed), schemas.FAILED, schemas.OK),
                "rows": rows,
                "started": pa.array(microseconds).cast(pa.timestamp("us", tz="UTC")),
                "seconds": joined(3, np.float64)[order],
                "worker": pa.array(workers.astype(np.int32), mask=workers < 0),
                "attempt": pa.repeat(self._task.attempt, len(indexes)),
                "shard": pa.array(np.full(len(indexes), self._task.shard, np.int32)),
            }
        ).cast(schemas.FILES)


def _table(data: bytes | None) -> pa.Table | None:
    return None if data is None else pa.ipc.open_stream(data).read_all()


def _size(failure: Failure) -> int:
    return 128 + len(failure.message) + len(failure.traceback or "")


def _text(value: str | None) -> str | None:
    """Return text that UTF-8 can hold: a lone surrogate of a file name stands as ``\\udcNN``."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()
