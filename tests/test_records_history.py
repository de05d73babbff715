"""Counters and histories against references that look at every pair of rows: nothing of the present or future leaks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcascade.records.clicks import NO_TIME, ClickLog
from adcascade.records.history import Histories, OutOfFoldHistory, PointInTimeHistory, with_history
from adcascade.records.history_file import followed_by
from adcascade.records.users import EventType, UserProfile

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
    return ClickLog.of(
        np.array([f"r{number}" for number in range(len(ordered))], object),
        np.array(ads, object),
        np.array(users, object),
        np.array([NO_TIME if time is None else time for time in times], np.int64),
        np.zeros(len(ordered), np.int64),
        clicked,
        clicked + np.array(further, np.int64),
        np.zeros(len(ordered), np.int64),
        np.zeros(len(ordered), np.int64),
        {},
    )


def slow_before(log, user, time, limit):
    """(ad, clicked, microseconds) of a user's newest strictly earlier rows, oldest first."""
    rows = [row for row in range(len(log)) if log.user_id[row] == user != "" and NO_TIME != log.time[row] < time]
    return [(log.ad_id[row], log.clicks[row] > 0, log.time[row]) for row in rows][len(rows) - min(limit, len(rows)) :]


def plain(events):
    return [
        (event.ad_id, event.type is EventType.CLICK, round(event.timestamp.timestamp() * 1_000_000)) for event in events
    ]


@settings(max_examples=200, deadline=None)
@given(LOGS, st.sampled_from(["", "u1", "u2", "nobody"]), st.integers(-4, 14), st.integers(0, 6))
def test_a_history_holds_the_newest_strictly_earlier_events(log, user, time, limit):
    assert plain(Histories(log).before(user, time, limit)) == slow_before(log, user, time, limit)


def rows_of(past, log, limit):
    """For each row of the log, the rows that it looks back on."""
    found = {}
    for window in past.windows(np.arange(len(log)), limit):
        assert window.visible.shape == (len(window.rows), len(window.events))
        assert len(set(log.user_id[window.rows])) == 1
        found |= {int(row): window.events[mask].tolist() for row, mask in zip(window.rows, window.visible, strict=True)}
    assert sorted(found) == list(range(len(log)))
    return found


@settings(max_examples=100, deadline=None)
@given(LOGS, st.integers(0, 5))
def test_windows_of_earlier_rows_agree_with_histories_row_by_row(log, limit):
    histories = Histories(log)
    for row, seen in rows_of(PointInTimeHistory(log), log, limit).items():
        want = plain(histories.before(log.user_id[row], int(log.time[row]), limit)) if log.time[row] != NO_TIME else []
        assert [(log.ad_id[other], log.time[other]) for other in seen] == [(ad, time) for ad, _, time in want]


def test_windows_of_a_user_with_thousands_of_events_agree_with_histories():
    random = np.random.default_rng(0)
    log = make_log([(int(time), "u1", f"a{number}", 0, 1) for number, time in enumerate(random.integers(0, 900, 1500))])
    histories = Histories(log)
    for row, seen in rows_of(PointInTimeHistory(log), log, 7).items():
        want = [event.ad_id for event in histories.before("u1", int(log.time[row]), 7)]
        assert log.ad_id[seen].tolist() == want


FOLDS = st.lists(st.integers(-1, 3), min_size=40, max_size=40)


@settings(max_examples=200, deadline=None)
@given(LOGS, FOLDS)
def test_a_row_sees_all_training_rows_of_its_user_but_those_of_its_own_fold(log, folds):
    fold = np.array(folds[: len(log)])
    for row, seen in rows_of(OutOfFoldHistory(log, fold), log, 100).items():
        want = [
            other
            for other in range(len(log))
            if log.user_id[other] == log.user_id[row] != "" and fold[other] >= 0 and fold[other] != fold[row]
        ]
        assert sorted(seen) == want
        assert row not in seen


def assert_spans_are_windows(past, log, limit, rows):
    offsets, events = past.spans(rows, limit).recent()
    whole = rows_of(past, log, limit)
    assert len(offsets) == len(rows) + 1
    for place, row in enumerate(rows.tolist()):
        assert events[offsets[place] : offsets[place + 1]].tolist() == whole[row]


CHOSEN = st.lists(st.integers(0, 39), max_size=30)


@settings(max_examples=200, deadline=None)
@given(LOGS, st.integers(0, 5), CHOSEN)
def test_spans_of_earlier_rows_hold_what_windows_hold(log, limit, chosen):
    rows = np.array(chosen, np.int64) % len(log)
    assert_spans_are_windows(PointInTimeHistory(log), log, limit, rows)


