"""What the result process holds of one shard: in memory, in parts, and at last in its data files.

On disk at each instant::

    parts/shard-00003/<attempt>/000001.results.parquet    rows of the files that this part covers
                                000001.failures.parquet   those of them that failed
                                000001.files.parquet      their ledger; written last: with it the part counts
                                prepared.json             the commit record to be: all data files are whole
    results|failures|files/shard-00003-of-00008.<attempt>.parquet
    shards/shard-00003-of-00008.json                      the commit record; with it the shard is finished

Each file appears under its name whole and synced. A part is sorted by ``file_index``; where two parts cover a
file, the first by name counts. A shard whose outcomes fit into memory until its end is written once, as data
files, without a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from job import layout
from job.errors import DamagedError
from job.plan.slice import PlanSlice
from job.results import schemas
from job.results.buffer import Buffer, Piece, ranges_of
from job.results.columns import Layout, convert
from job.results.commit import CommitRecord, DataFile, describe, read_record, verify
from job.results.ledger import Ledger
from job.results.merge import Group, groups_of, merge
from job.results.outcomes import Outcomes, ShardTask
from job.storage import LocalStorage

Ranges = tuple[tuple[int, int], ...]

_NOBODY: Final = -1
_WAITING: Final = -2
_PREPARED: Final = "prepared.json"


@dataclass(frozen=True, slots=True)
class _Part:
    """A stored part: the beginning of its files' names, and what they hold."""

    name: str
    layout: Layout | None
    failures: bool

    def file(self, kind: str) -> str:
        return f"{self.name}.{kind}.parquet"


@dataclass(frozen=True, slots=True)
class _Parts:
    """All parts of a shard: for each file the number of the part that counts, and the parts by number."""

    owner: npt.NDArray[np.int32]
    parts: list[_Part]


