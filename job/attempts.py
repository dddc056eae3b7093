"""The record that an attempt keeps of itself under OUT, for whoever asks how a shard is."""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import UTC, datetime
from typing import Any

from job import layout
from job.pipeline.pipeline import Progress
from job.results.outcomes import ShardTask
from job.storage import LocalStorage


class AttemptRecord:
    """``attempts/shard-00003/<attempt>.json``, replaced at each update.

    Keys: attempt, shard, shards, host, pid; started, updated, ended (ISO 8601, UTC; ended is null while it
    runs); files, done, stored, failed (of this attempt); rate (files a second); exit_code, message (null
    while it runs).
    """

    def __init__(self, storage: LocalStorage, task: ShardTask) -> None:
        """Begin the record of an attempt; nothing is written yet."""
        self._storage = storage
        self._name = layout.attempt_record(task.shard, task.attempt)
        self._begin = time.monotonic()
        self._fields: dict[str, Any] = {
            "attempt": task.attempt,
            "shard": task.shard,
            "shards": task.shards,
            "host": platform.node(),
            "pid": os.getpid(),
            "started": _now(),
            "updated": None,
            "ended": None,
            "files": task.stop - task.start,
            "done": 0,
            "stored": 0,
            "failed": 0,
            "rate": 0.0,
            "exit_code": None,
            "message": None,
        }

    def update(self, progress: Progress) -> None:
        """Write how far the attempt is.

        Raises:
            StorageError: It cannot be written.
        """
        seconds = max(time.monotonic() - self._begin, 1e-9)
        self._fields |= {
            "done": progress.processed,
            "stored": progress.stored,
            "failed": progress.failed,
            "rate": round(progress.processed / seconds, 3),
        }
        self._write()

    def end(self, exit_code: int, message: str) -> None:
        """Write how the attempt has ended.

        Raises:
            StorageError: It cannot be written.
        """
        self._fields |= {"ended": _now(), "exit_code": exit_code, "message": message}
        self._write()

    def _write(self) -> None:
        self._fields["updated"] = _now()
        self._storage.replace(self._name, json.dumps(self._fields, indent=1).encode() + b"\n")


def last_attempt(storage: LocalStorage, shard: int) -> dict[str, Any] | None:
    """Return the record of a shard's latest attempt, or None where there was none."""
    for name in reversed(storage.list(layout.attempts_folder(shard))):
        if name.rpartition("/")[2].startswith("."):
            continue
        try:
            fields: dict[str, Any] = json.loads(storage.read(name))
        except (ValueError, FileNotFoundError):
            continue  # not ours to judge: a record is information, nothing depends on it
        return fields
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
