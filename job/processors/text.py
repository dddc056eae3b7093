"""``text``: what ``wc`` counts, and what one has to know to read a file."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import pyarrow as pa

from job.file import File

CHUNK: Final = 1 << 20
"""Bytes read at once; memory is a few times this, whatever the file's size."""

_BINARY_HEAD: Final = 8192
_DETECTOR_HEAD: Final = 64 * 1024

_BOMS: Final = (  # UTF-32 before UTF-16, whose little-endian mark it begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_WHITE_SPACE: Final = b" \t\n\r\x0b\x0c"


class Text:
    """Counts of bytes, lines, words and characters, encoding and line ends of a file of any size.

    ``lines`` counts newline bytes and ``words`` runs of bytes other than ASCII white space, as ``wc`` does in
    the C locale; ``chars`` and ``max_line`` count code points as decoded, without a BOM. For a binary file
    (a NUL in the first 8 KiB and no BOM of UTF-16 or UTF-32) these two and ``encoding`` are null.
    """

    def __init__(self, *, sha256: bool = True) -> None:
        """Take the options.

        Args:
            sha256: whether to hash the bytes as well
        """
        self._sha256 = sha256
        columns = [
            ("bytes", pa.int64()),
            ("lines", pa.int64()),
            ("words", pa.int64()),
            ("chars", pa.int64()),
            ("max_line", pa.int64()),
            ("encoding", pa.string()),
            ("bom", pa.bool_()),
            ("eol", pa.string()),
            ("binary", pa.bool_()),
        ]
        self.schema = pa.schema(columns + [("sha256", pa.string())] * sha256)

    def __call__(self, file: File) -> dict[str, Any]:
        """Return one row."""
        with file.open() as stream:
            return self.read(stream)

    def read(self, stream: BinaryIO, chunk: int = CHUNK) -> dict[str, Any]:
        """Return the row of a stream that can be read twice, ``chunk`` bytes at a time."""
        head = stream.read(max(chunk, _BINARY_HEAD))
        bom, encoding = _bom(head)
        binary = b"\0" in head[:_BINARY_HEAD] and encoding in {None, "utf-8"}
        counts = _Bytes(hashed=self._sha256)
        text: _Characters | None = None
        if not binary:
            text = _Characters(encoding or "utf-8", strict=encoding in {None, "utf-8"})
        skip = len(bom)
        for data in _chunks(head, stream, chunk):
            counts.add(data)
            if text is not None and not text.failed:
                text.add(data[skip:] if skip else data)
            skip = max(0, skip - len(data))
        if text is not None:
            text.end()
            if text.failed:
                encoding = encoding or _detect(head, stream)
                text = _again(stream, chunk, encoding, len(bom))
        row = {
            "bytes": counts.bytes,
            "lines": counts.lines,
            "words": counts.words,
            "chars": None if text is None else text.chars,
            "max_line": None if text is None else text.max_line,
            "encoding": None if text is None else encoding or "utf-8",
            "bom": bool(bom),
            "eol": counts.ends.name() if text is None else text.ends.name(),
            "binary": binary,
        }
        if counts.sha256 is not None:
            row["sha256"] = counts.sha256.hexdigest()
        return row


def _chunks(head: bytes, stream: BinaryIO, chunk: int) -> Iterator[bytes]:
    if len(head) <= chunk:
        if head:
            yield head
    else:
        yield from (head[start : start + chunk] for start in range(0, len(head), chunk))
    while data := stream.read(chunk):
        yield data


def _again(stream: BinaryIO, chunk: int, encoding: str, skip: int) -> _Characters:
    """Return the characters of a stream that was not UTF-8 after all."""
    text = _Characters(encoding, strict=False)
    stream.seek(skip)
    for data in _chunks(stream.read(chunk), stream, chunk):
        text.add(data)
    text.end()
    return text


def _bom(head: bytes) -> tuple[bytes, str | None]:
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return mark, encoding
    return b"", None


def _detect(head: bytes, stream: BinaryIO) -> str:
    """Return the encoding of bytes that are not UTF-8, guessed from their beginning."""
    import charset_normalizer  # noqa: PLC0415 - 20 ms, and most files are UTF-8

    if len(head) < _DETECTOR_HEAD:
        stream.seek(0)
        head = stream.read(_DETECTOR_HEAD)
    best = charset_normalizer.from_bytes(head[:_DETECTOR_HEAD]).best()
    if best is None or best.encoding in {"utf_8", "ascii"}:  # its beginning does not tell
        return "latin-1"
    return codecs.lookup(best.encoding).name.replace("_", "-")


class _Ends:
    """Line ends: how many of each kind, over borders of chunks."""

    __slots__ = ("_after_cr", "cr", "crlf", "lf")

    def __init__(self) -> None:
        self.lf = self.cr = self.crlf = 0
        self._after_cr = False

    def add(self, data: Any, lf: Any, cr: Any, crlf: Any) -> None:
        """Count in text or bytes; a CR and an LF of two chunks are one end."""
        newlines, returns = data.count(lf), data.count(cr)
        pairs = data.count(crlf) if newlines and returns else 0
        if self._after_cr and data[:1] == lf:
            pairs += 1
        self.crlf += pairs
        self.lf += newlines
        self.cr += returns
        self._after_cr = data[-1:] == cr

    def name(self) -> str:
        """Return lf, crlf, cr, mixed or none."""
        kinds = {"lf": self.lf - self.crlf, "crlf": self.crlf, "cr": self.cr - self.crlf}
        found = [name for name, count in kinds.items() if count]
        return "none" if not found else found[0] if len(found) == 1 else "mixed"


class _Bytes:
    """What is counted in bytes."""

    def __init__(self, *, hashed: bool) -> None:
        self.bytes = self.lines = self.words = 0
        self.ends = _Ends()
        self.sha256 = hashlib.sha256() if hashed else None
        self._in_word = False

    def add(self, data: bytes) -> None:
        self.bytes += len(data)
        self.ends.add(data, b"\n", b"\r", b"\r\n")
        self.lines = self.ends.lf
        self.words += _words(data)
        if self._in_word and data[0] not in _WHITE_SPACE:
            self.words -= 1  # it began in the chunk before
        self._in_word = data[-1] not in _WHITE_SPACE
        if self.sha256 is not None:
            self.sha256.update(data)


_SMALL: Final = 16 * 1024
"""Bytes from which on NumPy is faster than ``bytes.split``."""

_spaces: Any = None


def _words(data: bytes) -> int:
    """Return the number of runs of bytes other than white space."""
    if len(data) < _SMALL:
        return len(data.split())
    import numpy as np  # noqa: PLC0415 - small files do without

    global _spaces  # noqa: PLW0603 - a table of 256 booleans, made once
    if _spaces is None:
        _spaces = np.zeros(256, bool)
        _spaces[list(_WHITE_SPACE)] = True
    space = _spaces[np.frombuffer(data, np.uint8)]
    begins = int(np.count_nonzero(space[:-1] & ~space[1:]))
    return begins + (not space[0])


class _Characters:
    """What is counted in characters; ``failed`` when the bytes are not in the encoding after all."""

    def __init__(self, encoding: str, *, strict: bool) -> None:
        self.chars = self.max_line = 0
        self.ends = _Ends()
        self.failed = False
        self._decoder = codecs.getincrementaldecoder(encoding)("strict" if strict else "replace")
        self._line = 0

    def add(self, data: bytes) -> None:
        try:
            self._count(self._decoder.decode(data))
        except UnicodeDecodeError:
            self.failed = True

    def end(self) -> None:
        try:
            self._count(self._decoder.decode(b"", final=True))
        except UnicodeDecodeError:
            self.failed = True
        self.max_line = max(self.max_line, self._line)

    def _count(self, text: str) -> None:
        if not text:
            return
        self.chars += len(text)
        self.ends.add(text, "\n", "\r", "\r\n")
        if "\r" in text:
            text = text.replace("\r", "\n")  # an empty line more does not change the longest
        first, newline, rest = text.partition("\n")
        self._line += len(first)
        if not newline:
            return
        self.max_line = max(self.max_line, self._line)
        middle, newline, last = rest.rpartition("\n")
        if newline:
            self.max_line = max(self.max_line, _longest(middle))
        self._line = len(last)


def _longest(text: str) -> int:
    """Return the length of the longest line; lines are ended by newlines."""
    if len(text) < _SMALL:
        return max(map(len, text.split("\n")))
    import numpy as np  # noqa: PLC0415 - small files do without

    if text.isascii():
        codes = np.frombuffer(text.encode(), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.flatnonzero(codes == ord("\n"))
    borders = np.concatenate(([-1], ends, [len(codes)]))
    return int(np.diff(borders).max()) - 1
