"""The same from Python: `run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset

from job import layout
from job.commands import PlanSettings, run_all
from job.cpus import available
from job.pipeline.runtime import LogSettings, Runtime
from job.settings import Limit, MapSettings


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        output: OUT.
        summary: The content of ``summary.json``.
    """

    output: Path
    summary: Mapping[str, Any]

    @property
    def files(self) -> int:
        """Number of files, failed ones included."""
        return int(self.summary["files"])

    @property
    def rows(self) -> int:
        """Number of results."""
        return int(self.summary["results"])

    @property
    def failed(self) -> int:
        """Number of files that failed."""
        return int(self.summary["failures"])

    @property
    def result_path(self) -> Path:
        """All results, ordered by ``file_index``."""
        return self.output / layout.RESULT

    @property
    def failures_path(self) -> Path:
        """The files that failed, and why."""
        return self.output / layout.FAILURES

    @property
    def files_path(self) -> Path:
        """The ledger: every file once."""
        return self.output / layout.FILES

    @property
    def summary_path(self) -> Path:
        """The statistics put together."""
        return self.output / layout.SUMMARY

    def results(self) -> pyarrow.dataset.Dataset:
        """Return the results as a dataset: ``to_table()``, ``head(5)``, ``scanner(filter=…)``."""
        return pyarrow.dataset.dataset(self.result_path)

    def failures(self) -> pyarrow.dataset.Dataset:
        """Return the failures as a dataset."""
        return pyarrow.dataset.dataset(self.failures_path)


def run(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str],
    processor: str | Callable[..., Any] = "text",
    options: Mapping[str, Any] | None = None,
    shards: int = 1,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    workers: int | None = None,
    timeout: float | None = None,
    retries: int = 2,
    checkpoint_seconds: float = 30.0,
    max_failures: int | str = 0,
    fail_fast: int | None = None,
    allow_changed: bool = False,
    allow_empty: bool = False,
    replan: bool = False,
    log_level: str = "warning",
    log_format: str = "auto",
) -> Run:
    """Plan, map and reduce on this machine, like the command ``job run``; or go on where it stopped.

    It needs no ``if __name__ == "__main__"`` and works in a notebook: the worker processes do not run the
    caller's script again. A function that they cannot import by name (of a notebook, a lambda, a closure) is
    sent to them by value.

    Args:
        inputs: Files, folders and globs.
        output: Folder for everything that comes out.
        processor: Name of a built-in, ``module:function``, ``file.py:function``, or the function itself.
        options: The processor's options.
        shards: Number of slices of the file list.
        include: Take only files that match one of these patterns.
        exclude: Leave out what matches one of these patterns.
        workers: Number of processes; default: the CPUs this process may use.
        timeout: Seconds that one file may take.
        retries: How often a file is tried again after its worker process has died with it.
        checkpoint_seconds: At most so long results are only in memory.
        max_failures: How many files may fail: a number, or per cent as in ``"1%"``.
        fail_fast: End early, with nothing published, when so many files have failed.
        allow_changed: Take files that have changed since they were planned.
        allow_empty: Take it as a run of no files when nothing is found.
        replan: Forget an earlier run in ``output``.
        log_level: debug, info, warning, error or critical.
        log_format: auto, json, console, gcp or ecs; logs go to standard error.

    Raises:
        TooManyFailuresError: More files failed than ``max_failures`` allows; all the rest is there.
        UsageError: Something is wrong with what was given; see the text.
        StorageError: Input or output storage failed.
    """
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    plan = PlanSettings(
        inputs=tuple(os.fspath(name) for name in inputs),
        output=os.fspath(output),
        shards=shards,
        processor=processor,
        options={name: str(value) for name, value in (options or {}).items()},
        include=tuple(include),
        exclude=tuple(exclude),
        rescan=False,
        replan=replan,
        allow_empty=allow_empty,
    )
    settings = MapSettings(
        workers=workers or available(),
        timeout=timeout,
        retries=retries,
        checkpoint_seconds=checkpoint_seconds,
        fail_fast=fail_fast,
        allow_changed=allow_changed,
    )
    with Runtime(LogSettings(level=log_level, format=log_format), settings.workers) as runtime:
        reduced = run_all(plan, settings, runtime, max_failures=Limit.parse(str(max_failures)))
    return Run(Path(output), reduced.summary)
