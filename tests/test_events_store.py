"""What the event store holds: each event once, whatever order, repetition or cut of batches it arrives in."""

import itertools
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcascade.events.counter_state import HALF_LIVES_US, CounterState
from adcascade.events.decayed_sums import KEPT, DecayedSums
from adcascade.events.errors import StoreError
from adcascade.events.recorder import Erased, Recorder, Rules
from adcascade.events.sqlite_store import FILE, SqliteStore
from adcascade.events.values import AdKeys, CounterKey, NewEvent, Outcome, Status
from adcascade.records.ads import read_catalog
from adcascade.records.clicks import read_clicks
from adcascade.records.counters import DECAYED, CounterSnapshot
from adcascade.records.users import EventType
from ranking.data.log_keys import LogKeys
from ranking.inputs.features import _BETWEEN as PAIR

SECOND = 1_000_000
HOUR = 3600 * SECOND
NOW = 1_800_000_000 * SECOND
ADS = {f"ad-{number}": AdKeys(f"shop-{number % 2}", f"topic-{number % 3}") for number in range(5)}
RULES = Rules()
TABLES = ("counters", "impressions")
DAY = 24 * HOUR


@pytest.fixture
def store(tmp_path):
    found = SqliteStore(tmp_path)
    yield found
    found.close()


def record(store, *batches, rules=RULES, now=NOW):
    return Recorder(store, ADS.get, rules).record(batches, now)[0]


def event(number, kind=EventType.IMPRESSION, time=NOW - HOUR, ad="ad-1", user="u-1", impression="", **more):
    return NewEvent(f"event-{number}", kind, time, user, ad, impression_id=impression, **more)


def totals(store, *keys):
    found = store.read_counters(keys)
    return [
        (found[key].impressions, found[key].clicks, found[key].conversions) if key in found else None for key in keys
    ]


def everything(folder):
    """All that a store says but the order in which its log was written."""
    connection = sqlite3.connect(folder / FILE)
    found = {name: sorted(connection.execute(f"SELECT * FROM {name}")) for name in TABLES}
    found["events"] = sorted(connection.execute("SELECT key, user, time, type, ad, text, impression FROM events"))
    found["old_keys"] = sorted(connection.execute("SELECT key FROM old_keys"))
    connection.close()
    return found


def test_an_event_counts_once_for_its_ad_its_user_and_their_pairs(store):
    shown, clicked = event(1), event(2, EventType.CLICK)
    assert record(store, [shown, clicked, shown]) == [
        [Outcome(Status.ACCEPTED), Outcome(Status.ACCEPTED), Outcome(Status.DUPLICATE)]
    ]
    assert record(store, [clicked]) == [[Outcome(Status.DUPLICATE)]]
    keys = [CounterKey("ad", "ad-1"), CounterKey("advertiser", "shop-1"), CounterKey("category", "topic-1")]
    keys += [CounterKey("user", "", "u-1"), CounterKey("user_category", "topic-1", "u-1")]
    assert totals(store, *keys) == [(1, 1, 0)] * 5
    assert totals(store, CounterKey("ad", "ad-2"), CounterKey("user", "", "u-2")) == [None, None]


@pytest.mark.parametrize("name", ["a\0b", 'q"\\\u2028\x01', "1.0", "NULL", "' OR 1=1 --", "\U0001f45f" * 64])
def test_ids_are_ids_whatever_they_hold(store, name):
    keys = {name: AdKeys(name, name)}.get
    events = [
        NewEvent(f"{name}-{n}", EventType.IMPRESSION, NOW - n, name, name, impression_id=f"{name}-{n // 2}")
        for n in range(4)
    ]
    for one in events:
        Recorder(store, keys).record([[one]], NOW)
    asked = [CounterKey("ad", name), CounterKey("advertiser", name), CounterKey("user", "", name)]
    assert totals(store, *asked, CounterKey("user_category", name, name)) == [(2, 0, 0)] * 4
    assert len(store.history(name, 10)) == 4
    assert record(store, events) == [[Outcome(Status.DUPLICATE)] * 4]


def test_clicks_of_one_impression_count_once_and_at_its_time(store):
    shown = event(1, impression="i-1", time=NOW - 2 * HOUR)
    clicks = [event(n, EventType.CLICK, impression="i-1", time=NOW - HOUR + n, ad="", user="") for n in (2, 3, 4)]
    record(store, [shown], clicks)
    (state,) = store.read_counters([CounterKey("ad", "ad-1")]).values()
    assert (state.impressions, state.clicks) == (1, 1)
    assert state.decayed_at(NOW - HOUR)[:2] == (0.5, 0.5)
    assert [one.ad_id for one in store.history("u-1", 10)] == ["ad-1"]  # clicks that name no user are nobody's


