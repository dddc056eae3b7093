"""What the commands are told, made once. Nothing below reads the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from job.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of failed files: so many, or so many per cent of all files."""

    value: float
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the limit from ``N`` or ``P%``.

        Raises:
            UsageError: It is neither.
        """
        number = text.removesuffix("%")
        try:
            value = float(number) if text.endswith("%") else int(number)
        except ValueError:
            value = -1
        if not 0 <= value < float("inf"):
            raise UsageError(f"--max-failures {text}: give a number of files, or per cent as in 1.5%")
        return cls(value, text.endswith("%"))

    def allows(self, failed: int, files: int) -> bool:
        """Say whether so many failed files are within the limit."""
        return failed <= (files * self.value / 100 if self.percent else self.value)

    def __str__(self) -> str:
        """Return the limit as it is given."""
        return f"{self.value:g}%" if self.percent else f"{self.value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSettings:
    """How shards are mapped. Nothing of it is frozen in the plan.

    Attributes:
        workers: Number of worker processes.
        timeout: Seconds that a file may take, or None.
        retries: How often a file is tried again after its worker has died with it.
        checkpoint_seconds: At most so long outcomes are only in memory.
        fail_fast: End as soon as so many files have failed, or None.
        allow_changed: Whether a file may differ from the plan.
        grace: Seconds that work in hand may take to end after a signal.
    """

    workers: int
    timeout: float | None = None
    retries: int = 2
    checkpoint_seconds: float = 30.0
    fail_fast: int | None = None
    allow_changed: bool = False
    grace: float = 20.0
