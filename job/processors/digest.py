"""``digest``: what tells whether two files are the same."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import xxhash

from job.file import File

_CHUNK = 1 << 20


class Digest:
    """Size and hashes of a file of any size, in bounded memory."""

    schema = pa.schema([("bytes", pa.int64()), ("sha256", pa.string()), ("xxh3_128", pa.string())])

    def __call__(self, file: File) -> dict[str, Any]:
        """Return ``bytes`` (as read), ``sha256`` and ``xxh3_128`` (in hex)."""
        size = 0
        sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        buffer = memoryview(bytearray(_CHUNK))
        with file.open() as stream:
            while read := stream.readinto(buffer):  # type: ignore[attr-defined] # a buffered reader
                size += read
                sha256.update(buffer[:read])
                xxh3.update(buffer[:read])
        return {"bytes": size, "sha256": sha256.hexdigest(), "xxh3_128": xxh3.hexdigest()}
