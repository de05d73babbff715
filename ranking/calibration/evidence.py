"""What clicks are worth as evidence: working responses, weights, likelihoods. Plain functions of arrays."""

import numpy as np
from scipy.special import expit

from adcascade.records.clicks import ClickLog, Integers
from ranking.calibration.ridge import Floats

_NEWTON_STEPS, _NEWTON_ENDS = 50, 1e-9


def working_response(known: Floats, clicks: Integers, impressions: Integers, groups: Integers) -> tuple[Floats, Floats]:
    """What is left to explain, for a least-squares step of a logistic regression (IRLS, Nelder and Wedderburn 1972).

        p = sigmoid(known), times what makes the clicks of a group come true        at most 0.95
        target = (clicks - n p) / (n p (1 - p))      weight = n p (1 - p)           n = impressions

    A group without a click, or with nothing else, tells nothing: its weights are 0.

    Args:
        known: logits, float64 [rows].
        groups: of rows that are compared with each other alone, int64 [rows], from 0.

    Returns:
        target and weight, float64 [rows].
    """
    p = expit(known)
    clicked, shown = np.bincount(groups, clicks), np.bincount(groups, impressions)
    expected = np.bincount(groups, impressions * p)
    p = np.clip(p * (clicked / np.maximum(expected, 1e-12))[groups], 1e-9, 0.95)
    tells = ((clicked > 0) & (clicked < shown))[groups]
    weight = np.where(tells, impressions * p * (1 - p), 0.0)
    return np.where(tells, (clicks - impressions * p) / np.maximum(weight, 1e-12), 0.0), weight


def random_effects_weight(target: Floats, weight: Floats, ads: Integers, groups: Integers) -> Floats:
    """Weights of rows whose ads differ by more than their texts and chance tell, so that no ad drowns the others.

    Log-odds of an ad are off by an effect of its own, of mean 0 and variance tau^2, that all of its rows share. The
    variance is estimated by moments (DerSimonian and Laird 1986):

        w = summed weight of the ad's rows in a group, n = that of all rows in it
        S = sum over the ad's rows of weight x target
        W = sum over groups of w - w^2 / n
        E = sum over groups of w^2 (sum of squared w in the group - w^2) / n^2      what the others' effects add to S^2
        tau^2 = max(0, (sum over ads of S^2 / W - ads) / sum over ads of (W + E / W))
        weight of a row = weight / (1 + tau^2 sum of weight over its ad's rows)

    E is exact where two ads share one group at most.

    Args:
        target, weight: what `working_response` returned, float64 [rows].
        ads: which ad each row shows, int64 [rows], from 0.
        groups: of rows that are compared with each other alone, int64 [rows], from 0.

    Returns:
        float64 [rows]; 0 where `weight` is.
    """
    total = np.bincount(groups, weight)
    cell, inverse = np.unique(ads * (int(groups.max()) + 1) + groups, return_inverse=True)
    ad, group = np.divmod(cell, int(groups.max()) + 1)
    of_cell = np.bincount(inverse, weight)
    of_group = np.maximum(total[group], 1e-12)
    compared = np.bincount(ad, of_cell - of_cell**2 / of_group)
    squares = np.bincount(group, of_cell**2)[group]
    of_others = np.bincount(ad, of_cell**2 * (squares - of_cell**2) / of_group**2)
    pull = np.bincount(ads, weight * target)
    tells = compared > 1e-9 * max(1.0, float(total.max()))
    spread = float((pull[tells] ** 2 / compared[tells]).sum()) - int(tells.sum())
    expected = float((compared[tells] + of_others[tells] / compared[tells]).sum())
    tau_squared = max(0.0, spread) / max(expected, 1e-12)
    shrunk: Floats = weight / (1 + tau_squared * np.bincount(ads, weight)[ads])
    return shrunk


def order_likelihood(logits: Floats, clicks: ClickLog, unit: Integers) -> Floats:
    """Log-likelihood of which rows of each unit were clicked, given how many were (see `listwise_loss`), [units]."""
    scores = logits + np.log(clicks.impressions)
    top = np.full(int(unit.max()) + 1, -np.inf)
    np.maximum.at(top, unit, scores)
    total = np.bincount(unit, np.exp(scores - top[unit]))
    return np.bincount(unit, clicks.clicks * (scores - top[unit] - np.log(total)[unit])).astype(np.float64)


def click_likelihood(logits: Floats, clicks: ClickLog, unit: Integers, counted: Floats | float = 1.0) -> Floats:
    """Log-likelihood of the clicks of each unit, [units]; each row is counted so many times."""
    of_rows = clicks.clicks * logits - clicks.impressions * np.logaddexp(0, logits)
    return np.bincount(unit, counted * of_rows).astype(np.float64)


def common_offset(logits: Floats, clicks: ClickLog, counted: Floats) -> float:
    """What added to the logits of all rows makes as many clicks likely as there are (Newton's method, damped).

    Args:
        counted: how many times each row is, float64 [rows]; some of a row with and of one without a click.
    """
    found, wanted = 0.0, float(counted @ clicks.clicks)
    for _ in range(_NEWTON_STEPS):
        p = expit(logits + found)
        expected, slope = float(counted @ (clicks.impressions * p)), float(counted @ (clicks.impressions * p * (1 - p)))
        step = (wanted - expected) / max(slope, 1e-12)
        found += min(max(step, -1.0), 1.0)
        if abs(step) < _NEWTON_ENDS:
            break
    return found
