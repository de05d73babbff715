"""Counters and histories against references that look at every pair of rows: nothing of the present or future leaks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from records.clicks import NO_TIME, ClickLog
from records.history import CounterSnapshot, Histories, counts_before, earlier_windows, with_history
from records.users import EventType, UserProfile

ROWS = st.tuples(
    st.none() | st.integers(-3, 12),
    st.sampled_from(["", "u1", "u2", "u10"]),
    st.sampled_from(["a1", "a2", "a3"]),
    st.integers(0, 3),
    st.integers(1, 4),
)
LOGS = st.lists(ROWS, min_size=1, max_size=40).map(lambda rows: make_log(rows))


def make_log(rows):
    """Rows of (time in microseconds or None, user, ad, clicks, further impressions), put in the order of time."""
    ordered = sorted(rows, key=lambda row: NO_TIME if row[0] is None else row[0])
    times, users, ads, clicks, further = zip(*ordered, strict=True)
    clicked = np.array(clicks, np.int64)
    return ClickLog(
        np.array([f"r{number}" for number in range(len(ordered))], object),
        np.array(ads, object),
        np.array(users, object),
        np.array([NO_TIME if time is None else time for time in times], np.int64),
        clicked,
        clicked + np.array(further, np.int64),
        {},
    )


def slow_counts_before(keys, log):
    """What `counts_before` promises, by looking at every pair of rows."""
    found = []
    for row in range(len(log)):
        earlier = [
            other
            for other in range(len(log))
            if keys[other] == keys[row] != "" and NO_TIME != log.time[other] < log.time[row]
        ]
        found.append((int(log.impressions[earlier].sum()), int(log.clicks[earlier].sum())))
    return found


def slow_before(log, user, time, limit):
    """(ad, clicked, microseconds) of a user's newest strictly earlier rows, oldest first."""
    rows = [row for row in range(len(log)) if log.user_id[row] == user != "" and NO_TIME != log.time[row] < time]
    return [(log.ad_id[row], log.clicks[row] > 0, log.time[row]) for row in rows][len(rows) - min(limit, len(rows)) :]


def plain(events):
    return [
        (event.ad_id, event.type is EventType.CLICK, round(event.timestamp.timestamp() * 1_000_000)) for event in events
    ]


@settings(max_examples=200, deadline=None)
@given(LOGS, st.sampled_from(["ad_id", "user_id"]))
def test_counts_before_equals_looking_at_every_pair_of_rows(log, column):
    keys = getattr(log, column)
    counts = counts_before(keys, log)
    got = list(zip(counts.impressions.tolist(), counts.clicks.tolist(), strict=True))
    assert got == slow_counts_before(keys, log)


@settings(max_examples=200, deadline=None)
@given(LOGS, st.sampled_from(["", "u1", "u2", "nobody"]), st.integers(-4, 14), st.integers(0, 6))
def test_a_history_holds_the_newest_strictly_earlier_events(log, user, time, limit):
    assert plain(Histories(log).before(user, time, limit)) == slow_before(log, user, time, limit)


@settings(max_examples=100, deadline=None)
@given(LOGS, st.integers(0, 5))
def test_earlier_windows_agree_with_histories_row_by_row(log, limit):
    histories, visited = Histories(log), []
    for rows, past, seen in earlier_windows(log, limit):
        assert seen.shape == (len(rows), len(past))
        for row, mask in zip(rows.tolist(), seen, strict=True):
            want = histories.before(log.user_id[row], int(log.time[row]), limit)
            assert [(log.ad_id[other], log.time[other]) for other in past[mask]] == [
                (ad, time) for ad, _, time in plain(want)
            ]
            visited.append(row)
    assert sorted(visited) == np.flatnonzero((log.time != NO_TIME) & (log.user_id != "")).tolist()


def test_windows_of_a_user_with_thousands_of_events_agree_with_histories():
    random = np.random.default_rng(0)
    log = make_log([(int(time), "u1", f"a{number}", 0, 1) for number, time in enumerate(random.integers(0, 900, 1500))])
    histories = Histories(log)
    for rows, past, seen in earlier_windows(log, 7):
        for row, mask in zip(rows.tolist(), seen, strict=True):
            want = [event.ad_id for event in histories.before("u1", int(log.time[row]), 7)]
            assert log.ad_id[past[mask]].tolist() == want


