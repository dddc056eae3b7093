"""Finding the files of the input.

Names are bytes from the file system to the plan: they need not be UTF-8. What is found is kept in compact
chunks and sorted by Arrow, so a million files are some hundred megabytes, not a million objects.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc

from job.errors import StorageError, UsageError
from job.plan.arguments import Arguments

SCHEMA: Final = pa.schema(
    [
        ("path", pa.string()),
        ("path_raw", pa.binary()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("ns", tz="UTC")),
        ("etag", pa.string()),
    ]
)

_CHUNK: Final = 50_000
"""Files that are collected as Python objects before they become an Arrow array."""

_NAMED: Final = 5
"""Names that a message lists."""

Warn = Callable[..., object]


def scan(arguments: Arguments, output: str | None, stdin: BinaryIO | None, warn: Warn) -> pa.Table:
    """Return the files of the input: `SCHEMA`, sorted by the bytes of their path, each path once.

    Args:
        arguments: Inputs and filters.
        output: OUT, nothing in which is an input.
        stdin: Where names come from when ``files_from`` is ``-``.
        warn: Called with a text and ``path=`` for what is left out: sockets, broken links, loops.

    Raises:
        UsageError: An input is missing.
        StorageError: A folder cannot be listed.
    """
    scanner = _Scanner(arguments, output, warn)
    names = (*map(os.fsencode, arguments.inputs), *_names(arguments, stdin))
    missing = [name for name in names if not scanner.add_input(name)]
    if missing:
        shown = ", ".join(_text(name) for name in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise UsageError(f"no such file or folder: {shown}{more}")
    return scanner.finish()


def _names(arguments: Arguments, stdin: BinaryIO | None) -> Iterator[bytes]:
    """Yield the names in the list of inputs, if there is one."""
    source = arguments.files_from
    if source is None:
        return
    try:
        if source == "-":
            data = stdin.read() if stdin is not None else b""
        else:
            data = Path(arguments.base or "", source).read_bytes()
    except OSError as error:
        raise UsageError(f"--files-from {source}: {error.strerror}") from error
    for name in data.split(b"\0" if arguments.null else b"\n"):
        if name:
            yield name


@dataclass(frozen=True, slots=True)
class _Filter:
    """Patterns of ``--include`` or ``--exclude``."""

    of_names: re.Pattern[str] | None
    of_paths: re.Pattern[str] | None

    @classmethod
    def make(cls, patterns: tuple[str, ...]) -> _Filter | None:
        if not patterns:
            return None

        def compiled(chosen: list[str]) -> re.Pattern[str] | None:
            return re.compile("|".join(map(fnmatch.translate, chosen))) if chosen else None

        return cls(
            compiled([pattern for pattern in patterns if "/" not in pattern]),
            compiled([pattern for pattern in patterns if "/" in pattern]),
        )

    def matches(self, name: bytes, below: bytes) -> bool:
        """Say whether a file or folder matches, by its name, or its path ``below`` its input."""
        return bool(
            (self.of_names and self.of_names.match(os.fsdecode(name)))
            or (self.of_paths and self.of_paths.match(os.fsdecode(below)))
        )


class _Scanner:
    def __init__(self, arguments: Arguments, output: str | None, warn: Warn) -> None:
        self._base = os.fsencode(arguments.base) if arguments.base else b"/"
        self._include = _Filter.make(arguments.include)
        self._exclude = _Filter.make(arguments.exclude)
        self._warn = warn
        self._output = _identity(os.fsencode(output)) if output else None
        self._folders: set[bytes] = set()  # scanned, by normalised absolute name
        self._files: dict[bytes, tuple[bytes, os.stat_result]] = {}  # given one by one, likewise
        self._chunks: list[pa.RecordBatch] = []
        self._paths: list[bytes] = []
        self._sizes = array("q")
        self._times = array("q")

    def add_input(self, name: bytes) -> bool:
        """Take a file, a folder or a glob; say whether there is such a thing."""
        location = os.path.join(self._base, name)
        try:
            found = os.stat(location)
        except OSError:
            if os.path.islink(location):
                self._warn("broken link is left out", path=_text(name))
                return True
            return self._add_glob(name)
        if stat.S_ISDIR(found.st_mode):
            self._add_folder(name, location, found)
        elif stat.S_ISREG(found.st_mode):
            if self._passes(os.path.basename(name), os.path.basename(name)):
                self._files.setdefault(os.path.normpath(location), (name, found))
        else:
            self._warn("no regular file: left out", path=_text(name))
        return True

    def finish(self) -> pa.Table:
        """Return all that was found."""
        for location, (name, found) in self._files.items():
            # a folder that was scanned has it already, unless it left the file out
            if os.path.dirname(location) not in self._folders:
                self._take(name, found.st_size, found.st_mtime_ns)
        self._flush()
        table = pa.Table.from_batches(self._chunks, _RAW)
        table = table.take(pc.sort_indices(table.column("raw")))
        return pa.table(
            [
                *_names_of(table.column("raw")),
                *table.columns[1:],
                pa.nulls(len(table), pa.string()),
            ],
            schema=SCHEMA,
        )

    def _add_glob(self, name: bytes) -> bool:
        if not glob.has_magic(name):
            return False
        found = glob.glob(name, root_dir=self._base, recursive=True, include_hidden=True)
        for match in sorted(found):
            self.add_input(match)
        return bool(found)

    def _add_folder(self, name: bytes, location: bytes, found: os.stat_result) -> None:
        """Take all files in and below a folder; iterative, so that depth costs no stack."""
        top: tuple[tuple[int, int], ...] = ((found.st_dev, found.st_ino),)
        waiting = [(name, location, b"", top)]
        while waiting:
            shown, location, below, ancestors = waiting.pop()
            normal = os.path.normpath(location)
            if ancestors[-1] == self._output or normal in self._folders:
                continue
            self._folders.add(normal)
            prefix = shown if shown.endswith(b"/") else shown + b"/"
            try:
                entries = os.scandir(location)
            except OSError as error:
                raise StorageError(f"cannot list {_text(shown)}: {error.strerror}") from error
            with entries:
                for entry in entries:
                    here = below + entry.name
                    if (folder := self._look(entry, prefix, here)) is None:
                        continue
                    if folder in ancestors:
                        self._warn("link to a folder above is left out", path=_text(prefix + entry.name))
                    elif self._exclude is None or not self._exclude.matches(entry.name, here):
                        waiting.append((prefix + entry.name, entry.path, here + b"/", (*ancestors, folder)))

    def _look(self, entry: os.DirEntry[bytes], prefix: bytes, below: bytes) -> tuple[int, int] | None:
        """Take an entry that is a file; return the identity (device, inode) of one that is a folder."""
        try:
            found = entry.stat()
        except OSError as error:
            self._warn("left out", path=_text(prefix + entry.name), error=error.strerror)
            return None
        if stat.S_ISREG(found.st_mode):
            if self._passes(entry.name, below):
                self._take(prefix + entry.name, found.st_size, found.st_mtime_ns)
        elif stat.S_ISDIR(found.st_mode):
            return found.st_dev, found.st_ino
        else:
            self._warn("no regular file: left out", path=_text(prefix + entry.name))
        return None

    def _passes(self, name: bytes, below: bytes) -> bool:
        if self._include is not None and not self._include.matches(name, below):
            return False
        return self._exclude is None or not self._exclude.matches(name, below)

    def _take(self, path: bytes, size: int, modified: int) -> None:
        self._paths.append(path)
        self._sizes.append(size)
        self._times.append(modified)
        if len(self._paths) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        columns = [
            pa.array(self._paths, pa.large_binary()),
            pa.array(self._sizes, pa.int64()),
            pa.array(self._times, pa.int64()).cast(pa.timestamp("ns", tz="UTC")),
        ]
        self._chunks.append(pa.record_batch(columns, schema=_RAW))
        self._paths = []
        self._sizes, self._times = array("q"), array("q")


_RAW: Final = pa.schema(
    [
        ("raw", pa.large_binary()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("ns", tz="UTC")),
    ]
)


def _names_of(raw: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return the columns ``path`` and ``path_raw`` of names in bytes."""
    texts, bytes_ = [], []
    for chunk in raw.chunks:
        try:
            texts.append(chunk.cast(pa.large_string()).cast(pa.string()))
            bytes_.append(pa.nulls(len(chunk), pa.binary()))
        except pa.ArrowInvalid:  # some name is not UTF-8
            names = chunk.to_pylist()
            texts.append(pa.array(map(_text, names), pa.string()))
            bytes_.append(pa.array([None if _is_text(name) else name for name in names], pa.binary()))
    return pa.chunked_array(texts, pa.string()), pa.chunked_array(bytes_, pa.binary())


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text(name: bytes) -> str:
    """Return a name as text; bytes that are not UTF-8 stand as ``\\xNN``."""
    return name.decode("utf-8", "backslashreplace")


def _identity(path: bytes) -> tuple[int, int] | None:
    """Return device and inode of what is at ``path``, or None if nothing is (then it is not found either)."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
