"""Counts that fade against a reference that looks at every pair of rows, and as serving reads them."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records_history import FOLDS, LOGS, make_log

from adcascade.records.clicks import NO_TIME
from adcascade.records.coded import CodedColumn
from adcascade.records.counter_table import HALF_LIVES_H, Total
from adcascade.records.counters import (
    CounterSnapshot,
    out_of_fold_counts,
    out_of_fold_decayed,
    point_in_time_counts,
    point_in_time_decayed,
)
from adcascade.records.decayed_counts import KeyedEvents, decay, recurrence

HOUR = 3_600_000_000


def in_hours(log):
    """The log with its microseconds taken for hours, so that much fades."""
    return replace(log, time=np.where(log.time == NO_TIME, NO_TIME, log.time * HOUR))


def faded(log, last_hours, rows):
    """Impressions and clicks of some rows under each half-life at a moment, by the definition."""
    ages = last_hours - log.time[rows] / HOUR
    return [
        [
            (log.impressions[rows] * 0.5 ** (ages / half_life)).sum(),
            (log.clicks[rows] * 0.5 ** (ages / half_life)).sum(),
        ]
        for half_life in HALF_LIVES_H.values()
    ]


def reference(log, keys, sees):
    """What each row is to be told: of the strictly earlier rows of its key that it `sees`, at the last of them."""
    result = np.zeros((len(log), len(HALF_LIVES_H), 2))
    for row in range(len(log)):
        seen = [
            other
            for other in range(len(log))
            if keys[other] == keys[row] != "" and NO_TIME != log.time[other] < log.time[row] and sees(row, other)
        ]
        if seen:
            result[row] = faded(log, log.time[seen].max() / HOUR, seen)
    return result


@settings(max_examples=200, deadline=None)
@given(LOGS, st.sampled_from(["ad_id", "user_id"]))
def test_decayed_counts_equal_looking_at_every_pair_of_rows(log, column):
    log = in_hours(log)
    keys = getattr(log, column)
    want = reference(log, keys, lambda row, other: True)
    np.testing.assert_allclose(point_in_time_decayed(keys, log), want, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(LOGS, st.sampled_from(["ad_id", "user_id"]), FOLDS)
def test_decayed_counts_of_other_folds_equal_looking_at_every_pair_of_rows(log, column, folds):
    log, fold = in_hours(log), np.array(folds[: len(log)])
    keys, used = getattr(log, column), max(0, fold.max()) + 1
    want = reference(log, keys, lambda row, other: fold[other] >= 0 and fold[other] != fold[row])
    want[fold >= 0] *= used / max(1, used - 1)
    np.testing.assert_allclose(out_of_fold_decayed(keys, log, fold), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("view", ["time", "folds"])
def test_decayed_counts_are_as_of_the_last_impression_that_the_counts_know(view):
    """What fades is faded further from `Counts.last` on: both must speak of the same row."""
    log = in_hours(make_log([(time, "u", "a", 1, 0) for time in range(1, 9)]))
    fold = np.arange(8) % 3
    if view == "time":
        counts, decayed = point_in_time_counts(log.ad_id, log), point_in_time_decayed(log.ad_id, log)
    else:
        counts = out_of_fold_counts(log.ad_id, log, fold)
        decayed = out_of_fold_decayed(log.ad_id, log, fold)
    for row in range(8):
        seen = [one for one in range(row) if view == "time" or fold[one] != fold[row]]
        if seen:
            scale = 1 if view == "time" else 3 / 2
            np.testing.assert_allclose(decayed[row], scale * np.array(faded(log, counts.last[row] / 3600, seen)))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-5, 5)), max_size=200), st.data())
def test_the_blocked_scan_is_the_recurrence(rows, data):
    factor, values = np.array([one for one, _ in rows]), np.array([[one, -2 * one] for _, one in rows]).reshape(-1, 2)
    factor[data.draw(st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=5)) if rows else []] = 0.0
    factor[:1] = 0.0
    want, state = [], np.zeros(2)
    for fade, value in zip(factor, values, strict=True):
        state = fade * state + value
        want.append(state)
    np.testing.assert_allclose(recurrence(factor, values), np.array(want).reshape(-1, 2), atol=1e-9)


def test_a_long_history_of_one_key_goes_through_several_levels_of_the_scan():
    count = 40_000  # 32^3 is 32,768
    events = KeyedEvents(np.zeros(count, np.int64), np.arange(count) * HOUR, np.ones((count, 1)))
    np.testing.assert_allclose(events.states(6.0)[-1, 0], 1 / (1 - decay(1, 6.0)))


def snapshot_of(log):
    return CounterSnapshot.of(log, {"ad": log.ad_id, "user": log.user_id})


@settings(max_examples=50, deadline=None)
@given(LOGS)
def test_a_snapshot_says_of_each_key_what_a_later_row_would_be_told(log):
    log = in_hours(log)
    names = sorted(set(log.ad_id.tolist()) - {""})
    later = make_log([(None, "u", name, 0, 1) for name in names])
    later = replace(later, time=np.full(len(later), 10**6 * HOUR))
    texts = {name: [*getattr(log, name).tolist(), *getattr(later, name).tolist()] for name in ("ad_id", "user_id")}
    columns = {name: CodedColumn.of(values, "") for name, values in texts.items()}
    for name in ("time", "clicks", "impressions"):
        columns[name] = np.concatenate([getattr(log, name), getattr(later, name)])
    both = replace(log, **columns)
    want = point_in_time_decayed(both.ad_id, both)[len(log) :]
    counts = snapshot_of(log).counts("ad", later.ad_id.tolist())
    assert counts.decayed is not None
    np.testing.assert_allclose(counts.decayed, want, rtol=1e-12, atol=1e-12)


def test_decayed_counts_survive_a_file_and_an_older_file_has_none(tmp_path):
    snapshot = snapshot_of(in_hours(make_log([(1, "u1", "a1", 1, 2), (30, "u2", "a1", 2, 0)])))
    snapshot.save(tmp_path / "counters.parquet")
    assert CounterSnapshot.load(tmp_path / "counters.parquet") == snapshot
    assert len(snapshot.totals["ad"]["a1"].decayed) == 2 * len(HALF_LIVES_H)
    assert snapshot.totals["user"]["u1"].decayed == ()
    table = pq.read_table(tmp_path / "counters.parquet")
    pq.write_table(table.select(["key", "id", "impressions", "clicks", "first", "last"]), tmp_path / "older.parquet")
    older = CounterSnapshot.load(tmp_path / "older.parquet")
    assert older.totals["ad"]["a1"] == snapshot.totals["ad"]["a1"]._replace(decayed=())


def test_a_fresher_total_fades_what_was_counted_and_adds_what_came_since():
    day = 86_400.0
    halves = (4.0, 2.0) * len(HALF_LIVES_H)
    snapshot = CounterSnapshot({"ad": {"a": Total(10, 4, 0.0, day, halves)}})
    fresher = {"a": Total(13, 5, 0.0, 2 * day), "new": Total(2, 1, day, day), "told": Total(1, 1, 0.0, 0.0, halves)}
    counts = snapshot.counts("ad", ["a", "new", "told"], fresher)
    half_lives = np.array(list(HALF_LIVES_H.values()))
    np.testing.assert_allclose(counts.decayed[0, :, 0], 4 * 0.5 ** (24 / half_lives) + 3)
    np.testing.assert_allclose(counts.decayed[0, :, 1], 2 * 0.5 ** (24 / half_lives) + 1)
    assert counts.decayed[1].tolist() == [[2, 1]] * len(half_lives)
    assert counts.decayed[2].tolist() == [[4, 2]] * len(half_lives)
