"""Many writers and readers of one store, kills, full disks: CURRENT always names a version that is there and whole."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_artifacts_store import add_version, names

from adcascade.artifacts.errors import VersionNotFound
from adcascade.artifacts.store import VersionStore

ROOT = Path(__file__).parent.parent
SECONDS = 4.0

# What each process does until it is told to stop; it leaves a file once it has done it.
WORKER = """
import pathlib, random, sys
from adcascade.artifacts.errors import StoreBusy, VersionNotFound
from adcascade.artifacts.hotswap import HotSwap
from adcascade.artifacts.store import VersionStore

root, kind, signals, seed = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), int(sys.argv[4])
store, chance = VersionStore(root, "index"), random.Random(seed)


def commit():
    with store.begin() as draft:
        for number in range(3):
            (draft.path / f"f{number}").write_bytes(b"x" * 1000)
        store.commit(draft, {})
    store.publish(draft.version, verify=False)


def read():
    swap = HotSwap(store, lambda version: (store.path(version) / "f0").read_bytes(), poll_seconds=60)
    swap.start()
    for _ in range(20):
        swap.refresh()
        with swap.lease() as data:
            assert data == b"x" * 1000
    swap.close()


work = {
    "commit": commit,
    "publish": lambda: store.publish(chance.choice(store.versions()).version),
    "prune": lambda: store.prune(chance.choice([0, 1, 2])),
    "rollback": store.rollback,
    "read": read,
}[kind]
while not (signals / "stop").exists():
    try:
        work()
        (signals / f"done-{seed}").touch()
    except (StoreBusy, VersionNotFound):  # another one was faster
        pass
"""


def test_many_writers_and_readers_leave_current_on_a_whole_version(tmp_path):
    store = VersionStore(tmp_path / "root", "index")
    with store.begin() as draft:
        for number in range(3):
            (draft.path / f"f{number}").write_bytes(b"x" * 1000)
        store.commit(draft, {})
    store.publish(draft.version)
    kinds = ["commit", "commit", "publish", "prune", "rollback", "read"]
    signals = tmp_path / "signals"
    signals.mkdir()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(store.root), kind, str(signals), str(seed)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for seed, kind in enumerate(kinds)
    ]
    started, seen = time.monotonic(), 0
    while len(names(signals)) < len(kinds) or time.monotonic() < started + SECONDS:
        assert time.monotonic() < started + 240, names(signals)
        assert all(worker.poll() is None for worker in workers)
        with store._lock(".current.lock", 60):  # nobody changes CURRENT now
            assert store.current() in names(store.root / "versions")
            store.verify(store.current())
            seen += 1
        time.sleep(random.Random(seen).random() / 50)
    (signals / "stop").touch()
    for worker, kind in zip(workers, kinds, strict=True):
        _, error = worker.communicate()
        assert worker.returncode == 0, f"{kind}: {error}"
    assert seen > 5
    store.verify(store.current())
    with store.begin():
        pass
    assert not [name for name in os.listdir(store.root / "versions") if name.startswith(".")]


def test_a_version_that_prune_removed_meanwhile_is_not_published(tmp_path):
    for _ in range(3):
        store = VersionStore(tmp_path / "root", "index")
        made = [add_version(store) for _ in range(4)]
        refused = []

        def publish(store=store, version=made[0], refused=refused):
            try:
                store.publish(version)
            except VersionNotFound:
                refused.append(version)

        with store._lock(".current.lock", 0):  # both wait for a third writer, having looked already
            prune = VersionStore(store.root, "index").prune
            threads = [threading.Thread(target=publish), threading.Thread(target=prune, args=(1,))]
            for thread in threads:
                thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        assert store.current() in names(store.root / "versions")
        assert bool(refused) == (made[0] not in names(store.root / "versions"))


def test_what_a_killed_prune_left_is_seen_by_nobody_and_removed_by_the_next_writer(tmp_path):
    store = VersionStore(tmp_path / "root", "index")
    made = [add_version(store) for _ in range(3)]
    code = (
        "import pathlib, sys, os, signal; from adcascade.artifacts import files, store\n"
        "store.remove = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.VersionStore(pathlib.Path(sys.argv[1]), 'index').prune(0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.root)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    left = f".pruned-{made[0]}"
    assert left in os.listdir(store.root / "versions")
    assert [info.version for info in store.versions()] == [made[2]]
    for read in (store.path, store.verify, store.publish):
        with pytest.raises(VersionNotFound):
            read(left)
    with pytest.raises(VersionNotFound, match="no version was published before"):
        store.rollback()
    assert store.prune(0) == []
    assert os.listdir(store.root / "versions") == [made[2]]


def fill_up(file):
    while True:
        file.write(b"x" * 4096)


def test_prune_and_its_lock_need_no_room(tmp_path):
    store = VersionStore(tmp_path / "root", "index")
    made = [add_version(store) for _ in range(4)]

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    code = (
        "import pathlib, sys; from adcascade.artifacts.store import VersionStore\n"
        "print(len(VersionStore(pathlib.Path(sys.argv[1]), 'index').prune(1)))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(store.root)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=no_room,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert names(store.root / "versions") == [made[3]]
    assert store.current() == made[3]


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounts a small disk: needs root")
def test_prune_frees_a_disk_that_is_full_to_the_last_byte(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        store = VersionStore(disk / "root", "index")
        for _ in range(3):
            add_version(store, {"big": b"x" * 100_000})
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            fill_up(filler)
        kept = store.current()
        assert len(store.prune(0)) == 2
        assert store.current() == kept
        store.verify(kept)
        add_version(store, {"big": b"x" * 100_000})
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