def test_a_click_counts_with_the_impression_that_arrives_after_it(store):
    click = event(2, EventType.CLICK, impression="i-1", time=NOW - HOUR)
    record(store, [click])
    assert totals(store, CounterKey("ad", "ad-1")) == [(1, 1, 0)]
    record(store, [event(1, impression="i-1", time=NOW - 2 * HOUR)])
    (state,) = store.read_counters([CounterKey("ad", "ad-1")]).values()
    assert (state.impressions, state.clicks) == (1, 1)
    assert state.decayed_at(NOW - HOUR)[:2] == (0.5, 0.5)


def test_clicks_that_come_too_soon_are_kept_and_not_counted(store):
    rules = Rules(min_click_us=500_000)
    late, soon = (
        [
            event(f"{name}-1", impression=name, user=name),
            event(f"{name}-2", EventType.CLICK, NOW - HOUR + gap, impression=name, user=name),
        ]
        for name, gap in (("late", 500_000), ("soon", 499_999))
    )
    record(store, late, soon, rules=rules)
    assert totals(store, CounterKey("user", "", "late"), CounterKey("user", "", "soon")) == [(1, 1, 0), (1, 0, 0)]
    assert len(store.history("soon", 10)) == 2


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (event(1, ad="nowhere"), "there is no ad 'nowhere'"),
        (event(1, ad="", impression="nowhere"), "there is no impression 'nowhere'"),
        (event(1, ad=""), "it names neither an ad, nor a text, nor an impression"),
        (event(1, EventType.VIEW, ad=""), "it names neither"),
        (event(1, time=NOW + 5 * 60 * SECOND + 1), "another unit?"),
        (event(1, time=NOW * 1000), "another unit?"),
    ],
)
def test_what_cannot_be_is_rejected_with_a_reason_and_may_come_again(store, one, reason):
    ((outcome, other),) = record(store, [one, event(2)])
    assert outcome.status is Status.REJECTED
    assert reason in outcome.reason
    assert other.status is Status.ACCEPTED
    assert record(store, [replace(one, ad_id="ad-1", time_us=NOW)]) == [[Outcome(Status.ACCEPTED)]]


def test_an_ad_that_there_is_not_takes_no_impression_from_the_one_that_was_shown(store):
    shown, ghost = event(1, impression="i-1"), event(2, EventType.CLICK, NOW - 2 * HOUR, "ghost", impression="i-1")
    ((_, outcome),) = record(store, [shown, ghost])
    assert (outcome.status, outcome.reason) == (Status.REJECTED, "there is no ad 'ghost'")
    assert totals(store, CounterKey("ad", "ad-1"), CounterKey("ad", "ghost")) == [(1, 0, 0), None]


def test_a_click_before_its_impression_counts_unless_an_owner_says_otherwise(store):
    events = [event(1, impression="i-1"), event(2, EventType.CLICK, NOW - HOUR - 1, impression="i-1")]
    record(store, events)
    assert totals(store, CounterKey("ad", "ad-1")) == [(1, 1, 0)]


def test_an_old_event_is_counted_once_and_not_kept(store):
    old = event(1, time=NOW - Rules().retention_us - 1)
    assert record(store, [old], [old]) == [[Outcome(Status.ACCEPTED)], [Outcome(Status.DUPLICATE)]]
    assert record(store, [old]) == [[Outcome(Status.DUPLICATE)]]
    assert totals(store, CounterKey("ad", "ad-1")) == [(1, 0, 0)]
    assert store.history("u-1", 10) == []
    assert store.log_after(0, 10) == []


def test_a_history_is_in_order_of_time_whatever_order_its_events_arrive_in(store):
    events = [event(n, EventType.VIEW, NOW - n * SECOND) for n in range(30)]
    random = np.random.default_rng(0)
    record(store, *([events[n]] for n in random.permutation(30)))
    assert store.history("u-1", 10) == events[9::-1]
    assert store.history("", 10) == []


@st.composite
def streams(draw):
    """Events of few ads, users and impressions, so that they meet; some of them too old, equal in time or too soon."""
    kinds = st.sampled_from([EventType.IMPRESSION, EventType.CLICK, EventType.CONVERSION, EventType.VIEW])
    times = st.one_of(
        st.integers(NOW - 20 * HOUR, NOW),
        st.sampled_from([NOW, NOW - HOUR, NOW - 1, NOW - (KEPT + 1) * HOUR, NOW - Rules().retention_us - HOUR]),
    )
    one = st.builds(
        lambda kind, time, ad, user, impression: (kind, time, ad, user, impression),
        kinds,
        times,
        st.sampled_from(sorted(ADS)),
        st.sampled_from(["", "u-1", "u-2"]),
        st.sampled_from(["", "", "i-1", "i-2", "i-3"]),
    )
    drawn = draw(st.lists(one, min_size=1, max_size=25))
    return [
        NewEvent(f"e-{n}", kind, time, user, ad, impression_id=i) for n, (kind, time, ad, user, i) in enumerate(drawn)
    ]