@pytest.mark.parametrize("delay", [0, 1, 1_000_000])
def test_a_planted_click_of_the_same_moment_or_later_is_not_seen(delay):
    moment = 1_714_564_800_000_000
    past = [(moment - 1, "u1", "a1", 0, 1), (moment, "u1", "a1", 0, 1)]
    clean, planted = make_log(past), make_log([*past, (moment + delay, "u1", "a1", 3, 0)])
    for keys in ("ad_id", "user_id"):
        before, after = counts_before(getattr(clean, keys), clean), counts_before(getattr(planted, keys), planted)
        assert after.clicks.max() == 0
        assert after.impressions[:2].tolist() == before.impressions.tolist() == [0, 1]
    assert Histories(planted).before("u1", moment, 10) == Histories(clean).before("u1", moment, 10)
    assert len(Histories(planted).before("u1", moment + delay + 1, 10)) == 3
    seen = [past[mask].tolist() for rows, past, masks in earlier_windows(planted, 10) for mask in masks]
    assert seen[1] == [0]


@pytest.mark.parametrize("row", [(5, "", "a1", 1, 1), (None, "u1", "a1", 1, 1), (None, "", "a1", 1, 1)])
def test_a_log_without_users_or_times_has_no_histories(row):
    log = make_log([row] * 3)
    assert Histories(log).before("u1", 100, 5) == ()
    assert list(Histories(log).rows_by_user()) == []
    assert list(earlier_windows(log, 5)) == []


def test_with_history_replaces_only_the_history():
    log = make_log([(1, "u1", "a1", 1, 0), (2, "u1", "a2", 0, 1), (3, "u2", "a3", 1, 1)])
    user = with_history(UserProfile("u1", "running", {"age": "30"}), Histories(log), time=3, limit=5)
    assert (user.user_id, user.interests, user.attributes) == ("u1", "running", {"age": "30"})
    assert [(event.type, event.ad_id) for event in user.history] == [
        (EventType.CLICK, "a1"),
        (EventType.IMPRESSION, "a2"),
    ]


def test_a_snapshot_counts_the_whole_log_and_survives_a_file(tmp_path):
    log = make_log([(1, "u1", "a1", 1, 2), (None, "", "a1", 0, 4), (3, "u2", "user", 2, 0), (4, "u1", "a2", 0, 1)])
    snapshot = CounterSnapshot.of(log)
    assert snapshot.ads == {"a1": (7, 1), "user": (2, 2), "a2": (1, 0)}
    assert snapshot.users == {"u1": (4, 1), "u2": (2, 2)}
    snapshot.save(tmp_path / "counters.parquet")
    assert CounterSnapshot.load(tmp_path / "counters.parquet") == snapshot


def test_an_empty_snapshot_survives_a_file(tmp_path):
    CounterSnapshot({}, {}).save(tmp_path / "counters.parquet")
    assert CounterSnapshot.load(tmp_path / "counters.parquet") == CounterSnapshot({}, {})


def test_a_snapshot_knows_nothing_of_unknown_ids():
    snapshot = CounterSnapshot({"a1": (7, 1)}, {"u1": (3, 0)})
    ads, users = snapshot.counts("ad", ["u1", "a1", ""]), snapshot.counts("user", ["u1", "u1"])
    assert (ads.impressions.tolist(), ads.clicks.tolist()) == ([0, 7, 0], [0, 1, 0])
    assert (users.impressions.tolist(), users.clicks.tolist()) == ([3, 3], [0, 0])
    assert snapshot.counts("ad", []).clicks.shape == (0,)


def test_a_snapshot_holds_what_the_counters_would_say_after_the_last_row():
    rows = [(time, f"u{time % 3}", f"a{time % 5}", time % 2, 1) for time in range(40)]
    log = make_log([*rows, *((99, f"u{number}", f"a{number}", 0, 1) for number in range(3))])
    head, at_end = CounterSnapshot.of(log.take(np.arange(40))), counts_before(log.ad_id, log)
    want = head.counts("ad", log.ad_id[40:].tolist())
    assert at_end.impressions[40:].tolist() == want.impressions.tolist()
    assert at_end.clicks[40:].tolist() == want.clicks.tolist()
