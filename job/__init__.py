"""A batch job over files: plan, map, reduce; on one machine or in many pods.

>>> import job
>>> done = job.run(["texts/"], output="out", processor="text")  # doctest: +SKIP
>>> done.results().head(5)  # doctest: +SKIP

What is named here is the public interface; it is imported when it is used, so ``import job`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from job.api import Run, run
    from job.errors import (
        DamagedError,
        InterruptedRunError,
        InvariantError,
        JobError,
        NotReadyError,
        StorageError,
        TooManyFailuresError,
        UsageError,
    )
    from job.file import File

__version__ = "0.1.0"

__all__ = [
    "DamagedError",
    "File",
    "InterruptedRunError",
    "InvariantError",
    "JobError",
    "NotReadyError",
    "Run",
    "StorageError",
    "TooManyFailuresError",
    "UsageError",
    "run",
]

_HOMES = {"Run": "job.api", "run": "job.api", "File": "job.file"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'job' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "job.errors")), name)
