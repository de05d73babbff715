"""Metrics with confidence intervals, and whether one model is better than another. Plain functions of arrays."""

from collections.abc import Mapping
from dataclasses import dataclass

from adcascade.reports.interval import Interval, bootstrap
from ranking.evaluation.metrics import METRICS, Sample, Weights

# What two models are compared by, on the same draws.
COMPARED = ("auc", "log_loss", "gauc", "ndcg_5")


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
    first, *others = samples
    units = samples[first].units

    def statistic(drawn: Weights) -> list[float]:
        weights = drawn[units]
        values = {
            model: {name: of(sample, weights) for name, of in METRICS.items()} for model, sample in samples.items()
        }
        differences = [values[first][name] - values[model][name] for model in others for name in COMPARED]
        return [value for of_model in values.values() for value in of_model.values()] + differences

    found = iter(bootstrap(statistic, int(units.max()) + 1, resamples=resamples, seed=seed))
    return Intervals(
        {model: {name: next(found) for name in METRICS} for model in samples},
        {model: {name: next(found) for name in COMPARED} for model in others},
    )
