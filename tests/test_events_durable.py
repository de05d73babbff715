"""What was acknowledged outlives any end of the process, and what could not be written is told so."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

from adcascade.events.errors import StoreError, StoreFull
from adcascade.events.recorder import Recorder
from adcascade.events.sqlite_store import FILE, SqliteStore
from adcascade.events.values import AdKeys, CounterKey, NewEvent, Outcome, Status
from adcascade.events.writer import GroupWriter
from adcascade.records.users import EventType

# Records batches of its own, from two threads, until it is killed, and prints those that were acknowledged.
CHILD = """
import os, sys, threading, time
from pathlib import Path
from adcascade.events.recorder import Recorder
from adcascade.events.sqlite_store import SqliteStore
from adcascade.events.values import AdKeys, NewEvent
from adcascade.events.writer import GroupWriter
from adcascade.records.users import EventType

folder, run = Path(sys.argv[1]), sys.argv[2]
writer = GroupWriter(Recorder(SqliteStore(folder), lambda ad: AdKeys("shop", "topic")).record)

def send(thread):
    number = 0
    while True:
        ids = [f"{run}-{thread}-{number}-{place}" for place in range(7)]
        now = time.time_ns() // 1000
        batch = [NewEvent(one, EventType.IMPRESSION, now, f"user-{thread}", "ad-1") for one in ids]
        writer.submit(batch + batch[:2]).result()  # two of them twice
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


def test_batches_of_many_threads_are_recorded_together_and_each_gets_its_own_answer(store):
    recorder = Recorder(store, lambda ad: AdKeys() if ad == "ad-1" else None)
    groups: list[int] = []
    may_begin = threading.Event()

    def record(batches, now_us):
        may_begin.wait(10)
        groups.append(len(batches))
        return recorder.record(batches, now_us)

    writer = GroupWriter(record)
    batches = [[one(f"{number}-{place}") for place in range(number + 1)] for number in range(20)]
    bad = NewEvent("bad", EventType.CLICK, 0, ad_id="nowhere")
    futures = [writer.submit([*batch, bad]) for batch in batches]
    may_begin.set()
    for batch, future in zip(batches, futures, strict=True):
        *good, last = future.result(10).outcomes
        assert good == [Outcome(Status.ACCEPTED)] * len(batch)
        assert last.status is Status.REJECTED
    assert sum(groups) == 20
    assert len(groups) < 5
    assert futures[-1].result().offset == len(store.log_after(0, 1000)) == 210
    writer.close()
    with pytest.raises(StoreFull):
        writer.submit([one("late")])


def test_more_than_may_wait_is_refused_and_the_rest_is_written():
    may_go = threading.Event()

    def record(batches, now_us):
        may_go.wait(10)
        return [[Outcome(Status.ACCEPTED)] * len(batch) for batch in batches], 0

    writer = GroupWriter(record, max_group=2, max_waiting=6)
    taken: list[Future] = []

    def fill():
        for number in itertools.count():
            taken.append(writer.submit([one(f"{number}-1"), one(f"{number}-2")]))
            time.sleep(0.01)

    with pytest.raises(StoreFull, match="wait to be written already"):
        fill()
    assert 3 <= len(taken) <= 5
    may_go.set()
    writer.close()
    assert all(len(future.result(0).outcomes) == 2 for future in taken)


def test_a_failed_group_is_told_to_all_of_it_and_the_next_one_is_written():
    answers = iter([StoreError("the disk is full"), None, None])

    def record(batches, now_us):
        time.sleep(0.05)
        if (error := next(answers)) is not None:
            raise error
        return [[Outcome(Status.ACCEPTED)] * len(batch) for batch in batches], 1

    writer = GroupWriter(record)
    with pytest.raises(StoreError, match="the disk is full"):
        writer.submit([one(1)]).result(10)
    assert writer.submit([one(1)]).result(10).offset == 1
    cancelled = [writer.submit([one(2)]), writer.submit([one(3)])]
    wait([future for future in cancelled if not future.cancel()])
    writer.close()


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
