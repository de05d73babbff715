"""A version is exactly what its manifest says: everything else is damage, named and refused at every door."""

import hashlib
import json
import logging
import os
import shutil
import socket
import stat

import pytest
from conftest import writable
from test_artifacts_store import FILES, add_version, fill, names

from adcascade.artifacts.errors import CorruptVersion, VersionNotFound
from adcascade.artifacts.hotswap import HotSwap
from adcascade.artifacts.store import VersionStore

NEVER = 3600.0


@pytest.fixture
def store(tmp_path):
    return VersionStore(tmp_path / "root", "index")


def unlisted(folder):
    (folder / "extra.bin").write_bytes(b"x")
    return "extra.bin"


def unlisted_below(folder):
    (folder / "text" / "more").mkdir()
    (folder / "text" / "more" / "x").touch()
    return "text/more/x"


def empty_folder(folder):
    (folder / "towers").mkdir()
    return "towers"


def deep_folders(folder):
    (folder / "/".join("d" * 40)).mkdir(parents=True)
    return "too deep"


def link_to_the_same(folder):
    shutil.move(folder / "index.bin", folder.parent.parent / "elsewhere")
    (folder / "index.bin").symlink_to(folder.parent.parent / "elsewhere")
    return "index.bin"


def dangling_link(folder):
    (folder / "extra").symlink_to("/no/such/file")
    return "extra"


def folder_that_is_a_link(folder):
    shutil.move(folder / "text", folder.parent.parent / "text")
    (folder / "text").symlink_to(folder.parent.parent / "text")
    return "text"


def second_name(folder):
    os.link(folder / "index.bin", folder.parent.parent / "outside")
    return "index.bin"


def pipe(folder):
    (folder / "index.bin").unlink()
    os.mkfifo(folder / "index.bin")
    return "index.bin"


def unix_socket(folder):
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(folder)
        made.bind("s")
        os.chdir(here)
    return "a socket"


def folder_for_a_file(folder):
    (folder / "index.bin").unlink()
    (folder / "index.bin").mkdir()
    return "index.bin"


def other_case(folder):
    (folder / "index.bin").rename(folder / "Index.bin")
    return r"[iI]ndex\.bin"


def manifest_link(folder):
    shutil.move(folder / "manifest.json", folder.parent.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent.parent / "manifest.json")
    return "manifest.json is a link"


def manifest_pipe(folder):
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    return "manifest.json is a device"