@settings(max_examples=200, deadline=None)
@given(LOGS, FOLDS, st.integers(0, 5), CHOSEN)
def test_spans_of_other_folds_hold_what_windows_hold(log, folds, limit, chosen):
    rows = np.array(chosen, np.int64) % len(log)
    assert_spans_are_windows(OutOfFoldHistory(log, np.array(folds[: len(log)])), log, limit, rows)


def test_a_long_history_of_other_folds_shows_the_events_nearest_in_time():
    log = make_log([(time, "u1", f"a{time}", 0, 1) for time in range(300)])
    fold = np.arange(300) % 2
    seen = rows_of(OutOfFoldHistory(log, fold), log, 20)
    assert set(seen[150]) <= set(range(140, 161))
    assert set(seen[0]) <= set(range(21))
    assert all(5 <= len(rows) <= 20 for rows in seen.values())


@pytest.mark.parametrize("delay", [0, 1, 1_000_000])
def test_a_planted_click_of_the_same_moment_or_later_is_not_seen(delay):
    moment = 1_714_564_800_000_000
    past = [(moment - 1, "u1", "a1", 0, 1), (moment, "u1", "a1", 0, 1)]
    clean, planted = make_log(past), make_log([*past, (moment + delay, "u1", "a1", 3, 0)])
    for keys in ("ad_id", "user_id"):
        before = PointInTimeHistory(clean).counts(getattr(clean, keys))
        after = PointInTimeHistory(planted).counts(getattr(planted, keys))
        assert after.clicks.max() == 0
        assert after.impressions[:2].tolist() == before.impressions.tolist() == [0, 1]
    assert Histories(planted).before("u1", moment, 10) == Histories(clean).before("u1", moment, 10)
    assert len(Histories(planted).before("u1", moment + delay + 1, 10)) == 3
    assert rows_of(PointInTimeHistory(planted), planted, 10)[1] == [0]


@pytest.mark.parametrize("row", [(5, "", "a1", 1, 1), (None, "u1", "a1", 1, 1), (None, "", "a1", 1, 1)])
def test_a_log_without_users_or_times_has_no_histories(row):
    log = make_log([row] * 3)
    assert Histories(log).before("u1", 100, 5) == ()
    assert rows_of(PointInTimeHistory(log), log, 5) == {0: [], 1: [], 2: []}


@settings(max_examples=200, deadline=None)
@given(LOGS, LOGS, st.integers(0, 5), CHOSEN)
def test_rows_see_strictly_earlier_events_of_a_history_beside_those_of_the_log(log, history, limit, chosen):
    events = followed_by(log, history)
    past = PointInTimeHistory(log, events)
    oldest_first = np.lexsort((np.arange(len(events)), events.time)).tolist()
    for row, seen in rows_of(past, log, limit).items():
        user, time = log.user_id[row], log.time[row]
        mine = [one for one in oldest_first if events.user_id[one] == user != "" and events.time[one] != NO_TIME]
        earlier = [one for one in mine if events.time[one] < time]
        assert seen == earlier[len(earlier) - min(limit, len(earlier)) :]
    assert_spans_are_windows(past, log, limit, np.array(chosen, np.int64) % len(log))
    for user in ("u1", "u2"):
        merged = [one for one in oldest_first if events.user_id[one] == user and NO_TIME != events.time[one] < 6]
        want = [(events.ad_id[one], events.clicks[one] > 0, events.time[one]) for one in merged]
        assert plain(Histories(events).before(user, 6, 100)) == want


@settings(max_examples=100, deadline=None)
@given(LOGS, LOGS)
def test_events_of_a_history_are_counted_nowhere(log, history):
    alone, beside = PointInTimeHistory(log), PointInTimeHistory(log, followed_by(log, history))
    for keys in (log.ad_id, log.user_id):
        want, found = alone.counts(keys), beside.counts(keys)
        for name in ("impressions", "clicks", "first", "last"):
            np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
        np.testing.assert_array_equal(beside.decayed(keys), alone.decayed(keys))


def test_with_history_replaces_only_the_history():
    log = make_log([(1, "u1", "a1", 1, 0), (2, "u1", "a2", 0, 1), (3, "u2", "a3", 1, 1)])
    user = with_history(UserProfile("u1", "running", {"age": "30"}), Histories(log), time=3, limit=5)
    assert (user.user_id, user.interests, user.attributes) == ("u1", "running", {"age": "30"})
    assert [(event.type, event.ad_id) for event in user.history] == [
        (EventType.CLICK, "a1"),
        (EventType.IMPRESSION, "a2"),
    ]


def test_conversions_clicks_and_impressions_are_told_apart():
    log = make_log([(1, "u1", "a1", 1, 0), (2, "u1", "a2", 0, 1), (3, "u1", "a3", 1, 0)])
    log = replace(log, conversions=np.array([0, 0, 1]))
    kinds = [event.type for event in Histories(log).before("u1", 9, 9)]
    assert kinds == [EventType.CLICK, EventType.IMPRESSION, EventType.CONVERSION]
