"""Metrics with confidence intervals, and whether one model is better than another. Plain functions of arrays."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adcascade.reports.interval import Interval, interval_of
from ranking.evaluation.metrics import METRICS, Sample

# What two models are compared by, on the same draws.
COMPARED = ("auc", "log_loss")


@dataclass(frozen=True)
class Intervals:
    """Metrics of several models on the same rows, each with its 95 % bootstrap interval.

    Attributes:
        metrics: model -> metric -> value.
        differences: model -> metric of `COMPARED` -> value of the first model minus that of this one.
    """

    metrics: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]


def with_intervals(samples: Mapping[str, Sample], *, resamples: int = 200, seed: int = 0) -> Intervals:
    """All metrics of several models on the same rows.

    Whole units are drawn with replacement (rows of one user are not independent), the same ones for every model, so
    that a difference has an interval of its own (a paired test: it differs if the interval excludes zero).

    Args:
        samples: Model name to what it said; the rows are the same.
    """
    some = next(iter(samples.values()))
    units = int(some.units.max()) + 1
    generator = np.random.default_rng(seed)
    drawn: dict[tuple[str, str], list[float]] = {(model, name): [] for model in samples for name in METRICS}
    for _ in range(resamples):
        weights = np.bincount(generator.integers(0, units, units), minlength=units)[some.units].astype(np.float64)
        for model, sample in samples.items():
            for name, metric in METRICS.items():
                drawn[model, name].append(metric(sample, weights))
    ones = np.ones(len(some.units))
    values = {(model, name): METRICS[name](sample, ones) for model, sample in samples.items() for name in METRICS}
    first = next(iter(samples))

    def difference(model: str, name: str) -> Interval:
        draws = np.array(drawn[first, name]) - np.array(drawn[model, name])
        return interval_of(values[first, name] - values[model, name], draws)

    return Intervals(
        {model: {name: interval_of(values[model, name], drawn[model, name]) for name in METRICS} for model in samples},
        {model: {name: difference(model, name) for name in COMPARED} for model in samples if model != first},
    )
