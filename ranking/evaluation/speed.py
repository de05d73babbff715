"""How long models take to read the ads of one request, measured side by side. Knows no labels."""

import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch

from ranking.evaluation.predict import Predictor

ADS = 100
_ROUNDS = 7


def milliseconds_per_request(predictors: Mapping[str, Predictor]) -> dict[str, float]:
    """Wall-clock milliseconds in which each model reads one user and `ADS` ads that it has met before, as text.

    Models take turns, so that a busy machine slows them alike; the median of several rounds counts. Of a log with fewer
    test rows, some are taken more than once.
    """
    data = next(iter(predictors.values())).data
    block = np.resize(data.split.test, ADS)
    rounds: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(_ROUNDS + 1):
        for name, predictor in predictors.items():
            started = time.perf_counter()
            predictor.score([block])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round fills the caches
                rounds[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in rounds.items()}
