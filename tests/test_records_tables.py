"""Logs that are read by column say the same, to the last word, as when each row is looked at by itself."""

import csv
import datetime as dt
import io
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adcascade.records import clicks
from adcascade.records.batches import TableBatch
from adcascade.records.click_batches import BatchChecker
from adcascade.records.click_tables import TableChecker
from adcascade.records.clicks import read_clicks
from adcascade.records.errors import InputError
from adcascade.records.files import read_batches

T = 1_767_225_600  # 2026-01-01

TEXTS = [
    "r1",
    "r2",
    "a1",
    "a2",
    "u-3",
    "7",
    "10.0",
    "1.50",
    "1.23E+12",
    "+5",
    " r1",
    "r1\t",
    "a b",
    "NA",
    "-0.0",
    "007",
]
ODD_TEXTS = [None, "", " ", "null", "NaN", "None", "none", "\\N", "é", "e\u0301", "\ufeffr1", "x" * 256, "x" * 257]
ODD_TEXTS += ["a\x00b", "a\nb", "\u200b", "y" * 40_000, "9007199254740993.0", "\U0001f600", "\x1f", "<na>", "NAT"]
COUNTS = [0, 1, 1, 1, 2, 3]
ODD_COUNTS = [None, -1, 5, 1000, 1001, 10**10, 10**10 + 1, 2**62]
COUNT_TEXTS = ["0", "1", "2", "1.0", " 1", "", "null", "x", "1.000", "1e0", "-1", "99999999999999999999", "1_0", "٣"]
FLOATS = [0.0, 1.0, 2.0, -0.0, 0.5, float("nan"), None, float("inf"), 1e16, 2.0**53, -3.0]
OFFSETS = [0, 60, -300, 1440, 1441, -1441, None, 100_000]
OFFSET_TEXTS = ["+02:00", "-0330", "Z", "120", "1.5", "", "x", "+25:00", "60.0"]
SECONDS = [T, T + 1, T + 59, 946_684_800, 946_684_799, 2_026_013_110, 20_260_131, 20_260_131_101_500, 0, None]
NUMBERS = [
    *SECONDS,
    T * 1000 + 1,
    T * 10**6 + 1,
    T * 10**9 + 500,
    T * 10**9 + 1500,
    4 * 10**9,
    -5,
    2**62,
    202_601_311_015,
]
TIME_TEXTS = ["2026-01-01T10:15:00Z", "2026-01-01 10:15:00", "2026-01-01T10:15:00.123456+02:00", "2026-01-01", ""]
TIME_TEXTS += ["2026-02-30T10:15:00", "2026-01-01T24:00:00", "2026-01-01T10:15:60", "1767225600", "20260131", "null"]
TIME_TEXTS += ["2026-01-01T10:15Z", "2026-W01-1", "2026-01-01 10:15:00 UTC", "2026-01-01T10:15:00-23:59", "soon", None]
TIME_TEXTS += [
    "1999-12-31T23:59:59Z",
    "2031-01-01T00:00:00Z",
    "2026-01-01t10:15:00z",
    "1767225600.5",
    " 1767225600",
    "é",
]
TIME_TEXTS += [
    "2026-01-01T10:15:00.1234567Z",
    "2026-01-01T10:15:00.5",
    "2000-01-01T00:30:00+01:00",
    "1767225600123456789",
]
CLOCKS = [dt.datetime(2026, 1, 1, 10, 15), dt.datetime(2026, 3, 29, 1, 59, 59), dt.datetime(2026, 3, 29, 1, 0), None]
CLOCKS += [
    dt.datetime(1999, 12, 31, 23),
    dt.datetime(2090, 1, 1),
    dt.datetime(2000, 1, 1),
    dt.datetime(2010, 11, 7, 4, 1),
]
DAYS = [dt.date(2026, 1, 1), dt.date(1999, 1, 1), dt.date(2026, 5, 5), None]


def kinds(*pairs):
    return st.sampled_from([(list(values), kind) for values, kind in pairs])


