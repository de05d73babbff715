"""What the ad of each row of a log has in common with what its user liked before. Knows no tensors and no models."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.records.coded import OfCodes
from adcascade.records.history import HistoryView
from ranking.data.interests import stated_interests
from ranking.inputs.content import ContentSpace, Similarity

if TYPE_CHECKING:
    from ranking.data.dataset import Dataset

# Rows whose liked texts are looked up at once, and pairs of row and text whose vectors are multiplied at once.
_ROWS, _PAIRS = 1 << 14, 1 << 16


def liked_texts(
    data: "Dataset", past: HistoryView, rows: Integers, events: int, interest: "OfCodes[np.int64] | None" = None
) -> tuple[Integers, Integers]:
    """Pairs of one of some rows and a text that its user is known to like, those of a row side by side.

    Args:
        events: how many of a user's newest ones are looked at.
        interest: see `stated_interests`; None to look it up.

    Returns:
        Place of the row in `rows`, rising, and number of the text, [pairs]: that of an ad in ``events.ad_id.sorted``,
        and after these those of `stated_interests`.
    """
    offsets, looked_at = past.spans(rows, events).recent()
    row = np.repeat(np.arange(len(rows)), np.diff(offsets))
    is_liked = data.events.clicks[looked_at] > 0
    interest = _interest_of_rows(data)[1] if interest is None else interest
    of_rows = interest[rows]
    stated = np.flatnonzero(of_rows >= 0)
    ads = data.events.ad_id.sorted
    row = np.r_[stated, row[is_liked]]
    text = np.r_[len(ads.names) + of_rows[stated], ads.codes[looked_at[is_liked]]]
    order = np.argsort(row, kind="stable")
    return row[order], text[order].astype(np.int64)


def _interest_of_rows(data: "Dataset") -> "tuple[list[str], OfCodes[np.int64]]":
    """The texts of `stated_interests`, and which of them the user of each row states, -1 for none."""
    users = data.log.user_id.compact()
    texts, stated = stated_interests(data, users)
    return texts, OfCodes(users.codes, stated)


class ContentRows:
    """Every row of a log in a content space."""

    def __init__(self, data: "Dataset", space: ContentSpace) -> None:
        ads = data.events.ad_id.sorted
        interests, self._interest = _interest_of_rows(data)
        self._vectors = space.vectors([*map(data.ad_text, ads.names.to_pylist()), *interests])
        self._data, self._ad, self._events = data, ads.codes, space.events

    def similarity(self, past: HistoryView, rows: Integers) -> Similarity:
        """Of some rows, each of which looks back on what `past` lets it see."""
        parts = [self._of_some(past, rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)]
        none = np.empty(0)
        return Similarity(
            np.concatenate([none, *(part.total for part in parts)]),
            np.concatenate([none, *(part.nearest for part in parts)]),
        )

    def _of_some(self, past: HistoryView, rows: Integers) -> Similarity:
        row, text = liked_texts(self._data, past, rows, self._events, self._interest)
        cosines = np.empty(len(row))
        for start in range(0, len(row), _PAIRS):
            some = slice(start, start + _PAIRS)
            shown, liked = self._vectors[self._ad[rows[row[some]]]], self._vectors[text[some]]
            cosines[some] = np.einsum("ij,ij->i", shown, liked)
        count = np.bincount(row, minlength=len(rows))
        table: npt.NDArray[np.float64] = np.full((len(rows), int(count.max(initial=0))), np.nan)
        table[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = cosines
        return Similarity.of(table)
