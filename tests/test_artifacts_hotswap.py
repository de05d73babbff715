"""Swapping the loaded version under its users: nobody loses what they hold, and everything is released once."""

import threading
import time
from contextlib import contextmanager

import pytest
from conftest import writable

from adcascade.artifacts.errors import CorruptVersion, VersionNotFound
from adcascade.artifacts.hotswap import HotSwap
from adcascade.artifacts.store import VersionStore

NEVER = 3600.0


class Value:
    """What the tests load: the words of a version, and how often it was released."""

    def __init__(self, words):
        self.words = words
        self.released = 0


class Room:
    """A store, what was loaded from it and what the swap reported."""

    def __init__(self, root):
        self.store = VersionStore(root, "index")
        self.loaded = []
        self.events = []

    def publish(self, words):
        with self.store.begin() as draft:
            (draft.path / "words.txt").write_text(words)
            self.store.commit(draft, {})
        self.store.publish(draft.version)
        return draft.version

    def load(self, version):
        words = (self.store.path(version) / "words.txt").read_text()
        if words == "unloadable":
            raise ValueError("cannot load this")
        self.loaded.append(Value(words))
        return self.loaded[-1]

    def damage(self, version):
        writable(self.store.path(version) / "words.txt").write_text("altered")

    @contextmanager
    def swap(self, poll_seconds=NEVER, retry_seconds=NEVER):
        swap = HotSwap(
            self.store,
            self.load,
            release=release,
            poll_seconds=poll_seconds,
            retry_seconds=retry_seconds,
            on_event=self.events.append,
        )
        try:
            yield swap
        finally:
            swap.close()


def release(value):
    value.released += 1


def words_of(swap):
    with swap.lease() as value:
        return value.words


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path / "root")


def test_start_loads_the_published_version(room):
    room.publish("one")
    with room.swap() as swap:
        assert not swap.is_loaded
        with pytest.raises(VersionNotFound, match="no index version is loaded"), swap.lease():
            pass
        swap.start()
        assert swap.is_loaded
        assert words_of(swap) == "one"
    assert room.events == []


def test_start_without_a_published_version_says_so(room):
    with room.swap() as swap, pytest.raises(VersionNotFound, match="nothing is published under"):
        swap.start()


def test_start_refuses_a_corrupt_version(room):
    room.damage(room.publish("one"))
    with room.swap() as swap:
        with pytest.raises(CorruptVersion):
            swap.start()
        assert not swap.is_loaded
    assert room.loaded == []


def test_start_raises_what_loading_raises(room):
    room.publish("unloadable")
    with room.swap() as swap, pytest.raises(ValueError, match="cannot load this"):
        swap.start()


def test_refresh_swaps_to_what_is_published_and_back_after_a_rollback(room):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        swap.refresh()
        assert (words_of(swap), room.events) == ("one", [])
        room.publish("two")
        swap.refresh()
        assert (words_of(swap), room.events) == ("two", ["swapped"])
        room.store.rollback()
        swap.refresh()
        assert (words_of(swap), room.events) == ("one", ["swapped"] * 2)
    assert [value.released for value in room.loaded] == [1, 1, 1]


def test_a_lease_keeps_the_old_value_until_it_is_returned(room):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        with swap.lease() as outer:
            with swap.lease() as inner:
                room.publish("two")
                swap.refresh()
                assert outer is inner
                assert (inner.words, inner.released) == ("one", 0)
                assert words_of(swap) == "two"
            assert outer.released == 0
        assert outer.released == 1
    assert [value.released for value in room.loaded] == [1, 1]


def test_a_lease_is_returned_when_its_user_fails(room):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        with pytest.raises(RuntimeError, match="boom"), swap.lease():
            raise RuntimeError("boom")
    assert [value.released for value in room.loaded] == [1]


def test_an_unused_old_value_is_released_by_the_swap(room):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        words_of(swap)
        room.publish("two")
        swap.refresh()
        assert [value.released for value in room.loaded] == [1, 0]


@pytest.mark.parametrize("fault", ["damaged", "unloadable"])
def test_a_new_version_that_is_no_good_is_refused_once_and_the_old_one_stays(room, fault):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        version = room.publish(fault)
        if fault == "damaged":
            room.damage(version)
        for _ in range(3):
            swap.refresh()
        assert (words_of(swap), room.events) == ("one", ["refused"])
        room.publish("three")
        swap.refresh()
        assert (words_of(swap), room.events) == ("three", ["refused", "swapped"])
    assert [(value.words, value.released) for value in room.loaded] == [("one", 1), ("three", 1)]


def test_a_refused_version_is_tried_again_after_a_while(room):
    room.publish("one")
    with room.swap(retry_seconds=0) as swap:
        swap.start()
        version = room.publish("two")
        path = room.store.path(version)
        hidden = path.rename(room.store.root / "not-copied-yet")
        swap.refresh()
        assert (words_of(swap), room.events) == ("one", ["refused"])
        hidden.rename(path)
        swap.refresh()
        assert (words_of(swap), room.events) == ("two", ["refused", "swapped"])


def test_a_damaged_current_keeps_the_old_value_until_it_is_repaired(room):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        good = (room.store.root / "CURRENT").read_text()
        (room.store.root / "CURRENT").write_text("{")
        swap.refresh()
        assert (words_of(swap), room.events) == ("one", ["refused"])
        (room.store.root / "CURRENT").write_text(good)
        room.publish("two")
        swap.refresh()
        assert words_of(swap) == "two"


def test_a_current_that_goes_missing_keeps_the_old_value(room):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        (room.store.root / "CURRENT").unlink()
        swap.refresh()
        assert (words_of(swap), room.events) == ("one", [])


def test_close_releases_the_value_and_ends_the_watcher(room):
    room.publish("one")
    with room.swap(poll_seconds=0.01) as swap:
        before = threading.active_count()
        swap.start()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert not swap.is_loaded
    with pytest.raises(VersionNotFound), swap.lease():
        pass
    swap.close()
    assert [value.released for value in room.loaded] == [1]


def test_close_waits_for_a_lease_before_it_releases(room):
    room.publish("one")
    with room.swap() as swap:
        swap.start()
        with swap.lease() as value:
            swap.close()
            assert value.released == 0
        assert value.released == 1


def test_the_watcher_swaps_by_itself(room):
    room.publish("one")
    with room.swap(poll_seconds=0.01) as swap:
        swap.start()
        room.publish("two")
        wait_until(lambda: words_of(swap) == "two")
        room.damage(room.publish("damaged"))
        room.publish("four")
        wait_until(lambda: words_of(swap) == "four")
    assert [value.words for value in room.loaded if value.words != "damaged"] == ["one", "two", "four"]
    assert [value.released for value in room.loaded] == [1] * len(room.loaded)


def test_many_users_never_hold_a_released_value_while_versions_change(room):
    room.publish("0")
    stop, wrong, leases = threading.Event(), [], [0] * 4

    def use(number):
        while not stop.is_set():
            with swap.lease() as value:
                before = value.released
                time.sleep(0)
                if before or value.released:
                    wrong.append(value.words)
            leases[number] += 1

    with room.swap() as swap:
        swap.start()
        users = [threading.Thread(target=use, args=(number,)) for number in range(4)]
        for user in users:
            user.start()
        for number in range(1, 25):
            room.publish(str(number))
            swap.refresh()
        wait_until(lambda: min(leases) > 20)
        stop.set()
        for user in users:
            user.join()
    assert wrong == []
    assert [(value.words, value.released) for value in room.loaded] == [(str(number), 1) for number in range(25)]
