"""The click log: who was shown what, when, and whether they clicked; read and checked. Knows no models."""

from array import array
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from records.errors import InputError
from records.files import DamagedRow, read_rows
from records.users import Context, context_from_row
from records.values import as_int, as_text, as_time, zone_minutes

Texts = npt.NDArray[np.object_]
Integers = npt.NDArray[np.int64]

REQUIRED = ("request_id", "ad_id", "clicks", "impressions")
_NO_CONTEXT = frozenset((*REQUIRED, "user_id", "timestamp", "position", "conversions"))
MAX_POSITION = 1000
_TEXTS = ("request_id", "ad_id", "user_id")
_NUMBERS = ("time", "utc_offset", "clicks", "impressions", "conversions", "position")
# Time of a row without one: before everything, so that no history or counter is ever made from it.
NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class ClickLog:
    """Columns of equal length, ordered by time (rows of equal time keep their order in the file).

    Attributes:
        request_id, ad_id, user_id: object arrays of str; user_id is "" where unknown.
        time: int64, microseconds since 1970 UTC, or `NO_TIME`.
        utc_offset: int64, minutes that the clock on the wall was ahead of UTC; 0 where unknown.
        clicks, impressions, conversions: int64; conversions <= clicks <= impressions, impressions >= 1.
        position: int64, place on the page from 1; 0 where unknown.
        context: further columns, by name; None where a row has no value.
    """

    request_id: Texts
    ad_id: Texts
    user_id: Texts
    time: Integers
    utc_offset: Integers
    clicks: Integers
    impressions: Integers
    conversions: Integers
    position: Integers
    context: Mapping[str, Texts]

    def __len__(self) -> int:
        return len(self.ad_id)

    @property
    def has_time(self) -> bool:
        """Whether every row has a time."""
        return bool((self.time != NO_TIME).all())

    @property
    def ctr(self) -> float:
        """Clicks per impression over the whole log."""
        return float(self.clicks.sum() / max(1, self.impressions.sum()))

    def context_at(self, row: int) -> Context:
        """Where and when the impression of a row happened, from the further columns and the time."""
        values = {name: column[row] for name, column in self.context.items()}
        context = context_from_row({name: value for name, value in values.items() if value is not None})
        time, offset = int(self.time[row]), int(self.utc_offset[row])
        moment = datetime.fromtimestamp(time / 1e6, UTC) if time != NO_TIME else None
        return replace(context, timestamp=moment, utc_offset_minutes=offset or context.utc_offset_minutes)

    def take(self, rows: npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | slice) -> "ClickLog":
        """The given rows (indices, a mask or a slice), in the given order."""
        return ClickLog(
            self.request_id[rows],
            self.ad_id[rows],
            self.user_id[rows],
            self.time[rows],
            self.utc_offset[rows],
            self.clicks[rows],
            self.impressions[rows],
            self.conversions[rows],
            self.position[rows],
            {name: column[rows] for name, column in self.context.items()},
        )


@dataclass(frozen=True)
class LogReport:
    """What reading found: rows read, rows kept, and how many were rejected for each reason, with a first example.

    Usable rows that are neither kept nor rejected were older than the newest that were asked for.
    """

    rows: int
    kept: int
    rejected: Mapping[str, int]
    examples: Mapping[str, str]

    @property
    def older(self) -> int:
        """Usable rows that were left out because so many newer ones were found."""
        return self.rows - self.kept - sum(self.rejected.values())

    @property
    def rejected_share(self) -> float:
        """Rejected rows over all rows."""
        return sum(self.rejected.values()) / max(1, self.rows)


