"""What rows of a click log may say, checked as arrays: why those that may not be used are refused. Converts nothing."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.errors import InputError
from adcascade.records.files import DamagedRow
from adcascade.records.limits import MAX_FIELD_CHARS, MAX_ID_CHARS, MAX_TEXT_CHARS, MAX_UTC_OFFSET_MINUTES
from adcascade.records.times import AHEAD, EARLIEST, Moment, check_happened

Integers = npt.NDArray[np.int64]

MAX_POSITION = 1000
# Sums of a hundred million rows of so many impressions hold in 64 bits.
MAX_IMPRESSIONS = 10**10
# Time of a row without one: before everything, so that no history or counter is ever made from it.
NO_TIME = np.iinfo(np.int64).min

_FIELD_LIMITS = {
    **dict.fromkeys(("country", "language", "device", "placement"), MAX_FIELD_CHARS),
    "page_text": MAX_TEXT_CHARS,
}


class RowProblems:
    """The first problem of each row of a batch."""

    def __init__(self, count: int) -> None:
        self.found = np.zeros(count, bool)
        self.by_row: dict[int, DamagedRow] = {}

    def add(self, row: int, reason: str, detail: str) -> None:
        """Notes a problem unless the row has one."""
        if not self.found[row]:
            self.found[row] = True
            self.by_row[row] = DamagedRow(reason, detail)

    def of(self, values: list[Any], instead: Any) -> list[Any]:
        """The values, with `instead` in place of those that are InputErrors, which are problems of their rows."""
        for row in _where(isinstance(value, InputError) for value in values):
            self.add(row, "bad_row", str(values[row]))
        return [instead if isinstance(value, InputError) else value for value in values]


def check_ids(
    ids: Mapping[str, list[str]],
    known_ads: Collection[str] | None,
    why_rejected: Mapping[str, str],
    problems: RowProblems,
) -> None:
    """Ids that are absent, too long, or of ads that nobody knows."""
    for row in _where(not (request and ad) for request, ad in zip(ids["request_id"], ids["ad_id"], strict=True)):
        problems.add(row, "missing_id", "request_id or ad_id is empty")
    for name, values in ids.items():
        for row in _where(len(value) > MAX_ID_CHARS for value in values):
            length = len(values[row])
            problems.add(row, "long_id", f"{name} has {length:,} characters; the limit is {MAX_ID_CHARS}")
    if known_ads is None:
        return
    for row in _where(ad_id not in known_ads for ad_id in ids["ad_id"]):
        ad_id = ids["ad_id"][row]
        why = f": it was rejected ({why_rejected[ad_id]})" if ad_id in why_rejected else ""
        problems.add(row, "unknown_ad", f"ad {ad_id[:MAX_ID_CHARS]!r} is not in the catalog{why}")


def check_counts(
    counts: Mapping[str, list[int | None]], numbers: Mapping[str, Integers], problems: RowProblems
) -> None:
    """Counts that are absent, contradict each other, or are too high."""
    clicks, impressions, conversions = (numbers[name] for name in ("clicks", "impressions", "conversions"))
    for row in _where(None in pair for pair in zip(counts["clicks"], counts["impressions"], strict=True)):
        problems.add(row, "bad_counts", "clicks or impressions is empty; write 0 where there was no click")
    for row in np.flatnonzero((clicks < 0) | (clicks > impressions) | (impressions < 1)).tolist():
        problems.add(row, "bad_counts", f"{clicks[row]} clicks on {impressions[row]} impressions")
    for row in np.flatnonzero(impressions > MAX_IMPRESSIONS).tolist():
        problems.add(row, "bad_counts", f"{impressions[row]:,} impressions; the limit is {MAX_IMPRESSIONS:,}")
    for row in np.flatnonzero((conversions < 0) | (conversions > clicks)).tolist():
        problems.add(row, "bad_counts", f"{conversions[row]} conversions of {clicks[row]} clicks")
    for row in _where(value is not None and not 0 <= value <= MAX_POSITION for value in counts["position"]):
        problems.add(row, "bad_counts", f"position {counts['position'][row]} is not 0 to {MAX_POSITION}")


def check_lengths(context: Mapping[str, list[str | None]], problems: RowProblems) -> None:
    """Context that is too long."""
    total = np.zeros(len(problems.found), np.int64)
    for name, values in context.items():
        lengths = np.array([0 if value is None else len(value) for value in values], np.int64)
        limit = _FIELD_LIMITS.get(name)
        if limit is None:
            total += np.where(lengths > 0, lengths + len(name), 0)
            limit = MAX_TEXT_CHARS
        for row in np.flatnonzero(lengths > limit).tolist():
            problems.add(row, "long_text", f"{name} has {lengths[row]:,} characters; the limit is {limit:,}")
    for row in np.flatnonzero(total > MAX_TEXT_CHARS).tolist():
        problems.add(row, "long_text", f"context has {total[row]:,} characters in all; the limit is {MAX_TEXT_CHARS:,}")


def check_times(
    numbers: Mapping[str, Integers], moments: list[Moment | None], now: datetime, problems: RowProblems
) -> None:
    """Times that cannot be, and offsets that no place has."""
    time = numbers["time"]
    latest = micros(now + AHEAD)
    for row in np.flatnonzero((time != NO_TIME) & ((time < micros(EARLIEST)) | (time > latest))).tolist():
        moment = moments[row]
        try:
            if moment is not None:
                check_happened(moment.time, "timestamp", now)
        except InputError as error:
            problems.add(row, "bad_time", str(error))
    for row in np.flatnonzero(abs(numbers["utc_offset"]) > MAX_UTC_OFFSET_MINUTES).tolist():
        minutes = numbers["utc_offset"][row]
        problems.add(row, "bad_time", f"utc_offset_minutes is {minutes}; no place is that far from UTC")


def micros(moment: datetime) -> int:
    """Microseconds since the Unix epoch."""
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def _where(flags: Any) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag]
