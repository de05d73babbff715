"""Counters against references that look at every pair of rows, and the snapshot that serving reads."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records_history import FOLDS, LOGS, make_log

from adcascade.records.clicks import NO_TIME, ClickLog
from adcascade.records.counter_table import Total
from adcascade.records.counters import CounterSnapshot, out_of_fold_counts, point_in_time_counts


def as_rows(counts):
    """(impressions, clicks, first, last) of each row, None for an unknown time."""
    columns = (counts.impressions, counts.clicks, counts.first, counts.last)
    return [tuple(None if np.isnan(value) else value for value in row) for row in zip(*columns, strict=True)]


def moments_of(log, rows):
    """First and last time of some rows in seconds, None without any."""
    times = [log.time[row] / 1e6 for row in rows]
    return min(times, default=None), max(times, default=None)


def slow_counts_before(keys, log):
    """What `point_in_time_counts` promises, by looking at every pair of rows."""
    found = []
    for row in range(len(log)):
        earlier = [
            other
            for other in range(len(log))
            if keys[other] == keys[row] != "" and NO_TIME != log.time[other] < log.time[row]
        ]
        counted = int(log.impressions[earlier].sum()), int(log.clicks[earlier].sum())
        found.append((*counted, *moments_of(log, earlier)))
    return found


@settings(max_examples=200, deadline=None)
@given(LOGS, st.sampled_from(["ad_id", "user_id"]))
def test_counts_before_equals_looking_at_every_pair_of_rows(log, column):
    keys = getattr(log, column)
    assert as_rows(point_in_time_counts(keys, log)) == slow_counts_before(keys, log)


@settings(max_examples=200, deadline=None)
@given(LOGS, st.sampled_from(["ad_id", "user_id"]), FOLDS)
def test_counts_of_other_folds_equal_looking_at_every_pair_of_rows(log, column, folds):
    keys, fold = getattr(log, column), np.array(folds[: len(log)])
    counts, used = out_of_fold_counts(keys, log, fold), max(0, fold.max()) + 1
    for row in range(len(log)):
        others = [
            other
            for other in range(len(log))
            if keys[other] == keys[row] != "" and fold[other] >= 0 and fold[other] != fold[row]
        ]
        scale = used / max(1, used - 1) if fold[row] >= 0 else 1
        np.testing.assert_allclose(counts.impressions[row], scale * log.impressions[others].sum())
        np.testing.assert_allclose(counts.clicks[row], scale * log.clicks[others].sum())
        earlier = [other for other in others if NO_TIME != log.time[other] < log.time[row]]
        assert as_rows(counts)[row][2:] == moments_of(log, earlier)


def snapshot_of(log):
    return CounterSnapshot.of(log, {"ad": log.ad_id, "user": log.user_id})


def test_a_snapshot_counts_the_whole_log_and_survives_a_file(tmp_path):
    log = make_log([(1, "u1", "a1", 1, 2), (None, "", "a1", 0, 4), (3, "u2", "user", 2, 0), (4, "u1", "a2", 0, 1)])
    snapshot = snapshot_of(log)
    assert {name: total[:4] for name, total in snapshot.totals["ad"].items()} == {
        "a1": (7, 1, 1e-6, 1e-6),
        "user": (2, 2, 3e-6, 3e-6),
        "a2": (1, 0, 4e-6, 4e-6),
    }
    assert snapshot.totals["user"] == {"u1": Total(4, 1, 1e-6, 4e-6), "u2": Total(2, 2, 3e-6, 3e-6)}
    assert snapshot.end == 4e-6
    snapshot.save(tmp_path / "counters.parquet")
    assert CounterSnapshot.load(tmp_path / "counters.parquet") == snapshot


def test_an_empty_snapshot_survives_a_file(tmp_path):
    assert CounterSnapshot({}).end is None
    CounterSnapshot({}).save(tmp_path / "counters.parquet")
    assert CounterSnapshot.load(tmp_path / "counters.parquet") == CounterSnapshot({})


def test_a_snapshot_knows_nothing_of_unknown_ids():
    snapshot = CounterSnapshot({"ad": {"a1": Total(7, 1)}, "user": {"u1": Total(3, 0)}})
    ads, users = snapshot.counts("ad", ["u1", "a1", ""]), snapshot.counts("user", ["u1", "u1"])
    assert (ads.impressions.tolist(), ads.clicks.tolist()) == ([0, 7, 0], [0, 1, 0])
    assert (users.impressions.tolist(), users.clicks.tolist()) == ([3, 3], [0, 0])
    assert snapshot.counts("ad", []).clicks.shape == (0,)


def test_fresher_totals_go_before_those_of_the_snapshot():
    snapshot = CounterSnapshot({"ad": {"a1": Total(7, 1, 10.0, 20.0), "a2": Total(5, 5, 1.0, 2.0)}})
    counts = snapshot.counts("ad", ["a1", "a2", "new"], {"a1": Total(9, 2, 10.0, 30.0), "new": Total(1, 0)})
    assert as_rows(counts) == [(9, 2, 10.0, 30.0), (5, 5, 1.0, 2.0), (1, 0, None, None)]


def test_a_snapshot_holds_what_the_counters_would_say_after_the_last_row():
    rows = [(time, f"u{time % 3}", f"a{time % 5}", time % 2, 1) for time in range(40)]
    log = make_log([*rows, *((99, f"u{number}", f"a{number}", 0, 1) for number in range(3))])
    head, at_end = snapshot_of(log.take(np.arange(40))), point_in_time_counts(log.ad_id, log)
    want = head.counts("ad", log.ad_id[40:].tolist())
    assert as_rows(at_end)[40:] == as_rows(want)


def test_counters_written_in_pieces_are_read_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr("adcascade.records.counter_table._LINES", 3)
    times = np.arange(8, dtype=np.int64) * 3_600_000_000 + 1_700_000_000_000_000
    times[:2] = NO_TIME
    ones = np.ones(8, np.int64)
    users, ads = list("abcdefgh"), list("xyxyxyzz")
    log = ClickLog.of(users, ads, users, times, 0 * ones, ones, ones, 0 * ones, 0 * ones, {})
    snapshot = CounterSnapshot.of(log, {"ad": log.ad_id, "user": log.user_id})
    snapshot.save(tmp_path / "counters.parquet")
    read = CounterSnapshot.load(tmp_path / "counters.parquet")
    assert {key: dict(table) for key, table in read.totals.items()} == {
        key: dict(table) for key, table in snapshot.totals.items()
    }
    assert read.totals["user"]["a"].last is None
    assert read.totals["user"]["h"].decayed == ()
    assert len(read.totals["ad"]["z"].decayed) == 8
    np.testing.assert_array_equal(read.counts("user", ["h", "no one"]).clicks, [1, 0])