class _Columns:
    """A log as it is read: numbers packed, equal texts held once."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self.numbers = {name: array("q") for name in _NUMBERS}
        self.context: dict[str, list[str | None]] = {}
        self._shared: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.numbers["time"])

    def append(self, texts: tuple[str, ...], numbers: tuple[int, ...], context: Mapping[str, str]) -> None:
        """One row: values in the order of `_TEXTS` and `_NUMBERS`."""
        for column, text in zip(self.texts.values(), texts, strict=True):
            column.append(self._once(text))
        for packed, number in zip(self.numbers.values(), numbers, strict=True):
            packed.append(number)
        for name in context.keys() - self.context.keys():
            self.context[name] = [None] * (len(self) - 1)
        for name, values in self.context.items():
            values.append(self._once(context[name]) if name in context else None)

    def _once(self, text: str) -> str:
        return self._shared.setdefault(text, text)

    def keep_newest(self, count: int) -> None:
        """Forgets all but the newest rows (of equal time, those read last)."""
        log = self.log().take(slice(max(0, len(self) - count), None))
        self.texts = {name: getattr(log, name).tolist() for name in _TEXTS}
        self.numbers = {name: array("q", getattr(log, name).tobytes()) for name in _NUMBERS}
        self.context = {name: values.tolist() for name, values in log.context.items()}
        self._shared = {}

    def log(self) -> "ClickLog":
        """The rows in order of time."""
        order = np.argsort(np.frombuffer(self.numbers["time"], np.int64), kind="stable")
        columns: dict[str, Any] = {name: np.array(column, object)[order] for name, column in self.texts.items()}
        columns |= {name: np.frombuffer(packed, np.int64)[order] for name, packed in self.numbers.items()}
        return ClickLog(
            **columns,
            context={name: np.array(values, object)[order] for name, values in self.context.items()},
        )


def read_clicks(
    path: Path, known_ads: Collection[str] | None, *, max_rejected: float = 0.01, newest: int | None = None
) -> tuple[ClickLog, LogReport]:
    """Reads a click log (Parquet, JSONL or CSV; row-level or aggregated) into memory.

    A row is rejected, and counted in the report, as ``bad_row``, ``bad_utf8``, ``missing_id`` (no request or ad id),
    ``unknown_ad`` (not in `known_ads`, unless that is None) or ``bad_counts`` (clicks negative or above impressions,
    impressions below 1, conversions negative or above clicks, a position below 0 or above 1,000).

    Args:
        newest: Keep only so many of the usable rows, in the memory of twice as many; of rows without times, the last.

    Raises:
        InputError: A required column is missing, no usable row is left, more than `max_rejected` (a share, 0 to 1) of
            the rows were rejected, or some times have a zone and others none.
    """
    if newest is not None and newest < 1:
        raise InputError(f"the number of newest rows must be 1 or more, not {newest}")
    columns = _Columns()
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    zones: dict[bool, str] = {}
    rows = 0
    for source, number, row in read_rows(path):
        rows += 1
        problem = row if isinstance(row, DamagedRow) else _append(row, columns, known_ads)
        if problem is not None:
            rejected[problem.reason] += 1
            examples.setdefault(problem.reason, f"{source}, row {number}: {problem.detail}")
        elif not isinstance(row, DamagedRow) and row.get("timestamp") not in (None, ""):
            zones.setdefault(zone_minutes(row, "timestamp") is not None, f"{source}, row {number}: {row['timestamp']}")
            if len(zones) > 1:
                raise InputError(f"some times have a zone and others have none ({zones[True]}; {zones[False]})")
        if newest is not None and len(columns) >= 2 * newest:
            columns.keep_newest(newest)
    if newest is not None:
        columns.keep_newest(newest)
    report = LogReport(rows, len(columns), dict(rejected), examples)
    _check_share(path, report, max_rejected)
    return columns.log(), report


def _append(row: Mapping[str, Any], columns: _Columns, known_ads: Collection[str] | None) -> DamagedRow | None:
    missing = [name for name in REQUIRED if name not in row]
    if missing:
        raise InputError(f"the click log lacks {', '.join(missing)}; it needs {', '.join(REQUIRED)}")
    try:
        request_id, ad_id, user_id = (as_text(row, name) for name in _TEXTS)
        clicks, impressions = as_int(row, "clicks"), as_int(row, "impressions")
        conversions, position = as_int(row, "conversions"), as_int(row, "position")
        moment = as_time(row, "timestamp")
        context = {name: as_text(row, name) for name in row.keys() - _NO_CONTEXT}
    except InputError as error:
        return DamagedRow("bad_row", str(error))
    if not request_id or not ad_id:
        return DamagedRow("missing_id", "request_id or ad_id is empty")
    if known_ads is not None and ad_id not in known_ads:
        return DamagedRow("unknown_ad", f"ad {ad_id!r} is not in the catalog")
    if not 0 <= clicks <= impressions or impressions < 1:
        return DamagedRow("bad_counts", f"{clicks} clicks on {impressions} impressions")
    if not 0 <= conversions <= clicks:
        return DamagedRow("bad_counts", f"{conversions} conversions of {clicks} clicks")
    if not 0 <= position <= MAX_POSITION:
        return DamagedRow("bad_counts", f"position {position} is not 1 to {MAX_POSITION}, or 0 for unknown")
    time = NO_TIME if moment is None else round(moment.timestamp() * 1_000_000)
    offset = zone_minutes(row, "timestamp") or 0
    columns.append(
        (request_id, ad_id, user_id),
        (time, offset, clicks, impressions, conversions, position),
        {name: text for name, text in context.items() if text},
    )
    return None


def _check_share(path: Path, report: LogReport, max_rejected: float) -> None:
    reasons = "; ".join(f"{count} {reason} ({report.examples[reason]})" for reason, count in report.rejected.items())
    if report.rejected_share > max_rejected:
        raise InputError(
            f"{path}: {report.rejected_share:.1%} of {report.rows} rows cannot be used, more than the "
            f"{max_rejected:.1%} allowed: {reasons}"
        )
    if report.kept == 0:
        raise InputError(f"{path} has no usable row{': ' + reasons if reasons else ''}")
