"""A whole training in a process of its own: what it took, and that it does not outlive who waits for it."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.ad_log import AdLogOptions, make_ad_log
from benchmarks.speed.train_whole import _ended, train_whole
from ranking.artifact import load_version
from ranking.store import open_store


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_ad_log(tmp_path_factory.mktemp("log"), AdLogOptions(rows=2000, users=400, ads=50))


def test_a_log_becomes_a_published_version_and_its_cost_is_told(files, tiny_bert, tmp_path):
    options = ["--base", str(tiny_bert), "--epochs", "0", "--behaviour-epochs", "1", "--behaviour-min-steps", "5"]
    found = train_whole(files, 2000, tmp_path / "model", [*options, "--text-prior", "none", "--no-export"])
    store = open_store(tmp_path / "model")
    assert load_version(store, store.current()).spec.prior_ctr > 0
    assert found.rows == 2000
    assert 0 < found.processor_minutes < 10
    assert 0 < found.minutes < 10
    assert 0.1 < found.peak_gib < 4


def test_a_training_that_fails_says_why(files, tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)adcascade train failed: .*no-such-option"):
        train_whole(files, 2000, tmp_path / "model", ["--no-such-option"])


# Waits for a process of its own, whose number it says.
WAITING = """
import subprocess, sys
from benchmarks.speed.train_whole import _ended

process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(process.pid, flush=True)
_ended(process)
"""


def test_who_stops_waiting_stops_the_training():
    waiting = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert waiting.stdout is not None
    training = psutil.Process(int(waiting.stdout.readline()))
    time.sleep(0.5)
    waiting.send_signal(signal.SIGINT)
    _, complaints = waiting.communicate(timeout=60)
    assert b"KeyboardInterrupt" in complaints
    assert not training.is_running()


def test_the_peak_is_what_the_process_had():
    holding = "import time; held = bytearray(b'1') * (300 * 2**20); time.sleep(0.3)"
    process = subprocess.Popen([sys.executable, "-c", holding])
    ended = _ended(process)
    assert ended.code == 0
    assert ended.peak_mib > 300


def test_the_peak_is_not_that_of_who_started_it():
    held = bytearray(b"1") * (400 * 2**20)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    assert _ended(process).peak_mib < 200
    assert len(held) == 400 * 2**20