PLAIN = ["r1", "r2", "a1", "a2", "u-3"]
MIXED = PLAIN * 6 + TEXTS + ODD_TEXTS
IDS = kinds(
    (PLAIN, pa.string()),
    (MIXED, pa.string()),
    (MIXED, pa.large_string()),
    (MIXED, pa.dictionary(pa.int32(), pa.string())),
    ([1, 2, 300, None], pa.int64()),
    ([1, 2, 2**64 - 1], pa.uint64()),
    (FLOATS, pa.float64()),
    ([1.0, 2.0, 1e8, None], pa.float32()),
    ([True, None], pa.bool_()),
    ([Decimal("1.00"), Decimal("2.50"), None], pa.decimal128(9, 2)),
    ([b"r1", b"a1", b"\xff", None], pa.binary()),
    ([b"r1", b"a1", b"a1", b"\xff\xfe", None], "damaged"),
    (DAYS, pa.date32()),
    ([["r1"], [], None], pa.list_(pa.string())),
)
NUMBER_KINDS = kinds(
    (COUNTS, pa.int64()),
    (COUNTS * 4 + ODD_COUNTS, pa.int64()),
    (COUNTS, pa.int8()),
    ([1, 2, 2**64 - 1, None], pa.uint64()),
    ([1.0] * 6 + FLOATS, pa.float64()),
    ([1.0, 2.0, 0.5, 2.0**24, None], pa.float32()),
    (["1"] * 6 + COUNT_TEXTS, pa.string()),
    ([True, False, None], pa.bool_()),
    ([Decimal("1.00"), Decimal("2.50"), None], pa.decimal128(9, 2)),
    ([None], pa.null()),
)
TIMES = kinds(
    *(
        (CLOCKS, pa.timestamp(unit, zone))
        for unit in ("s", "ms", "us", "ns")
        for zone in (None, "UTC", "Europe/Berlin")
    ),
    (CLOCKS, pa.timestamp("us", "+02:00")),
    (CLOCKS, pa.timestamp("ms", "America/St_Johns")),
    (CLOCKS, pa.timestamp("us", "Mars/Olympus")),
    ([2**50, T, -(2**50), None], pa.timestamp("s")),
    ([10**18, T * 10**6, T * 10**6 + 1, None], pa.timestamp("us", "UTC")),
    ([T * 10**9 + 1999, T * 10**9 + 1, 2**62, None], pa.timestamp("ns")),
    (NUMBERS, pa.int64()),
    ([T, T + 7, 20_260_131], pa.int32()),
    ([T * 10**6, 2**64 - 1], pa.uint64()),
    (
        [*map(float, filter(None, NUMBERS)), T + 0.5, T + 0.1, T + 1e-6 / 2, T * 1000 + 0.5, float("nan"), None],
        pa.float64(),
    ),
    ([float(T), None], pa.float32()),
    (TIME_TEXTS, pa.string()),
    (["2026-01-01T10:15:00Z", "2026-01-01T10:16:00+01:00", "1767225600"], pa.string()),
    (DAYS, pa.date32()),
    (DAYS, pa.date64()),
    ([True], pa.bool_()),
    ([None], pa.null()),
    ([Decimal(T), None], pa.decimal128(18, 0)),
)
OFFSET_KINDS = kinds(
    ([0, 60], pa.int32()),
    (OFFSETS, pa.int64()),
    (OFFSET_TEXTS, pa.string()),
    ([60.0, 1.5, float("nan"), None], pa.float64()),
    ([2**64 - 1, 5], pa.uint64()),
    ([True], pa.bool_()),
)
CONTEXT = kinds(
    (["phone", "tv", None], pa.string()),
    (MIXED, pa.string()),
    (MIXED, pa.dictionary(pa.int8(), pa.large_string())),
    (["z" * 20_000, "phone"], pa.string()),
    ([1, None], pa.int16()),
    (FLOATS, pa.float64()),
    ([1.5, 2.0**25, None], pa.float32()),
    ([True, False, None], pa.bool_()),
    (CLOCKS, pa.timestamp("ms", "UTC")),
    ([dt.timedelta(seconds=5), None], pa.duration("s")),
    (DAYS, pa.date32()),
    ([b"phone", b"\xff", None], pa.binary()),
    ([b"phone", b"\xc3", None], "damaged"),
    ([["a"], None], pa.list_(pa.string())),
    ([{"a": 1}, None], pa.struct([("a", pa.int64())])),
    ([None], pa.null()),
)
ATTRIBUTES = kinds(
    (['{"os": "linux", "vip": true}', '{"device": "tv"}', "{}", "x", None], pa.string()),
    ([[("os", "mac")], None], pa.map_(pa.string(), pa.string())),
)
COLUMNS = {
    "request_id": IDS,
    "ad_id": IDS,
    "clicks": NUMBER_KINDS,
    "impressions": NUMBER_KINDS,
    "user_id": IDS,
    "timestamp": TIMES,
    "utc_offset_minutes": OFFSET_KINDS,
    "position": NUMBER_KINDS,
    "conversions": NUMBER_KINDS,
    "device": CONTEXT,
    "page_text": CONTEXT,
    "hour": CONTEXT,
    "zone": CONTEXT,
    "attributes": ATTRIBUTES,
    "__index_level_0__": NUMBER_KINDS,
}
REQUIRED = ("request_id", "ad_id", "clicks", "impressions")
GOOD = {
    "request_id": (PLAIN, pa.string()),
    "ad_id": (PLAIN, pa.string()),
    "clicks": ([0, 1], pa.int64()),
    "impressions": ([1, 2], pa.int64()),
    "user_id": (PLAIN, pa.string()),
    "timestamp": ([T * 1000, T * 1000 + 5], pa.timestamp("ms", "UTC")),
    "device": (["phone", "tv"], pa.string()),
}


