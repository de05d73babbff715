"""Columns that are probably meant as ones that are read, under another name. Knows names, not values.

A column of another name is context or an attribute, as the owner may well mean it; so these are named, and read as they
are.
"""

import logging
from collections.abc import Iterable, Mapping

log = logging.getLogger(__name__)

# Other names, by their letters and digits alone, for columns whose absence changes what is shown or learned.
_ALSO_CALLED: Mapping[str, frozenset[str]] = {
    "timestamp": frozenset(("time", "ts", "date", "datetime", "eventtime", "eventtimestamp", "createdat")),
    "user_id": frozenset(("user", "uid", "customerid", "visitorid", "memberid", "clientid")),
    "position": frozenset(("rank", "pos", "slotposition")),
    "start_time": frozenset(("start", "startdate", "startsat", "validfrom", "begin", "begintime")),
    "end_time": frozenset(("end", "enddate", "endsat", "validto", "validuntil", "expires", "expiresat", "expirydate")),
    "bid_micros": frozenset(("bid", "bidprice", "cpc")),
}


def near_names(columns: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Columns that are none of `known`, with the one each is probably meant as: one that is not there."""
    given = set(columns)
    absent = {name: _letters(name) for name in known if name not in given}
    others = {column: _letters(column) for column in given.difference(known)}
    return {
        column: name
        for column, letters in sorted(others.items())
        for name, wanted in absent.items()
        if letters == wanted or letters in _ALSO_CALLED.get(name, ())
    }


def warn_of_near_names(source: str, columns: Iterable[str], known: Iterable[str], told: set[str], read_as: str) -> None:
    """Names such columns of a file in a warning, unless they are in `told`, to which they are added.

    Args:
        read_as: what a column of another name is here, such as "context".
    """
    for column, name in near_names(columns, known).items():
        if column not in told:
            told.add(column)
            log.warning(
                "%s: the column %r is read as %s; if it is meant as %s, call it so", source, column, read_as, name
            )


def _letters(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())