@settings(max_examples=150, deadline=None)
@given(events=streams(), data=st.data())
def test_any_permutation_repetition_or_cut_of_batches_gives_the_same_state(tmp_path_factory, events, data):
    rules = Rules(min_click_us=data.draw(st.sampled_from([0, 30 * 60 * SECOND])))
    orders = [events]
    orders.append(data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events), max_size=10)))))
    found = []
    for order in orders:
        folder = tmp_path_factory.mktemp("store")
        store = SqliteStore(folder)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4)))
        parts = [order[start:end] for start, end in itertools.pairwise([0, *cuts, len(order)])]
        for part in parts:  # each in a transaction of its own, or several together
            record(store, part[: len(part) // 2], part[len(part) // 2 :], rules=rules)
        store.close()
        found.append(everything(folder))
    assert found[0] == found[1]


def test_a_replayed_log_counts_what_training_counts(store, world):
    catalog = {ad.ad_id: ad for ad in read_catalog(world.ads).ads}
    log, _ = read_clicks(world.clicks, catalog.keys())
    wanted = CounterSnapshot.of(log, LogKeys(log.ad_id, log.user_id, catalog)).totals
    now, events = int(log.time.max()), []
    for row, (ad, user, time) in enumerate(zip(log.ad_id, log.user_id, log.time.tolist(), strict=True)):
        seen = NewEvent(f"{row}-seen", EventType.IMPRESSION, time, user, ad, impression_id=f"{row}")
        clicked = NewEvent(f"{row}-clicked", EventType.CLICK, time + 40, user, impression_id=f"{row}")
        events += [seen, clicked][: 1 + int(log.clicks[row])]
        assert log.impressions[row] == 1
    keys = {ad_id: AdKeys(ad.advertiser, ad.category) for ad_id, ad in catalog.items()}
    Recorder(store, keys.get).record([events], now)
    for kind, of_ids in wanted.items():
        for name, total in of_ids.items():
            user, _, of_pair = name.partition(PAIR) if kind.startswith("user") else ("", "", name)
            (state,) = store.read_counters([CounterKey(kind, of_pair, user)]).values()
            found = state.total()
            assert found[:4] == pytest.approx(total[:4], abs=1e-6)
            np.testing.assert_allclose(found.decayed, total.decayed if kind in DECAYED else (), rtol=1e-6)


def test_faded_sums_are_those_of_floating_point_within_their_precision():
    random = np.random.default_rng(1)
    for half_life in HALF_LIVES_US:
        times = random.integers(NOW - 50 * half_life, NOW, 500)
        values = random.integers(0, 3, (500, 2))
        sums = DecayedSums(half_life)
        for time, (impressions, clicks) in zip(times.tolist(), values.tolist(), strict=True):
            sums.add(time, impressions, clicks)
        wanted = (values * np.exp2(-(NOW - times) / half_life)[:, None]).sum(axis=0)
        np.testing.assert_allclose(sums.at(NOW), wanted, rtol=1e-7)
        kept = DecayedSums.from_bytes(half_life, sums.to_bytes(NOW))
        np.testing.assert_allclose(kept.at(NOW), wanted, rtol=1e-7)
        for time, (impressions, clicks) in zip(times.tolist(), values.tolist(), strict=True):
            sums.add(time, -impressions, -clicks)
        assert sums.to_bytes(NOW) == b""


def test_a_folder_has_one_owner_and_formats_that_are_newer_are_refused(tmp_path):
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreError, match="another process has the event store"):
        SqliteStore(tmp_path)
    store.close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("UPDATE meta SET value = '2'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="of a newer release"):
        SqliteStore(tmp_path)


def test_a_file_that_is_no_store_is_refused_by_name(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to be looked at " * 50)
    with pytest.raises(StoreError, match="the file is damaged"):
        SqliteStore(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    connection = sqlite3.connect(other / FILE)
    connection.execute("CREATE TABLE something (x)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="of something else"):
        SqliteStore(other)


def test_an_erased_user_leaves_no_byte_and_totals_of_ads_stay(tmp_path):
    store = SqliteStore(tmp_path)
    secret = "user-who-wants-to-be-forgotten"
    events = [event(f"{secret}-{n}", impression=f"i-{n}", user=secret, time=NOW - HOUR + n) for n in range(200)]
    events += [
        event(f"{secret}-click-{n}", EventType.CLICK, impression=f"i-{n}", user=secret) for n in range(0, 200, 3)
    ]
    others = [event(f"other-{n}", user="somebody-else") for n in range(100)]
    record(store, [one for pair in itertools.zip_longest(events, others) for one in pair if one])
    before = totals(store, CounterKey("ad", "ad-1"), CounterKey("user", "", "somebody-else"))
    assert store.erase_user(secret) == Erased(events=len(events), counters=3)
    assert store.history(secret, 10) == []
    assert totals(store, CounterKey("user", "", secret)) == [None]
    assert totals(store, CounterKey("ad", "ad-1"), CounterKey("user", "", "somebody-else")) == before
    for path in tmp_path.iterdir():
        assert secret.encode() not in path.read_bytes(), path
    assert record(store, [events[0]]) == [[Outcome(Status.DUPLICATE)]]  # it still counts once
    late = event("late", EventType.CLICK, impression="i-1", ad="", user="")
    assert record(store, [late]) == [[Outcome(Status.ACCEPTED)]]
    assert totals(store, CounterKey("user", "", secret)) == [None]
    store.close()
    for path in tmp_path.iterdir():
        assert secret.encode() not in path.read_bytes(), path


def test_many_erased_users_leave_no_byte_however_pages_were_split(tmp_path):
    store = SqliteStore(tmp_path)
    random = np.random.default_rng(0)
    events = [
        event(f"e-{n}", user=f"<{n % 300}>-of-many-users", impression=f"i-{n}", time=NOW - n) for n in range(18_000)
    ]
    order = random.permutation(len(events))
    for start in range(0, len(order), 100):
        record(store, [events[place] for place in order[start : start + 100]])
    gone = [f"<{n}>-of-many-users" for n in range(0, 300, 10)]
    for user in gone:
        assert store.erase_user(user).events == 60
    store.close()
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert [user for user in gone if user.encode() in data] == [], path
    assert b"<1>-of-many-users" in (tmp_path / FILE).read_bytes()


def test_an_erasure_that_another_program_holds_up_says_so_and_can_be_repeated(tmp_path):
    store = SqliteStore(tmp_path)
    record(store, [event(1, user="held")])
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM events").fetchall()
    with pytest.raises(StoreError, match="another program"):
        store.erase_user("held")
    other.close()
    store.erase_user("held")
    store.close()
    assert b"held" not in (tmp_path / FILE).read_bytes()


def test_offsets_never_go_back(store):
    def offset(*events):
        return Recorder(store, ADS.get).record([events], NOW)[1]

    assert offset(event(1), event(2), event(3, user="gone")) == 3
    store.erase_user("gone")
    assert offset(event(1)) == 3
    assert offset(event(4)) == 4


def test_what_is_swept_is_neither_counted_twice_nor_below_nothing(store):
    late = NOW - 40 * DAY
    record(store, [event(1, impression="i", time=late)])  # arrives now, from a log of then
    while store.sweep(NOW - 30 * DAY, 100):
        pass
    record(store, [event(2, EventType.CLICK, late, impression="i")])
    assert totals(store, CounterKey("ad", "ad-1")) == [(1, 1, 0)]
    # Everything of the user is swept, and then an earlier event says that the impression was another's.
    while store.sweep(NOW + DAY, 100):
        pass
    record(store, [event(3, impression="j", user="u-1")], now=NOW + DAY)
    with store._transaction():
        store._writer.execute("DELETE FROM counters WHERE user <> ''")
    record(store, [event(4, impression="j", user="v", time=late)], now=NOW + DAY)
    (of_u,) = store.read_counters([CounterKey("user", "", "u-1")]).values() or [CounterState()]
    assert (of_u.impressions, of_u.clicks) == (0, 0)


def test_a_sweep_erases_what_is_old_in_small_parts_and_events_still_count_once(store):
    old = [event(f"old-{n}", time=NOW - 90 * DAY + n, impression=f"i-{n}", user=f"u-{n}") for n in range(50)]
    new = [event(f"new-{n}", user="fresh") for n in range(20)]
    record(store, old, now=NOW - 60 * DAY)
    record(store, new)
    parts = []
    while swept := store.sweep(NOW - 30 * DAY, 30):
        parts.append(swept)
    # 50 events, 50 impressions, and three counters of each of 50 users.
    assert sum(parts) == 50 + 50 + 150
    assert max(parts) <= 90
    assert [one.event.event_id for one in store.log_after(0, 1000)] == [one.event_id for one in new]
    assert totals(store, CounterKey("ad", "ad-1"), CounterKey("user", "", "u-3")) == [(70, 0, 0), None]
    assert record(store, old[:3]) == [[Outcome(Status.DUPLICATE)] * 3]
    assert len(store.history("fresh", 100)) == 20
