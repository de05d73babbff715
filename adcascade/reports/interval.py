"""A measured value with its bootstrap interval. Plain functions of arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % confidence interval; NaN where it is not known."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[Floats], Sequence[float] | Floats], units: int, *, resamples: int, seed: int = 0
) -> list[Interval]:
    """Numbers of a sample with their 95 % percentile intervals (Efron and Tibshirani 1993); units are drawn again.

    Args:
        statistic: How often each unit counts, float64 [units], to one or more numbers. It is asked once with all ones,
            and once a resample, of all numbers together: a difference of two has an interval of its own, as of a
            paired test. Resamples for which a number is NaN do not count for its interval.
        units: How many there are to draw, with replacement: users, say, whose rows are not independent.

    Raises:
        ValueError: There is no unit, or no resample.
    """
    if units < 1 or resamples < 1:
        raise ValueError(f"{units} units and {resamples} resamples: there must be one of each")
    generator, share = np.random.default_rng(seed), np.full(units, 1 / units)
    value = np.asarray(statistic(np.ones(units)), np.float64)
    draws = [statistic(generator.multinomial(units, share).astype(np.float64)) for _ in range(resamples)]
    columns = np.asarray(draws, np.float64).T
    return [Interval(float(one), *_ends(column)) for one, column in zip(value, columns, strict=True)]


def _ends(draws: Floats) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)
