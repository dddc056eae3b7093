"""The commit record: a small file whose existence makes a shard's data files count, all at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import xxhash

from job import layout
from job.errors import DamagedError
from job.storage import LocalStorage


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file as its writer left it.

    Attributes:
        name: Under OUT.
        size: Bytes.
        rows: Rows.
        checksum: ``xxh3_128:`` and the hash of its bytes in hex.
    """

    name: str
    size: int
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a finished shard consists of.

    Attributes:
        plan_id: The plan that it is part of.
        shard: Its index.
        shards: Their number.
        attempt: The attempt that wrote the data files.
        counts: files, ok, failed, rows, bytes (of the input), seconds (of work in all workers).
        data: By kind (results, failures, files) the data file.
    """

    plan_id: str
    shard: int
    shards: int
    attempt: str
    counts: Mapping[str, Any]
    data: Mapping[str, DataFile]

    def to_json(self) -> bytes:
        """Return the record's bytes."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, name: str, data: bytes) -> Self:
        """Return the record from its bytes.

        Raises:
            DamagedError: They are no commit record; ``name`` says of which file.
        """
        try:
            fields = json.loads(data)
            files = {kind: DataFile(**file) for kind, file in fields.pop("data").items()}
            return cls(**fields, data=files)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"{name} is damaged: it is no commit record") from error


def read_record(storage: LocalStorage, shard: int, shards: int) -> CommitRecord | None:
    """Return the commit record of a shard, or None while it has none.

    Raises:
        DamagedError: It is damaged.
    """
    name = layout.commit_record(shard, shards)
    try:
        return CommitRecord.from_json(str(storage.path(name)), storage.read(name))
    except FileNotFoundError:
        return None


def describe(storage: LocalStorage, name: str, rows: int) -> DataFile:
    """Return what a commit record says of a data file that has just been written."""
    return DataFile(name, storage.size(name), rows, checksum(storage, name))


def checksum(storage: LocalStorage, name: str) -> str:
    """Return the checksum of a file under OUT; it is mapped, not read into memory."""
    with storage.source(name) as source:
        digest = xxhash.xxh3_128()
        while chunk := source.read_buffer(8 << 20):
            digest.update(chunk)
    return f"xxh3_128:{digest.hexdigest()}"


def verify(storage: LocalStorage, file: DataFile) -> None:
    """Show that a data file is what its commit record says.

    Raises:
        DamagedError: It is not, or it is not there.
    """
    path = storage.path(file.name)
    try:
        size = storage.size(file.name)
        if size != file.size:
            raise DamagedError(f"{path} is damaged: {size} bytes, not {file.size}")
        if checksum(storage, file.name) != file.checksum:
            raise DamagedError(f"{path} is damaged: its bytes do not have the checksum of its writer")
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing, but its shard's commit record names it") from error
