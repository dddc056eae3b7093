"""Where OUT is: durable writes, and one file created at most once.

A name is relative to the storage's root, with ``/``. Every operation raises `StorageError` with the full
path in its text when the storage fails, and ``FileNotFoundError`` when a name that is read is not there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from job.errors import StorageError


class LocalStorage:
    """A folder of a file system, also one that several machines share.

    Files appear under their names whole and synced, or not at all: each is written as a temporary file
    (``.NAME.RANDOM.tmp``) in its folder, synced, renamed, and the folder is synced.
    """

    def __init__(self, root: str) -> None:
        """Take ``root``; it is created when the first file is written."""
        self.root = Path(root)

    def path(self, name: str) -> Path:
        """Return the path of ``name`` in the file system."""
        return self.root / name

    def prepare(self) -> None:
        """Create the root, and show that a file can be written there.

        Raises:
            StorageError: It cannot.
        """
        with self._failing("write to", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self._temporary(self.root / "probe")
            probe.write_bytes(b"")
            probe.unlink()

    def read(self, name: str) -> bytes:
        """Return the whole of a small file."""
        with self._failing("read", self.path(name)):
            return self.path(name).read_bytes()

    def exists(self, name: str) -> bool:
        """Say whether a file of that name is there."""
        with self._failing("look up", self.path(name)):
            return self.path(name).exists()

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        with self._failing("look up", self.path(name)):
            return self.path(name).stat().st_size

    def list(self, folder: str) -> list[str]:
        """Return the names of the files in and below ``folder``, sorted; none where there is no folder.

        Temporary files of writers that did not end are among them: their names begin with a dot.
        """
        found = []
        with self._failing("list", self.path(folder)):
            for parent, _, names in os.walk(self.path(folder), onerror=_raise_but_missing):
                below = Path(parent).relative_to(self.root)
                found += [(below / name).as_posix() for name in names]
        return sorted(found)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file if there is none of that name; say whether it was this call that did.

        ``link(2)`` decides between two that try at once, also on NFS.
        """
        path = self.path(name)
        with self._failing("write", path):
            temporary = self._write(path, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            _sync(path.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file; whoever reads sees the old or the new one, never half."""
        path = self.path(name)
        with self._failing("write", path):
            self._write(path, data).rename(path)
            _sync(path.parent)

    @contextlib.contextmanager
    def sink(self, name: str) -> Iterator[pa.NativeFile]:
        """Give a stream for a data file, which gets its name, durable, when the block ends well."""
        path = self.path(name)
        with self._failing("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._temporary(path)
            try:
                with pa.OSFile(str(temporary), "wb") as stream:
                    yield stream
                _sync(temporary)
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync(path.parent)

    @contextlib.contextmanager
    def source(self, name: str) -> Iterator[pa.NativeFile]:
        """Give a random-access file for reading a data file."""
        path = self.path(name)
        with self._failing("read", path), pa.memory_map(str(path)) as stream:
            yield stream

    def remove(self, name: str) -> None:
        """Remove a file; it is no error when it is gone already."""
        with self._failing("remove", self.path(name)):
            self.path(name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all below it; another process may be doing the same."""
        for name in self.list(folder):
            self.remove(name)
        with self._failing("remove", self.path(folder)):
            for parent, _, _ in os.walk(self.path(folder), topdown=False, onerror=_raise_but_missing):
                with contextlib.suppress(FileNotFoundError):
                    Path(parent).rmdir()

    def _write(self, path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary(path)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")

    @staticmethod
    @contextlib.contextmanager
    def _failing(what: str, path: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if what in ("read", "look up"):
                raise
            raise StorageError(f"cannot {what} {path}: its folder has gone") from None
        except OSError as error:
            raise StorageError(f"cannot {what} {path}: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_but_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
