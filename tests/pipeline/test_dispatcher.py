from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from job.pipeline.dispatcher import AIM, LARGEST, Dispatcher


def _everything(dispatcher, worker=0, seconds=0.0):
    """Take and finish batches until nothing is left; return what was given out."""
    given = []
    while batch := dispatcher.take(worker):
        given.append((batch.start, batch.stop))
        dispatcher.finished(worker, seconds)
    return given


def test_every_file_is_given_out_once_and_in_order():
    dispatcher = Dispatcher(100, 1100, workers=2, retries=2)
    given = _everything(dispatcher)
    assert given[0] == (100, 101)
    assert [stop for _, stop in given[:-1]] == [start for start, _ in given[1:]]
    assert given[-1][1] == 1100
    assert dispatcher.idle


def test_batches_grow_for_fast_files_and_stay_single_for_slow_ones():
    fast = Dispatcher(0, 1_000_000, workers=2, retries=2)
    assert max(stop - start for start, stop in _everything(fast, seconds=1e-6)) == LARGEST
    slow = Dispatcher(0, 100, workers=2, retries=2)
    assert {stop - start for start, stop in _everything(slow, seconds=AIM)} == {1}


def test_a_slow_file_keeps_no_second_batch_waiting_behind_it():
    dispatcher = Dispatcher(0, 100, workers=2, retries=2)
    dispatcher.take(0)
    dispatcher.finished(0, 1.0)
    assert dispatcher.take(0)
    assert dispatcher.take(0) is None


def test_batches_shrink_towards_the_end():
    given = _everything(Dispatcher(0, 5000, workers=4, retries=2), seconds=1e-6)
    assert given[-1][1] - given[-1][0] == 1


def test_only_the_file_in_hand_is_blamed_and_it_travels_alone():
    dispatcher = Dispatcher(0, 1000, workers=1, retries=2)
    for _ in range(6):
        dispatcher.take(0)
        dispatcher.finished(0, 0.0)
    batch = dispatcher.take(0)
    suspect = batch.start + 1
    assert batch.stop - batch.start > 2
    assert dispatcher.died(0, suspect) is None
    alone = dispatcher.take(0)
    assert (alone.start, alone.stop, alone.attempt) == (suspect, suspect + 1, 2)
    assert dispatcher.take(0) is None
    dispatcher.finished(0, 0.0)
    given = _everything(dispatcher)
    assert given[0][0] == batch.start
    assert not any(start <= suspect < stop for start, stop in given)


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_a_file_is_given_up_at_its_last_try(retries):
    dispatcher = Dispatcher(0, 1, workers=1, retries=retries)
    for attempt in range(1, retries + 1):
        assert dispatcher.take(0).attempt == attempt
        assert dispatcher.died(0, 0) is None
    dispatcher.take(0)
    assert dispatcher.died(0, 0) == retries + 1
    assert dispatcher.take(0) is None
    assert dispatcher.idle
    assert not dispatcher.stored_all


def test_a_death_between_files_blames_nobody():
    dispatcher = Dispatcher(0, 10, workers=1, retries=0)
    batch = dispatcher.take(0)
    assert dispatcher.died(0, None) is None
    assert dispatcher.died(0, 5) is None
    assert dispatcher.take(0) == batch


def test_what_is_stored_is_not_done_again():
    dispatcher = Dispatcher(10, 20, workers=1, retries=2)
    dispatcher.stored([(10, 13), (15, 20)])
    dispatcher.recover()
    assert dispatcher.done == 8
    while not dispatcher.idle:
        if batch := dispatcher.take(0):
            dispatcher.finished(0, 0.0)
            dispatcher.stored([(batch.start, batch.stop)])
    assert dispatcher.stored_all


def test_a_halted_dispatcher_gives_nothing_and_is_idle_when_work_in_hand_has_ended():
    dispatcher = Dispatcher(0, 10, workers=1, retries=2)
    dispatcher.take(0)
    dispatcher.halt()
    assert dispatcher.take(0) is None
    assert not dispatcher.idle
    dispatcher.finished(0, 0.0)
    assert dispatcher.idle


