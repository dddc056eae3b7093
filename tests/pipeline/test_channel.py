import functools
import os
import signal
import warnings

import pytest

from job.pipeline import channel
from job.pipeline.channel import FRAGMENT, Receiver, Sender


@pytest.fixture
def queue():
    ours, theirs = channel.pair()
    with ours, theirs:
        yield ours, Receiver(theirs)


def _fork(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Arrow's thread takes no lock that is needed
        pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    return pid


def test_messages_arrive_whole_and_in_order(queue):
    end, receiver = queue
    sender = Sender(end, 3, 1)
    sender.send(b"one")
    sender.send(b"two")
    assert receiver.receive(1) == (3, b"one")
    assert receiver.receive(1) == (3, b"two")
    assert receiver.receive(0) is None


@pytest.mark.parametrize("size", [0, 1, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, 10 * FRAGMENT + 7])
def test_any_size(queue, size):
    end, receiver = queue
    message = os.urandom(size)
    pid = _fork(lambda: Sender(end, 0, 1).send(message))
    assert receiver.receive(5) == (0, message)
    os.waitpid(pid, 0)


def test_interleaved_fragments_are_told_apart_by_sender(queue):
    end, receiver = queue
    big = b"a" * (2 * FRAGMENT)
    header = channel._HEADER
    end.send(header.pack(1, 1, 0, 0) + big[:FRAGMENT])
    end.send(header.pack(2, 1, 0, 1) + b"small")
    end.send(header.pack(1, 1, 1, 1) + big[FRAGMENT:])
    assert receiver.receive(1) == (2, b"small")
    assert receiver.receive(1) == (1, big)


def test_what_a_dead_sender_left_unfinished_is_thrown_away(queue):
    end, receiver = queue
    end.send(channel._HEADER.pack(1, 77, 0, 0) + b"half of a message")
    Sender(end, 1, 78).send(b"whole")
    assert receiver.receive(1) == (1, b"whole")


def test_the_rest_of_a_message_whose_beginning_a_dead_reader_took_is_thrown_away(queue):
    end, reader = queue
    pid = _fork(lambda: Sender(end, 1, 9).send(b"a" * (4 * FRAGMENT)))
    assert reader.end.recv(2 * FRAGMENT)
    successor = Receiver(reader.end)
    assert successor.receive(0.5) is None
    os.waitpid(pid, 0)
    Sender(end, 1, 9).send(b"next")
    assert successor.receive(1) == (1, b"next")


def test_a_full_queue_is_noticed_and_nothing_is_lost(queue):
    end, receiver = queue
    sender = Sender(end, 0, 1)
    sent = 0
    while sender.try_send(b"%08d" % sent + b"x" * 10_000):
        sent += 1
    assert sent > 3
    received = 0
    while (message := receiver.receive(0)) is not None:
        assert int(message[1][:8]) == received
        received += 1
    assert received == sent


def test_a_sender_notices_when_everybody_has_gone(queue):
    end, receiver = queue
    receiver.end.close()
    with pytest.raises(BrokenPipeError):
        Sender(end, 0, 1).send(b"x")


def test_a_receiver_notices_when_everybody_has_gone(queue):
    end, receiver = queue
    Sender(end, 0, 1).send(b"last")
    end.close()
    assert receiver.receive(1) == (0, b"last")
    with pytest.raises(EOFError):
        receiver.receive(1)


def _send_for_ever(sender, message):
    while True:
        sender.send(message)


def test_killed_senders_leave_no_half_message_and_block_nobody(queue):
    end, receiver = queue
    message = bytes(range(256)) * 4 * 300  # 300 KB: five fragments
    whole = 0
    for incarnation in range(40):
        pid = _fork(functools.partial(_send_for_ever, Sender(end, 5, incarnation), message))
        for _ in range(incarnation % 7):
            found = receiver.receive(5)
            assert found == (5, message)
            whole += 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    while (found := receiver.receive(0)) is not None:
        assert found[1] == message
    assert whole > 100
    Sender(end, 5, 1000).send(b"still working")
    assert receiver.receive(1) == (5, b"still working")
