"""Ridge regression on what texts say, rows being compared within their group alone. Plain functions of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from scipy.sparse import csr_matrix

from adcascade.records.clicks import Integers

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]

_ROWS_PER_PRODUCT = 8192


@dataclass(frozen=True)
class RidgeFit:
    """Weights of a ridge regression.

    Attributes:
        weights: of the columns as they are, float64 [width].
        penalty: which was chosen.
        scale: place of the scales that were chosen.
        of_folds: weights that were fitted without each fold, float64 [folds, width].
    """

    weights: Floats
    penalty: float
    scale: int
    of_folds: Floats


def fit_ridge(
    vectors: Vectors,
    ads: Integers,
    groups: Integers,
    target: Floats,
    weight: Floats,
    fold: Integers,
    penalties: Sequence[float],
    scales: Sequence[Floats] = (),
) -> RidgeFit:
    """Weights of a ridge regression whose penalty and scales lose least on folds that they were fitted without.

        argmin  sum n (y - x weights)^2 + penalty (sum n) |weights / scale|^2,  x and y centred within their groups

    Args:
        vectors: of texts, float32 [texts, width].
        ads: place of each row's ad in `vectors`, int64 [rows].
        groups: with which others each row is compared, int64 [rows].
        target, weight: y and n of each row, float64 [rows].
        fold: of each row, int64 [rows], from 0; rows are held out with others of their group and fold.
        scales: ways to scale the columns of `vectors`, float64 [width] each; none: as they are.
    """
    columns = list(scales) or [np.ones(vectors.shape[1])]

    def of(rows: npt.NDArray[np.bool_]) -> _NormalEquations:
        return _normal_equations(vectors, ads[rows], groups[rows], target[rows], weight[rows])

    # Equations of folds do not add up to those of all rows where a fold cuts through groups.
    folds = [fold == number for number in range(int(fold.max()) + 1)]
    whole, parts, others = of(np.ones(len(fold), np.bool_)), [of(rows) for rows in folds], [of(~rows) for rows in folds]
    loss = np.zeros((len(columns), len(penalties)))
    for (gram, moment, _), without in zip(parts, others, strict=True):
        for place, scale in enumerate(columns):
            for number, penalty in enumerate(penalties):
                weights = _solved(*without, penalty, scale)
                loss[place, number] += weights @ gram @ weights - 2 * weights @ moment
    place, number = (int(one) for one in np.unravel_index(int(loss.argmin()), loss.shape))
    penalty, scale = penalties[number], columns[place]
    of_folds = np.array([_solved(*without, penalty, scale) for without in others])
    return RidgeFit(_solved(*whole, penalty, scale), penalty, place, of_folds)


_NormalEquations = tuple[Floats, Floats, float]


def _normal_equations(
    vectors: Vectors, ads: Integers, groups: Integers, log_odds: Floats, weight: Floats
) -> _NormalEquations:
    """sum n x x', sum n y x and sum n over some rows, x and y centred within their groups."""
    rows = np.flatnonzero(weight)
    _, group = np.unique(groups[rows], return_inverse=True)
    ads, weight, log_odds = ads[rows], weight[rows], log_odds[rows]
    total = np.bincount(group, weight)
    pull = weight * (log_odds - (np.bincount(group, weight * log_odds) / total)[group])
    width, whole = vectors.shape[1], float(weight.sum())
    gram, moment = np.zeros((width, width)), np.zeros(width)
    used, ads = np.unique(ads, return_inverse=True)
    of_ad, pull_of_ad = (np.bincount(ads, values, minlength=len(used)) for values in (weight, pull))
    for start in range(0, len(used), _ROWS_PER_PRODUCT):
        some = slice(start, start + _ROWS_PER_PRODUCT)
        read = vectors[used[some]].astype(np.float64)
        gram += (read * of_ad[some, None]).T @ read
        moment += pull_of_ad[some] @ read
    # sum n (v - m)(v - m)' = sum n v v' - sum over groups of (sum n) m m' with the group's mean m = sum n v / sum n.
    of_group = csr_matrix((weight, (group, used[ads])), (len(total), len(vectors)))
    for start in range(0, len(total), _ROWS_PER_PRODUCT):
        part = of_group[start : start + _ROWS_PER_PRODUCT]
        read_by = np.unique(part.indices)
        sums = part[:, read_by] @ vectors[read_by].astype(np.float64)
        gram -= (sums / total[start : start + _ROWS_PER_PRODUCT, None]).T @ sums
    return gram, moment, whole


def _solved(gram: Floats, moment: Floats, weight: float, penalty: float, scale: Floats) -> Floats:
    """The weights of one penalty; zeros where no row weighs anything, and for columns of scale 0."""
    weights: Floats = np.zeros_like(moment)
    used = np.flatnonzero(scale)
    if weight > 0 and len(used):
        system = gram[np.ix_(used, used)]
        system[np.diag_indices(len(used))] += penalty * weight / scale[used] ** 2
        weights[used] = solve(system, moment[used], assume_a="pos", overwrite_a=True)
    return weights
