"""The plan's slice that this run works on, in memory that all its processes map.

Main loads it once and writes it to an anonymous file (``memfd``); a worker maps it, so that a job is two
integers and a million files stand in memory once. It is no shared memory in ``/dev/shm``, which has 64 MiB in
a container.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from job.file import File


@dataclass(frozen=True, slots=True)
class Planned:
    """A file of the plan, and how it stood then.

    Attributes:
        index: Its ``file_index``.
        shard: The shard that it belongs to.
        file: What the processor gets.
        modified: Nanoseconds since 1970.
    """

    index: int
    shard: int
    file: File
    modified: int

    def change(self) -> str | None:
        """Say how the file differs from the plan now, or None if it does not."""
        try:
            found = os.stat(self.file.location)  # noqa: PTH116 - Path costs 2 µs a file
        except OSError as error:
            return f"it was there when the run was planned: {error.strerror}"
        if found.st_size != self.file.size:
            return f"it had {self.file.size} bytes when the run was planned, now {found.st_size}"
        if found.st_mtime_ns != self.modified:
            return "it was modified after the run was planned"
        return None


def share(files: pa.Table, base: str | None) -> int:
    """Write rows of the plan to an anonymous file and return its descriptor.

    Args:
        files: ``file_index, path, path_raw, size, modified, shard`` of consecutive files.
        base: The absolute folder that relative paths start from.
    """
    wide = pa.schema(
        [
            ("path", pa.large_string()),  # 2 GiB of names are some 20 million files
            ("path_raw", pa.large_binary()),
            ("size", pa.int64()),
            ("modified", pa.timestamp("ns", tz="UTC")),
            ("shard", pa.int32()),
        ],
        metadata={
            "first": str(files["file_index"][0].as_py() if files.num_rows else 0),
            "base": os.fsencode(base or ""),
        },
    )
    table = files.select(wide.names).cast(wide).combine_chunks()
    descriptor = os.memfd_create("job-plan", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as stream, pa.ipc.new_file(stream, wide) as writer:
        writer.write_table(table)
    return descriptor


class PlanSlice:
    """The mapped slice."""

    def __init__(self, descriptor: int) -> None:
        """Map what `share` wrote."""
        size = os.fstat(descriptor).st_size
        buffer = pa.py_buffer(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        reader = pa.ipc.open_file(pa.BufferReader(buffer))
        metadata = reader.schema.metadata
        self._first = int(metadata[b"first"])
        self._base = os.fsdecode(metadata[b"base"])
        self._batch = (
            reader.get_batch(0)
            if reader.num_record_batches
            else pa.RecordBatch.from_pylist([], schema=reader.schema)
        )

    def rows(self, start: int, stop: int) -> Iterator[Planned]:
        """Yield the files with ``file_index`` in ``start`` … ``stop`` - 1."""
        part = self._batch.slice(start - self._first, stop - start)
        columns = [part.column(name) for name in ("path", "path_raw", "size", "shard")]
        modified = part.column("modified").cast(pa.int64())
        values = [column.to_pylist() for column in (*columns, modified)]
        for index, (path, raw, size, shard, time) in enumerate(zip(*values, strict=True), start):
            location = path if raw is None else os.fsdecode(raw)
            if self._base and not location.startswith("/"):
                location = f"{self._base}/{location}"
            yield Planned(index, shard, File(path, size, location), time)

    def paths(self, indexes: pa.Array) -> pa.Array:
        """Return the path (large string) of each ``file_index`` in ``indexes``."""
        return self._batch.column("path").take(pc.subtract(indexes, self._first))

    def sizes(self, indexes: pa.Array) -> pa.Array:
        """Return the bytes (int64) of each ``file_index`` in ``indexes``."""
        return self._batch.column("size").take(pc.subtract(indexes, self._first))
