"""The click log: three ways to write a time, a reason for every lost row, and splits that leak nothing."""

import csv
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adcascade.records.clicks import NO_TIME, ClickLog, read_clicks
from adcascade.records.errors import InputError
from adcascade.records.splits import split_at_random, split_by_key, split_by_time, split_each_user

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
T = int(NOON.timestamp())
ROW = {"request_id": "r1", "ad_id": "a1", "clicks": 0, "impressions": 1}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(tmp_path, rows, known_ads=None, **options):
    return read_clicks(write_jsonl(tmp_path / "clicks.jsonl", rows), known_ads, **options)


def make_log(times, requests=None):
    """A log of rows at the given seconds; None is a row without a time."""
    moments = np.sort(np.array([NO_TIME if time is None else time * 1_000_000 for time in times], np.int64))
    names = np.array(requests or [f"r{number}" for number in range(len(times))], object)
    ones = np.ones(len(times), np.int64)
    return ClickLog.of(
        names,
        np.full(len(times), "a", object),
        np.full(len(times), "u", object),
        moments,
        0 * ones,
        ones,
        ones,
        0 * ones,
        0 * ones,
        {},
    )


def test_a_log_is_ordered_by_time_and_keeps_its_context(tmp_path):
    rows = [
        {**ROW, "request_id": "late", "user_id": "u1", "timestamp": T + 20, "device": "phone", "position": 3},
        {**ROW, "request_id": "early", "user_id": "", "timestamp": T + 10.5, "clicks": 1, "hour": 7},
        {
            **ROW,
            "request_id": "late too",
            "ad_id": 5,
            "timestamp": T + 20,
            "clicks": 2,
            "impressions": 9,
            "conversions": 1,
        },
        {**ROW, "request_id": "timeless"},
    ]
    log, report = read(tmp_path, rows)
    assert log.request_id.tolist() == ["timeless", "early", "late", "late too"]
    assert log.ad_id.tolist() == ["a1", "a1", "a1", "5"]
    assert log.user_id.tolist() == ["", "", "u1", ""]
    seconds = [(time - T * 1_000_000) / 1e6 for time in log.time.tolist()[1:]]
    assert (log.time[0], seconds) == (NO_TIME, [10.5, 20, 20])
    assert (log.clicks.tolist(), log.impressions.tolist()) == ([0, 1, 0, 2], [1, 1, 1, 9])
    assert (log.conversions.tolist(), log.position.tolist()) == ([0, 0, 0, 1], [0, 0, 3, 0])
    context = {name: column.tolist() for name, column in log.context.items()}
    assert context == {"device": [None, None, "phone", None], "hour": [None, "7", None, None]}
    assert (report.rows, report.kept, report.rejected, report.rejected_share) == (4, 4, {}, 0)
    assert log.ctr == pytest.approx(3 / 12)
    assert not log.has_time


def test_take_keeps_the_columns_together(tmp_path):
    rows = [{**ROW, "request_id": f"r{number}", "timestamp": T + number, "device": f"d{number}"} for number in range(5)]
    log, _ = read(tmp_path, rows)
    for chosen in (np.array([3, 1]), np.array([False, True, False, True, False])):
        part = log.take(chosen)
        wanted = [int(number) for number in (chosen if chosen.dtype != bool else np.flatnonzero(chosen))]
        assert part.request_id.tolist() == [f"r{number}" for number in wanted]
        assert part.time.tolist() == [(T + number) * 1_000_000 for number in wanted]
        assert part.context["device"].tolist() == [f"d{number}" for number in wanted]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_row_level_and_aggregated_logs_read_alike_from_every_format(tmp_path, suffix):
    rows = [
        {**ROW, "clicks": 1, "timestamp": T + 5},
        {**ROW, "ad_id": "a2", "clicks": 3, "impressions": 70, "timestamp": T + 6},
    ]
    path = tmp_path / f"clicks.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        {"csv": write_csv, "jsonl": write_jsonl}[suffix](path, rows)
    log, _ = read_clicks(path, ["a1", "a2"])
    assert log.clicks.tolist() == [1, 3]
    assert log.impressions.tolist() == [1, 70]
    assert log.time.tolist() == [(T + 5) * 1_000_000, (T + 6) * 1_000_000]


