"""What comes of files, on its way from a worker to the result process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One attempt at one shard.

    Attributes:
        plan_id: The plan's id.
        shard: Index of the shard.
        shards: Their number.
        start, stop: Its files are ``file_index`` ``start`` … ``stop`` - 1.
        attempt: Id of this attempt.
    """

    plan_id: str
    shard: int
    shards: int
    start: int
    stop: int
    attempt: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file has no result."""

    file_index: int
    error_type: str
    message: str
    traceback: str | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of some files, in the order they were processed.

    Attributes:
        worker: Its number, or -1 where main gave the files up.
        indexes, started, seconds: Arrays of int64, double (seconds since 1970) and double as bytes, one
            value a file.
        failures: Those of the files that failed.
        results: The rows of the others as an Arrow IPC stream, or None where there is no row.
    """

    worker: int
    indexes: bytes
    started: bytes
    seconds: bytes
    failures: tuple[Failure, ...]
    results: bytes | None
