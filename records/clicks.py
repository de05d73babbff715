"""The click log: who was shown what, when, and whether they clicked; read, checked and split. Knows no models."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from records.errors import InputError
from records.files import DamagedRow, read_rows
from records.values import as_int, as_text, as_time, zone_minutes

Texts = npt.NDArray[np.object_]
Integers = npt.NDArray[np.int64]

REQUIRED = ("request_id", "ad_id", "clicks", "impressions")
_NO_CONTEXT = frozenset((*REQUIRED, "user_id", "timestamp", "position", "conversions"))
MAX_POSITION = 1000
_TEXTS = ("request_id", "ad_id", "user_id")
_COLUMNS = (*_TEXTS, "time", "utc_offset", "clicks", "impressions", "conversions", "position")
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

    def take(self, rows: npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_]) -> "ClickLog":
        """The given rows (indices or a mask), in the given order."""
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
    """What reading found: rows read, rows kept, and how many were rejected for each reason, with a first example."""

    rows: int
    kept: int
    rejected: Mapping[str, int]
    examples: Mapping[str, str]

    @property
    def rejected_share(self) -> float:
        """Rejected rows over all rows."""
        return sum(self.rejected.values()) / max(1, self.rows)


def read_clicks(
    path: Path, known_ads: Collection[str] | None, *, max_rejected: float = 0.01
) -> tuple[ClickLog, LogReport]:
    """Reads a click log (Parquet, JSONL or CSV; row-level or aggregated) into memory.

    A row is rejected, and counted in the report, as ``bad_row``, ``bad_utf8``, ``missing_id`` (no request or ad id),
    ``unknown_ad`` (not in `known_ads`, unless that is None) or ``bad_counts`` (clicks negative or above impressions,
    impressions below 1, conversions negative or above clicks, a position below 0 or above 1,000).

    Raises:
        InputError: A required column is missing, no usable row is left, more than `max_rejected` (a share, 0 to 1) of
            the rows were rejected, or some times have a zone and others none.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    context: dict[str, list[Any]] = {}
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    zones: dict[bool, str] = {}
    rows = 0
    for source, number, row in read_rows(path):
        rows += 1
        problem = row if isinstance(row, DamagedRow) else _append(row, columns, context, known_ads)
        if problem is not None:
            rejected[problem.reason] += 1
            examples.setdefault(problem.reason, f"{source}, row {number}: {problem.detail}")
        elif not isinstance(row, DamagedRow) and row.get("timestamp") not in (None, ""):
            zones.setdefault(zone_minutes(row, "timestamp") is not None, f"{source}, row {number}: {row['timestamp']}")
            if len(zones) > 1:
                raise InputError(f"some times have a zone and others have none ({zones[True]}; {zones[False]})")
    report = LogReport(rows, len(columns["ad_id"]), dict(rejected), examples)
    _check_share(path, report, max_rejected)
    return _sorted_log(columns, context), report


def _append(
    row: Mapping[str, Any],
    columns: dict[str, list[Any]],
    context: dict[str, list[Any]],
    known_ads: Collection[str] | None,
) -> DamagedRow | None:
    missing = [name for name in REQUIRED if name not in row]
    if missing:
        raise InputError(f"the click log lacks {', '.join(missing)}; it needs {', '.join(REQUIRED)}")
    try:
        request_id, ad_id, user_id = (as_text(row, name) for name in ("request_id", "ad_id", "user_id"))
        clicks, impressions = as_int(row, "clicks"), as_int(row, "impressions")
        conversions, position = as_int(row, "conversions"), as_int(row, "position")
        moment = as_time(row, "timestamp")
        extra = {name: as_text(row, name) or None for name in row.keys() - _NO_CONTEXT}
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
    values = (request_id, ad_id, user_id, time, offset, clicks, impressions, conversions, position)
    for column, value in zip(columns.values(), values, strict=True):
        column.append(value)
    for name in extra.keys() - context.keys():
        context[name] = [None] * (len(columns["ad_id"]) - 1)
    for name, texts in context.items():
        texts.append(extra.get(name))
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


def _sorted_log(columns: dict[str, list[Any]], context: dict[str, list[Any]]) -> ClickLog:
    order = np.argsort(np.array(columns["time"], np.int64), kind="stable")
    ordered = {name: np.array(columns[name], object if name in _TEXTS else np.int64)[order] for name in _COLUMNS}
    return ClickLog(**ordered, context={name: np.array(values, object)[order] for name, values in context.items()})


def split_by_time(log: ClickLog, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> tuple[Integers, ...]:
    """Row indices of training, validation and test: earliest rows first. No moment falls into two parts.

    Raises InputError if a row has no time or a part would be empty.
    """
    if not log.has_time:
        raise InputError("a split by time needs a timestamp in every row")
    cuts = [_cut(log.time, sum(shares[:parts])) for parts in (1, 2)]
    return _non_empty(np.split(np.arange(len(log)), cuts))


def split_by_key(keys: Texts, seed: int, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> tuple[Integers, ...]:
    """Row indices of training, validation and test: all rows of one key together, keys at random.

    With request ids, no request is torn apart; with ad ids, the test holds ads that no training row has. Raises
    InputError if a part is empty.
    """
    names, group = np.unique(keys.astype(str), return_inverse=True)
    return split_at_random(len(names), seed, shares, group)


def split_folds(keys: Texts, folds: int, fold: int, seed: int = 0) -> tuple[Integers, ...]:
    """Row indices of training, validation and test: the keys of one fold test, an eighth of the others validate.

    Raises InputError if a part is empty.
    """
    names, group = np.unique(keys.astype(str), return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(names))
    part = np.where(place % folds == fold, 2, np.where(place // folds % 8 == 0, 1, 0))
    return _non_empty([np.flatnonzero(part[group] == number) for number in range(3)])


def split_at_random(
    count: int,
    seed: int,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    group: npt.NDArray[np.integer[Any]] | None = None,
) -> tuple[Integers, ...]:
    """Row indices of training, validation and test: `count` rows (or groups, with the group of each row) at random.

    Raises InputError if a part is empty.
    """
    place = np.random.default_rng(seed).permutation(count) / count
    part = np.searchsorted(np.cumsum(shares[:2]) - 1e-9, place, side="right")
    return _non_empty([np.flatnonzero((part if group is None else part[group]) == number) for number in range(3)])


def _cut(time: Integers, share: float) -> int:
    """The first row at or after `share` of the log that begins a new moment."""
    row = min(round(share * len(time)), len(time) - 1)
    return int(np.searchsorted(time, time[row], side="left"))


def _non_empty(parts: list[npt.NDArray[Any]]) -> tuple[Integers, ...]:
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise InputError(f"the log is too small to split: the {name} part would be empty")
    return tuple(parts)
