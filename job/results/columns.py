"""Rows of processors as Arrow tables whose columns can be joined with any others.

A table in its *stored* form has ``file_index`` and the processor's columns; its schema carries its `Layout`:
what was seen in each column. Tables of different layouts are brought together by `convert` to their joined
layout, in any order and any number of steps; `finalise` gives the last one its final types.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from job.results.kinds import EXACT, NOTHING, WIDE, Kind, join_all, kind_of_array, leaf
from job.results.values import from_text, kind_of, microseconds, normalise, to_text

FILE_INDEX: Final = "file_index"
RESERVED: Final = (FILE_INDEX, "path")

_METADATA: Final = b"job.layout"


class First(NamedTuple):
    """Where a column was seen first; columns stand in this order."""

    file_index: int
    row: int
    position: int


@dataclass(frozen=True, slots=True)
class Column:
    """What is known of a column.

    Attributes:
        kind: What was seen in it.
        first: Where it was seen first.
    """

    kind: Kind
    first: First


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of some rows.

    Attributes:
        columns: By name, in order.
        declared: The processor's schema, if it declares one: then types and order are its.
    """

    columns: Mapping[str, Column] = field(default_factory=dict)
    declared: pa.Schema | None = None

    @classmethod
    def empty(cls) -> Self:
        """Return the layout of no rows."""
        return cls()

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        """Return the layout that a stored table's schema carries.

        Raises:
            KeyError: It carries none.
            ValueError: It is damaged.
        """
        fields = json.loads((schema.metadata or {})[_METADATA])
        declared = fields.get("declared")
        return cls(
            {
                name: Column(Kind.from_json(kind), First(*first))
                for name, (kind, first) in fields["columns"].items()
            },
            None if declared is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(declared))),
        )

    def to_bytes(self) -> bytes:
        """Return the layout as a schema's metadata has it."""
        found: dict[str, Any] = {
            "columns": {name: (kind.kind.to_json(), kind.first) for name, kind in self.columns.items()}
        }
        if self.declared is not None:
            found["declared"] = base64.b64encode(self.declared.serialize().to_pybytes()).decode()
        return json.dumps(found, separators=(",", ":")).encode()

    def join(self, other: Layout) -> Layout:
        """Return the layout of the rows of both."""
        if self.declared is not None:
            return self
        if other.declared is not None:
            return other
        columns = dict(self.columns)
        for name, column in other.columns.items():
            known = columns.get(name)
            if known is not None:
                column = Column(known.kind.join(column.kind), min(known.first, column.first))  # noqa: PLW2901
            columns[name] = column
        return Layout(dict(sorted(columns.items(), key=lambda item: item[1].first)))

    def stored_alike(self, other: Layout) -> bool:
        """Say whether both have the same columns, in the same order and stored form."""
        return list(self.columns) == list(other.columns) and all(
            (one.kind.resolve(), one.kind.conflicted) == (two.kind.resolve(), two.kind.conflicted)
            for one, two in zip(self.columns.values(), other.columns.values(), strict=True)
        )

    def stored_schema(self) -> pa.Schema:
        """Return the schema of the stored form: columns of mixed values are JSON text."""
        if self.declared is not None:
            fields = list(self.declared)
        else:
            fields = [
                pa.field(name, pa.string() if column.kind.conflicted else column.kind.resolve())
                for name, column in self.columns.items()
            ]
        return pa.schema([pa.field(FILE_INDEX, pa.int64()), *fields], metadata={_METADATA: self.to_bytes()})

    def final_schema(self) -> pa.Schema:
        """Return the schema of the final form."""
        fields = (
            list(self.declared)
            if self.declared is not None
            else [pa.field(name, column.kind.resolve()) for name, column in self.columns.items()]
        )
        return pa.schema([pa.field(FILE_INDEX, pa.int64()), *fields])


class Rejected(NamedTuple):
    """A file whose result cannot be stored, and why."""

    file_index: int
    exception: Exception


