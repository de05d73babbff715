"""Ridge regression on what texts say, rows being compared within their group alone. Plain functions of arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix

from adcascade.records.clicks import Integers

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]

_ROWS_PER_PRODUCT = 8192
# Whose matrix of ads by ads (128 MiB) may be made.
_MOST_ADS_SQUARED = 4096


@dataclass(frozen=True)
class RidgeFit:
    """Weights of a ridge regression.

    Attributes:
        weights: of the columns as they are, float64 [width].
        penalty: which was chosen.
        scale: row and column of the scales that were chosen.
        of_folds: weights that were fitted without each fold, float64 [folds, width].
    """

    weights: Floats
    penalty: float
    scale: tuple[int, int]
    of_folds: Floats


def fit_ridge(
    vectors: Vectors,
    ads: Integers,
    groups: Integers,
    target: Floats,
    weight: Floats,
    fold: Integers,
    penalties: Sequence[float],
    scales: Sequence[Sequence[Floats]] = (),
) -> RidgeFit:
    """Weights of a ridge regression whose penalty and scales lose least on folds that they were fitted without.

    The least is looked for downhill along the penalties, so that it may be a local one: first with the scales of the
    last column of each row, then with those of each column of the row that was best. Of equal losses the strongest
    penalty wins.

        argmin  sum n (y - x weights)^2 + penalty (sum n) |weights / scale|^2,  x and y centred within their groups

    Args:
        vectors: of texts, float32 [texts, width].
        ads: place of each row's ad in `vectors`, int64 [rows].
        groups: with which others each row is compared, int64 [rows].
        target, weight: y and n of each row, float64 [rows].
        fold: of each row, int64 [rows], from 0; rows are held out with others of their group and fold.
        scales: a table of ways to scale the columns of `vectors`, float64 [width] each; none: as they are.

    Raises:
        LinAlgError: A penalty is too small beside rounding for the equations to be solved.
    """
    table = list(scales) or [[np.ones(vectors.shape[1])]]

    def of(rows: npt.NDArray[np.bool_]) -> _NormalEquations:
        return _normal_equations(vectors, ads[rows], groups[rows], target[rows], weight[rows])

    folds = [fold == number for number in range(int(fold.max()) + 1)]
    whole, parts = of(np.ones(len(fold), np.bool_)), [of(rows) for rows in folds]
    if _cuts(fold, groups):  # equations of folds do not add up to those of all rows
        others = [of(~rows) for rows in folds]
    else:
        others = [_without(whole, part) for part in parts]

    @cache
    def loss(row: int, column: int, number: int) -> float:
        found = 0.0
        for (gram, moment, _), without in zip(parts, others, strict=True):
            weights = _solved(*without, penalties[number], table[row][column])
            found += float(weights @ gram @ weights - 2 * weights @ moment)
        return found

    columns = len(table[0])
    row, number = _least(lambda row, number: loss(row, columns - 1, number), len(table), len(penalties))
    column, number = _least(partial(loss, row), columns, len(penalties))
    penalty, scale = penalties[number], table[row][column]
    of_folds = np.array([_solved(*without, penalty, scale) for without in others])
    return RidgeFit(_solved(*whole, penalty, scale), penalty, (row, column), of_folds)


def _least(loss: Callable[[int, int], float], rows: int, columns: int) -> tuple[int, int]:
    """Where a table is least whose rows each fall to their least and rise from there, which is looked for downhill.

    Each row is entered where the one before was least, so that few of its entries are worked out. Of equal entries the
    one of the highest column counts as less.
    """
    number, found = columns // 2, []
    for place in range(rows):
        of = cache(partial(loss, place))
        while (lower := min(range(min(columns, number + 2) - 1, max(0, number - 1) - 1, -1), key=of)) != number:
            number = lower
        found.append((of(number), -number, place))
    _, negative, place = min(found)
    return place, -negative


_NormalEquations = tuple[Floats, Floats, float]


def _cuts(fold: Integers, groups: Integers) -> bool:
    """Whether rows of a group are in several folds."""
    groups = np.unique(groups, return_inverse=True)[1]
    of_group = np.zeros(int(groups.max()) + 1, np.int64)
    of_group[groups] = fold
    return bool((of_group[groups] != fold).any())


def _without(whole: _NormalEquations, part: _NormalEquations) -> _NormalEquations:
    """The equations of the other rows."""
    return whole[0] - part[0], whole[1] - part[1], whole[2] - part[2]


def _normal_equations(
    vectors: Vectors, ads: Integers, groups: Integers, log_odds: Floats, weight: Floats
) -> _NormalEquations:
    """sum n x x', sum n y x and sum n over some rows, x and y centred within their groups."""
    rows = np.flatnonzero(weight)
    _, group = np.unique(groups[rows], return_inverse=True)
    used, ads = np.unique(ads[rows], return_inverse=True)
    weight, log_odds = weight[rows], log_odds[rows]
    total = np.bincount(group, weight).astype(np.float64)
    pull = weight * (log_odds - (np.bincount(group, weight * log_odds) / total)[group])
    # n of each ad in each group, [groups, ads].
    shared = csr_matrix((weight, (group, ads)), (len(total), len(used)))
    moment = _summed(np.bincount(ads, pull, minlength=len(used)).astype(np.float64), vectors, used)
    return _gram(vectors, used, shared, total), moment, float(weight.sum())