def manifest_folder(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    return "manifest.json is a folder"


def huge_manifest(folder):
    with writable(folder / "manifest.json").open("ab") as file:
        file.truncate(2**31)
    return r"manifest\.json has more than"


def deep_manifest(folder):
    writable(folder / "manifest.json").write_bytes(b"[" * 1_000_000)
    return r"manifest\.json is missing or damaged \(RecursionError\)"


def long_number(folder):
    writable(folder / "manifest.json").write_text('{"checksum": ' + "9" * 100_000 + "}")
    return r"manifest\.json is missing or damaged"


def version_that_is_a_link(folder):
    shutil.move(folder, folder.parent.parent / "moved")
    folder.symlink_to(folder.parent.parent / "moved")
    return "is a link"


DAMAGES = [
    *(unlisted, unlisted_below, empty_folder, deep_folders),
    *(link_to_the_same, dangling_link, folder_that_is_a_link, second_name, version_that_is_a_link),
    *(pipe, unix_socket, folder_for_a_file, other_case),
    *(manifest_link, manifest_pipe, manifest_folder, huge_manifest, deep_manifest, long_number),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_version_that_is_not_its_manifest_is_refused_by_name_at_every_door(store, damage, caplog):
    before, damaged = add_version(store), add_version(store)
    said = damage(store.root / "versions" / damaged)
    for refuse in (store.verify, store.publish):
        with pytest.raises(CorruptVersion, match=said):
            refuse(damaged)
    swap, events = _swap(store)
    try:
        swap.start()
        with swap.lease() as loaded:
            assert loaded == before
    finally:
        swap.close()
    assert events == ["refused"]
    assert damaged in caplog.text
    store.prune(0)
    assert names(store.root / "versions") == [damaged]  # still published: nobody took it away


def _swap(store, poll_seconds=NEVER):
    events = []
    return HotSwap(store, str, poll_seconds=poll_seconds, on_event=events.append), events


def rewrite_manifest(folder, change):
    """A manifest altered by someone who knows how its checksum is made."""
    document = json.loads((folder / "manifest.json").read_text())
    del document["checksum"]
    change(document)
    checksum = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    writable(folder / "manifest.json").write_text(json.dumps({"checksum": checksum, **document}))


ENTRY = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/hostname", "text/../../../outside", "", ".", "text/", "a//b", "a\\b", "c:x", "a\nb"]
)
def test_a_manifest_that_names_a_path_out_of_its_version_is_refused(store, name):
    version = add_version(store)
    (store.root / "outside").write_bytes(b"secret")
    rewrite_manifest(store.path(version), lambda document: document["files"].update({name: ENTRY}))
    with pytest.raises(CorruptVersion, match="which is no file of a version"):
        store.verify(version)
    assert store.versions()[0].problem


def test_a_manifest_that_names_a_file_twice_is_refused(store):
    version = add_version(store)
    path = store.path(version) / "manifest.json"
    sealed = path.read_text()
    rewrite_manifest(store.path(version), lambda document: document["files"].update({"INDEX.bin": ENTRY}))
    with pytest.raises(CorruptVersion, match="twice, but for upper and lower case"):
        store.verify(version)
    writable(path).write_text(sealed.replace('"files": {', '"files": {"index.bin": {"sha256": "0", "bytes": 1},'))
    with pytest.raises(CorruptVersion, match=r"manifest\.json is missing or damaged"):
        store.verify(version)


def test_the_manifest_of_another_version_is_refused(store):
    first, second = add_version(store), add_version(store)
    shutil.copyfile(store.path(first) / "manifest.json", writable(store.path(second) / "manifest.json"))
    with pytest.raises(CorruptVersion, match=f"holds the manifest of version '{first}'"):
        store.verify(second)


BAD_NAMES = ["../x", "..", ".pruned-x", "a/b", "a\x1b[2Jb", "x" * 300, "\ud800", "a b", ""]


@pytest.mark.parametrize("content", [json.dumps({"published": [name]}) for name in BAD_NAMES] + ['{"published": [5]}'])
def test_a_current_that_names_what_cannot_be_a_version_is_damaged(store, content):
    version = add_version(store)
    (store.root / "x").mkdir()
    (store.root / "CURRENT").write_text(content)
    for operation in (store.current, store.rollback, store.prune):
        with pytest.raises(CorruptVersion, match="CURRENT is damaged"):
            operation()
    store.publish(version)
    assert store.current() == version


def test_a_current_that_is_huge_deep_a_link_or_a_pipe_is_damaged_and_holds_nobody(store):
    version = add_version(store)
    current = store.root / "CURRENT"
    for make in (
        lambda: current.write_bytes(b"{" + b" " * 100_000),
        lambda: current.write_bytes(b"[" * 60_000),
        lambda: current.symlink_to("/etc/hostname"),
        lambda: os.mkfifo(current),
        current.mkdir,
    ):
        current.unlink(missing_ok=True)
        make()
        with pytest.raises(CorruptVersion, match="CURRENT is damaged"):
            store.current()
    current.rmdir()
    store.publish(version)
    assert store.current() == version


def test_a_draft_with_a_link_is_not_committed_and_what_it_leads_to_stays_as_it_is(store, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    outside.chmod(0o600)
    for make in (lambda path: path.symlink_to(outside), lambda path: os.link(outside, path)):
        with store.begin() as draft:
            fill(draft.path)
            make(draft.path / "weights")
            with pytest.raises(CorruptVersion, match="weights"):
                store.commit(draft, {})
    assert store.versions() == []
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600


def test_an_empty_folder_of_a_draft_is_not_part_of_the_version(store):
    with store.begin() as draft:
        fill(draft.path)
        (draft.path / "logs" / "of" / "today").mkdir(parents=True)
        store.commit(draft, {})
    assert set(store.verify(draft.version).files) == set(FILES)
    assert not (store.path(draft.version) / "logs").exists()


# ---- starting


def test_a_server_that_starts_takes_the_newest_whole_version_published_before_and_says_so(store, caplog):
    made = [add_version(store) for _ in range(3)]
    never_published = add_version(store, publish=False)
    for version in made[1:]:
        writable(store.path(version) / "index.bin").write_bytes(b"damaged")
    swap, events = _swap(store, poll_seconds=0.01)
    with caplog.at_level(logging.ERROR):
        swap.start()
    try:
        with swap.lease() as loaded:
            assert loaded == made[0] != never_published
        assert events == ["refused"]
        for version in made:
            assert version in caplog.text
        assert "which was published earlier, is used instead" in caplog.text
        store.publish(never_published)
        while not events[1:]:
            pass
        with swap.lease() as loaded:
            assert loaded == never_published
    finally:
        swap.close()


def test_a_server_starts_without_the_version_that_current_names_if_that_is_gone(store):
    first, second = add_version(store), add_version(store)
    shutil.rmtree(store.path(second))
    swap, events = _swap(store)
    swap.start()
    with swap.lease() as loaded:
        assert loaded == first
    swap.close()
    assert events == ["refused"]


def test_what_was_rolled_back_is_not_fallen_back_to(store):
    first, second = add_version(store), add_version(store)
    store.rollback()
    writable(store.path(first) / "index.bin").write_bytes(b"damaged")
    swap, _ = _swap(store)
    with pytest.raises(CorruptVersion, match=r"index\.bin differs"):
        swap.start()
    assert (store.root / "versions" / second).is_dir()
    swap.close()


def test_without_a_whole_version_the_error_is_that_of_the_published_one(store):
    for _ in range(2):
        (store.path(add_version(store)) / "index.bin").unlink()
    swap, _ = _swap(store)
    with pytest.raises(CorruptVersion, match=f"missing from version {store.current()}"):
        swap.start()
    shutil.rmtree(store.root / "versions")
    with pytest.raises(VersionNotFound, match="there is no version"):
        swap.start()
    swap.close()


# ---- who may read


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o000, 0o440, 0o750), (0o022, 0o440, 0o750), (0o027, 0o440, 0o750),
                                  (0o077, 0o400, 0o700), (0o037, 0o440, 0o750)]
)  # fmt: skip
def test_files_are_read_only_and_for_owner_and_group_at_most_whatever_the_umask(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        store = VersionStore(tmp_path / "new" / "root", "index")
        with store.begin() as draft:
            fill(draft.path)
            store.commit(draft, {})
            modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in store.root.rglob("*")}
        store.publish(draft.version)
        store.prune(0)
    finally:
        os.umask(before)
    modes |= {path: stat.S_IMODE(path.lstat().st_mode) for path in (tmp_path / "new", *(tmp_path / "new").rglob("*"))}
    assert {path.name for path in modes} >= {"CURRENT", ".current.lock", ".drafts.lock", "drafts", "versions", "text"}
    assert not [path for path, mode in modes.items() if mode & 0o027]
    for path in store.path(draft.version).rglob("*"):
        assert modes[path] == (folder if path.is_dir() else file), path
    assert modes[store.path(draft.version)] == folder
