"""How a server in a process of its own ends: drained, in time, and with the right exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_serving_server import connect, request, wait_until_serving

from adcascade.serving.channel import is_serving
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub

ROOT = Path(__file__).parent.parent

# Serves until told to stop; a call takes k tenths of a second, and loading ends when the file named last exists.
SCRIPT = """
import json, sys, time
from functools import partial
from pathlib import Path

from adcascade.v1.recommend_pb2 import RecommendResponse
from adcascade.v1.recommend_pb2_grpc import RecommendServiceServicer, add_RecommendServiceServicer_to_server
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings


class Slow(RecommendServiceServicer):
    def Recommend(self, request, context):
        print("begun", flush=True)
        time.sleep(request.k / 10)
        print("answered", flush=True)
        return RecommendResponse(request_id="slow")


def load():
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)


server = Server(ServerSettings(**json.loads(sys.argv[1])))
server.add("adcascade.v1.RecommendService", partial(add_RecommendServiceServicer_to_server, Slow()))
server.run(load, lambda: print("closed", flush=True))
"""


# The same, and SIGTERM comes whenever the thread that waits for it holds a lock of what it waits on, or else after 2 s.
INTERRUPTED = """
import os, signal, threading

def interrupting(frame, event, argument):
    waits_for = frame.f_locals.get("self") if frame.f_code.co_name == "wait" else None
    waits_in_run = isinstance(waits_for, threading.Event) and frame.f_back.f_code.co_name == "run"
    if waits_in_run and waits_for._cond._lock.locked():
        os.kill(os.getpid(), signal.SIGTERM)
    return interrupting

threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
sys.settrace(interrupting)
"""


class Process:
    """A server of SCRIPT in a process of its own."""

    def __init__(self, folder: Path, before: str = "", **settings: Any) -> None:
        script, address_file = folder / "server.py", folder / "address.json"
        self._loaded = folder / "loaded"
        script.write_text(SCRIPT.replace("server.run(", f"{before}\nserver.run("))
        settings["address_file"] = str(address_file)
        self.popen = subprocess.Popen(
            [sys.executable, str(script), json.dumps(settings), str(self._loaded)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + 30
        while not address_file.exists():
            assert self.popen.poll() is None, self.popen.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        self.address = json.loads(address_file.read_text())["address"]

    def finish_loading(self) -> None:
        self._loaded.touch()

    def ended(self, within: float = 10) -> tuple[int, str, str]:
        """Exit code, standard output and standard error; waits without closing standard input."""
        code = self.popen.wait(within)
        return code, self.popen.stdout.read(), self.popen.stderr.read()


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started = []

    def start(**settings: Any) -> Process:
        started.append(Process(tmp_path, **settings))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        with process.popen:
            pass


def call_in_flight(process: Process, channel: grpc.Channel, tenths: int) -> grpc.Future:
    call = RecommendServiceStub(channel).Recommend.future(request(k=tenths), timeout=20)
    assert process.popen.stdout.readline() == "begun\n"
    return call


def test_sigterm_answers_the_call_in_flight_then_closes_and_exits_with_0(start_process):
    process = start_process()
    with connect(process.address) as channel:
        assert not is_serving(channel)
        process.finish_loading()
        wait_until_serving(channel)
        call = call_in_flight(process, channel, tenths=10)
        process.popen.send_signal(signal.SIGTERM)
        assert call.result().request_id == "slow"
        assert process.ended() == (0, "answered\nclosed\n", "")


def test_sigterm_ends_a_server_whatever_its_waiting_thread_holds(start_process):
    process = start_process(before=INTERRUPTED)
    process.finish_loading()
    assert process.ended()[0] == 0


def test_sigint_while_loading_exits_with_0_without_waiting_for_the_load(start_process):
    process = start_process()
    process.popen.send_signal(signal.SIGINT)
    assert process.ended() == (0, "", "")


def test_a_call_longer_than_the_grace_period_does_not_hold_up_the_exit(start_process):
    process = start_process(grace_seconds=0.3)
    process.finish_loading()
    with connect(process.address) as channel:
        wait_until_serving(channel)
        call = call_in_flight(process, channel, tenths=60)
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(3) == 0
        assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_exit_with_parent_drains_when_standard_input_closes(start_process):
    process = start_process(exit_with_parent=True)
    process.finish_loading()
    with connect(process.address) as channel:
        wait_until_serving(channel)
        call = call_in_flight(process, channel, tenths=3)
        process.popen.stdin.close()
        assert call.result().request_id == "slow"
        assert process.ended() == (0, "answered\nclosed\n", "")


def test_exit_with_parent_also_ends_cleanly_on_sigterm_while_standard_input_is_open(start_process):
    process = start_process(exit_with_parent=True)
    process.finish_loading()
    with connect(process.address) as channel:
        wait_until_serving(channel)
    process.popen.send_signal(signal.SIGTERM)
    assert process.ended() == (0, "closed\n", "")


def test_without_exit_with_parent_a_closed_standard_input_changes_nothing(start_process):
    process = start_process()
    process.finish_loading()
    process.popen.stdin.close()
    with connect(process.address) as channel:
        wait_until_serving(channel)
        time.sleep(0.3)
        assert is_serving(channel)


def test_a_failed_load_is_an_error_even_while_calls_of_another_server_are_stuck(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(
        "import threading, time\n"
        "from adcascade.serving.server import Server\n"
        "from adcascade.serving.settings import ServerSettings\n"
        "threading.Thread(target=time.sleep, args=(20,), name='rpc_0', daemon=True).start()\n"
        "def load():\n"
        "    raise RuntimeError('no weights')\n"
        "Server(ServerSettings(port=0)).run(load, lambda: None)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "RuntimeError: no weights" in ended.stderr