@st.composite
def tables(draw):
    """Tables of logs, some of whose columns hold anything."""
    rows = draw(st.integers(1, 24))
    names = [*REQUIRED, *draw(st.lists(st.sampled_from(sorted(COLUMNS.keys() - {*REQUIRED})), unique=True))]
    hostile = draw(st.sets(st.sampled_from(names), max_size=3))
    columns = {}
    for name in names:
        values, kind = GOOD[name] if name in GOOD and name not in hostile else draw(COLUMNS[name])
        some = draw(st.lists(st.sampled_from(values), min_size=rows, max_size=rows))
        columns[name] = array(some, kind)
    return pa.table(columns)


def array(values, kind):
    """An Arrow array; "damaged" is a column of strings that are no UTF-8."""
    return pa.array(values, pa.binary()).view(pa.string()) if kind == "damaged" else pa.array(values, kind)


def outcome(path, known_ads, **options):
    """Everything that reading found, or what it complains of."""
    try:
        log, report = read_clicks(path, known_ads, **options)
    except (InputError, LookupError) as error:
        return type(error), str(error)
    plain = [getattr(log, name).tolist() for name in ("request_id", "ad_id", "user_id")]
    names = ("time", "utc_offset", "clicks", "impressions", "conversions", "position")
    plain += [(getattr(log, name).dtype, getattr(log, name).tolist()) for name in names]
    context = {name: column.tolist() for name, column in log.context.items()}
    return plain, context, report


class RowChecker(TableChecker):
    """Looks at every row by itself, as reading did before it knew columns."""

    def __call__(self, batch):
        yield self._by_row(batch)


