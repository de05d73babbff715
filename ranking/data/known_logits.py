"""Logits of the rows of a log without reading text, worked out for the rows that are asked for. Knows no models."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.records.coded import Mask
from ranking.model.behaviour import BehaviourLogits

Floats = npt.NDArray[np.float32]


class RowLogits(Protocol):
    """A logit of each row of a log, looked up by row."""

    def __getitem__(self, rows: Integers, /) -> Floats:
        """Of some rows, float32 [rows]."""
        ...


class KnownLogits:
    """Logits of a click, looked up by row, and of a conversion; each row is scored once, when it is first asked for.

    Of a large log a training reads few rows of the text layers', and an evaluation the test part alone: only rows that
    are known are held.

    Args:
        score: logits of some rows, each once and rising, in their order.
    """

    def __init__(self, score: Callable[[Integers], BehaviourLogits]) -> None:
        self._score = score
        self._rows = np.empty(0, np.int64)  # that are known, rising
        self._logits = np.empty((2, 0), np.float32)  # of a click and of a conversion, [2, known rows]

    def __getitem__(self, rows: Integers, /) -> Floats:
        """Of a click of some rows, float32 [rows]; those that are not known yet are scored together."""
        click: Floats = self._of(rows)[0]
        return click

    def conversion(self, rows: Integers) -> Floats:
        """Of a conversion given the click, float32 [rows]."""
        conversion: Floats = self._of(rows)[1]
        return conversion

    def _of(self, rows: Integers) -> Floats:
        """Of a click and of a conversion, float32 [2, rows]."""
        missing = np.unique(rows[~self._is_known(rows)])
        if len(missing):
            found = self._score(missing)
            order = np.argsort(np.concatenate([self._rows, missing]), kind="stable")
            self._rows = np.concatenate([self._rows, missing])[order]
            learned = np.stack([found.click.numpy(), found.conversion.numpy()])
            self._logits = np.concatenate([self._logits, learned], axis=1)[:, order]
        return self._logits[:, np.searchsorted(self._rows, rows)]

    def _is_known(self, rows: Integers) -> Mask:
        if not len(self._rows):
            return np.zeros(len(rows), np.bool_)
        place = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        known: Mask = self._rows[place] == rows
        return known