def test_seconds_iso_text_and_arrow_timestamps_mean_the_same_moment(tmp_path):
    moment = NOON + timedelta(microseconds=123_456)
    micros = int(NOON.timestamp()) * 1_000_000 + 123_456
    written = [
        moment.timestamp(),
        str(moment.timestamp()),
        moment.isoformat(),
        moment.isoformat().replace("+00:00", "Z"),
        "2024-05-01T14:00:00.123456+02:00",
    ]
    log, _ = read(tmp_path, [{**ROW, "timestamp": time} for time in written])
    assert log.time.tolist() == [micros] * len(written)
    assert log.utc_offset.tolist() == [0] * 4 + [120]
    without_zone, _ = read(tmp_path, [{**ROW, "timestamp": moment.replace(tzinfo=None).isoformat(" ")}])
    assert without_zone.time.tolist() == [micros]
    for number, kind in enumerate([pa.timestamp("us"), pa.timestamp("us", tz="Asia/Tokyo"), pa.timestamp("ns")]):
        path = tmp_path / f"clicks{number}.parquet"
        columns = {name: [value] for name, value in ROW.items()}
        pq.write_table(pa.table({**columns, "timestamp": pa.array([micros], pa.timestamp("us")).cast(kind)}), path)
        assert read_clicks(path, None)[0].time.tolist() == [micros]


def test_times_with_and_without_a_zone_in_one_log_are_refused(tmp_path):
    times = ["2024-05-01T14:00:00+02:00", "2024-05-01T12:00:00"]
    with pytest.raises(InputError, match=r"some times have a zone and others have none .*row 1: .*row 2: "):
        read(tmp_path, [{**ROW, "timestamp": time} for time in times])


def test_nanoseconds_are_cut_to_microseconds(tmp_path):
    columns = {name: [value] for name, value in ROW.items()}
    times = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    pq.write_table(pa.table({**columns, "timestamp": times}), tmp_path / "clicks.parquet")
    log, _ = read_clicks(tmp_path / "clicks.parquet", None)
    assert abs(log.time[0] - 1_700_000_000_123_456) <= 1


NEXT_YEAR = datetime.now(UTC) + timedelta(days=365)
REJECTED = {
    "a time of the future": ("bad_time", {**ROW, "timestamp": NEXT_YEAR.isoformat()}),
    "a time of the future in seconds": ("bad_time", {**ROW, "timestamp": NEXT_YEAR.timestamp()}),
    "a time of the last century": ("bad_time", {**ROW, "timestamp": "1999-12-31T23:59:59Z"}),
    "no time of any year": ("bad_row", {**ROW, "timestamp": 20}),
    "an offset of two days": ("bad_time", {**ROW, "utc_offset_minutes": 2880}),
    "an offset in words": ("bad_row", {**ROW, "utc_offset_minutes": "Berlin"}),
    "a true id": ("bad_row", {**ROW, "ad_id": True}),
    "a float beyond all integers": ("bad_row", {**ROW, "user_id": 2.0**53}),
    "an id of 257 characters": ("long_id", {**ROW, "user_id": "u" * 257}),
    "an id of three megabytes": ("long_id", {**ROW, "request_id": "r" * 3_000_000}),
    "a null request": ("missing_id", {**ROW, "request_id": "NULL"}),
    "an ad that is not a number": ("missing_id", {**ROW, "ad_id": float("nan")}),
    "no clicks": ("bad_counts", {**ROW, "clicks": None}),
    "empty impressions": ("bad_counts", {**ROW, "impressions": ""}),
    "a long placement": ("long_text", {**ROW, "placement": "p" * 257}),
    "a long page": ("long_text", {**ROW, "page_text": "p" * 32_769}),
    "a long further column": ("long_text", {**ROW, "page_url": "p" * 32_768}),
    "long further columns together": ("long_text", {**ROW, "one": "p" * 20_000, "two": "p" * 20_000}),
    "attributes in words": ("bad_row", {**ROW, "attributes": "sports"}),
    "a click in words": ("bad_row", {**ROW, "clicks": "yes"}),
    "a true click": ("bad_row", {**ROW, "clicks": True}),
    "half an impression": ("bad_row", {**ROW, "impressions": 1.5}),
    "a time in words": ("bad_row", {**ROW, "timestamp": "yesterday"}),
    "a user that is a list": ("bad_row", {**ROW, "user_id": ["u1"]}),
    "no request": ("missing_id", {**ROW, "request_id": ""}),
    "no ad": ("missing_id", {**ROW, "ad_id": None}),
    "an ad outside the catalog": ("unknown_ad", {**ROW, "ad_id": "gone"}),
    "negative clicks": ("bad_counts", {**ROW, "clicks": -1}),
    "more clicks than impressions": ("bad_counts", {**ROW, "clicks": 2}),
    "no impressions": ("bad_counts", {**ROW, "impressions": 0}),
    "more conversions than clicks": ("bad_counts", {**ROW, "clicks": 1, "conversions": 2}),
    "negative conversions": ("bad_counts", {**ROW, "conversions": -1}),
    "a negative position": ("bad_counts", {**ROW, "position": -1}),
    "a position beyond any page": ("bad_counts", {**ROW, "position": 1001}),
}


