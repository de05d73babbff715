"""Which calibration foretells best what it was not fitted on. Plain functions of arrays.

Each fit takes logits, float64 [rows], of rows that were not trained on, and their clicks and impressions, int64 [rows].
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from adcascade.records.clicks import Integers
from ranking.calibration.calibration import Calibration
from ranking.evaluation.metrics import log_loss

Logits = npt.NDArray[np.float64]
_FOLDS = 5
# Far more than it takes; a step is cut where the curvature says little.
_NEWTON_STEPS, _LONGEST_STEP, _STILL = 100, 1.0, 1e-8
# Isotonic steps go this far from 0 and 1, so that no probability is a certainty.
_CERTAINTY = 1e-4


def fit_calibration(logits: Logits, clicks: Integers, impressions: Integers) -> Calibration:
    """The best of all methods by cross-validated log loss, fitted on all rows; `log_loss` holds the comparison.

    Args:
        logits: Of rows that were not trained on, float64 [rows].
        clicks, impressions: int64 [rows].

    Returns:
        The identity if the rows hold one class only, or are too few to compare.
    """
    if len(logits) < 2 * _FOLDS or not clicks.any() or not (impressions - clicks).any():
        return Calibration()
    losses: dict[str, float] = {}
    for name, fit in METHODS.items():
        folds = KFold(_FOLDS, shuffle=True, random_state=0).split(logits)
        held_out = [_held_out_loss(fit, logits, clicks, impressions, *fold) for fold in folds]
        losses[name] = float(np.sum(held_out) / impressions.sum())
    best = METHODS[min(losses, key=losses.__getitem__)](logits, clicks, impressions)
    return best.model_copy(update={"log_loss": losses})


def _held_out_loss(
    fit: Callable[[Logits, Integers, Integers], Calibration],
    logits: Logits,
    clicks: Integers,
    impressions: Integers,
    fitted: Integers,
    held_out: Integers,
) -> float:
    p_click = fit(logits[fitted], clicks[fitted], impressions[fitted]).probability(logits[held_out])
    return log_loss(p_click, clicks[held_out], impressions[held_out]) * float(impressions[held_out].sum())


def fit_platt(logits: Logits, clicks: Integers, impressions: Integers) -> Calibration:
    """Scale and shift (Platt 1999); the identity if the fit would turn the order around, or there is one class."""
    found = fit_slopes(logits[:, None], clicks, impressions)
    if found is None or found[0][0] <= 0:
        return Calibration()
    return Calibration(method="platt", slope=found[0][0], intercept=found[1])


def fit_temperature(logits: Logits, clicks: Integers, impressions: Integers) -> Calibration:
    """Scale alone (Guo et al. 2017)."""
    found = fit_slopes(logits[:, None], clicks, impressions, intercept=False)
    return Calibration() if found is None or found[0][0] <= 0 else Calibration(method="temperature", slope=found[0][0])


def fit_beta(logits: Logits, clicks: Integers, impressions: Integers) -> Calibration:
    """Beta calibration (Kull et al. 2017); Platt where one of its slopes would fall."""
    columns = np.stack([-np.logaddexp(0, -logits), np.logaddexp(0, logits)], axis=1)
    found = fit_slopes(columns, clicks, impressions)
    if found is None or min(found[0]) < 0:
        return fit_platt(logits, clicks, impressions)
    return Calibration(method="beta", beta=(found[0][0], found[0][1], found[1]))


def fit_isotonic(logits: Logits, clicks: Integers, impressions: Integers) -> Calibration:
    """Isotonic regression (Zadrozny and Elkan 2002)."""
    fitted = IsotonicRegression(y_min=_CERTAINTY, y_max=1 - _CERTAINTY, out_of_bounds="clip")
    fitted.fit(logits, clicks / impressions, sample_weight=impressions)
    points = zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True)
    return Calibration(method="isotonic", points=tuple(points))


def no_calibration(logits: Logits, clicks: Integers, impressions: Integers) -> Calibration:
    """The sigmoid as it is."""
    return Calibration()


METHODS: Mapping[str, Callable[[Logits, Integers, Integers], Calibration]] = {
    "none": no_calibration,
    "temperature": fit_temperature,
    "platt": fit_platt,
    "beta": fit_beta,
    "isotonic": fit_isotonic,
}


Slopes = tuple[list[float], float]


def held_out_logistic_loss(
    columns: Logits,
    clicks: Integers,
    impressions: Integers,
    fit: Callable[[Logits, Integers, Integers], Slopes | None] | None = None,
) -> float:
    """Cross-validated log loss, in nats an impression, of a logistic regression on `columns` [rows, columns].

    Infinite where a fold holds one class only, or the rows are too few to compare.

    Args:
        fit: finds its slopes and intercept; `fit_slopes` unless it is given.
    """
    if len(columns) < 2 * _FOLDS:
        return np.inf
    total = 0.0
    for fitted, held_out in KFold(_FOLDS, shuffle=True, random_state=0).split(columns):
        model = (fit or fit_slopes)(columns[fitted], clicks[fitted], impressions[fitted])
        if model is None:
            return np.inf
        p_click = expit(columns[held_out] @ np.array(model[0]) + model[1])
        loss = log_loss(p_click, clicks[held_out], impressions[held_out])
        total += loss * float(impressions[held_out].sum())
    return total / float(impressions.sum())


def fit_conversions(p_click: Logits, logits: Logits, conversions: Integers, impressions: Integers) -> Calibration:
    """Shifts the logits of a conversion given the click so that p_click x p_conversion foretells all conversions.

    No slope is fitted: the clicked rows alone, which could tell one, are a biased sample of all.
    """
    actual = float(conversions.sum())

    def excess(shift: float) -> float:
        return float((p_click * expit(logits + shift) * impressions).sum()) - actual

    low, high = -20.0, 20.0
    shift = float(brentq(excess, low, high)) if excess(low) < 0 < excess(high) else 0.0
    return Calibration(method="platt", intercept=shift)


def fit_slopes(columns: Logits, clicks: Integers, impressions: Integers, *, intercept: bool = True) -> Slopes | None:
    """Slopes and intercept of a logistic regression without regularisation; None if there is one class only.

    Args:
        columns: float64 [rows, columns], of which there is a slope each.
        clicks, impressions: int64 [rows].
    """
    others = impressions - clicks
    if not clicks.any() or not others.any():
        return None
    model = LogisticRegression(C=np.inf, fit_intercept=intercept, max_iter=1000)
    labels = np.repeat([1, 0], len(columns))
    model.fit(np.concatenate([columns, columns]), labels, sample_weight=np.concatenate([clicks, others]))
    return model.coef_[0].tolist(), float(model.intercept_[0]) if intercept else 0.0


def fit_slopes_near(
    expected: Sequence[float], deviation: float, columns: Logits, clicks: Integers, impressions: Integers
) -> Slopes | None:
    """The same with slopes that are taken to be near `expected` until the rows say otherwise; None as in `fit_slopes`.

    The most probable slopes under a normal prior, by Newton's method; nothing is expected of the intercept. None, too,
    if it does not come to rest.

    Args:
        expected: mean of the prior, of each slope.
        deviation: of the prior, of every slope.
    """
    if not clicks.any() or not (impressions - clicks).any():
        return None
    design = np.column_stack([columns, np.ones(len(columns))])
    mean = np.append(np.asarray(expected, np.float64), 0.0)
    precision = np.append(np.full(len(expected), deviation**-2), 1e-9)
    found = mean.copy()
    found[-1] = np.log(clicks.sum() / (impressions - clicks).sum())  # and not from a point where nothing is curved
    for _ in range(_NEWTON_STEPS):
        p_click = expit(design @ found)
        pull = design.T @ (impressions * p_click - clicks) + precision * (found - mean)
        curvature = (design.T * (impressions * p_click * (1 - p_click))) @ design + np.diag(precision)
        step = solve(curvature, pull, assume_a="pos")
        found = found - step * min(1.0, _LONGEST_STEP / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < _STILL:
            return found[:-1].tolist(), float(found[-1])
    return None
