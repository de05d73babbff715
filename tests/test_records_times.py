"""One moment however it is written, and never another one without a word."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from adcascade.records.errors import InputError
from adcascade.records.rounded import RoundedFloat
from adcascade.records.times import AHEAD, check_happened, minutes_ahead, read_moment

MOMENT = datetime(2026, 1, 1, 10, 15, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())
MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)

WRITTEN = {
    "2026-01-01": (MIDNIGHT, None),
    "20260101": (MIDNIGHT, None),
    "20260101.0": (MIDNIGHT, None),
    "2026-W01-4": (MIDNIGHT, None),
    "2026W014": (MIDNIGHT, None),
    " 2026-01-01 ": (MIDNIGHT, None),
    "20260101T101500": (MOMENT, None),
    "20260101T101500Z": (MOMENT, 0),
    "20260101101500": (MOMENT, None),
    "202601011015": (MOMENT, None),
    "2026-01-01T10:15": (MOMENT, None),
    "2026-01-01 10:15:00": (MOMENT, None),
    "2026-01-01t10:15:00z": (MOMENT, 0),
    "2026-01-01 10:15:00 UTC": (MOMENT, 0),
    "2026-01-01 10:15:00 GMT": (MOMENT, 0),
    "2026-01-01T12:15:00+02:00": (MOMENT, 120),
    "2026-01-01 12:15:00 +0200": (MOMENT, 120),
    "2026-01-01T05:15-05": (MOMENT, -300),
    "2026-01-01T10:15:00.000000000Z": (MOMENT, 0),
    "2026-01-01T10:15:00,0Z": (MOMENT, 0),
    str(SECONDS): (MOMENT, 0),
    f"{SECONDS}.0": (MOMENT, 0),
    f"{SECONDS}000": (MOMENT, 0),
    f"{SECONDS}000000": (MOMENT, 0),
    f"{SECONDS}000000000": (MOMENT, 0),
}
VALUES = [
    (20260101, (MIDNIGHT, None)),
    (20260101.0, (MIDNIGHT, None)),
    (20260101101500, (MOMENT, None)),
    (SECONDS, (MOMENT, 0)),
    (float(SECONDS), (MOMENT, 0)),
    (SECONDS * 1000, (MOMENT, 0)),
    (SECONDS * 10**6, (MOMENT, 0)),
    (SECONDS * 10**9, (MOMENT, 0)),
    (Decimal(SECONDS), (MOMENT, 0)),
    (date(2026, 1, 1), (MIDNIGHT, None)),
    (datetime(2026, 1, 1, 10, 15), (MOMENT, None)),
    (MOMENT, (MOMENT, 0)),
]


@pytest.mark.parametrize(("value", "want"), [*WRITTEN.items(), *VALUES], ids=str)
def test_a_moment_is_the_same_however_it_is_written(value, want):
    found = read_moment(value, "timestamp")
    assert (found.time, found.offset) == want


def test_a_fraction_of_a_second_stays():
    assert read_moment(f"{SECONDS}.123456", "t").time == MOMENT + timedelta(microseconds=123_456)
    assert read_moment(f"{SECONDS}123", "t").time == MOMENT + timedelta(milliseconds=123)
    assert read_moment(f"{SECONDS}123456789", "t").time == MOMENT + timedelta(microseconds=123_457)


REFUSED = (
    *("2026", "202601", "2026-01", "2026-13-01", "2026-02-30", "20260230", "20261301", "2026010110", "01/02/2026"),
    *("yesterday", "10:15", "Thu, 01 Jan 2026 10:15:00 GMT", "1.767225600e9", "1_767_225_600", "0", "-1", "1", "46023"),
    *("20454", "29453775", "2026-01-01x10:15", "2026-01-01Z", "99999999999999999999999", "0x69", "inf", "\u0662\u0660"),
    *("1" * 5000, "2026-01-01T25:00", "946684799"),
    RoundedFloat(1_767_262_500.0),
    *(0, -1, 1, 5, 46023, 946_684_799, True, float("inf"), 10**30, 10**400, [2026], {"a": 1}),
)


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: str(value)[:30])
def test_what_may_be_another_moment_is_refused_with_what_to_do(value):
    with pytest.raises(InputError, match="ISO 8601 such as") as caught:
        read_moment(value, "timestamp")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [None, "", " ", "NULL", "NaT", "nan", float("nan"), Decimal("NaN"), "<NA>", "\\N"])
def test_no_moment_is_missing(value):
    assert read_moment(value, "timestamp") is None


def test_what_happened_lies_between_2000_and_tomorrow():
    now = datetime.now(UTC)
    check_happened(datetime(2000, 1, 1, tzinfo=UTC), "t", now)
    check_happened(now + AHEAD, "t", now)
    with pytest.raises(InputError, match="t is 1999-12-31, before 2000"):
        check_happened(datetime(1999, 12, 31, tzinfo=UTC), "t", now)
    with pytest.raises(InputError, match="more than a day ahead of the clock"):
        check_happened(now + AHEAD + timedelta(seconds=1), "t", now)


@pytest.mark.parametrize(
    ("value", "minutes"),
    [("+02:00", 120), ("-0530", -330), ("Z", 0), ("120", 120), (-300, -300), (60.0, 60), ("", 0), (None, 0)],
)
def test_an_offset_is_minutes_or_hours_and_minutes(value, minutes):
    assert minutes_ahead(value, "utc_offset_minutes") == minutes


@pytest.mark.parametrize("value", ["+2h", "Berlin", "1.5", True, [1]])
def test_what_is_no_offset_is_refused(value):
    with pytest.raises(InputError, match="minutes, or an offset such as"):
        minutes_ahead(value, "utc_offset_minutes")
