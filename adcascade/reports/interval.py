"""A measured value with its bootstrap interval. Plain functions of arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % confidence interval; NaN where it is not known."""

    value: float
    low: float
    high: float


def interval_of(value: float, draws: npt.ArrayLike) -> Interval:
    """`value` between the 2.5th and the 97.5th percentile of what resamples gave; those that gave NaN do not count."""
    numbers = np.asarray(draws, np.float64)
    known = numbers[~np.isnan(numbers)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))
