"""The version store with real files: versions appear whole or not at all, and damage never passes for a version."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import writable

from adcascade.artifacts.errors import ArtifactError, CorruptVersion, StorageFull, StoreBusy, VersionNotFound
from adcascade.artifacts.store import VersionStore

ROOT = Path(__file__).parent.parent
FILES = {"index.bin": b"\x00vectors\xff" * 40, "text/words.txt": b"eins zwei drei", "empty": b""}


@pytest.fixture
def store(tmp_path):
    return VersionStore(tmp_path / "root", "index")


def add_version(store, files=FILES, *, publish=True, content=None):
    with store.begin() as draft:
        fill(draft.path, files)
        store.commit(draft, content or {})
    if publish:
        store.publish(draft.version)
    return draft.version


def fill(folder, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def fill_and_use(store, path):
    """Fills a draft, then meets trouble with another file before it can be committed."""
    with store.begin() as draft:
        fill(draft.path)
        path.write_bytes(b"x")
        store.commit(draft, {})


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    writable(path).write_bytes(data)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@contextlib.contextmanager
def writing_elsewhere(root):
    """Another process that has a draft open."""
    code = (
        "import pathlib, sys; from adcascade.artifacts.store import VersionStore\n"
        f"with VersionStore(pathlib.Path({str(root)!r}), 'index').begin():\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process


# ---- writing


def test_a_committed_version_holds_its_files_and_is_current_only_once_published(store):
    version = add_version(store, publish=False, content={"ads": 3, "name": "Bücher"})
    assert store.current() is None
    with pytest.raises(VersionNotFound, match="nothing is published"):
        store.current_path()
    store.publish(version)
    assert store.current() == version
    assert store.current_path() == store.path(version) == store.root / "versions" / version
    manifest = store.verify(version)
    assert (manifest.kind, manifest.version, manifest.content) == ("index", version, {"ads": 3, "name": "Bücher"})
    assert {name: entry.bytes for name, entry in manifest.files.items()} == {n: len(data) for n, data in FILES.items()}
    assert abs((datetime.now(UTC) - manifest.created_at).total_seconds()) < 60
    assert {name: (store.path(version) / name).read_bytes() for name in FILES} == FILES


def test_another_store_object_sees_what_was_published(store):
    version = add_version(store)
    assert VersionStore(store.root, "index").current() == version


def test_an_exception_while_writing_leaves_nothing(store):
    before = add_version(store)
    with pytest.raises(FileNotFoundError):
        fill_and_use(store, Path("no-such-folder") / "no-such-file")
    assert names(store.root / "drafts") == []
    assert names(store.root / "versions") == [before]
    assert store.current() == before


def test_a_draft_that_is_never_committed_leaves_nothing(store):
    with store.begin() as draft:
        fill(draft.path)
        assert draft.path.is_dir()
    assert names(store.root / "drafts") == []
    assert store.versions() == []


def test_a_second_writer_in_another_thread_is_told_the_store_is_busy(store):
    raised = []

    def write():
        try:
            add_version(VersionStore(store.root, "index"))
        except StoreBusy as error:
            raised.append(str(error))

    with store.begin() as draft:
        fill(draft.path)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        store.commit(draft, {})
    assert len(raised) == 1
    assert str(store.root) in raised[0]
    assert [info.version for info in store.versions()] == [draft.version]
    add_version(store)


def test_a_writer_in_another_process_keeps_this_one_out_until_it_ends(store):
    with writing_elsewhere(store.root) as other:
        with pytest.raises(StoreBusy, match="another process is writing"):
            add_version(store)
        assert len(names(store.root / "drafts")) == 1
        other.stdin.close()
        other.wait(10)
    version = add_version(store)
    assert store.current() == version


def test_rollback_and_publish_work_while_another_process_writes(store):
    first, second = add_version(store), add_version(store)
    with writing_elsewhere(store.root):
        assert store.rollback() == first
        assert store.current() == first
        store.publish(second)
        assert store.current() == second


def test_what_a_killed_writer_left_is_removed_by_the_next_one(store):
    with writing_elsewhere(store.root) as other:
        other.kill()
        other.wait(10)
    assert len(names(store.root / "drafts")) == 1
    version = add_version(store)
    assert names(store.root / "drafts") == []
    assert names(store.root / "versions") == [version]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
def test_a_disk_that_fills_up_while_writing_is_said_so_and_leaves_the_published_version(store):
    before = add_version(store)
    with pytest.raises(StorageFull, match="no room left") as caught:
        fill_and_use(store, Path("/dev/full"))
    assert str(store.root) in str(caught.value)
    assert names(store.root / "drafts") == []
    assert store.current() == before
    store.verify(before)


def test_a_root_that_is_a_file_is_said_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match=f"cannot write under {root}"):
            add_version(VersionStore(root, "index"))


def test_a_manifest_is_utf8_whatever_the_locale(tmp_path):
    code = (
        "import pathlib, sys; from adcascade.artifacts.store import VersionStore\n"
        "store = VersionStore(pathlib.Path(sys.argv[1]), 'index')\n"
        "with store.begin() as draft: store.commit(draft, {'encoder': 'mod\\u00e8le'})\n"
        "store.publish(draft.version)"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=plain, cwd=ROOT, check=True, capture_output=True)
    store = VersionStore(tmp_path, "index")
    assert store.verify(store.current()).content == {"encoder": "modèle"}


# ---- publishing, rolling back, pruning


def test_rollback_goes_back_one_publication_at_a_time(store):
    first, second, third = (add_version(store) for _ in range(3))
    assert store.current() == third
    assert [store.rollback(), store.rollback()] == [second, first]
    with pytest.raises(VersionNotFound, match=f"no version was published before {first}"):
        store.rollback()
    assert store.current() == first


def test_rollback_follows_the_order_of_publication_not_of_making(store):
    first, second = add_version(store, publish=False), add_version(store, publish=False)
    store.publish(second)
    store.publish(first)
    assert store.rollback() == second


def test_a_version_published_twice_is_not_its_own_predecessor(store):
    first, second = add_version(store), add_version(store)
    store.publish(second)
    assert store.rollback() == first


@pytest.mark.parametrize("made", [0, 1])
def test_rollback_without_an_earlier_version_is_refused(store, made):
    for _ in range(made):
        add_version(store)
    with pytest.raises(VersionNotFound, match="no version was published before"):
        store.rollback()


def test_rollback_skips_versions_that_are_gone_and_refuses_damaged_ones(store):
    first, second, third = (add_version(store) for _ in range(3))
    for path in sorted(store.path(second).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    store.path(second).rmdir()
    flip(store.path(first) / "index.bin", 7)
    with pytest.raises(CorruptVersion):
        store.rollback()
    assert store.current() == third
    flip(store.path(first) / "index.bin", 7)
    assert store.rollback() == first


def test_a_damaged_version_cannot_be_published(store):
    before, damaged = add_version(store), add_version(store, publish=False)
    flip(store.path(damaged) / "index.bin", 0)
    with pytest.raises(CorruptVersion, match=r"index\.bin differs from its checksum"):
        store.publish(damaged)
    assert store.current() == before


def test_versions_are_listed_oldest_first_with_their_size_and_problem(store):
    made = [add_version(store, publish=number == 2) for number in range(6)]
    writable(store.path(made[4]) / "manifest.json").write_text("{")
    infos = store.versions()
    assert [info.version for info in infos] == made
    assert [info.published for info in infos] == [number == 2 for number in range(6)]
    assert [bool(info.problem) for info in infos] == [number == 4 for number in range(6)]
    assert infos[0].bytes == sum(map(len, FILES.values()))
    assert all(info.created_at for info in infos if not info.problem)


def test_prune_keeps_the_newest_and_the_published_one(store):
    made = [add_version(store, publish=False) for _ in range(5)]
    store.publish(made[0])
    assert sorted(store.prune(2)) == sorted(made[1:3])
    assert names(store.root / "versions") == sorted([made[0], *made[3:]])
    assert store.prune(2) == []
    assert len(store.prune(0)) == 2
    assert names(store.root / "versions") == [made[0]]
    assert store.current() == made[0]
    store.verify(made[0])


def test_rollback_does_not_return_to_a_pruned_version(store):
    for _ in range(3):
        add_version(store)
    store.prune(0)
    with pytest.raises(VersionNotFound, match="no version was published before"):
        store.rollback()


def test_a_stray_file_among_the_versions_is_neither_listed_nor_in_the_way(store):
    made = [add_version(store) for _ in range(2)]
    (store.root / "versions" / "README").write_text("not a version")
    assert sorted(info.version for info in store.versions()) == sorted(made)
    assert store.prune(0) == made[:1]


# ---- damage


@pytest.mark.parametrize("name", [name for name, data in FILES.items() if data])
@pytest.mark.parametrize("place", [0, -1])
def test_verify_notices_one_flipped_bit_in_any_file(store, name, place):
    version = add_version(store)
    flip(store.path(version) / name, place)
    with pytest.raises(CorruptVersion, match=name):
        store.verify(version)


@pytest.mark.parametrize("name", FILES)
def test_verify_notices_a_longer_and_a_missing_file(store, name):
    version = add_version(store)
    path = store.path(version) / name
    writable(path).write_bytes(FILES[name] + b"\0")
    with pytest.raises(CorruptVersion, match=f"{name} differs"):
        store.verify(version)
    path.unlink()
    with pytest.raises(CorruptVersion, match=f"{name} is missing"):
        store.verify(version)


def test_verify_notices_a_flipped_bit_anywhere_in_the_manifest(store):
    version = add_version(store, content={"recall": 0.975, "encoder": "hashing:64"})
    path = store.path(version) / "manifest.json"
    for place in range(path.stat().st_size):
        flip(path, place)
        with pytest.raises(CorruptVersion):
            store.verify(version)
        flip(path, place)
    store.verify(version)


@pytest.mark.parametrize("content", ["", "{", "null", "5", "[]", "{}", '{"checksum": "0"}', "\xff"])
def test_a_manifest_that_is_none_is_a_corrupt_version(store, content):
    version = add_version(store)
    writable(store.path(version) / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CorruptVersion, match=r"manifest\.json"):
        store.verify(version)
    assert store.versions()[0].problem


def test_a_version_of_another_kind_or_format_is_refused(store):
    version = add_version(store)
    for other, message in [
        (VersionStore(store.root, "model"), "kind 'index', not 'model'"),
        (VersionStore(store.root, "index", format_version=2), "has format 1; this program reads 2"),
    ]:
        with pytest.raises(CorruptVersion, match=message):
            other.verify(version)
        with pytest.raises(CorruptVersion, match=message):
            other.publish(version)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "../versions", "/", "/etc", "x/..", "no-such", "a\0b"])
def test_only_a_name_of_a_version_leads_to_a_version(store, name):
    version = add_version(store)
    (store.root / "x").mkdir()
    for operation in (store.path, store.manifest, store.verify, store.publish):
        with pytest.raises(VersionNotFound, match="there is no version"):
            operation(name)
    assert store.current() == version


DAMAGED = ["", "{", "garbage", "null", "[]", "{}", '{"published": null}', '{"published": 5}', '{"published": "abc"}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_current_is_a_corrupt_version(store, content):
    add_version(store)
    (store.root / "CURRENT").write_text(content)
    for operation in (store.current, store.current_path, store.versions, store.rollback):
        with pytest.raises(CorruptVersion, match="CURRENT is damaged"):
            operation()


@pytest.mark.parametrize("content", DAMAGED)
def test_publishing_again_repairs_a_damaged_current_as_its_message_says(store, content):
    version = add_version(store)
    (store.root / "CURRENT").write_text(content)
    store.publish(version)
    assert store.current() == version


def test_current_may_name_a_version_that_is_gone(store):
    add_version(store)
    (store.root / "CURRENT").write_text(json.dumps({"published": ["gone"]}))
    assert store.current() == "gone"
    with pytest.raises(VersionNotFound, match="there is no version 'gone'"):
        store.current_path()


def test_files_that_a_library_made_private_are_readable_for_a_server_of_the_same_group(store):
    with store.begin() as draft:
        private = draft.path / "weights"
        private.write_text("numbers")
        private.chmod(0o600)
        store.commit(draft, {})
    assert (store.path(draft.version) / "weights").stat().st_mode & 0o777 == 0o440
