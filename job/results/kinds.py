"""What type a column has, whatever order its values come in.

A column's type must not depend on which part, shard or pod saw which value first. So what is joined is not the
type but the *set of what was seen* (`Kind`): a union is associative, commutative and idempotent, and the type
is decided from the whole set (`Kind.resolve`).

=======================================================  ==================================================
seen                                                     type
=======================================================  ==================================================
nothing, or only null                                    null
one type                                                 that type
integers of several widths                               int64
integers within ±2^53, and floating point numbers        double
decimals                                                 a decimal that holds them all
lists; structs                                           list, struct: field by field, fields in name order
anything else together                                   string: text as it is, all else as JSON text
=======================================================  ==================================================
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

EXACT: Final = 2**53
"""Integers up to here have a double of their own."""

_DECIMAL128: Final = 38
_DECIMAL256: Final = 76


@dataclass(frozen=True, slots=True)
class Kind:
    """The set of what was seen at one place: a column, a list's elements, a struct's field.

    Attributes:
        leaves: Types of the values that are neither list nor struct.
        wide: Whether an integer beyond `EXACT` was among them.
        items: What the elements of lists were, if a list was seen.
        fields: What the fields of structs were, in name order, if a struct was seen.
    """

    leaves: frozenset[pa.DataType] = frozenset()
    wide: bool = False
    items: Kind | None = None
    fields: tuple[tuple[str, Kind], ...] | None = None

    def join(self, other: Kind) -> Kind:
        """Return the union of both sets."""
        if self == other:
            return self
        return Kind(
            self.leaves | other.leaves,
            self.wide or other.wide,
            _join_items(self.items, other.items),
            _join_fields(self.fields, other.fields),
        )

    def resolve(self) -> pa.DataType:
        """Return the type that holds everything that was seen."""
        return _resolve(self)[0]

    @property
    def conflicted(self) -> bool:
        """Whether `resolve` has a string somewhere that stands for values of several kinds.

        Such a column is stored as JSON text of the values as they came, until all that will be seen is known:
        ``[1]`` must become ``'[1]'`` beside a number, but ``['1']`` beside a list of text.
        """
        return _resolve(self)[1]

    def to_json(self) -> dict[str, Any]:
        """Return the set as JSON values."""
        found: dict[str, Any] = {}
        if self.leaves:
            found["leaves"] = sorted(map(_type_to_text, self.leaves))
        if self.wide:
            found["wide"] = True
        if self.items is not None:
            found["items"] = self.items.to_json()
        if self.fields is not None:
            found["fields"] = {name: kind.to_json() for name, kind in self.fields}
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Kind:
        """Return the set from JSON values."""
        items, fields = value.get("items"), value.get("fields")
        return cls(
            frozenset(map(_type_from_text, value.get("leaves", ()))),
            value.get("wide", False),
            None if items is None else cls.from_json(items),
            None if fields is None else tuple((name, cls.from_json(fields[name])) for name in sorted(fields)),
        )


NOTHING: Final = Kind()
WIDE: Final = Kind(frozenset([pa.int64()]), wide=True)


@lru_cache(maxsize=1024)
def leaf(kind: pa.DataType) -> Kind:
    """Return the set of one type that is neither list nor struct."""
    return Kind(frozenset([kind]))


def join_all(kinds: Iterable[Kind]) -> Kind:
    """Return the union of all sets."""
    return reduce(Kind.join, kinds, NOTHING)


def kind_of_array(array: pa.Array) -> Kind:
    """Return what is seen in an Arrow array: its type, and whether its integers are wide."""
    kind = array.type
    if pa.types.is_null(kind):
        return NOTHING
    if pa.types.is_dictionary(kind):
        return kind_of_array(array.dictionary_decode())
    if is_list(kind):
        return Kind(items=kind_of_array(array.flatten()))
    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        parts = zip(names, array.flatten(), strict=True)
        fields = {name: kind_of_array(part) for name, part in parts}
        return Kind(fields=tuple(sorted(fields.items(), key=lambda field: field[0])))
    if pa.types.is_integer(kind) and kind.bit_width == 64:  # noqa: PLR2004 - bits
        extremes = pc.min_max(array).as_py()
        if extremes["max"] is not None and max(extremes["max"], -extremes["min"]) > EXACT:
            return Kind(frozenset([kind]), wide=True)
    return leaf(kind)


def is_list(kind: pa.DataType) -> bool:
    """Say whether a type is one of Arrow's lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


@lru_cache(maxsize=1024)
def _resolve(kind: Kind) -> tuple[pa.DataType, bool]:
    seen = bool(kind.leaves) + (kind.items is not None) + (kind.fields is not None)
    if seen > 1:
        return pa.string(), True
    if kind.items is not None:
        found, conflicted = _resolve(kind.items)
        return pa.list_(found), conflicted
    if kind.fields is not None:
        parts = [(name, *_resolve(field)) for name, field in kind.fields]
        fields = [pa.field(name, found) for name, found, _ in parts]
        return pa.struct(fields), any(conflicted for *_, conflicted in parts)
    return _resolve_leaves(kind.leaves, wide=kind.wide)


def _resolve_leaves(leaves: frozenset[pa.DataType], *, wide: bool) -> tuple[pa.DataType, bool]:
    if not leaves:
        return pa.null(), False
    if len(leaves) == 1:
        return next(iter(leaves)), False
    types = pa.types
    if all(types.is_integer(found) for found in leaves):
        if pa.uint64() not in leaves:
            return pa.int64(), False
    elif all(types.is_integer(found) or types.is_floating(found) for found in leaves):
        if not wide:
            return pa.float64(), False
    elif all(types.is_decimal(found) for found in leaves):
        scale = max(found.scale for found in leaves)
        precision = scale + max(found.precision - found.scale for found in leaves)
        if precision <= _DECIMAL256:
            make = pa.decimal128 if precision <= _DECIMAL128 else pa.decimal256
            return make(precision, scale), False
    elif all(types.is_string(found) or types.is_large_string(found) for found in leaves):
        return pa.string(), False
    elif all(types.is_binary(found) or types.is_large_binary(found) for found in leaves):
        return pa.binary(), False
    return pa.string(), True


def _join_items(one: Kind | None, other: Kind | None) -> Kind | None:
    if one is None or other is None:
        return other if one is None else one
    return one.join(other)


def _join_fields(
    one: tuple[tuple[str, Kind], ...] | None, other: tuple[tuple[str, Kind], ...] | None
) -> tuple[tuple[str, Kind], ...] | None:
    if one is None or other is None:
        return other if one is None else one
    joined = dict(one)
    for name, kind in other:
        joined[name] = joined[name].join(kind) if name in joined else kind
    return tuple(sorted(joined.items(), key=lambda field: field[0]))


@lru_cache(maxsize=1024)
def _type_to_text(kind: pa.DataType) -> str:
    return base64.b64encode(pa.schema([("", kind)]).serialize().to_pybytes()).decode()


@lru_cache(maxsize=1024)
def _type_from_text(text: str) -> pa.DataType:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))).field(0).type