@pytest.mark.parametrize(("reason", "row"), REJECTED.values(), ids=REJECTED)
def test_an_unusable_row_is_counted_with_its_reason_and_an_example(tmp_path, reason, row):
    log, report = read(tmp_path, [ROW, row, ROW, row], ["a1"], max_rejected=0.5)
    assert (len(log), report.rows, report.kept, report.rejected_share) == (2, 4, 2, 0.5)
    assert report.rejected == {reason: 2}
    assert report.examples[reason].startswith("clicks.jsonl, row 2: ")


def test_counts_beyond_64_bits_cost_only_their_own_row(tmp_path):
    log, report = read(tmp_path, [ROW, {**ROW, "clicks": 10**30, "impressions": 10**30}], max_rejected=0.5)
    assert (len(log), report.kept, sum(report.rejected.values())) == (1, 1, 1)


def test_counts_whose_sums_would_not_hold_in_64_bits_cost_their_row(tmp_path):
    rows = [{"request_id": "r", "ad_id": "a1", "clicks": 0, "impressions": count} for count in (2**63 - 1, 10**10, 1)]
    (tmp_path / "clicks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log, report = read_clicks(tmp_path / "clicks.jsonl", None, max_rejected=0.5)
    assert (log.impressions.sum(), report.rejected) == (10**10 + 1, {"bad_counts": 1})
    assert "the limit is 10,000,000,000" in report.examples["bad_counts"]


def test_damaged_lines_are_counted_apart(tmp_path):
    path = tmp_path / "clicks.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\nnot json\n{"request_id": "\xe9"}\n')
    _, report = read_clicks(path, None, max_rejected=0.9)
    assert report.rejected == {"bad_row": 1, "bad_utf8": 1}


def test_a_context_value_that_is_no_text_costs_at_most_its_own_row(tmp_path):
    rows = [{**ROW, "device": "phone"}, {**ROW, "device": {"os": "x"}}, {**ROW, "muted": True}, {**ROW, "device": "tv"}]
    log, report = read(tmp_path, rows, max_rejected=1)
    assert report.rows == 4
    assert len(log) == report.kept >= 2
    assert {"phone", "tv"} <= set(log.context["device"])
    assert {len(column) for column in log.context.values()} == {len(log)}


def test_a_parquet_time_beyond_the_calendar_costs_only_its_own_row(tmp_path):
    columns = {name: [value] * 2 for name, value in ROW.items()}
    times = pa.array([2**50, T * 1000], pa.timestamp("ms"))
    pq.write_table(pa.table({**columns, "timestamp": times}), tmp_path / "clicks.parquet")
    log, report = read_clicks(tmp_path / "clicks.parquet", None, max_rejected=0.5)
    assert log.time.tolist() == [T * 1_000_000]
    assert report.rejected == {"bad_row": 1}


def test_more_rejected_rows_than_allowed_are_an_error_with_the_reasons(tmp_path):
    rows = [ROW] * 97 + [{**ROW, "ad_id": "gone"}] * 2 + [{**ROW, "clicks": 2}]
    assert read(tmp_path, rows, ["a1"], max_rejected=0.03)[1].kept == 97
    with pytest.raises(InputError, match=r"3\.0% of 100 rows .* 2\.0% allowed: 2 unknown_ad .*row 98.* 1 bad_counts"):
        read(tmp_path, rows, ["a1"], max_rejected=0.02)


def test_a_log_without_a_usable_row_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no usable row: 1 missing_id"):
        read(tmp_path, [{**ROW, "request_id": ""}], max_rejected=1)
    with pytest.raises(InputError, match="no usable row"):
        read(tmp_path, [])


@pytest.mark.parametrize("column", ROW)
def test_a_missing_column_is_named(tmp_path, column):
    rows = [{name: value for name, value in {**ROW, "user_id": "u"}.items() if name != column}]
    with pytest.raises(InputError, match=f"lacks {column}; it needs request_id, ad_id"):
        read_clicks(write_csv(tmp_path / "clicks.csv", rows), None)


@given(
    st.lists(st.integers(0, 9) | st.none(), min_size=1, max_size=40),
    st.integers(1, 45),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_newest_rows_are_those_at_the_end_of_the_whole_log(tmp_path, times, newest):
    rows = [
        {
            **ROW,
            "request_id": f"r{number}",
            "timestamp": time if time is None else T + time,
            **({"device": f"d{number % 3}"} if number % 4 else {}),
        }
        for number, time in enumerate(times)
    ]
    whole, _ = read(tmp_path, rows)
    part, report = read(tmp_path, rows, newest=newest)
    want = whole.take(slice(max(0, len(whole) - newest), None))
    for name in ("request_id", "ad_id", "user_id", "time", "clicks"):
        assert getattr(part, name).tolist() == getattr(want, name).tolist()
    for name, values in part.context.items():
        assert values.tolist() == want.context[name].tolist()
    assert (report.kept, report.older) == (len(part), len(whole) - len(part))


def test_the_newest_rows_take_the_memory_of_twice_as_many_whatever_the_log(tmp_path):
    def peak(rows, **options):
        lines = [{**ROW, "request_id": f"request-{number}", "timestamp": T + number} for number in range(rows)]
        path = write_jsonl(tmp_path / "clicks.jsonl", lines)
        del lines
        tracemalloc.start()
        read_clicks(path, None, **options)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(9_000, newest=200) < 1.2 * peak(4_000, newest=200)


def test_no_newest_rows_are_an_error(tmp_path):
    with pytest.raises(InputError, match="1 or more"):
        read(tmp_path, [ROW], newest=0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=20, max_size=80).filter(lambda times: len(set(times)) > 12))
def test_a_split_by_time_is_in_order_and_parts_no_moment(times):
    log = make_log(times)
    try:
        parts = split_by_time(log)
    except InputError:
        return
    assert np.concatenate(parts).tolist() == list(range(len(log)))
    training, validation, test = (set(log.time[part]) for part in parts)
    assert max(training) < min(validation)
    assert max(validation) < min(test)


def test_a_split_by_time_has_the_shares_asked_for():
    assert [len(part) for part in split_by_time(make_log(range(200)))] == [160, 20, 20]
    assert [len(part) for part in split_by_time(make_log(range(200)), (0.5, 0.25, 0.25))] == [100, 50, 50]


def test_a_split_by_time_needs_every_time():
    with pytest.raises(InputError, match="timestamp in every row"):
        split_by_time(make_log([None, *range(50)]))


@pytest.mark.parametrize(("times", "part"), [([1] * 5 + [2] * 50, "validation"), ([1] * 50 + [2] * 3, "training")])
def test_a_log_too_small_to_split_by_time_is_an_error(times, part):
    with pytest.raises(InputError, match=f"too small to split: the ({part}) part would be empty"):
        split_by_time(make_log(times))


def test_a_split_by_request_keeps_requests_whole_and_follows_its_seed():
    requests = [f"r{number % 100}" for number in range(350)]
    log = make_log(range(350), requests)
    parts = split_by_key(log.request_id, seed=3)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(350))
    groups = [set(log.request_id[part]) for part in parts]
    assert [len(group) for group in groups] == [80, 10, 10]
    assert len(set().union(*groups)) == 100
    again, other = split_by_key(log.request_id, seed=3), split_by_key(log.request_id, seed=4)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(parts, other, strict=True))


