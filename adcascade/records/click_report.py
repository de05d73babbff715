"""What reading a click log found: rows kept, rows rejected and why. Knows no columns."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from adcascade.records.batches import DamagedRow
from adcascade.records.click_batches import NO_TIME, GoodRows
from adcascade.records.errors import InputError

REJECTED_FILE = "rejected-clicks.jsonl"
# Of rejected rows, so many are kept with their reasons; all are counted.
_MOST_REJECTED = 100_000


# A line of that list is shorter: its detail quotes at most some thousand characters.
_LONGEST_REJECTED = 1 << 20


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that cannot be used: where it stands (file and row, from 1) and why."""

    source: str
    row: int
    reason: str
    detail: str


@dataclass(frozen=True)
class LogReport:
    """What reading found: rows read, rows kept, and how many were rejected for each reason, with a first example.

    Usable rows that are neither kept nor rejected were older than the newest that were asked for.

    Attributes:
        rejected_rows: those rejected, the first 100,000 of them.
        notes: what the owner should know of how the log was read, each a sentence.
        has_zones: whether the times have a zone, as numbers since 1970 do; None if there are no times.
    """

    rows: int
    kept: int
    rejected: Mapping[str, int]
    examples: Mapping[str, str]
    rejected_rows: Sequence[RejectedRow] = ()
    notes: tuple[str, ...] = ()
    has_zones: bool | None = None

    @property
    def older(self) -> int:
        """Usable rows that were left out because so many newer ones were found."""
        return self.rows - self.kept - sum(self.rejected.values())

    @property
    def rejected_share(self) -> float:
        """Rejected rows over all rows."""
        return sum(self.rejected.values()) / max(1, self.rows)

    def noted(self, *notes: str) -> "LogReport":
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))


_REJECTED_FIELDS = tuple(field.name for field in fields(RejectedRow))


class FoundRows:
    """What is counted while a log is read."""

    def __init__(self) -> None:
        self._rows = 0
        self._rejected: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._rejected_rows: list[RejectedRow] = []
        self._untimed: list[RejectedRow] = []

    def add(self, source: str, rows: int, refused: Mapping[int, DamagedRow]) -> None:
        """Counts the rows of a batch."""
        self._rows += rows
        for number, problem in sorted(refused.items()):
            self._reject(RejectedRow(source, number, problem.reason, problem.detail))

    def _reject(self, row: RejectedRow) -> None:
        self._rejected[row.reason] += 1
        self._examples.setdefault(row.reason, f"{row.source}, row {row.row}: {row.detail}")
        if len(self._rejected_rows) < _MOST_REJECTED:
            self._rejected_rows.append(row)

    def add_untimed(self, good: GoodRows) -> None:
        """Remembers rows without a time."""
        for row in good.rows[good.numbers["time"] == NO_TIME].tolist()[: _MOST_REJECTED - len(self._untimed)]:
            self._untimed.append(RejectedRow(good.source, row, "missing_time", "there is no timestamp"))

    def reject_untimed(self, count: int, kept: int, max_rejected: float) -> bool:
        """Counts rows without a time as rejected, unless these are all of those kept, or too many; whether it did."""
        if not 0 < count < kept or count > max_rejected * self._rows:
            return False
        for row in self._untimed[:count]:
            self._reject(row)
        self._rejected["missing_time"] = count
        return True

    def report(self, kept: int, notes: tuple[str, ...]) -> LogReport:
        """What was counted."""
        return LogReport(self._rows, kept, dict(self._rejected), self._examples, tuple(self._rejected_rows), notes)


def write_rejected(file: Path, rows: Sequence[RejectedRow]) -> None:
    """Lists rejected rows in a file, a JSON object a line; without any, there is no file. Raises InputError."""
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        if not rows:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", errors="replace") as lines:
            lines.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        os.replace(beside, file)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InputError(f"cannot write the rejected rows to {file}: {error.strerror}") from error


def check_replaceable(file: Path) -> None:
    """Raises InputError if there is something under this name that is no list of rejected rows, such as a log."""
    try:
        if file.exists() and not (file.is_file() and _begins_as_list(file)):
            raise InputError(f"{file} is no list of rejected rows, and is not written over: name another file for them")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def _begins_as_list(file: Path) -> bool:
    with file.open("rb") as lines:
        first = lines.readline(_LONGEST_REJECTED)
    try:
        return not first or set(_REJECTED_FIELDS) <= json.loads(first).keys()
    except (ValueError, AttributeError, RecursionError):
        return False


def check_share(path: Path, report: LogReport, max_rejected: float, rejected_file: Path | None) -> None:
    """Raises InputError if more rows than allowed were rejected, or none is left."""
    reasons = "; ".join(f"{count} {reason} ({report.examples[reason]})" for reason, count in report.rejected.items())
    see = f". All are in {rejected_file}" if rejected_file is not None and report.rejected else ""
    if report.rejected_share > max_rejected:
        raise InputError(
            f"{path}: {report.rejected_share:.1%} of {report.rows} rows cannot be used, more than the "
            f"{max_rejected:.1%} allowed: {reasons}{see}"
        )
    if report.kept == 0:
        raise InputError(f"{path} has no usable row{': ' + reasons if reasons else ''}{see}")