class ShardStore:
    """The outcomes of one shard, on the way to its commit record."""

    def __init__(self, storage: LocalStorage, task: ShardTask, plan: PlanSlice, stored: bytes | None) -> None:
        """Begin, or go on for a process that has died.

        Args:
            storage: OUT.
            task: The shard and the attempt.
            plan: The plan's slice.
            stored: For each file 1 where its outcome is stored, as main knows it; None at the start of an
                attempt: then every whole part of the shard is taken over, whoever wrote it.
        """
        self._storage = storage
        self._task = task
        self._plan = plan
        self._log = structlog.get_logger()
        self._buffer = Buffer(task, plan)
        self._folder = layout.parts_folder(task.shard)
        names = self._part_names()
        own = f"{self._folder}/{task.attempt}/"
        self._own_parts = max(
            (int(name.rpartition("/")[2]) for name in names if name.startswith(own)), default=0
        )
        self._record = self._prepared()
        if stored is None:
            self._seen = self._survey(names).owner != _NOBODY
        else:
            self._seen = np.frombuffer(stored, np.uint8).astype(bool)

    @property
    def complete(self) -> bool:
        """Whether all data files are written: only `publish` is left."""
        return self._record is not None

    @property
    def waiting_bytes(self) -> int:
        """About the bytes that are not stored yet."""
        return self._buffer.bytes

    @property
    def waiting_files(self) -> int:
        """Files whose outcomes are not stored yet."""
        return self._buffer.files

    @property
    def stored(self) -> Ranges:
        """The files that were stored when this process began."""
        if self.complete:
            return ((self._task.start, self._task.stop),)
        return ranges_of(np.flatnonzero(self._seen) + self._task.start)

    def add(self, outcomes: Outcomes) -> int:
        """Take outcomes of files; a file's first outcome counts. Return how many were first."""
        indexes = np.frombuffer(outcomes.indexes, np.int64) - self._task.start
        here = (indexes >= 0) & (indexes < len(self._seen))
        first = here.copy()
        first[here] = ~self._seen[indexes[here]]
        if not first.any():
            return 0
        self._seen[indexes[first]] = True
        self._buffer.add(outcomes, first)
        return int(first.sum())

    def checkpoint(self) -> Ranges:
        """Store what is in memory as a part; return the files whose outcomes are durable by it."""
        if not self._buffer.files:
            return ()
        piece = self._buffer.piece()
        self._own_parts += 1
        part = _Part(
            f"{self._folder}/{self._task.attempt}/{self._own_parts:06d}",
            piece.layout,
            failures=piece.failures.num_rows > 0,
        )
        if piece.results is not None:
            self._write(part.file("results"), piece.results.schema, [piece.results])
        if part.failures:
            self._write(part.file("failures"), schemas.FAILURES, [piece.failures])
        self._write(part.file("files"), schemas.FILES, [piece.files])
        self._buffer.clear()
        self._log.debug("part stored", part=part.name, files=piece.files.num_rows)
        return piece.ranges

    def finish(self) -> Ranges:
        """Store what is in memory: as the data files where the shard is whole by it, else as a part.

        Returns:
            The files whose outcomes are durable by it.

        Raises:
            InvariantError: The data files do not hold every file of the shard exactly once.
            DamagedError: A part cannot be read.
            FileNotFoundError: A part has gone: another attempt has published the shard.
        """
        if not self._seen.all():
            return self.checkpoint()
        piece = self._buffer.piece()
        parts = self._survey(self._part_names())
        waiting = piece.files.column("file_index").to_numpy() - self._task.start
        parts.owner[waiting] = _WAITING
        if (parts.owner == _NOBODY).any():
            raise FileNotFoundError(f"parts of shard {self._task.shard} have gone")
        joined = _join([part.layout for part in parts.parts] + [piece.layout])
        data = {
            "results": self._write_results(parts, piece, joined),
            "failures": self._write_data(
                "failures",
                schemas.FAILURES,
                self._groups("failures", parts, piece.failures, lambda part: part.failures),
            ),
        }
        ledger = Ledger(self._task.start, self._task.stop, f"shard {self._task.shard}")
        data["files"] = self._write_data(
            "files",
            schemas.FILES,
            self._groups("files", parts, piece.files, lambda _: True),
            watch=ledger.watch,
        )
        ledger.check(results=data["results"].rows, failures=data["failures"].rows)
        self._record = CommitRecord(
            plan_id=self._task.plan_id,
            shard=self._task.shard,
            shards=self._task.shards,
            attempt=self._task.attempt,
            counts=ledger.counts(),
            data=data,
        )
        self._storage.replace(f"{self._folder}/{self._task.attempt}/{_PREPARED}", self._record.to_json())
        self._buffer.clear()
        return piece.ranges

    def publish(self) -> bool:
        """Create the commit record; say whether this attempt did, or another one before it.

        Who creates it removes the shard's parts; who does not removes its own data files.
        """
        assert self._record is not None  # noqa: S101 - the caller has asked `complete`
        name = layout.commit_record(self._task.shard, self._task.shards)
        created = self._storage.create(name, self._record.to_json())
        if created:
            self._storage.remove_folder(self._folder)
        else:
            withdraw(self._storage, self._task)
        return created

    @property
    def counts(self) -> dict[str, Any]:
        """Counts of the complete shard, as in its commit record."""
        return dict(self._record.counts) if self._record else {}

    def _part_names(self) -> list[str]:
        """Return the names of all parts of the shard, in the order in which they count."""
        return [
            name.removesuffix(".files.parquet")
            for name in self._storage.list(self._folder)
            if name.endswith(".files.parquet") and not name.rpartition("/")[2].startswith(".")
        ]

    def _prepared(self) -> CommitRecord | None:
        """Return the record of data files that are whole, but were not published."""
        for name in self._storage.list(self._folder):
            if not name.endswith(f"/{_PREPARED}"):
                continue
            try:
                record = CommitRecord.from_json(name, self._storage.read(name))
                for file in record.data.values():
                    verify(self._storage, file)
            except (DamagedError, FileNotFoundError) as error:
                self._log.warning("data files without commit record are not whole", error=str(error))
                continue
            if record.plan_id == self._task.plan_id:
                return record
        return None

    def _survey(self, names: list[str]) -> _Parts:
        """Read which files the parts cover; where two cover a file, the first by name counts."""
        found = _Parts(np.full(self._task.stop - self._task.start, _NOBODY, np.int32), [])
        for name in names:
            try:
                part, indexes = self._read_part(name)
            except (DamagedError, FileNotFoundError) as error:
                self._log.warning("part is not whole and is not used", part=name, error=str(error))
                continue
            free = indexes[found.owner[indexes] == _NOBODY]
            found.owner[free] = len(found.parts)
            found.parts.append(part)
        return found

    def _read_part(self, name: str) -> tuple[_Part, npt.NDArray[np.int64]]:
        """Return a part, and the positions of its files in the shard."""
        with (
            schemas.damaged_as(f"{name}.files.parquet"),
            self._storage.source(f"{name}.files.parquet") as source,
        ):
            files = schemas.open_parquet(source).read(["file_index", "status", "rows"])
        found = None
        if pc.sum(files.column("rows")).as_py():
            with (
                schemas.damaged_as(f"{name}.results.parquet"),
                self._storage.source(f"{name}.results.parquet") as source,
            ):
                found = Layout.of(schemas.open_parquet(source).schema_arrow)
        failures = pc.any(pc.equal(files.column("status"), schemas.FAILED)).as_py()
        return (
            _Part(name, found, bool(failures)),
            files.column("file_index").to_numpy() - self._task.start,
        )

    def _write_results(self, parts: _Parts, piece: Piece, joined: Layout) -> DataFile:
        stored = joined.stored_schema()
        schema = stored.insert(1, pa.field("path", pa.string()))
        groups = self._groups(
            "results",
            parts,
            None if piece.results is None else convert(piece.results, joined),
            lambda part: part.layout is not None,
            lambda table: convert(table, joined),
        )

        def with_path(table: pa.Table) -> pa.Table:
            paths = self._plan.paths(table.column("file_index").combine_chunks()).cast(pa.string())
            return table.add_column(1, "path", paths).cast(schema)

        return self._write_data("results", schema, groups, change=with_path)

    def _groups(
        self,
        kind: str,
        parts: _Parts,
        waiting: pa.Table | None,
        has: Callable[[_Part], bool],
        prepare: Callable[[pa.Table], pa.Table] = lambda table: table,
    ) -> list[Group]:
        """Return the sorted groups of one kind of data: those of the parts and the one in memory."""
        found = []
        for number, part in enumerate(parts.parts):
            if not has(part):
                continue
            name = part.file(kind)

            def own(table: pa.Table, number: int = number) -> pa.Table:
                positions = table.column("file_index").to_numpy() - self._task.start
                mask = parts.owner[positions] == number
                return prepare(table if mask.all() else table.filter(pa.array(mask)))

            found += groups_of(self._storage, name, own)
        if waiting is not None and waiting.num_rows:
            found.append(Group(waiting.column("file_index")[0].as_py(), lambda: waiting))
        return found

    def _write_data(
        self,
        kind: str,
        schema: pa.Schema,
        groups: list[Group],
        *,
        change: Callable[[pa.Table], pa.Table] = lambda table: table,
        watch: Callable[[Iterator[pa.Table]], Iterator[pa.Table]] = lambda tables: tables,
    ) -> DataFile:
        name = layout.data_file(kind, self._task.shard, self._task.shards, self._task.attempt)

        rows = self._write(name, schema, map(change, watch(merge(groups))))
        return describe(self._storage, name, rows)

    def _write(self, name: str, schema: pa.Schema, tables: Any) -> int:
        with self._storage.sink(name) as sink:
            return schemas.write_all(sink, schema, tables)


def withdraw(storage: LocalStorage, task: ShardTask) -> None:
    """Remove what an attempt has written of a shard that another one has published."""
    published = read_record(storage, task.shard, task.shards)
    kept = {file.name for file in published.data.values()} if published else set()
    for kind in layout.DATA_KINDS:
        own = layout.data_file(kind, task.shard, task.shards, task.attempt)
        if own not in kept:
            storage.remove(own)
    storage.remove_folder(f"{layout.parts_folder(task.shard)}/{task.attempt}")


def _join(layouts: list[Layout | None]) -> Layout:
    joined: Layout | None = None
    for found in layouts:
        if found is not None:
            joined = found if joined is None else joined.join(found)
    return joined or Layout.empty()
