"""Servers that are kept running: one that dies or stands still is started again, and too often is an end of its own."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adcascade.serving.channel import is_serving, open_channel
from adcascade.serving.errors import ServersKeepFailing, StartupError
from adcascade.terminal.exits import clean_exit
from pipeline.child_log import ChildLog
from pipeline.supervisor import RestartLimits, ServerSpec, Supervisor

RETRIEVAL, RANKING = ServerSpec("stand_ins.retrieval", [], 0), ServerSpec("stand_ins.ranking", [], 0)
PATIENT = RestartLimits(pause_seconds=0.1, hang_seconds=2.0, start_seconds=60.0)


@pytest.fixture(autouse=True)
def stand_ins_are_found(monkeypatch):
    root = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root.parent), str(root)]))


class Kept:
    """A supervisor at work in a thread, and what it said and ended with."""

    def __init__(self, folder, limits):
        self.said, self.ended = [], None
        self.supervisor = Supervisor(folder, self.said.append, limits)
        self._stop = threading.Event()

    def process(self, place):
        return self.supervisor.servers[place]._run.server.process

    def keep(self):
        try:
            while not self._stop.wait(0.05):
                for server in self.supervisor.servers:
                    server.look()
        except ServersKeepFailing as error:
            self.ended = error

    def wait_for(self, *words, seconds=60):
        end = time.monotonic() + seconds
        while not any(all(word in line for word in words) for line in self.said):
            assert time.monotonic() < end, self.said
            assert self.ended is None, self.ended
            time.sleep(0.05)


@contextmanager
def kept(folder, *specs, limits=PATIENT):
    found = Kept(folder, limits)
    thread = threading.Thread(target=found.keep)
    try:
        found.addresses = found.supervisor.start(specs)
        thread.start()
        yield found
    finally:
        found._stop.set()
        if thread.ident:
            thread.join()
        found.supervisor.stop()


def healthy(address):
    with open_channel(address) as channel:
        return is_serving(channel)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "was killed by signal 9"), (signal.SIGTERM, "ended with exit code 0")],
)
def test_one_that_ends_is_started_again_on_its_port_and_the_others_are_left_alone(tmp_path, number, words):
    with kept(tmp_path, RETRIEVAL, RANKING) as found:
        other, before = found.process(0).pid, found.process(1).pid
        found.process(1).send_signal(number)
        found.wait_for(f"The stand_ins.ranking server {words}; starting it again in 0.1 s (restart 1 of at most 5")
        found.wait_for(f"The stand_ins.ranking server is serving again on {found.addresses[1]}")
        assert healthy(found.addresses[1])
        assert found.process(1).pid != before
        assert found.process(0).pid == other


def test_one_that_stands_still_is_ended_and_started_again(tmp_path):
    with kept(tmp_path, RANKING) as found:
        found.process(0).send_signal(signal.SIGSTOP)
        found.wait_for("answered no health check for 2 s; starting it again")
        found.wait_for("is serving again")
        assert healthy(found.addresses[0])


def test_one_that_falls_too_often_ends_with_a_code_of_its_own(tmp_path):
    with kept(tmp_path, RANKING, limits=replace(PATIENT, max_restarts=2)) as found:
        for number in (1, 2):
            found.process(0).kill()
            found.wait_for(f"restart {number} of at most 2")
            while len([line for line in found.said if "serving again" in line]) < number:
                time.sleep(0.05)
        found.process(0).kill()
        end = time.monotonic() + 30
        while found.ended is None:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert "the stand_ins.ranking server was killed by signal 9, after 2 restarts within 10 minutes" in str(found.ended)
    assert "a line of output" in str(found.ended)
    with pytest.raises(SystemExit) as ended, clean_exit(ServersKeepFailing):
        raise found.ended
    assert ended.value.code == 69


def test_falls_that_are_long_ago_do_not_count(tmp_path):
    with kept(tmp_path, RANKING, limits=replace(PATIENT, max_restarts=1, window_seconds=0.2)) as found:
        for number in (1, 2, 3):
            found.process(0).kill()
            while len([line for line in found.said if "serving again" in line]) < number:
                assert found.ended is None, found.ended
                time.sleep(0.05)
    assert found.ended is None
    assert all("restart 1 of at most 1" in line for line in found.said if "starting it again" in line)


def test_pauses_double(tmp_path):
    broken = tmp_path / "broken"
    spec = replace(RANKING, flags=["--broken", str(broken)])
    with kept(tmp_path, spec, limits=replace(PATIENT, max_restarts=3)) as found:
        broken.touch()
        found.process(0).kill()
        end = time.monotonic() + 60
        while found.ended is None:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert [line[line.index("in 0.") :][:8] for line in found.said] == ["in 0.1 s", "in 0.2 s", "in 0.4 s"]
    assert "exit code 2, after 3 restarts" in str(found.ended)
    assert "error: the files are damaged" in str(found.ended)


def test_files_that_are_broken_at_the_first_start_end_at_once(tmp_path):
    (tmp_path / "broken").touch()
    spec = replace(RANKING, flags=["--broken", str(tmp_path / "broken")])
    message = r"ended with exit code 2:\n(.*\n)*error: the files are damaged"
    with pytest.raises(StartupError, match=message), kept(tmp_path, RETRIEVAL, spec):
        pass
    assert (tmp_path / "stand_ins.ranking.log").read_text().count("error: the files are damaged") == 1


def test_logs_are_appended_to_over_restarts_of_the_server_and_of_the_supervisor(tmp_path):
    with kept(tmp_path, RANKING) as found:
        found.process(0).kill()
        found.wait_for("is serving again")
    with kept(tmp_path, RANKING):
        pass
    log = (tmp_path / "stand_ins.ranking.log").read_text()
    assert log.count("a line of output") == 3
    assert log.count("stand_ins.ranking starts as process") == 3


def pumped(log, *lines):
    read, write = os.pipe()
    log.follow(os.fdopen(read, "rb"), "a child starts")
    with os.fdopen(write, "wb") as pipe:
        for line in lines:
            pipe.write(line)
    return log.tail(wait_seconds=30)


def test_a_log_is_rotated_and_its_oldest_parts_go(tmp_path):
    log = ChildLog(tmp_path / "server.log", max_mib=1, parts=2)
    pumped(log, *(b"x" * 1000 + b" %d\n" % number for number in range(5000)))
    log.close()
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == ["server.log", "server.log.1", "server.log.2"]
    assert all(path.stat().st_size <= 1024 * 1024 for path in tmp_path.iterdir())
    assert (tmp_path / "server.log").read_text().endswith(" 4999\n")


def test_output_without_lines_or_in_no_encoding_is_written_too(tmp_path):
    log = ChildLog(tmp_path / "server.log")
    tail = pumped(log, b"a" * 1_000_000, b"\n\xff\xfe broken\n", b"the end, without a newline")
    log.close()
    assert tail.splitlines()[-2:] == [r"\xff\xfe broken", "the end, without a newline"]
    assert (tmp_path / "server.log").read_text().count("a") >= 1_000_000


def test_the_tail_is_of_the_last_child_alone(tmp_path):
    log = ChildLog(tmp_path / "server.log")
    pumped(log, b"of the first\n")
    assert pumped(log, *(b"%d\n" % number for number in range(40))) == "\n".join(map(str, range(25, 40)))
    log.close()
