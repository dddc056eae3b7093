"""Merging Parquet files that are each sorted by ``file_index``, in bounded memory.

All row groups of all files are visited in the order of their least ``file_index``. When the next group begins
at ``m``, every row before ``m`` that was read is final: it is sorted and handed on. So what is held is about
one row group of each file that overlaps others; parts of a shard follow the plan's order but for a few
batches, and hardly overlap at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from job.errors import DamagedError
from job.results.schemas import damaged_as, open_parquet
from job.storage import LocalStorage


@dataclass(frozen=True, slots=True)
class Group:
    """Some rows that can be read at once.

    Attributes:
        least: Their least ``file_index``.
        read: Returns them, sorted by ``file_index``, in the schema that all groups of a merge have.
    """

    least: int
    read: Callable[[], pa.Table]


def groups_of(storage: LocalStorage, name: str, prepare: Callable[[pa.Table], pa.Table]) -> list[Group]:
    """Return the row groups of a sorted data file; ``prepare`` is applied to what is read.

    The file is open only while one of them is read: there may be thousands.

    Raises:
        DamagedError: The file is damaged, or a group has no statistics of ``file_index``.
    """
    with damaged_as(name), storage.source(name) as source:
        metadata = open_parquet(source).metadata
    found = []
    for number in range(metadata.num_row_groups):
        statistics = metadata.row_group(number).column(0).statistics
        if statistics is None or not statistics.has_min_max:
            raise DamagedError(f"{name} is damaged: no statistics of file_index")

        def read(number: int = number) -> pa.Table:
            with damaged_as(name), storage.source(name) as source:
                table = open_parquet(source).read_row_group(number)
            return prepare(table)

        found.append(Group(statistics.min, read))
    return found


def merge(groups: list[Group]) -> Iterator[pa.Table]:
    """Yield the rows of all groups, sorted by ``file_index``; rows of one file keep their order."""
    ordered = sorted(groups, key=lambda group: group.least)
    held: list[pa.Table] = []
    for position, group in enumerate(ordered):
        table = group.read()
        if table.num_rows:
            held.append(table)
        next_least = ordered[position + 1].least if position + 1 < len(ordered) else math.inf
        if held:
            final, held = _split(held, next_least)
            if final is not None:
                yield final


def _split(held: list[pa.Table], bound: float) -> tuple[pa.Table | None, list[pa.Table]]:
    """Return the rows before ``bound``, sorted, and the tables of those that are not."""
    before, after = [], []
    for table in held:
        column = table.column("file_index")
        if column[-1].as_py() < bound:
            before.append(table)
        elif column[0].as_py() >= bound:
            after.append(table)
        else:
            count = pc.sum(pc.less(column, int(bound))).as_py()
            before.append(table.slice(0, count))
            after.append(table.slice(count))
    if not before:
        return None, after
    if len(before) == 1:
        return before[0], after
    return sort(pa.concat_tables(before)), after


def sort(table: pa.Table) -> pa.Table:
    """Return the rows sorted by ``file_index``; rows of one file keep their order (the sort is stable)."""
    column = table.column("file_index").combine_chunks()
    values = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks == 1 else column
    if len(values) < 2 or pc.all(pc.less_equal(values[:-1], values[1:])).as_py():  # noqa: PLR2004
        return table
    return table.take(pc.sort_indices(column))
