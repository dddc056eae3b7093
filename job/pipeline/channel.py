"""Queues between processes, made of kernel messages instead of locks.

A queue here is a pair of connected ``AF_UNIX`` ``SOCK_SEQPACKET`` sockets. One ``send`` is one message: it
arrives whole or not at all, even when the sender is killed in the middle of it, and any number of processes
may send on the same end without a lock. That is what `multiprocessing.Queue` cannot promise: its killed
writer leaves half a message in the pipe and a lock that nobody releases.

The queue is bounded by the socket's send buffer: a sender waits while it is full. Main holds both ends of
every shared queue for the whole run, so a dead reader is not noticed by those who send, and its successor goes
on with the next message.

A message larger than `FRAGMENT` travels in several, each marked with its sender and its number; whoever
receives joins them. What a dead sender left unfinished is thrown away, and so is the rest of a message whose beginning a
dead reader has taken along: that message is lost, as are those that the reader had in hand.
"""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass, field

FRAGMENT = 64 * 1024
"""Bytes of one kernel message. A send buffer is often 208 KiB in a container: three must fit."""

BUFFER = 1 << 20
"""Bytes asked of the kernel for a send buffer; it grants up to ``net.core.wmem_max``."""

_HEADER = struct.Struct("=iqiB")
"""Sender (worker number, or `MAIN`), its incarnation, number of the fragment, and 1 on the last one."""

RECEIVED_HEADER = _HEADER.size
"""Bytes before the text of a message, for a reader that looks before it takes."""

MAIN = -1
"""The sender number of main."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, each able to send to the other."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return ends


@dataclass(slots=True)
class Sender:
    """One process's right to put messages on a shared queue.

    Attributes:
        end: The queue's sending end, shared with other processes.
        number: Who sends: a worker's number or `MAIN`.
        incarnation: Differs between two processes that have the same number one after the other.
    """

    end: socket.socket
    number: int
    incarnation: int

    def send(self, message: bytes) -> None:
        """Put one message on the queue; wait while it is full.

        Raises:
            BrokenPipeError: Nobody holds the receiving end any more: main has died.
        """
        view = memoryview(message)
        for number, start in enumerate(range(0, max(len(view), 1), FRAGMENT)):
            last = start + FRAGMENT >= len(view)
            header = _HEADER.pack(self.number, self.incarnation, number, last)
            self.end.sendmsg([header, view[start : start + FRAGMENT]])

    def try_send(self, message: bytes) -> bool:
        """Put one message of at most `FRAGMENT` bytes on the queue, unless it is full; say whether."""
        try:
            self.end.sendmsg(
                [_HEADER.pack(self.number, self.incarnation, 0, 1), message],
                [],
                socket.MSG_DONTWAIT,
            )
        except BlockingIOError:
            return False
        return True


@dataclass(slots=True)
class Receiver:
    """The one reader of a shared queue.

    It keeps at most one unfinished message for each sender.
    """

    end: socket.socket
    _unfinished: dict[int, tuple[int, list[bytes]]] = field(default_factory=dict)

    def receive(self, timeout: float | None) -> tuple[int, bytes] | None:
        """Return ``(sender, message)``, or None after ``timeout`` seconds without a whole message.

        Raises:
            EOFError: Every sender has closed its end, and the queue is empty.
        """
        while self._readable(timeout):
            packet = self.end.recv(_HEADER.size + FRAGMENT)
            if not packet:
                raise EOFError
            sender, incarnation, number, last = _HEADER.unpack_from(packet)
            known, fragments = self._unfinished.pop(sender, (incarnation, []))
            if number == 0 or known != incarnation:
                fragments = []  # of a message that its sender did not live to finish
            if number != len(fragments):
                continue  # its beginning went to a reader that has died
            fragments.append(packet[_HEADER.size :])
            if last:
                return sender, fragments[0] if len(fragments) == 1 else b"".join(fragments)
            self._unfinished[sender] = (incarnation, fragments)
        return None

    def _readable(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0, timeout * 1000)))
