"""Where the children come from: a small process that forks on request.

Main does not fork itself: threads of Arrow, of an object store's client or of a notebook do not survive it.
It starts this server once, as a fresh interpreter; the server imports what every child needs and then forks
them in about 2 ms each. It differs from the fork server of `multiprocessing` in what this project promises:

* main's script is not run again in the children, so it needs no ``__main__`` guard;
* an exit is told by the server (``waitpid``), with the signal; the server's own death is an end-of-file, and
  takes its children along (``PR_SET_PDEATHSIG``), so that none goes on unseen;
* when main dies, the server ends the children: workers and result process at once, the log process when it
  has written what was handed over.

The server keeps nothing: all that a child needs comes with the request, descriptors included
(``SCM_RIGHTS``). So a dead server is replaced by the next one, and nobody notices.

::

    main ── spawn(target, arguments, descriptors) ─▶ server ── fork ─▶ child: target(arguments, descriptors)
         ◀─ started(pid) ─────────────────────────          ◀─ SIGCHLD
         ◀─ exited(pid, status) ──────────────────
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections import deque
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from job.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Sequence

PRELOAD: Final = (
    "job.pipeline.log",
    "job.pipeline.worker",
    "job.pipeline.result",
    "pyarrow.compute",
)
"""The roles, and with them Arrow, NumPy and structlog: a child has nothing of ours left to import."""

ONE_THREAD: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
"""One thread a worker: N workers with N threads each would only fight for the N cores."""

_MESSAGE: Final = 64 * 1024
_DESCRIPTORS: Final = 200
"""Descriptors in one message; the kernel takes 253."""

_LAST_WORDS: Final = 2.0
"""Seconds the log process has to write what is left when main has died."""

_PR_SET_PDEATHSIG: Final = 1


class Exit(NamedTuple):
    """The end of a child.

    Attributes:
        pid: Its process id.
        code: Exit status, minus the signal's number, or None when the server died and took it along.
    """

    pid: int
    code: int | None

    @property
    def manner(self) -> str:
        """How it ended, in words."""
        if self.code is None:
            return "was taken along by the death of the fork server"
        if self.code < 0:
            return f"was killed by {signal.Signals(-self.code).name}"
        return f"ended with status {self.code}"


class ForkServer:
    """Main's side: start children, learn of their ends.

    A dead server is started again by the next `spawn`.
    """

    def __init__(self, stdio: int) -> None:
        """Start the server; its standard output and error are the descriptor ``stdio``."""
        self._stdio = stdio
        self._children: set[int] = set()
        self._exits: deque[Exit] = deque()
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from job.pipeline.forkserver import serve; serve({theirs.fileno()})"
        )
        environment = dict.fromkeys(ONE_THREAD, "1") | os.environ
        with theirs:
            self._process = Popen(  # noqa: S603 - our own interpreter, our own code
                [sys.executable, "-c", code],
                stdin=DEVNULL,
                stdout=self._stdio,
                stderr=self._stdio,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # a Ctrl-C in the terminal is main's business
            )

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that is readable when `exits` has something to tell."""
        return self._control.fileno()

    def spawn(self, target: str, arguments: Any, descriptors: Sequence[int]) -> int:
        """Start a child and return its process id.

        Args:
            target: ``module:function``; called as ``function(arguments, descriptors)`` in the child, it
                returns the exit status.
            arguments: Anything small that pickles.
            descriptors: Copies of these are the child's; their numbers there differ.

        Raises:
            InvariantError: The server cannot be kept alive.
        """
        for _ in range(3):
            if self._process.poll() is not None:
                self._restart()
            try:
                return self._spawn(target, arguments, descriptors)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                self._process.kill()
                self._process.wait()
        raise InvariantError("the fork server dies whenever it is asked for a child")

    def _spawn(self, target: str, arguments: Any, descriptors: Sequence[int]) -> int:
        request = pickle.dumps((target, arguments, len(descriptors)))
        socket.send_fds(self._control, [request], descriptors[:_DESCRIPTORS])
        for start in range(_DESCRIPTORS, len(descriptors), _DESCRIPTORS):
            socket.send_fds(self._control, [b"+"], descriptors[start : start + _DESCRIPTORS])
        while (message := self._receive())[0] != "started":
            self._note(message)
        pid: int = message[1]
        self._children.add(pid)
        return pid

    def exits(self) -> list[Exit]:
        """Return the ends of children that are known by now; never waits."""
        try:
            while select.select([self._control], [], [], 0)[0]:
                self._note(self._receive())
        except (EOFError, ConnectionResetError):
            self._process.kill()
            self._process.wait()
            self._restart()
        found = list(self._exits)
        self._exits.clear()
        return found

    def close(self) -> None:
        """End the server; children that are left end with it."""
        self._control.close()
        self._process.wait()

    def _restart(self) -> None:
        self._exits += [Exit(pid, None) for pid in sorted(self._children)]
        self._children.clear()
        self._control.close()
        self._start()

    def _receive(self) -> tuple[Any, ...]:
        packet = self._control.recv(_MESSAGE)
        if not packet:
            raise EOFError
        message: tuple[Any, ...] = pickle.loads(packet)
        return message

    def _note(self, message: tuple[Any, ...]) -> None:
        _, pid, code = message
        self._children.discard(pid)
        self._exits.append(Exit(pid, code))


