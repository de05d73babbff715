"""What to say of a click log that was read: its span, what was left out, and whether its users are known.

Plain text; knows no terminal.
"""

from collections.abc import Collection
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from adcascade.records.clicks import NO_TIME, ClickLog, LogReport
from adcascade.records.coded import Mask
from adcascade.records.packed import totals
from adcascade.records.users_by_id import Users

# Nobody sees a tenth of all impressions: a user who does stands for many.
_LARGEST_USER = 0.1
# From so many values on, the share of different ones above which a column of context says nothing of other rows.
_FEW_VALUES, _OWN_VALUES = 20, 0.9


def summary_lines(log: ClickLog, report: LogReport, users: Collection[str] | None) -> list[str]:
    """What was read, in a few lines.

    Args:
        users: ids of the users file; None if there is none.
    """
    lines = [*rejected_lines(report)]
    if report.older:
        lines.append(f"{report.older:,} older rows were left out (--newest).")
    lines.append(span_line(log))
    if nobody := int((~log.user_id.known).sum()):
        lines.append(f"{nobody:,} of {len(log):,} rows are without a user_id.")
    if users is not None and nobody < len(log):
        lines.append(_known_users(log, users))
    return [*lines, *report.notes]


def rejected_lines(report: LogReport) -> list[str]:
    """What was left out of a log and why, a line a reason; empty if nothing was."""
    if not report.rejected:
        return []
    lines = [f"  {count:,} {reason}, such as {report.examples[reason]}" for reason, count in report.rejected.items()]
    return [f"{sum(report.rejected.values()):,} of {report.rows:,} rows of the log were left out:", *lines]


def span_line(log: ClickLog) -> str:
    """The first and the last day (UTC) of a log, and how many rows are without a timestamp."""
    timed = log.time != NO_TIME
    if not timed.any():
        return f"The log has {len(log):,} rows; {log.untimed_rows}."
    ends = log.time[timed.argmax()], log.time[len(log) - 1 - timed[::-1].argmax()]
    first, last = (datetime.fromtimestamp(int(time) / 1e6, UTC) for time in ends)
    days = (last.date() - first.date()).days + 1
    span = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC ({days:,} day{'s' if days > 1 else ''})"
    untimed = f"; {log.untimed_rows}" if log.untimed else ""
    return f"The log has {len(log):,} rows, {span}{untimed}."


def warning_lines(log: ClickLog, users: Collection[str] | None) -> list[str]:
    """What is probably wrong with a log's users and context; empty if nothing is."""
    warnings = _row_numbers(log)
    names, counts = _users_of(log)
    if not len(names):
        return warnings
    largest = int(np.argmax(counts))
    if counts[largest] > _LARGEST_USER * len(log):
        warnings.append(
            f"Warning: user {str(names[largest])[:80]!r} has {counts[largest]:,} of {len(log):,} rows. If this stands "
            "for users who are not known, leave user_id empty there."
        )
    if users is not None and not _are_among(names, users).any():
        given = next(iter(users), None)
        example = (
            f"there {given[:80]!r}, in the log {str(log.user_id.sorted_names[0])[:80]!r}"
            if given is not None
            else "it is empty"
        )
        warnings.append(f"Warning: none of the log's users is in the users file ({example}): are they the same ids?")
    return warnings


def _row_numbers(log: ClickLog) -> list[str]:
    """Of columns of context that tell rows apart and nothing else, such as row numbers and ids of events."""
    found = []
    for name, column in log.context.items():
        values = int(column.known.sum())
        if name != "page_text" and values >= _FEW_VALUES and column.distinct > _OWN_VALUES * values:
            found.append(name)
    if not found:
        return []
    return [
        f"Warning: nearly every row has a value of its own of {', '.join(map(repr, found))[:300]}, from which nothing "
        "is learned: leave out row numbers and ids of events, and write numbers in ranges."
    ]


def _known_users(log: ClickLog, users: Collection[str]) -> str:
    names, counts = _users_of(log)
    known = _are_among(names, users)
    share = counts[known].sum() / max(1, len(log))
    return f"{known.sum():,} of {len(names):,} users of the log ({share:.0%} of rows) are in the users file."


def _users_of(log: ClickLog) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Users of a log, and how many rows each has, int64 [users]."""
    rows = totals(log.user_id.codes, len(log.user_id.names))
    return log.user_id.names.filter(pa.array(rows > 0)), rows[rows > 0]


def _are_among(names: pa.LargeStringArray, users: Collection[str]) -> Mask:
    """Which of some names are those of users, bool [names]."""
    if isinstance(users, Users):
        return users.among(names)
    return np.array([name in users for name in names.to_pylist()], bool)