def rows_to_batch(
    results: Sequence[tuple[int, Any]], declared: pa.Schema | None
) -> tuple[pa.RecordBatch, list[Rejected]]:
    """Return what processors have returned for some files, in the stored form.

    Args:
        results: ``file_index`` and result of each file: a mapping, a list of mappings, a table or a batch.
        declared: The processor's schema, or None.

    Returns:
        The rows of the files in the given order; and the files whose result cannot be stored, which have no
        row: the others are not touched by them.
    """
    try:
        return _batch(results, declared), []
    except (TypeError, ValueError, OverflowError, pa.ArrowException, RecursionError):
        pass  # find out whose fault it is
    good, rejected = [], []
    for index, result in results:
        try:
            _batch([(index, result)], declared)
        except (TypeError, ValueError, OverflowError, pa.ArrowException, RecursionError) as error:
            rejected.append(Rejected(index, error))
        else:
            good.append((index, result))
    return _batch(good, declared), rejected


def convert(table: pa.Table, target: Layout) -> pa.Table:
    """Return a stored table in the stored form of a layout that was joined from its own and others."""
    schema = target.stored_schema()
    source = Layout.of(table.schema)
    if target.declared is not None or source.stored_alike(target):
        return table.replace_schema_metadata(schema.metadata)
    columns = [table.column(FILE_INDEX)]
    for name, column in target.columns.items():
        known = source.columns.get(name)
        wanted = schema.field(name).type
        if known is None:
            columns.append(pa.nulls(table.num_rows, wanted))
        elif column.kind.conflicted and not known.kind.conflicted:
            columns.append(_as_text(table.column(name)))
        else:
            columns.append(_cast(table.column(name), wanted))
    return pa.table(columns, schema=schema)


