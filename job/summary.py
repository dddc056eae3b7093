"""The statistics put together: ``summary.parquet``.

What a processor's ``merge`` returns, or one row for each numeric column of the results. Rows are taken in
blocks of a fixed number, whatever files they come from: so the sums, and with them every last bit, do not
depend on the number of shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import UsageError
from job.results.columns import Layout, finalise, rows_to_batch

BLOCK: Final = 65_536
"""Rows that are looked at together."""

SCHEMA: Final = pa.schema(
    [
        ("column", pa.string()),
        ("rows", pa.int64()),
        ("nulls", pa.int64()),
        ("sum", pa.float64()),
        ("min", pa.float64()),
        ("max", pa.float64()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
    ]
)
"""Of a numeric column: ``rows`` counts nulls too; ``std`` is that of a sample (n - 1)."""


def blocks(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's rows in batches of `BLOCK` rows; only the last one has fewer."""
    waiting: pa.Table | None = None
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns=columns)
        table = table if waiting is None else pa.concat_tables([waiting, table])
        whole = table.num_rows - table.num_rows % BLOCK
        for start in range(0, whole, BLOCK):
            yield from table.slice(start, BLOCK).combine_chunks().to_batches()
        waiting = table.slice(whole)
    if waiting is not None and waiting.num_rows:
        yield from waiting.combine_chunks().to_batches()


def numeric_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that `summarise` summarises; ``file_index`` is none."""
    return [
        field.name
        for field in schema
        if field.name != "file_index"
        and (
            pa.types.is_integer(field.type)
            or pa.types.is_floating(field.type)
            or pa.types.is_decimal(field.type)
        )
    ]


def summarise(file: pq.ParquetFile) -> pa.Table:
    """Return one row (`SCHEMA`) for each numeric column of the results."""
    names = numeric_columns(file.schema_arrow)
    states = [_Moments() for _ in names]
    for batch in blocks(file, names) if names else ():
        for name, state in zip(names, states, strict=True):
            state.update(batch.column(name))
    rows = [{"column": name} | state.row() for name, state in zip(names, states, strict=True)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def merged(merge: Callable[[Iterator[pa.RecordBatch]], Any], file: pq.ParquetFile) -> pa.Table:
    """Return the rows that a processor's ``merge`` makes of the results.

    Raises:
        UsageError: It raised, or returned what is no row.
    """
    try:
        found = merge(blocks(file))
    except Exception as error:
        raise UsageError(f"merge() of the processor failed: {type(error).__qualname__}: {error}") from error
    batch, rejected = rows_to_batch([(0, found)], None)
    if rejected:
        raise UsageError(f"merge() of the processor returned what cannot be stored: {rejected[0].exception}")
    table = finalise(pa.Table.from_batches([batch]), Layout.of(batch.schema))
    return table.drop_columns(["file_index"])


@dataclass(slots=True)
class _Moments:
    """Count, sum, extremes, mean and M2 of a column; blocks are joined by Chan's formula (1979)."""

    rows: int = 0
    nulls: int = 0
    total: float | int = 0
    least: float | None = None
    greatest: float | None = None
    mean: float = 0.0
    m2: float = 0.0

    def update(self, column: pa.Array) -> None:
        self.rows += len(column)
        self.nulls += column.null_count
        count = len(column) - column.null_count
        if not count:
            return
        before = self.rows - self.nulls - count
        extremes = pc.min_max(column).as_py()
        least, greatest = float(extremes["min"]), float(extremes["max"])
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)
        values = column.cast(pa.float64(), safe=False)
        self.total += _exact_sum(column) if pa.types.is_integer(column.type) else pc.sum(values).as_py()
        mean = pc.mean(values).as_py()
        m2 = pc.variance(values, ddof=0).as_py() * count
        delta = mean - self.mean
        self.mean += delta * count / (before + count)
        self.m2 += m2 + delta * delta * before * count / (before + count)

    def row(self) -> dict[str, Any]:
        count = self.rows - self.nulls
        return {
            "rows": self.rows,
            "nulls": self.nulls,
            "sum": float(self.total) if count else None,
            "min": self.least,
            "max": self.greatest,
            "mean": self.mean if count else None,
            "std": math.sqrt(self.m2 / (count - 1)) if count > 1 else None,
        }


def _exact_sum(column: pa.Array) -> int:
    """Return the sum of integers; in 128 bits, as 65,536 of 64 bits can overflow."""
    return int(pc.sum(column.cast(pa.decimal128(38, 0))).as_py())
