"""What users did before a click log begins: events that histories hold, and that nobody counts. Knows no models."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, ClickLog, read_clicks
from adcascade.records.coded import Mask, combinations, joined
from adcascade.records.log_forms import HISTORY


def read_history(
    path: Path, log: ClickLog, known_ads: Collection[str], *, max_rejected: float = 0.01
) -> tuple[ClickLog, str]:
    """The events of a history that users of a log can look back on, each once, in order of time.

    Left out are events without a time, of users that the log does not have, of ads that are not in the catalog, and
    those of a user, ad and moment that the log or the history has already.

    Args:
        path: Parquet, JSONL or CSV, or a folder of such files. Needs user_id, ad_id and timestamp; an event that says
            nothing of clicks is a click.
        known_ads: ids of the catalog.
        max_rejected: Share of the rows, 0 to 1, that may be unusable by the rules of a click log.

    Returns:
        The events, and in a sentence how many there are and how many were left out.

    Raises:
        InputError: A required column is missing, more than `max_rejected` of the rows are unusable, or all are.
    """
    events, report = read_clicks(path, None, max_rejected=max_rejected, form=HISTORY)
    left_out = {f"{reason} ({report.examples[reason]})": count for reason, count in report.rejected.items()}
    # Of one user, ad and moment, what tells most comes first, and is what stays.
    events = events.take(np.lexsort((-events.clicks, -events.conversions, events.time)))
    users = frozenset(log.user_id.compact().names.to_pylist())
    for what, is_wanted in (
        ("without a timestamp", lambda some: some.time != NO_TIME),
        ("of users that the log does not have", lambda some: some.user_id.among(users)),
        ("of ads that are not in the catalog", lambda some: some.ad_id.among(known_ads)),
        ("that the log or the history has already", lambda some: _is_new(log, some)),
    ):
        wanted = is_wanted(events)
        left_out[what] = int((~wanted).sum())
        events = events.take(wanted)
    return events, _note(path, events, left_out)


def _is_new(log: ClickLog, events: ClickLog) -> Mask:
    """Which events are of another user, ad or moment than all rows of the log and all events before them."""
    both = followed_by(log, events)
    first, _ = combinations([both.user_id.codes, both.ad_id.codes, both.time])
    is_first = np.zeros(len(both), bool)
    is_first[first] = True
    return is_first[len(log) :]


def _note(path: Path, events: ClickLog, left_out: dict[str, int]) -> str:
    kept = f"The history {path} adds {len(events):,} events of {events.user_id.distinct:,} users"
    reasons = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    return f"{kept}; left out: {', '.join(reasons)}." if reasons else f"{kept}."


def followed_by(log: ClickLog, history: ClickLog) -> ClickLog:
    """The rows of a log, and after them the events of a history; without context, and not in order of time."""
    parts = (log, history)

    def numbers(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    return ClickLog(
        joined([part.request_id for part in parts]),
        joined([part.ad_id for part in parts]),
        joined([part.user_id for part in parts]),
        numbers("time"),
        numbers("utc_offset"),
        numbers("clicks"),
        numbers("impressions"),
        numbers("conversions"),
        numbers("position"),
        {},
    )
