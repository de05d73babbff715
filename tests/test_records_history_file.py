"""What users did before a log: read in every format, each event once, and what is of no use is named."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adcascade.records.clicks import read_clicks
from adcascade.records.errors import InputError
from adcascade.records.history_file import read_history

T, DAY = 1_700_000_000, 86_400
ADS = {"a1", "a2", "a3"}
CLICKS = [
    {"request_id": "r1", "ad_id": "a1", "user_id": "u1", "timestamp": T, "clicks": 0, "impressions": 1},
    {"request_id": "r2", "ad_id": "a2", "user_id": "u2", "timestamp": T + 9, "clicks": 1, "impressions": 1},
]


@pytest.fixture
def log(tmp_path):
    """The log, the ads, and whether the log's times have a zone."""
    log, report = read_clicks(written(tmp_path / "clicks.jsonl", CLICKS), ADS)
    return log, ADS, report.has_zones


def written(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def event(ad, time, user="u1", **more):
    return {"user_id": user, "ad_id": ad, "timestamp": time, **more}


@pytest.fixture(params=[".parquet", ".csv", ".jsonl"])
def read(request, tmp_path, log):
    def read_rows(rows, **options):
        return read_history(written(tmp_path / f"history{request.param}", rows), *log, **options)

    return read_rows


def seen(events):
    return list(zip(events.user_id, events.ad_id, (events.time // 1_000_000 - T).tolist(), strict=True))


def test_events_are_clicks_unless_they_say_otherwise_and_come_in_order_of_time(read):
    rows = [event("a2", T - 1), event("a1", T - DAY), event("a3", T - 2)]
    events, note = read(rows)
    assert seen(events) == [("u1", "a1", -DAY), ("u1", "a3", -2), ("u1", "a2", -1)]
    assert events.clicks.tolist() == [1, 1, 1]
    assert events.conversions.tolist() == [0, 0, 0]
    assert "adds 3 events of 1 users" in note
    assert "left out" not in note


def test_clicks_and_conversions_are_read_and_an_empty_one_is_the_default(read):
    rows = [
        event("a1", T - DAY, clicks=0, conversions=0, request_id="r8"),
        event("a2", T - 3, clicks=3, conversions=1, request_id="r9"),
        event("a3", T - 2, clicks=None, conversions=None, request_id=None),
    ]
    events, _ = read(rows)
    assert events.clicks.tolist() == [0, 3, 1]
    assert events.conversions.tolist() == [0, 1, 0]
    assert list(events.request_id)[:2] == ["r8", "r9"]


def test_what_is_of_no_use_is_left_out_and_counted(read):
    rows = [
        event("a3", T - 5),
        event("a1", None),
        event("a1", T - 5, user="stranger"),
        event("a1", T - 5, user=None),
        event("a9", T - 5),
    ]
    events, note = read(rows)
    assert seen(events) == [("u1", "a3", -5)]
    assert "1 without a timestamp" in note
    assert "2 of users that the log does not have" in note
    assert "1 of ads that are not in the catalog" in note


def test_an_event_that_the_log_has_within_a_day_or_the_history_already_counts_once(read):
    rows = [
        event("a1", T, clicks=1),  # a row of the log
        event("a1", T + 1, clicks=1),  # most likely the same
        event("a1", T - DAY + 1, clicks=1),
        event("a1", T + DAY - 1, clicks=1),
        event("a1", T + DAY, clicks=1),
        event("a2", T, clicks=1),
        event("a1", T, user="u2", clicks=1),
        event("a3", T - 2, clicks=0),
        event("a3", T - 2, clicks=1),
    ]
    events, note = read(rows)
    assert seen(events) == [("u1", "a3", -2), ("u1", "a2", 0), ("u2", "a1", 0), ("u1", "a1", DAY)]
    assert events.clicks.tolist() == [1, 1, 1, 1]
    assert "1 that the history has already, 4 that the log has, within a day" in note


@pytest.mark.parametrize("cut", [1, 60, 3600, DAY])
def test_a_row_of_the_log_is_not_its_own_past_when_the_history_cuts_its_time(read, cut):
    """A click at 10:00:00.4 that the history has at 10:00:00, at 10:00 or as a date."""
    events, note = read([event("a2", (T + 9) // cut * cut, user="u2"), event("a3", T)])
    assert seen(events) == [("u1", "a3", 0)]
    assert "1 that the log has, within a day" in note


def test_times_with_a_zone_beside_times_without_are_refused(read):
    with pytest.raises(InputError, match="have no zone, and those of the log have one: write both alike"):
        read([event("a3", "2023-11-14 12:00:00")])
    events, _ = read([event("a3", "2023-11-14T12:00:00+01:00")])
    assert len(events) == 1


def test_the_log_itself_adds_nothing_as_its_history(log, tmp_path):
    events, note = read_history(tmp_path / "clicks.jsonl", *log)
    assert len(events) == 0
    assert "adds 0 events of 0 users; left out: 2 that the log has, within a day" in note


@pytest.mark.parametrize("lost", ["user_id", "ad_id", "timestamp"])
def test_a_history_without_a_column_that_it_needs_is_refused(read, lost):
    rows = [{name: value for name, value in event("a1", T - 5).items() if name != lost}]
    with pytest.raises(InputError, match=f"the history lacks {lost}; it needs user_id, ad_id, timestamp"):
        read(rows)


BAD = {
    "bad_time": event("a1", 4_000_000_000),
    "bad_counts": event("a1", T - 5, clicks=1, conversions=2),
    "missing_id": event("", T - 5),
}


@pytest.mark.parametrize("reason", BAD)
def test_unusable_events_are_counted_and_refused_above_a_share(read, reason):
    good = [event("a3", T - 10 - number, clicks=1, conversions=0) for number in range(9)]
    rows = [*good, {"clicks": 1, "conversions": 0, **BAD[reason]}]
    with pytest.raises(InputError, match=f"10.0% of 10 rows cannot be used.*{reason}"):
        read(rows)
    events, note = read(rows, max_rejected=0.1)
    assert len(events) == 9
    assert f"1 {reason} (history" in note


def test_columns_of_another_name_are_not_read(read, log):
    events, _ = read([event("a3", T - 5, device="phone", impressions=7)])
    assert events.impressions.tolist() == [7]
    assert np.array_equal(events.time, [(T - 5) * 1_000_000])
    assert log[0].context == {}