def _summed(factors: Floats, vectors: Vectors, used: Integers) -> Floats:
    """sum factor v over some texts, float64 [width]."""
    found = np.zeros(vectors.shape[1])
    for start in range(0, len(used), _ROWS_PER_PRODUCT):
        some = slice(start, start + _ROWS_PER_PRODUCT)
        found += factors[some] @ vectors[used[some]].astype(np.float64)
    return found


def _gram(vectors: Vectors, used: Integers, shared: csr_matrix, total: Floats) -> Floats:
    """sum n (v - m)(v - m)' = sum n v v' - sum over groups of (sum n) m m' with the group's mean m = sum n v / sum n.

    With S = `shared` and V the vectors of `used`, this is V' (diag(sum over groups of S) - S' diag(1 / total) S) V.
    Where the matrix in the middle is small, it is made first; else products of as many rows as ads, and as groups.
    """
    (groups, ads), width = shared.shape, vectors.shape[1]
    of_ad = np.asarray(shared.sum(axis=0))[0]
    shared = csr_matrix(shared.multiply(1 / np.sqrt(total)[:, None]))
    gram = np.zeros((width, width))
    if ads <= _MOST_ADS_SQUARED and 2 * ads * (ads + width) < (ads + groups) * width:
        read = vectors[used].astype(np.float64)
        return np.asarray(read.T @ ((np.diag(of_ad) - (shared.T @ shared).toarray()) @ read))
    for start in range(0, ads, _ROWS_PER_PRODUCT):
        some = slice(start, start + _ROWS_PER_PRODUCT)
        weighed = vectors[used[some]] * np.sqrt(of_ad[some, None])
        gram += weighed.T @ weighed  # of one array with itself: half the work
    for start in range(0, groups, _ROWS_PER_PRODUCT):
        part = shared[start : start + _ROWS_PER_PRODUCT]
        read_by = np.unique(part.indices)
        sums = part[:, read_by] @ vectors[used[read_by]].astype(np.float64)
        gram -= sums.T @ sums
    return gram


def _solved(gram: Floats, moment: Floats, weight: float, penalty: float, scale: Floats) -> Floats:
    """The weights of one penalty; zeros where no row weighs anything, and for columns of scale 0."""
    weights: Floats = np.zeros_like(moment)
    used = np.flatnonzero(scale)
    if weight > 0 and len(used):
        system = gram[np.ix_(used, used)]
        system[np.diag_indices(len(used))] += penalty * weight / scale[used] ** 2
        factor = cho_factor(system, overwrite_a=True)
        weights[used] = cho_solve(factor, moment[used])
    return weights
