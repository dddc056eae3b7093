"""The names under OUT. Nothing else in the project spells one."""

from __future__ import annotations

import secrets
import time

PLAN = "plan.parquet"
RESULT = "result.parquet"
FAILURES = "failures.parquet"
FILES = "files.parquet"
SUMMARY = "summary.parquet"
SUMMARY_JSON = "summary.json"

DATA_KINDS = ("results", "failures", "files")
"""The three data files of a shard: rows of the processor, rows of failed files, the ledger."""

FOLDERS = ("shards", *DATA_KINDS, "parts", "attempts")


def shard_name(index: int, count: int) -> str:
    """Return e.g. ``shard-00003-of-00008``."""
    return f"shard-{index:05d}-of-{count:05d}"


def commit_record(index: int, count: int) -> str:
    """Return the name of the file whose existence says that a shard is finished."""
    return f"shards/{shard_name(index, count)}.json"


def data_file(kind: str, index: int, count: int, attempt: str) -> str:
    """Return the name of one of the ``DATA_KINDS`` as one attempt writes it."""
    return f"{kind}/{shard_name(index, count)}.{attempt}.parquet"


def parts_folder(index: int) -> str:
    """Return the folder of all parts of a shard, whoever wrote them."""
    return f"parts/shard-{index:05d}"


def attempts_folder(index: int) -> str:
    """Return the folder of the records of a shard's attempts."""
    return f"attempts/shard-{index:05d}"


def attempt_record(index: int, attempt: str) -> str:
    """Return the name of the record of one attempt."""
    return f"{attempts_folder(index)}/{attempt}.json"


def new_attempt() -> str:
    """Return a random id that sorts by time: milliseconds since 1970 and 40 random bits, in hex."""
    return f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(5)}"