def test_too_few_requests_to_split_are_an_error():
    with pytest.raises(InputError, match="too small to split"):
        split_by_key(make_log(range(50), ["r1", "r2"] * 25).request_id, seed=0)


def test_a_split_at_random_has_the_shares_asked_for_and_every_row_once():
    parts = split_at_random(1000, seed=1)
    assert [len(part) for part in parts] == [800, 100, 100]
    assert np.sort(np.concatenate(parts)).tolist() == list(range(1000))
    assert all(np.array_equal(one, two) for one, two in zip(parts, split_at_random(1000, seed=1), strict=True))
    assert not np.array_equal(parts[0], split_at_random(1000, seed=2)[0])


# ---- what the owner brings is never silently changed


def written(tmp_path, suffix, rows):
    path = tmp_path / f"clicks.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    return {"csv": write_csv, "jsonl": write_jsonl}[suffix](path, rows)


every_format = pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])


@every_format
def test_ids_join_whether_they_are_floats_or_texts(tmp_path, suffix):
    rows = [{**ROW, "request_id": 7.0, "ad_id": 5.0, "user_id": user} for user in (10.0, float("nan"), 33.0)]
    log, _ = read_clicks(written(tmp_path, suffix, rows), {"5"})
    assert (log.user_id.tolist(), log.request_id.tolist()) == (["10", "", "33"], ["7"] * 3)


