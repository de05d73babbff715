"""Whether boosted trees say what the network does not, and how both become one logit. Knows no serving and no text."""

import logging
import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import ClickLog
from adcascade.training.stage import StageContext, TrainingProgress
from ranking.calibration.calibrate import fit_slopes_near, held_out_logistic_loss
from ranking.data.dataset import Dataset
from ranking.data.feature_table import RowFeatures
from ranking.data.labels import labelled_rows
from ranking.inputs.features import Features
from ranking.model.trees import LEARNING_RATE, Blend, BoostedTrees, fit_booster
from ranking.training.options import TrainOptions

if TYPE_CHECKING:
    import lightgbm

log = logging.getLogger(__name__)

Logits = npt.NDArray[np.float64]

# Trees learn little more from more rows than so many, the newest.
_MOST_ROWS = 2_000_000
# What the trees say of the logit unless many clicks say otherwise, and how far from it the shares may be: a few hundred
# clicks would find any, by chance.
_TREES_SHARE, _SHARE_DEVIATION = 0.25, 0.1
# What the blend must lower the log loss by, in nats an impression, on rows that it was not fitted on.
_MIN_GAIN = 0.0002


def wants_trees(options: TrainOptions, data: Dataset) -> bool:
    """Not where the order within a request is learned, too: trees learn single rows, and would turn it around again.

    Nor where the log has places on the page: scores are those of an average place, and trees know no places, so that
    they would learn of an ad what was its place's.
    """
    learns_rows = options.behaviour.epochs > 0 and options.common.group_loss == "none"
    return options.behaviour.trees == "auto" and learns_rows and not (data.log.position > 0).any()


def train_trees(data: Dataset, features: RowFeatures, network: Logits, context: StageContext) -> BoostedTrees | None:
    """Boosted trees of the training part; None where they do not help the network on the validation part.

    Args:
        features: normalised, of every row of the log, float32 [rows, features].
        network: logits of the validation part, float64 [validation rows].
        context: who watches, and how long it may take.
    """
    best = math.inf

    def on_round(done: float, trees: int, loss: float) -> None:
        nonlocal best
        best = min(best, loss)
        context.watch(TrainingProgress("trees", trees, done, LEARNING_RATE, math.nan, None, best))

    train, valid = data.split.train[-_MOST_ROWS:], data.split.valid
    try:
        booster = fit_booster(
            labelled_rows(data.log, features, train),
            labelled_rows(data.log, features, valid),
            seconds=context.seconds,
            on_round=on_round,
        )
    except ImportError as error:
        log.warning("boosted trees are left out: %s", error)
        return None
    if booster is not None:
        on_round(1.0, booster.num_trees(), best)
    return None if booster is None else fit_blend(booster, network, features[valid], data.log.take(valid))


def fit_blend(
    booster: "lightgbm.Booster", network: Logits, features: Features, clicks: ClickLog
) -> BoostedTrees | None:
    """The trees with their share in the logit; None if they foretell nothing that the network does not.

    Args:
        network: logits of the network on rows that neither was trained on, float64 [rows].
        features: of these rows, float32 [rows, features].
        clicks: these rows.
    """
    trees = BoostedTrees(booster, Blend(network=0.0, trees=1.0, intercept=0.0)).logits(features)
    both = np.stack([network, trees], axis=1)
    fit = partial(fit_slopes_near, (1 - _TREES_SHARE, _TREES_SHARE), _SHARE_DEVIATION)
    before = held_out_logistic_loss(network[:, None], clicks.clicks, clicks.impressions)
    after = held_out_logistic_loss(both, clicks.clicks, clicks.impressions, fit)
    fitted = fit(both, clicks.clicks, clicks.impressions)
    if fitted is None or not before - after >= _MIN_GAIN or min(fitted[0]) <= 0:
        return None
    (of_network, of_trees), intercept = fitted
    return BoostedTrees(booster, Blend(network=of_network, trees=of_trees, intercept=intercept))
