"""Logits of the rows of a log without reading text, worked out for the rows that are asked for. Knows no models."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from ranking.model.behaviour import BehaviourLogits

Floats = npt.NDArray[np.float32]


class RowLogits(Protocol):
    """A logit of each row of a log, looked up by row."""

    def __getitem__(self, rows: Integers, /) -> Floats:
        """Of some rows, float32 [rows]."""
        ...


class KnownLogits:
    """Logits of a click, looked up by row, and of a conversion; each row is scored once, when it is first asked for.

    Of a large log a training reads few rows of the text layers', and an evaluation the test part alone.

    Args:
        rows: of the log.
        score: logits of some rows, each once and rising, in their order.
    """

    def __init__(self, rows: int, score: Callable[[Integers], BehaviourLogits]) -> None:
        self._score = score
        self._is_known = np.zeros(rows, np.bool_)
        self._click, self._conversion = np.zeros((2, rows), np.float32)

    def __getitem__(self, rows: Integers, /) -> Floats:
        """Of a click of some rows, float32 [rows]; those that are not known yet are scored together."""
        self._learn(rows)
        return self._click[rows]

    def conversion(self, rows: Integers) -> Floats:
        """Of a conversion given the click, float32 [rows]."""
        self._learn(rows)
        return self._conversion[rows]

    def _learn(self, rows: Integers) -> None:
        missing = np.unique(rows[~self._is_known[rows]])
        if not len(missing):
            return
        found = self._score(missing)
        self._click[missing], self._conversion[missing] = found.click.numpy(), found.conversion.numpy()
        self._is_known[missing] = True