def by_row(path, known_ads, **options):
    """The same with every row looked at by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clicks, "read_tables", read_batches)
        patch.setattr(clicks, "TableChecker", RowChecker)
        return outcome(path, known_ads, **options)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(tables(), min_size=1, max_size=2),
    st.sampled_from([None, {"r1", "a1", "1", "u-3"}]),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.sampled_from([1.0, 1.0, 0.3]),
)
def test_a_log_read_by_column_says_what_it_says_row_by_row(tmp_path_factory, parts, known_ads, newest, timed, rejected):
    folder = tmp_path_factory.mktemp("log") / "log"
    for number, table in enumerate(parts):
        place = folder / f"country={number}" if number else folder
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, place / f"{number}.parquet", row_group_size=11)
    options = {"newest": newest, "timed": timed, "max_rejected": rejected, "why_rejected": {"a2": "no title"}}
    assert outcome(folder, known_ads, **options) == by_row(folder, known_ads, **options)


JSON_VALUES = {
    "id": [*MIXED[:60], 1, 2, 2.0, 1.5, 10**20, True, None, ["r1"], {"a": 1}],
    "count": [*COUNTS * 4, *ODD_COUNTS, 1.0, 0.5, "1", "x", 10**20, True],
    "time": [T, T + 1, T * 1000, T + 0.5, *TIME_TEXTS[:20], 20_260_131, 0, None],
    "context": ["phone", "tv", "\ud800", "", "é", None, 1, 1.5, True, ["a"], {"b": 2}, "z" * 20_000],
    "attributes": [None, {"os": "linux"}, '{"os": "mac", "age": 3}', {}],
}
JSON_KINDS = {"timestamp": "time", "device": "context", "page_text": "context", "room": "context"}
JSON_KINDS |= {
    "attributes": "attributes",
    **dict.fromkeys(("clicks", "impressions", "conversions", "position"), "count"),
}
GOOD_ROW = {"request_id": "r1", "ad_id": "a1", "user_id": "u", "clicks": 0, "impressions": 1, "timestamp": T}


@st.composite
def rows_of_json(draw):
    """A good row, in which a few values may be others or missing."""
    row = dict(GOOD_ROW, device="phone")
    for name in draw(st.sets(st.sampled_from([*GOOD_ROW, "device", *JSON_KINDS]), max_size=2)):
        row[name] = draw(st.sampled_from(JSON_VALUES[JSON_KINDS.get(name, "id")]))
    for name in draw(st.sets(st.sampled_from(["user_id", "timestamp", "clicks", "device"]), max_size=1)):
        row.pop(name) if draw(st.integers(0, 9)) == 0 else None
    return json.dumps(row)


def written_as(kind, rows):
    """Lines of JSON with a broken one among them, or the same values as CSV with quotes."""
    if kind == "jsonl":
        return "\n".join(rows)
    some = [{**GOOD_ROW, **json.loads(row)} for row in rows]
    with io.StringIO() as file:
        lines = csv.writer(file, quoting=csv.QUOTE_ALL)
        lines.writerow([*GOOD_ROW, "device"])
        lines.writerows(
            [str(row.get(name, "")).replace("\ud800", "") for name in (*GOOD_ROW, "device")] for row in some
        )
        return file.getvalue()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["jsonl", "csv"]),
    st.lists(st.one_of(st.just(json.dumps(GOOD_ROW)), rows_of_json(), st.just("{")), min_size=1, max_size=40),
    st.sampled_from([None, {"r1", "a1", "1"}]),
)
def test_lines_that_are_checked_by_column_say_what_they_say_row_by_row(tmp_path_factory, kind, rows, known_ads):
    path = tmp_path_factory.mktemp("lines") / f"log.{kind}"
    path.write_text(written_as(kind, [row for row in rows if kind == "jsonl" or row != "{"]))
    assert outcome(path, known_ads, max_rejected=1.0) == by_row(path, known_ads, max_rejected=1.0)


class NeverAsked(BatchChecker):
    """Fails when it is asked of a row."""

    def __call__(self, batch):
        raise AssertionError(f"rows {list(batch.numbers)} were looked at one by one")


@pytest.mark.parametrize(
    "times",
    [
        ([T], pa.timestamp("s")),
        ([T * 10**9 + 1], pa.timestamp("ns", "Europe/Berlin")),
        ([T, T * 1000], pa.int64()),
        ([T + 0.25], pa.float64()),
        (
            ["2026-01-01T10:15:00Z", "2026-01-01 10:15:00.5+02:00", "1767225600", "2026-01-01T00:00:00+00:00"],
            pa.string(),
        ),
        (DAYS[:1], pa.date32()),
        ([20_260_131], pa.int32()),
    ],
)
def test_rows_that_are_plainly_good_are_not_looked_at_one_by_one(times):
    """Or the test above would compare one way of reading with itself."""
    random = np.random.default_rng(0)
    kinds_of = {
        **GOOD,
        "timestamp": times,
        "position": ([1.0, 2.0, None], pa.float64()),
        "page": ([7, None], pa.int8()),
    }
    columns = {
        name: array([values[place] for place in random.integers(0, len(values), 100)], kind)
        for name, (values, kind) in kinds_of.items()
    }
    check = NeverAsked({*PLAIN}, {}, dt.datetime.now(dt.UTC))
    batch = TableBatch("log.parquet", 1, pa.RecordBatch.from_pydict(columns))
    (checked,) = TableChecker(check)(batch)
    assert (checked.rows, len(checked.good.rows), checked.refused) == (100, 100, {})