def serve(descriptor: int) -> NoReturn:
    """Be the server: fork a child for every request on the socket ``descriptor``, until main closes it."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    for module in PRELOAD:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that the children share
    wakeup_read, wakeup_write = socket.socketpair()
    for end in (wakeup_read, wakeup_write):
        end.setblocking(False)
    signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wakeup_read, select.POLLIN)
    targets: dict[int, str] = {}
    while True:
        ready = {number for number, _ in poll.poll()}
        if wakeup_read.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                wakeup_read.recv(4096)
            _reap(control, targets)
        if control.fileno() in ready:
            request, descriptors = _receive_request(control)
            if request is None:
                _end(control, targets)
            target, arguments, _ = request
            pid = _fork(control, target, arguments, descriptors)
            targets[pid] = target
            for number in descriptors:
                os.close(number)
            with contextlib.suppress(BrokenPipeError):
                control.send(pickle.dumps(("started", pid)))


def _receive_request(control: socket.socket) -> tuple[tuple[str, Any, int] | None, list[int]]:
    packet, descriptors, _, _ = socket.recv_fds(control, _MESSAGE, _DESCRIPTORS)
    if not packet:
        return None, []
    request = pickle.loads(packet)
    while len(descriptors) < request[2]:
        _, more, _, _ = socket.recv_fds(control, 1, _DESCRIPTORS)
        descriptors += more
    return request, descriptors


def _reap(control: socket.socket, targets: dict[int, str]) -> None:
    while targets:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        targets.pop(pid, None)
        with contextlib.suppress(BrokenPipeError):
            control.send(pickle.dumps(("exited", pid, os.waitstatus_to_exitcode(status))))


def _end(control: socket.socket, targets: dict[int, str]) -> NoReturn:
    """Main has closed its end or died: nobody is left to take results; the log still has a reader."""
    control.close()
    for pid, target in targets.items():
        if not target.startswith("job.pipeline.log:"):
            _kill_group(pid)
    deadline = time.monotonic() + _LAST_WORDS
    while targets and time.monotonic() < deadline:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            select.select([], [], [], 0.01)
        targets.pop(pid, None)
    os._exit(0)  # what is left is killed by PR_SET_PDEATHSIG


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _fork(control: socket.socket, target: str, arguments: Any, descriptors: list[int]) -> int:
    with warnings.catch_warnings():
        # Arrow has started a thread, which takes no lock that a child could need (3.12 warns of any)
        warnings.simplefilter("ignore", DeprecationWarning)
        server = os.getpid()
        pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does the same: whoever comes first
            os.setpgid(pid, pid)
        return pid
    status = 70
    try:
        os.setpgid(0, 0)  # what a processor starts can be killed with it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it died before the line above
            os._exit(70)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        module, _, function = target.partition(":")
        status = getattr(importlib.import_module(module), function)(arguments, descriptors)
    except BaseException:  # noqa: BLE001 - the last frame of the child: show it and end
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