def test_a_column_of_32_bits_has_lost_the_digits_of_long_ids(tmp_path):
    columns = {name: [value] * 2 for name, value in ROW.items()}
    users = pa.array([2.0**24 - 1, 2.0**24 + 2], pa.float32())
    pq.write_table(pa.table({**columns, "user_id": users}), tmp_path / "clicks.parquet")
    log, report = read_clicks(tmp_path / "clicks.parquet", None, max_rejected=0.5)
    assert (log.user_id.tolist(), report.rejected) == (["16777215"], {"bad_row": 1})


@every_format
@pytest.mark.parametrize("nobody", ["NULL", "nan", "None", "<NA>", ""])
def test_nobody_is_no_user(tmp_path, suffix, nobody):
    log, _ = read_clicks(written(tmp_path, suffix, [{**ROW, "user_id": user} for user in ("u1", nobody)]), None)
    assert log.user_id.tolist() == ["u1", ""]


@every_format
@pytest.mark.parametrize("times", [20260101, "20260101", "2026-01-01", 20260101.0])
def test_a_date_is_a_date(tmp_path, suffix, times):
    log, _ = read_clicks(written(tmp_path, suffix, [{**ROW, "timestamp": times}]), None)
    assert log.context_at(0).timestamp == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_columns_of_every_unit_and_dates_are_the_same_moment(tmp_path, unit):
    columns = {name: [value] for name, value in ROW.items()}
    day = datetime(2026, 1, 1)
    for kind in (pa.timestamp(unit), pa.date32(), pa.date64()):
        pq.write_table(pa.table({**columns, "timestamp": pa.array([day]).cast(kind)}), tmp_path / "clicks.parquet")
        log, _ = read_clicks(tmp_path / "clicks.parquet", None)
        assert log.context_at(0).timestamp == day.replace(tzinfo=UTC)


