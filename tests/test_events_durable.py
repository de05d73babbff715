"""What was acknowledged outlives any end of the process, and what could not be written is told so."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adcascade.events.errors import StoreError
from adcascade.events.recorder import Recorder
from adcascade.events.sqlite_store import FILE, SqliteStore
from adcascade.events.values import AdKeys, CounterKey, NewEvent, Outcome, Status
from adcascade.events.writer import event_writer
from adcascade.records.users import EventType
from adcascade.serving.errors import DeadlineExceeded, Unavailable

# Records batches of its own, from two threads, until it is killed, and prints those that were acknowledged.
CHILD = """
import os, sys, threading, time
from pathlib import Path
from adcascade.events.recorder import Recorder
from adcascade.events.sqlite_store import SqliteStore
from adcascade.events.values import AdKeys, NewEvent
from adcascade.events.writer import event_writer
from adcascade.records.users import EventType

class Nobody:
    def time_remaining(self):
        return None

    def add_callback(self, callback):
        return True

folder, run = Path(sys.argv[1]), sys.argv[2]
writer = event_writer(Recorder(SqliteStore(folder), lambda ad: AdKeys("shop", "topic")).record)

def send(thread):
    number = 0
    while True:
        ids = [f"{run}-{thread}-{number}-{place}" for place in range(7)]
        now = time.time_ns() // 1000
        batch = [NewEvent(one, EventType.IMPRESSION, now, f"user-{thread}", "ad-1") for one in ids]
        writer.submit(batch + batch[:2], Nobody())  # two of them twice
        os.write(1, (" ".join(ids) + "\\n").encode())
        number += 1

for thread in range(2):
    threading.Thread(target=send, args=(thread,), daemon=True).start()
time.sleep(60)
"""


def test_no_acknowledged_event_is_lost_or_doubled_by_kills(tmp_path):
    acknowledged: set[str] = set()
    chance = random.Random(0)
    for run in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(run)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        first = child.stdout.readline()  # it is at work
        time.sleep(chance.random() * 0.3)
        os.kill(child.pid, signal.SIGKILL)
        lines = [first, *child.stdout]
        child.wait()
        child.stdout.close()
        acknowledged |= {one for line in lines if line.endswith(b"\n") for one in line.decode().split()}
    store = SqliteStore(tmp_path)
    log = store.log_after(0, 10**9)
    (of_ad,) = store.read_counters([CounterKey("ad", "ad-1")]).values()
    store.close()
    kept = [one.event.event_id for one in log]
    assert len(kept) == len(set(kept))
    assert acknowledged <= set(kept)
    assert len(acknowledged) > 50
    assert of_ad.impressions == len(kept)


@pytest.fixture
def store(tmp_path):
    found = SqliteStore(tmp_path)
    yield found
    found.close()


def one(number, **more):
    return NewEvent(f"e-{number}", EventType.IMPRESSION, time.time_ns() // 1000, "u", "ad-1", **more)


class Waits:
    """Waits for an answer, for so long."""

    def __init__(self, seconds=None):
        self.seconds = seconds

    def time_remaining(self):
        return self.seconds

    def add_callback(self, callback):
        return True


def test_batches_of_many_threads_are_recorded_together_and_each_gets_its_own_answer(store):
    recorder = Recorder(store, lambda ad: AdKeys() if ad == "ad-1" else None)
    groups: list[int] = []
    may_begin = threading.Event()

    def record(batches, now_us):
        may_begin.wait(10)
        groups.append(len(batches))
        return recorder.record(batches, now_us)

    writer = event_writer(record)
    batches = [[one(f"{number}-{place}") for place in range(number + 1)] for number in range(20)]
    bad = NewEvent("bad", EventType.CLICK, 0, ad_id="nowhere")
    with ThreadPoolExecutor(20) as threads:
        answers = [threads.submit(writer.submit, [*batch, bad], Waits()) for batch in batches]
        time.sleep(0.5)  # all wait by now
        may_begin.set()
        found = [answer.result(10).value for answer in answers]
    for batch, recorded in zip(batches, found, strict=True):
        *good, last = recorded.outcomes
        assert good == [Outcome(Status.ACCEPTED)] * len(batch)
        assert last.status is Status.REJECTED
    assert sum(groups) == 20
    assert len(groups) < 5
    assert max(recorded.offset for recorded in found) == len(store.log_after(0, 1000)) == 210
    writer.close()
    with pytest.raises(Unavailable):
        writer.submit([one("late")], Waits())


def test_a_batch_that_fails_fails_no_other(store):
    recorder = Recorder(store, lambda ad: AdKeys())
    may_begin = threading.Event()

    def record(batches, now_us):
        may_begin.wait(10)
        if any(event.event_id == "e-poison" for batch in batches for event in batch):
            raise StoreError("cannot be written")
        return recorder.record(batches, now_us)

    writer = event_writer(record)
    with ThreadPoolExecutor(9) as threads:
        answers = [threads.submit(writer.submit, [one(name)], Waits()) for name in ("1", "2", "poison", "3", "4")]
        time.sleep(0.3)
        may_begin.set()
        errors = [answer.exception(10) for answer in answers]
    writer.close()
    assert [type(error) for error in errors] == [type(None)] * 2 + [StoreError] + [type(None)] * 2
    assert len(store.log_after(0, 10)) == 4


def test_other_work_has_its_turn_alone_and_answers_what_it_returns(store):
    under_way, seen = threading.Event(), []

    def record(batches, now_us):
        assert not under_way.is_set()
        return [[Outcome(Status.ACCEPTED)] * len(batch) for batch in batches], 1

    def work():
        under_way.set()
        time.sleep(0.2)
        seen.append("done")
        under_way.clear()
        return 7

    writer = event_writer(record)
    with ThreadPoolExecutor(9) as threads:
        answers = [threads.submit(writer.submit, what, Waits()) for what in ([one(1)], work, [one(2)], work, [one(3)])]
        found = [answer.result(10).value for answer in answers]
    writer.close()
    assert [found[1], found[3], seen] == [7, 7, ["done", "done"]]


def test_a_batch_whose_sender_left_before_its_turn_is_not_recorded(store):
    recorder = Recorder(store, lambda ad: AdKeys())
    began, may_go = threading.Event(), threading.Event()

    def record(batches, now_us):
        began.set()
        may_go.wait(10)
        return recorder.record(batches, now_us)

    writer = event_writer(record)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(writer.submit, [one("first")], Waits())
        assert began.wait(10)
        with pytest.raises(DeadlineExceeded):
            writer.submit([one("left")], Waits(0.1))
        may_go.set()
        first.result(10)
    writer.close()
    assert [logged.event.event_id for logged in store.log_after(0, 10)] == ["e-first"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_refuses_the_batch_whole_and_goes_on_when_there_is_room(tmp_path):
    program = """
