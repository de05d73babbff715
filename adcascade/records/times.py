"""Moments as files write them. Knows nothing of what happened then.

A moment is an Arrow timestamp or date, ISO 8601 text, or a number: seconds, milliseconds, microseconds or nanoseconds
since 1970, told apart by their size, or the digits of a date (20260131) or of a date and a time (20260131101500). What
has no zone is in UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from adcascade.records.errors import InputError
from adcascade.records.missing import is_missing
from adcascade.records.rounded import RoundedFloat

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
# How far the clock of whoever wrote a log may be ahead of ours.
AHEAD = timedelta(days=1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_NUMBER = datetime(3000, 1, 1, tzinfo=UTC)
# Seconds of 2000 to 3000 are 9.5e8 to 3.3e10: no number is a moment of these years in two units.
_UNITS = (1, 1_000, 1_000_000, 1_000_000_000)
_ISO = re.compile(
    r"\d{4}(?:-?\d{2}-?\d{2}|-?W\d{2}-?\d)"
    r"(?:[T ]\d{2}(?::?\d{2}(?::?\d{2}(?:[.,]\d+)?)?)?(?:Z|[+-]\d{2}(?::?\d{2})?)?)?",
    re.ASCII,
)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?", re.ASCII)
_DIGITS = re.compile(r"(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?:([01]\d|2[0-3])(?:([0-5]\d)([0-5]\d)?)?)?")
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})?", re.ASCII)
_HELP = "ISO 8601 such as 2026-01-31T10:15:00Z, or seconds since 1970"


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment, and how many minutes the clock on the wall was ahead of UTC: None if nothing says so.

    Numbers count from a moment in UTC, so their offset is 0.
    """

    time: datetime
    offset: int | None


def read_moment(value: Any, name: str) -> Moment | None:
    """The moment that a value means; None if it is missing. Raises InputError if it means none, or might mean two."""
    if is_missing(value):
        return None
    try:
        if isinstance(value, str):
            text = value.strip()
            if len(text) < 40 and _NUMBER.fullmatch(text):
                return _of_number(Decimal(text), name)
            return _of_clock(_from_iso(text))
        if isinstance(value, datetime):
            return _of_clock(value)
        if isinstance(value, date):
            return Moment(datetime.combine(value, time(), UTC), None)
        if isinstance(value, RoundedFloat):
            raise InputError(
                f"{name} {value:.0f} is a float of 32 bits or fewer, which holds no time: write it as {_HELP}"
            )
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return _of_number(Decimal(value), name)
    except InputError:
        raise
    except (ValueError, ArithmeticError):
        pass
    raise InputError(f"{name} must be a time ({_HELP}), not {repr(value)[:80]}")


def micros_of(at: datetime) -> int:
    """Microseconds since 1970."""
    return round((at - _EPOCH).total_seconds() * 1_000_000)


def minutes_ahead(value: Any, name: str) -> int:
    """Minutes ahead of UTC, from a number of minutes or text such as ``+02:00``; 0 if missing. Raises InputError."""
    if is_missing(value):
        return 0
    text = str(value).strip()
    if text == "Z":
        return 0
    if (found := _OFFSET.fullmatch(text)) and (":" in text or len(text) == len("+0200")):
        minutes = 60 * int(found[2]) + int(found[3] or 0)
        return -minutes if found[1] == "-" else minutes
    if isinstance(value, bool) or not _NUMBER.fullmatch(text) or Decimal(text) % 1:
        raise InputError(f"{name} must be minutes, or an offset such as +02:00, not {repr(value)[:80]}")
    return int(Decimal(text))


def check_happened(at: datetime, name: str, now: datetime) -> None:
    """Raises InputError if something cannot have happened then: before 2000, or more than a day after `now`."""
    if at < EARLIEST:
        raise InputError(f"{name} is {at:%Y-%m-%d}, before 2000: leave it empty where the time is unknown")
    if at > now + AHEAD:
        raise InputError(f"{name} is {at:%Y-%m-%d %H:%M} UTC, more than a day ahead of the clock of this machine")


def _from_iso(text: str) -> datetime:
    text = text.upper().replace("Z", "+00:00") if text[-1:] in "Zz" else text.upper()
    text = re.sub(r" ?(?:UTC|GMT)$", "+00:00", text)
    text = re.sub(r" (?=[+-]\d{2}:?\d{2}$)", "", text)
    if not _ISO.fullmatch(text):
        raise ValueError
    return datetime.fromisoformat(text)


def _of_clock(at: datetime) -> Moment:
    offset = at.utcoffset()
    if offset is None:
        return Moment(at.replace(tzinfo=UTC), None)
    return Moment(at.astimezone(UTC), round(offset.total_seconds() / 60))


def _of_number(number: Decimal, name: str) -> Moment:
    if number == number.to_integral_value() and (found := _DIGITS.fullmatch(str(int(number)))):
        if found[4] and not found[5]:
            raise InputError(f"{name} {number} may be a date with an hour or seconds: write it as {_HELP}")
        year, month, day, hour, minute, second = (int(part) for part in found.groups("0"))
        return Moment(datetime(year, month, day, hour, minute, second, tzinfo=UTC), None)
    for unit in _UNITS:
        if EARLIEST.timestamp() * unit <= number < _LAST_NUMBER.timestamp() * unit:
            return Moment(_EPOCH + timedelta(microseconds=round(number * 1_000_000 / unit)), 0)
    raise InputError(
        f"{name} {str(number)[:80]} is no time after 2000, not in seconds, milli-, micro- or nanoseconds since 1970 "
        f"nor as a date such as 20260131: write it as {_HELP}, and leave it empty where it is unknown"
    )