def test_columns_of_every_type_are_context_or_named_and_left_out(tmp_path):
    word = pa.array(["x"]).dictionary_encode()
    columns = {name: [value] for name, value in ROW.items()} | {
        "mobile": pa.array([True]),
        "day": pa.array([datetime(2026, 1, 1)]).cast(pa.date32()),
        "seen": pa.array([datetime(2026, 1, 1)], pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
        "kind": word,
        "raw": pa.array([b"caf\xc3\xa9"], pa.binary()),
        "count": pa.array([3.0]),
        "nothing": pa.array([None], pa.null()),
        "bytes": pa.array([b"\xff"], pa.binary()),
        "tags": pa.array([["a", "b"]]),
        "geo": pa.array([{"lat": 1.0}]),
    }
    pq.write_table(pa.table(columns), tmp_path / "clicks.parquet")
    log, report = read_clicks(tmp_path / "clicks.parquet", None)
    assert log.context_at(0).attributes == {
        "mobile": "true",
        "day": "2026-01-01",
        "seen": "2026-01-01T00:00:00+00:00",
        "price": "1.5",
        "kind": "x",
        "raw": "café",
        "count": "3",
    }
    (note,) = report.notes
    assert "lists, objects or bytes: bytes, geo, tags." in note


def test_ids_of_dictionaries_and_bytes_are_texts(tmp_path):
    columns = {name: [value] for name, value in ROW.items()}
    columns |= {"ad_id": pa.array([b"a1"], pa.binary()), "user_id": pa.array(["u1"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "clicks.parquet")
    log, _ = read_clicks(tmp_path / "clicks.parquet", {"a1"})
    assert (log.ad_id.tolist(), log.user_id.tolist()) == (["a1"], ["u1"])


@every_format
def test_positions_that_begin_at_0_are_counted_from_0_and_said(tmp_path, suffix):
    rows = [{**ROW, "request_id": f"r{place}", "position": place} for place in (0, 1, 2)]
    log, report = read_clicks(written(tmp_path, suffix, rows), None)
    assert log.position.tolist() == [1, 2, 3]
    assert "counted from 0" in report.notes[0]


@every_format
@pytest.mark.parametrize(
    ("places", "want"), [((1, 2), [1, 2]), ((0, 0), [0, 0]), ((None, 2), [0, 2]), ((None, 0, 1), [0, 1, 2])]
)
def test_other_positions_stay_and_missing_ones_are_unknown(tmp_path, suffix, places, want):
    log, _ = read_clicks(written(tmp_path, suffix, [{**ROW, "position": place} for place in places]), None)
    assert log.position.tolist() == want


def test_positions_begin_where_the_whole_log_says_whatever_is_kept_of_it(tmp_path):
    rows = [{**ROW, "position": place, "timestamp": T + place} for place in range(30)]
    log, _ = read(tmp_path, rows, newest=2)
    assert log.position.tolist() == [29, 30]


def test_an_offset_of_the_clock_is_a_number_of_minutes_or_hours_and_minutes(tmp_path):
    rows = [{**ROW, "timestamp": T, "utc_offset_minutes": offset} for offset in ("+02:00", 120, "-0330", None)]
    log, _ = read(tmp_path, rows)
    assert log.utc_offset.tolist() == [120, 120, -210, 0]
    assert "utc_offset_minutes" not in log.context


def test_attributes_in_one_column_are_context_like_columns(tmp_path):
    rows = [{**ROW, "attributes": '{"os": "linux", "vip": true}'}, {**ROW, "attributes": {"os": "mac"}}, ROW]
    log, _ = read(tmp_path, rows)
    assert [log.context_at(row).attributes for row in range(3)] == [{"os": "linux", "vip": "true"}, {"os": "mac"}, {}]


def test_more_columns_than_a_context_holds_are_named(tmp_path):
    row = {**ROW, "device": "phone"} | {f"f{number:02d}": number for number in range(70)}
    log, report = read(tmp_path, [row])
    assert log.context_at(0).device == "phone"
    assert list(log.context_at(0).attributes) == [f"f{number:02d}" for number in range(64)]
    assert "6 columns beyond the first 64 in the alphabet were left out: f64, f65" in report.notes[0]


def test_columns_without_end_are_refused(tmp_path):
    with pytest.raises(InputError, match="more than 1,024 columns"):
        read(tmp_path, [{**ROW, **{f"f{row}-{number}": 1 for number in range(300)}} for row in range(5)])


def test_an_ad_that_was_rejected_is_named_with_the_reason(tmp_path):
    with pytest.raises(InputError, match=r"ad 'bad' is not in the catalog: it was rejected \(empty_text: no title"):
        read(tmp_path, [ROW, {**ROW, "ad_id": "bad"}], {"a1"}, why_rejected={"bad": "empty_text: no title"})


def test_rejected_rows_are_listed_in_a_file_also_if_they_are_too_many(tmp_path):
    file = tmp_path / "new" / "rejected.jsonl"
    rows = [ROW, {**ROW, "timestamp": "2099-01-01"}, {**ROW, "clicks": 2}]
    with pytest.raises(InputError, match=r"66\.7% of 3 rows .* All are in .*rejected\.jsonl"):
        read(tmp_path, rows, rejected_file=file)
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["source"], one["row"], one["reason"]) for one in found] == [
        ("clicks.jsonl", 2, "bad_time"),
        ("clicks.jsonl", 3, "bad_counts"),
    ]
    assert "2099-01-01" in found[0]["detail"]
    read(tmp_path, rows[:1], rejected_file=file)
    assert not file.exists()


@pytest.mark.parametrize("content", ["request_id,ad_id\nr,a\n", '{"ad_id": "a1", "title": "One"}\n', "[]\n", "\xff"])
def test_a_list_of_rejected_rows_is_never_written_over_something_else(tmp_path, content):
    file = tmp_path / "mine"
    file.write_text(content)
    for rows in ([ROW], [ROW, {**ROW, "clicks": 2}]):
        with pytest.raises(InputError, match="mine is no list of rejected rows, and is not written over"):
            read(tmp_path, rows, max_rejected=1, rejected_file=file)
    assert file.read_text() == content
    for place in (tmp_path, tmp_path / "mine" / "below"):
        with pytest.raises(InputError, match=r"is not written over|cannot (read|write)"):
            read(tmp_path, [ROW, {**ROW, "clicks": 2}], max_rejected=1, rejected_file=place)
    file.write_text("")
    read(tmp_path, [ROW, {**ROW, "clicks": 2}], max_rejected=1, rejected_file=file)
    assert json.loads(file.read_text())["row"] == 2


def test_a_few_rows_without_a_time_are_rejected_where_times_are_needed(tmp_path):
    rows = [{**ROW, "timestamp": T + number} for number in range(99)] + [ROW]
    log, report = read(tmp_path, rows, timed=True)
    assert (len(log), log.has_time, report.rejected) == (99, True, {"missing_time": 1})
    assert report.rejected_rows[0].row == 100
    assert read(tmp_path, rows)[0].untimed == 1
    many, report = read(tmp_path, [*rows, ROW], timed=True)
    assert (many.untimed, report.rejected) == (2, {})
    none, _ = read(tmp_path, [ROW], timed=True)
    assert none.untimed_rows == "1 of 1 rows are without a timestamp"


def test_one_date_for_all_rows_is_not_called_too_small_to_split():
    for split in (split_by_time, split_each_user):
        with pytest.raises(InputError, match="rows of several times: all 50 rows are of 1970-01-01 00:00 UTC"):
            split(make_log([7] * 50))
