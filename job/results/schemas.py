"""The columns of the files that a run leaves, and how they are written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import DamagedError

FILES: Final = pa.schema(
    [
        ("file_index", pa.int64()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("status", pa.string()),
        ("rows", pa.int64()),
        ("started", pa.timestamp("us", tz="UTC")),
        ("seconds", pa.float64()),
        ("worker", pa.int32()),
        ("attempt", pa.string()),
        ("shard", pa.int32()),
    ]
)
"""The ledger: every file once. ``worker`` is null where main gave the file up."""

FAILURES: Final = pa.schema(
    [
        ("file_index", pa.int64()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("traceback", pa.string()),
        ("attempts", pa.int32()),
        ("shard", pa.int32()),
    ]
)

OK: Final = "ok"
FAILED: Final = "failed"

GROUP_ROWS: Final = 128 * 1024
"""Rows in a row group: large enough for a scan, small enough to skip."""

GROUP_BYTES: Final = 8 << 20
"""Bytes of Arrow memory in a row group: what a merge of sorted files holds of each of them."""

_SAMPLE: Final = 4096
"""Rows that decide whether a column gets a dictionary."""


class RowGroupWriter:
    """Writes a stream of tables as one Parquet file with row groups of a sensible size.

    zstd, page checksums, and a dictionary for the text columns of which at most half of the first values
    differ.
    """

    def __init__(self, sink: pa.NativeFile, schema: pa.Schema) -> None:
        """Begin a file on ``sink``; it is whole after `close`."""
        self.rows = 0
        self._sink = sink
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Take more rows; they are written when a row group is full."""
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self._waiting_bytes += table.nbytes
        if self._waiting_rows >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._waiting or self._writer is None:
            self._flush()
        assert self._writer is not None  # noqa: S101 - _flush made it
        self._writer.close()

    def _flush(self) -> None:
        table = (
            pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        ).combine_chunks()
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._sink,
                self._schema,
                compression="zstd",
                use_dictionary=_repeating(table),
                write_page_checksum=True,
                write_page_index=True,
            )
        step = max(1, min(GROUP_ROWS, table.num_rows * GROUP_BYTES // max(table.nbytes, 1)))
        if table.num_rows:
            self._writer.write_table(table, row_group_size=step)
        self.rows += table.num_rows
        self._waiting = []
        self._waiting_rows = self._waiting_bytes = 0


def write_all(sink: pa.NativeFile, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables of ``schema`` as one Parquet file; return the number of rows."""
    writer = RowGroupWriter(sink, schema)
    for table in tables:
        writer.write(table)
    writer.close()
    return writer.rows


@contextlib.contextmanager
def damaged_as(name: str) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into a `DamagedError` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DamagedError(f"{name} is damaged: {_first_line(error)}") from error


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """Open a data file for reading, its checksums verified."""
    return pq.ParquetFile(source, page_checksum_verification=True)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _repeating(table: pa.Table) -> list[str]:
    head = table.slice(0, _SAMPLE)
    found: list[Any] = []
    for field, column in zip(head.schema, head.columns, strict=True):
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            continue
        if not pa.types.is_nested(field.type) and pc.count_distinct(column).as_py() * 2 <= len(column):
            found.append(field.name)
    return found
