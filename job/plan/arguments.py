"""What is frozen in a plan: all that decides which files there are and what is computed for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of a plan.

    Attributes:
        inputs: Files, folders and globs as given; undecodable bytes as surrogate escapes.
        files_from: A file with names of further inputs, ``-`` for standard input, or None.
        null: Whether those names end in NUL, not newline.
        include, exclude: Filters.
        base: The absolute folder that relative inputs start from; None where all are absolute.
        shards: Number of shards.
        processor: Its name.
        processor_sha256: Of its file, or None.
        options: Its options, sorted.
    """

    inputs: tuple[str, ...]
    files_from: str | None = None
    null: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    base: str | None = None
    shards: int
    processor: str
    processor_sha256: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the arguments as JSON values; ``json.dumps`` keeps surrogate escapes (as ``\\udcNN``)."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the arguments from JSON values."""
        found: dict[str, Any] = {
            name: tuple(given) if isinstance(given, list) else given for name, given in value.items()
        }
        found["options"] = tuple(map(tuple, value.get("options", ())))
        return cls(**found)

    def differences(self, now: Arguments) -> list[str]:
        """Return in words what is different ``now``."""
        names = [field.name for field in fields(self)]
        return [
            f"{name.replace('_', '-')}: {_shown(getattr(self, name))} in the plan, "
            f"{_shown(getattr(now, name))} now"
            for name in names
            if getattr(self, name) != getattr(now, name)
        ]


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else str(value)