def finalise(table: pa.Table, target: Layout) -> pa.Table:
    """Return a stored table in the final form of a layout that was joined from its own and others."""
    stored = convert(table, target)
    schema = target.final_schema()
    columns = []
    for name in schema.names:
        column = stored.column(name)
        known = target.columns.get(name)
        if target.declared is None and known is not None and known.kind.conflicted:
            kind = known.kind
            values = [None if text is None else from_text(text, kind) for text in column.to_pylist()]
            column = pa.chunked_array([pa.array(values, schema.field(name).type)])
        columns.append(column)
    return pa.table(columns, schema=schema)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    plain = column.cast(microseconds(column.type), safe=False)
    texts = [None if value is None else to_text(value) for value in plain.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(wanted):
        return column
    try:
        return column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        # Arrow does not add or reorder fields of structs inside lists in every version
        return pa.chunked_array([pa.array(column.to_pylist(), wanted)])


# -- from what a processor returns ---------------------------------------------------------------------------


def _batch(results: Sequence[tuple[int, Any]], declared: pa.Schema | None) -> pa.RecordBatch:
    tables = [
        _from_rows(rows, declared) if isinstance(rows, list) else _from_arrow(*rows, declared)
        for rows in _segments(results)
    ]
    if not tables:
        return pa.RecordBatch.from_pylist([], schema=Layout(declared=declared).stored_schema())
    if len(tables) > 1:
        joined = Layout.of(tables[0].schema)
        for table in tables[1:]:
            joined = joined.join(Layout.of(table.schema))
        tables = [pa.concat_tables([convert(table, joined) for table in tables])]
    table = tables[0].combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


_Rows = list[tuple[int, int, Mapping[str, Any]]]


def _segments(results: Sequence[tuple[int, Any]]) -> Iterator[_Rows | tuple[int, pa.Table]]:
    """Yield runs of rows (``file_index``, row in the file, mapping), and each Arrow table by itself."""
    rows: _Rows = []
    for index, result in results:
        if isinstance(result, Mapping):
            rows.append((index, 0, result))
        elif isinstance(result, (pa.Table, pa.RecordBatch)):
            if rows:
                yield rows
                rows = []
            yield index, pa.table(result) if isinstance(result, pa.RecordBatch) else result
        elif isinstance(result, (list, tuple)):
            for number, row in enumerate(result):
                if not isinstance(row, Mapping):
                    raise TypeError(
                        f"the processor returned a list with a {type(row).__qualname__} in it, "
                        "not with mappings only"
                    )
                rows.append((index, number, row))
        else:
            raise TypeError(
                f"the processor returned {_name(result)}, not a mapping, a list of mappings, or an Arrow table"
            )
    if rows:
        yield rows


def _name(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__qualname__}"


def _from_rows(rows: _Rows, declared: pa.Schema | None) -> pa.Table:
    keys = list(rows[0][2])
    indexes = pa.array([index for index, _, _ in rows], pa.int64())
    index, number, _ = min(rows, key=itemgetter(0, 1))
    firsts = {name: First(index, number, place) for place, name in enumerate(keys)}
    values: Mapping[str, Sequence[Any]]
    if all(list(row) == keys for _, _, row in rows):
        columns = zip(*(row.values() for _, _, row in rows), strict=True) if keys else ()
        values = dict(zip(keys, columns, strict=True))
    else:
        firsts = {}
        for index, number, row in rows:
            for place, name in enumerate(row):
                seen = First(index, number, place)
                if name not in firsts or seen < firsts[name]:
                    firsts[name] = seen
        values = {name: [row.get(name) for _, _, row in rows] for name in firsts}
    for name in values:
        _check_name(name)
    if declared is not None:
        return _declared(indexes, values, declared)
    layout, arrays = {}, [indexes]
    for name in sorted(values, key=firsts.__getitem__):
        try:
            kind, array = _column(values[name])
        except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
            raise ValueError(f"column {name}: {error}") from error
        layout[name] = Column(kind, firsts[name])
        arrays.append(array)
    return pa.table(arrays, schema=Layout(layout).stored_schema())


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the processor returned the key {name!r}, which is no text")
    if name in RESERVED:
        raise ValueError(f"the processor returned a column {name}: this name is reserved")


_FAST: Final = {
    frozenset([float]): leaf(pa.float64()),
    frozenset([str]): leaf(pa.string()),
    frozenset([bool]): leaf(pa.bool_()),
    frozenset([bytes]): leaf(pa.binary()),
    frozenset(): NOTHING,
}


def _column(values: Sequence[Any]) -> tuple[Kind, pa.Array]:
    """Return what is seen in a column's values, and the values in their stored form."""
    types = frozenset(map(type, values)) - {type(None)}
    if (fast := _FAST.get(types)) is not None:
        return fast, pa.array(values, fast.resolve())
    if types == {int}:
        there = [value for value in values if value is not None]
        least, greatest = min(there), max(there)
        if least >= -(2**63) and greatest < 2**63:
            wide = greatest > EXACT or least < -EXACT
            return WIDE if wide else leaf(pa.int64()), pa.array(values, pa.int64())
    plain = [normalise(value) for value in values]
    kind = join_all(map(kind_of, plain))
    if kind.conflicted:
        texts = [None if value is None else to_text(value) for value in plain]
        return kind, pa.array(texts, pa.string())
    return kind, pa.array(plain, kind.resolve())


def _declared(indexes: pa.Array, values: Mapping[str, Sequence[Any]], declared: pa.Schema) -> pa.Table:
    """Return rows in the processor's own schema.

    Raises:
        ValueError, TypeError, pa.ArrowException: A row does not fit.
    """
    for name in values:
        if name not in declared.names:
            raise ValueError(f"the processor returned a column {name} that its schema does not have")
    arrays = [indexes]
    for wanted in declared:
        given = values.get(wanted.name, [None] * len(indexes))
        array = pa.array([normalise(value) for value in given], wanted.type)
        if array.null_count and not wanted.nullable:
            raise ValueError(f"the processor returned no {wanted.name}, which its schema demands")
        arrays.append(array)
    return pa.table(arrays, schema=Layout(declared=declared).stored_schema())


def _from_arrow(index: int, table: pa.Table, declared: pa.Schema | None) -> pa.Table:
    """Return a table that a processor has returned for one file in the stored form."""
    for name in table.column_names:
        _check_name(name)
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError("the processor returned a table with two columns of one name")
    indexes = pa.array([index], pa.int64()).take(pa.array([0] * table.num_rows, pa.int64()))
    if declared is not None:
        if sorted(table.column_names) != sorted(declared.names):
            raise ValueError("the processor returned a table with other columns than its schema has")
        columns = [table.column(wanted.name).cast(wanted.type) for wanted in declared]
        return pa.table([indexes, *columns], schema=Layout(declared=declared).stored_schema())
    layout, arrays = {}, [indexes]
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        array = column.combine_chunks()
        array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
        if pa.types.is_dictionary(array.type):
            array = pc.cast(array, array.type.value_type)
        kind = kind_of_array(array)
        layout[name] = Column(kind, First(index, 0, place))
        arrays.append(_cast(pa.chunked_array([array]), kind.resolve()))
    return pa.table(arrays, schema=Layout(layout).stored_schema())
