"""Values on their way into a column, and out of the JSON text in which mixed ones are kept."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from job.results.kinds import EXACT, NOTHING, WIDE, Kind, is_list, join_all, leaf

_INT64: Final = 2**63

_BASES: Final[tuple[type[Any], ...]] = (bool, int, float, str, bytes)

_SIMPLE: Final = {
    bool: leaf(pa.bool_()),
    float: leaf(pa.float64()),
    str: leaf(pa.string()),
    bytes: leaf(pa.binary()),
    dt.date: leaf(pa.date32()),
    dt.time: leaf(pa.time64("us")),
    dt.timedelta: leaf(pa.duration("us")),
}


def normalise(value: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 - one return for each kind of value
    """Return a value as plain Python: NumPy scalars and arrays, Arrow scalars, enums and UUIDs are unwrapped.

    Integers beyond 64 bits become text, times with a zone are given in UTC.

    Raises:
        TypeError: There is no column for such a value, or a key is no text.
    """
    kind = type(value)
    if value is None or kind in _SIMPLE:
        return value
    if kind is int:
        return value if -_INT64 <= value < _INT64 else str(value)
    if isinstance(value, enum.Enum):
        return normalise(value.value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is no text")
        return {str(key): normalise(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [normalise(item) for item in value]
    if isinstance(value, dt.datetime):
        return value if value.tzinfo is None else value.astimezone(dt.UTC)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, decimal.Decimal):
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, pa.Scalar):
        return normalise(value.as_py())
    for base in _BASES:
        if isinstance(value, base):
            return normalise(base(value))
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # NumPy, without importing it
        return normalise(value.tolist())
    raise TypeError(f"there is no column for a {kind.__qualname__}")


def kind_of(value: Any) -> Kind:
    """Return what is seen in a value that `normalise` has returned."""
    if value is None:
        return NOTHING
    if (simple := _SIMPLE.get(type(value))) is not None:
        return simple
    if isinstance(value, int):
        return WIDE if abs(value) > EXACT else leaf(pa.int64())
    if isinstance(value, dict):
        return Kind(fields=tuple((name, kind_of(value[name])) for name in sorted(value)))
    if isinstance(value, list):
        return Kind(items=join_all(map(kind_of, value)))
    if isinstance(value, dt.datetime):
        return leaf(pa.timestamp("us", tz=None if value.tzinfo is None else "UTC"))
    return leaf(pa.scalar(value).type)


def to_text(value: Any) -> str:
    """Return canonical JSON text of a value: the same however the value was kept in between.

    Keys in order, no null fields, a whole number without a point (so that 1 and 1.0 are one), dates and times
    in ISO 8601, bytes in base64.
    """
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def from_text(text: str, kind: Kind) -> Any:
    """Return the value of a column of ``kind`` from its JSON text."""
    return shape(json.loads(text), kind)


def shape(value: Any, kind: Kind) -> Any:
    """Return a value, plain or from JSON, as the type to which ``kind`` resolves has it."""
    if value is None:
        return None
    target = kind.resolve()
    if pa.types.is_string(target) and kind.conflicted:
        plain = _plain(value)
        return plain if isinstance(plain, str) else to_text(value)
    if kind.items is not None:
        return [shape(item, kind.items) for item in value]
    if kind.fields is not None:
        return {name: shape(value.get(name), field) for name, field in kind.fields}
    return _parse(value, target)


def microseconds(kind: pa.DataType) -> pa.DataType:
    """Return the type with nanoseconds as microseconds, which is what Python's times have."""
    types = pa.types
    if types.is_timestamp(kind):
        return pa.timestamp("us", tz=kind.tz) if kind.unit == "ns" else kind
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_duration(kind):
        return pa.duration("us") if kind.unit == "ns" else kind
    if is_list(kind):
        return pa.list_(microseconds(kind.value_type))
    if types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return pa.struct([pa.field(field.name, microseconds(field.type)) for field in fields])
    return kind


def _plain(value: Any) -> Any:  # noqa: C901, PLR0911 - one return for each kind of value
    """Return a value as JSON has it."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) <= EXACT
        return int(value) if whole and (value or math.copysign(1, value) > 0) else value
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value // dt.timedelta(microseconds=1) / 1e6
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return format(value.normalize(), "f")  # 1.5 and 1.50 are one: a joined column has one scale
    return str(value)


def _parse(value: Any, target: pa.DataType) -> Any:
    """Return a leaf from what JSON has of it."""
    types = pa.types
    if types.is_floating(target) and not isinstance(value, float):
        return float(value)
    if not isinstance(value, str):
        if types.is_duration(target) and not isinstance(value, dt.timedelta):
            return dt.timedelta(seconds=value)
        return value
    if types.is_date(target):
        return dt.date.fromisoformat(value)
    if types.is_timestamp(target):
        return dt.datetime.fromisoformat(value)
    if types.is_time(target):
        return dt.time.fromisoformat(value)
    if types.is_decimal(target):
        return decimal.Decimal(value)
    if types.is_binary(target) or types.is_large_binary(target) or types.is_fixed_size_binary(target):
        return base64.b64decode(value)
    return value