import resource, signal, sys, time
from pathlib import Path
from adcascade.events.errors import StoreError
from adcascade.events.recorder import Recorder
from adcascade.events.sqlite_store import SqliteStore
from adcascade.events.values import AdKeys, NewEvent
from adcascade.records.users import EventType

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails
store = SqliteStore(Path(sys.argv[1]))
recorder = Recorder(store, lambda ad: AdKeys())
now = time.time_ns() // 1000

def send(run):
    batch = [NewEvent(f"{run}-{n}", EventType.VIEW, now, "u", text="x" * 500) for n in range(500)]
    return recorder.record([batch], now)

send("first")
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
failed = 0
for run in range(8):
    try:
        send(f"run-{run}")
    except StoreError as error:
        failed += 1
        print(error)
assert failed, "the limit was not reached"
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
send("last")
ids = [one.event.event_id for one in store.log_after(0, 10**6)]
assert len(ids) == len(set(ids)) == 500 * (10 - failed), (len(ids), failed)
assert ids[-1] == "last-499"
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the event store" in done.stdout


def test_a_damaged_page_is_named_and_nothing_is_answered_from_it(tmp_path):
    store = SqliteStore(tmp_path)
    Recorder(store, lambda ad: AdKeys()).record([[one(number) for number in range(2000)]], time.time_ns() // 1000)
    store.close()
    data = bytearray((tmp_path / FILE).read_bytes())
    data[4096 * 3 : 4096 * 60] = bytes(4096 * 57)
    (tmp_path / FILE).write_bytes(data)
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreError, match="the file is damaged"):
        store.log_after(0, 10**6)
    store.close()


def test_states_are_json_that_anyone_can_read(store):
    Recorder(store, lambda ad: AdKeys("shop", "topic")).record([[one(1, impression_id="i-1")]], time.time_ns() // 1000)
    state = store.impressions(["i-1"])["i-1"]
    assert json.loads(state.to_json())["counted"][4:] == ["ad-1", "shop", "topic", "u"]