class Run(RuleBasedStateMachine):
    """Workers and result process as they may behave, deaths included; every file must end up stored.

    `held` is what the result process has received and not stored: gone when it dies. A worker sends a batch's
    outcomes in pieces, so that a death leaves some of them sent.
    """

    files = 40
    workers = 3
    retries = 2

    def __init__(self):
        super().__init__()
        self.dispatcher = Dispatcher(0, self.files, workers=self.workers, retries=self.retries)
        self.batches = {worker: [] for worker in range(self.workers)}
        self.sent = dict.fromkeys(range(self.workers), 0)
        self.held = set()
        self.stored = set()
        self.given_up = set()
        self.blames = Counter()

    @rule(worker=st.integers(0, workers - 1))
    def take(self, worker):
        batch = self.dispatcher.take(worker)
        if batch:
            assert batch.start < batch.stop
            assert len(self.batches[worker]) < 2
            self.batches[worker].append(batch)

    def _busy(self):
        return [worker for worker, batches in self.batches.items() if batches]

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def send_one(self, data):
        worker = data.draw(st.sampled_from(self._busy()))
        batch = self.batches[worker][0]
        if batch.start + self.sent[worker] < batch.stop:
            self.held.add(batch.start + self.sent[worker])
            self.sent[worker] += 1

    @precondition(lambda self: self._busy())
    @rule(data=st.data(), seconds=st.floats(0, 0.2))
    def finish(self, data, seconds):
        worker = data.draw(st.sampled_from(self._busy()))
        batch = self.batches[worker].pop(0)
        self.held.update(range(batch.start + self.sent[worker], batch.stop))
        self.sent[worker] = 0
        assert self.dispatcher.finished(worker, seconds) == batch

    @precondition(lambda self: self._busy())
    @rule(data=st.data(), in_hand=st.booleans())
    def worker_dies(self, data, in_hand):
        worker = data.draw(st.sampled_from(self._busy()))
        batch = self.batches[worker][0]
        index = min(batch.start + self.sent[worker], batch.stop - 1) if in_hand else None
        tries = self.dispatcher.died(worker, index)
        self.batches[worker], self.sent[worker] = [], 0
        if index is not None and index not in self.stored:
            self.blames[index] += 1
        if tries is not None:
            assert tries == self.retries + 1 == self.blames[index]
            self.given_up.add(index)
            self.held.add(index)

    @rule()
    def checkpoint(self):
        self.dispatcher.stored([(index, index + 1) for index in self.held])
        self.stored |= self.held
        self.held.clear()

    @rule()
    def result_process_dies(self):
        self.held.clear()
        told_again = self.dispatcher.recover()
        assert set(told_again) == self.given_up - self.stored
        self.held.update(told_again)

    @invariant()
    def nothing_is_counted_that_is_not_stored(self):
        assert self.dispatcher.done == len(self.stored)
        assert self.dispatcher.stored_all == (len(self.stored) == self.files)

    def teardown(self):
        """Without further deaths the run ends by itself, with every file stored."""
        for _ in range(10 * self.files):
            for worker in range(self.workers):
                self.take(worker)
                while self.batches[worker]:
                    batch = self.batches[worker].pop(0)
                    self.sent[worker] = 0
                    self.held.update(range(batch.start, batch.stop))
                    self.dispatcher.finished(worker, 0.0)
            if self.dispatcher.idle:
                self.checkpoint()
                if self.dispatcher.stored_all:
                    break
                self.held.update(self.dispatcher.recover())
        assert self.stored == set(range(self.files))


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_no_file_is_nothing_to_do():
    dispatcher = Dispatcher(5, 5, workers=2, retries=2)
    assert dispatcher.take(0) is None
    assert dispatcher.idle
    assert dispatcher.stored_all
