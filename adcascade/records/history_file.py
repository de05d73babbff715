"""What users did before a click log begins, or beside it: histories hold it, and nobody counts it. Knows no models."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, ClickLog, Integers, read_clicks
from adcascade.records.coded import Mask, combinations, joined
from adcascade.records.errors import InputError
from adcascade.records.log_forms import HISTORY

# A user's event with an ad less than so far from a row of the log with both is taken for that row: times are often cut
# to seconds, or to days.
_SAME_US = 86_400_000_000


def read_history(
    path: Path, log: ClickLog, known_ads: Collection[str], log_has_zones: bool | None, *, max_rejected: float = 0.01
) -> tuple[ClickLog, str]:
    """The events of a history that users of a log can look back on, each once, in order of time.

    Left out are events without a time, of users that the log does not have, of ads that are not in the catalog, those
    of a user, ad and moment that the history has already, and those of a user and an ad that the log has within a day:
    they are most likely the same event, timed otherwise, and a row of the log would see its own answer.

    Args:
        path: Parquet, JSONL or CSV, or a folder of such files. Needs user_id, ad_id and timestamp; an event that says
            nothing of clicks is a click.
        known_ads: ids of the catalog.
        log_has_zones: See `LogReport.has_zones`, of the log.
        max_rejected: Share of the rows, 0 to 1, that may be unusable by the rules of a click log.

    Returns:
        The events, and in a sentence how many there are and how many were left out.

    Raises:
        InputError: A required column is missing, more than `max_rejected` of the rows are unusable, or all are, or its
            times have a zone and those of the log have none, or the other way round.
    """
    events, report = read_clicks(path, None, max_rejected=max_rejected, form=HISTORY)
    _check_zones(path, log_has_zones, report.has_zones)
    left_out = {f"{reason} ({report.examples[reason]})": count for reason, count in report.rejected.items()}
    # Of one user, ad and moment, what tells most comes first, and is what stays.
    events = events.take(np.lexsort((-events.clicks, -events.conversions, events.time)))
    users = frozenset(log.user_id.compact().names.to_pylist())
    for what, is_wanted in (
        ("without a timestamp", lambda some: some.time != NO_TIME),
        ("of users that the log does not have", lambda some: some.user_id.among(users)),
        ("of ads that are not in the catalog", lambda some: some.ad_id.among(known_ads)),
        ("that the history has already", _is_first),
        ("that the log has, within a day", lambda some: ~_is_near(log, some)),
    ):
        wanted = is_wanted(events)
        left_out[what] = int((~wanted).sum())
        events = events.take(wanted)
    return events, _note(path, events, left_out)


def _check_zones(path: Path, log_has: bool | None, history_has: bool | None) -> None:
    if None not in (log_has, history_has) and log_has != history_has:
        one, other = ("a zone", "none") if history_has else ("no zone", "one")
        raise InputError(
            f"the times of {path} have {one}, and those of the log have {other}: write both alike, or an event might "
            "seem earlier than the row that it is"
        )


def _is_first(events: ClickLog) -> Mask:
    """Which events are of another user, ad or moment than all before them."""
    first, _ = combinations([events.user_id.codes, events.ad_id.codes, events.time])
    is_first = np.zeros(len(events), bool)
    is_first[first] = True
    return is_first


def _is_near(log: ClickLog, events: ClickLog) -> Mask:
    """Which events are of a user and an ad that a row of the log has less than a day before or after."""
    both = followed_by(log, events)
    pair = combinations([both.user_id.codes, both.ad_id.codes])[1].astype(np.int64)
    rows = np.flatnonzero(log.time != NO_TIME)
    order = rows[np.lexsort((log.time[rows], pair[rows]))]
    moments, rank = np.unique(log.time[order], return_inverse=True)
    base = len(moments) + 1
    place, of_events = pair[order] * base + rank, pair[len(log) :] * base

    def rows_up_to(time: Integers) -> Integers:
        """How many rows stand, by pair and time, up to each event's pair and this time."""
        return np.searchsorted(place, of_events + np.searchsorted(moments, time))

    near: Mask = rows_up_to(events.time + _SAME_US) > rows_up_to(events.time - _SAME_US + 1)
    return near


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
