"""structlog, the same in every process: an event becomes one line of JSON and goes to the log queue.

A line is made where the event happens, with all that only that process knows, and cut to `LINE` bytes there.
The log process writes it as it is. Where there is no log process (a usage error before anything was started,
the last moment of main), `write_line` writes it directly.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

LINE: Final = 4096
"""Bytes of a line, newline included: a pipe takes so much whole, or nothing (``PIPE_BUF``)."""

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_ALWAYS: Final = ("timestamp", "level", "event", "run_id", "process", "pid")

context: dict[str, Any] = {}
"""What every line of this process says: ``run_id``, ``process``, ``pid``, and within a shard which."""


def configure(send: Callable[[bytes], None], *, level: str, process: str, **always: Any) -> None:
    """Make every way of logging in this process end in ``send``, one line a call.

    structlog, `logging`, `warnings` and uncaught exceptions. Standard output and error are the business of
    whoever starts the process.

    Args:
        send: Takes a line of at most `LINE` bytes; it decides what happens when nobody reads.
        level: The least level that is logged, one of `LEVELS`.
        process: The role: main, worker-3, result, log.
        **always: Further keys of every line; at least ``run_id``.
    """
    import structlog  # noqa: PLC0415 - 0.2 s, and `job --help` logs nothing

    context.clear()
    context.update({"run_id": None, "process": process, "pid": os.getpid()} | always)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _Lines(send),
        cache_logger_on_first_use=False,
    )
    handler = _Handler()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught


def bind(**keys: Any) -> None:
    """Add keys to every later line of this process; None removes one."""
    for key, value in keys.items():
        if value is None:
            context.pop(key, None)
        else:
            context[key] = value


def event(level: str, text: str, **keys: Any) -> bytes:
    """Return the line of an event of this process."""
    return encode({"level": level, "event": text} | keys)


def encode(keys: Mapping[str, Any]) -> bytes:
    """Return a line of at most `LINE` bytes: `timestamp`, `level`, `event`, the context, then the rest."""
    line = {"timestamp": None, "level": None, "event": None} | context | dict(keys)
    line["timestamp"] = line["timestamp"] or datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return fit(line)


def fit(line: dict[str, Any]) -> bytes:
    """Return ``line`` as JSON and a newline, in at most `LINE` bytes.

    The longest values are cut, as little as needed, and ``truncated`` says which.
    """
    data = _dumps(line)
    if len(data) < LINE:
        return data + b"\n"
    texts = {
        key: value if isinstance(value, str) else _dumps(value).decode()
        for key, value in line.items()
        if isinstance(value, (str, list, dict, tuple)) and key not in _ALWAYS[:2]
    }
    limit = LINE
    while len(data) >= LINE and limit > 1:
        limit //= 2
        cut = sorted(key for key, text in texts.items() if len(text) > limit)
        short = {key: texts[key][:limit] + "…" for key in cut}
        data = _dumps(line | short | {"truncated": [key[:64] for key in cut[:16]]})
    if len(data) >= LINE:  # thousands of keys
        data = _dumps({key: line[key] for key in _ALWAYS if key in line} | {"truncated": ["*"]})
    return data + b"\n"


def write_line(data: bytes, descriptor: int = 2) -> None:
    """Write a line where no log process is; a closed standard error is nobody's fault."""
    try:
        os.write(descriptor, data)
    except OSError:
        return


class _Lines:
    """What structlog calls at the end of its chain."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def msg(self, line: bytes) -> None:
        self._send(line)

    debug = info = warning = error = critical = exception = log = msg


class _Handler(logging.Handler):
    """`logging` records, of libraries and of `warnings`, as events."""

    def emit(self, record: logging.LogRecord) -> None:
        import structlog  # noqa: PLC0415

        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the arguments do not fit the format: show both
            text = f"{record.msg} {record.args}"
        if record.name == "py.warnings":
            text = text.strip()
        level = next((name for name, least in reversed(LEVELS.items()) if record.levelno >= least), "debug")
        keys: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            keys["exc_info"] = record.exc_info
        getattr(structlog.get_logger(), level)(text, **keys)


def _line(_logger: object, _method: str, event_dict: MutableMapping[str, Any]) -> str | bytes:
    return encode(event_dict)


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    import structlog  # noqa: PLC0415

    structlog.get_logger().critical(
        "uncaught exception", error=f"{kind.__qualname__}: {error}", exc_info=(kind, error, trace)
    )


def _dumps(value: Any) -> bytes:
    """Return valid JSON in UTF-8 for any value; an undecodable byte of a file name stands as ``\\xNN``."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (ValueError, TypeError, RecursionError):  # NaN, a cycle, a key that is no text
        text = json.dumps(_harmless(value), ensure_ascii=False)
    return text.encode("utf-8", "job.surrogates")


def _escape_surrogate(error: UnicodeError) -> tuple[str, int]:
    """Write ``\\xNN`` for a surrogate escape; parsers differ about a lone surrogate in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    codes = [ord(character) for character in error.object[error.start : error.end]]
    escaped = "".join(
        f"\\\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\\\u{code:04x}"  # noqa: PLR2004
        for code in codes
    )
    return escaped, error.end


codecs.register_error("job.surrogates", _escape_surrogate)


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a user's __str__; the line must come all the same
        return f"<{type(value).__qualname__}: {type(error).__qualname__} in str()>"


def _harmless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): item if isinstance(item, (str, int, bool, type(None))) else _plain(item)
            for key, item in value.items()
        }
    return _plain(value)
