"""Equations of a ridge regression whose rows are compared within their groups, and how its penalty is found."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge

from ranking.calibration import ridge
from ranking.calibration.ridge import fit_ridge
from ranking.training import prior_texts
from ranking.training.prior_texts import topics_of


def rows_of(ads, rows, groups, width=9, seed=0):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(ads, width)).astype(np.float32)
    ad, group = random.integers(0, ads, rows), random.integers(0, groups, rows)
    weight = random.random(rows) * (random.random(rows) > 0.2)
    return vectors, ad, group, vectors[ad] @ random.normal(size=width) + random.normal(size=rows), weight


@pytest.mark.parametrize("most_ads", [0, 4096])
@pytest.mark.parametrize(("ads", "rows", "groups"), [(20, 900, 300), (400, 500, 7)])
def test_weights_are_those_of_rows_that_are_centred_one_by_one(monkeypatch, most_ads, ads, rows, groups):
    monkeypatch.setattr(ridge, "_MOST_ADS_SQUARED", most_ads)
    monkeypatch.setattr(ridge, "_ROWS_PER_PRODUCT", 64)
    vectors, ad, group, target, weight = rows_of(ads, rows, groups)
    fit = fit_ridge(vectors, ad, group, target, weight, group % 5, (0.01,))

    def plain(chosen):
        x, y, n = vectors[ad[chosen]].astype(np.float64), target[chosen].copy(), weight[chosen]
        for one in np.unique(group[chosen]):
            of = np.flatnonzero(group[chosen] == one)
            if n[of].any():
                x[of] -= np.average(x[of], axis=0, weights=n[of])
                y[of] -= np.average(y[of], weights=n[of])
        return Ridge(0.01 * n.sum(), fit_intercept=False).fit(x, y, n).coef_

    np.testing.assert_allclose(fit.weights, plain(np.arange(rows)), rtol=1e-8)
    for number, found in enumerate(fit.of_folds):  # folds of whole groups: what is left of the equations of all rows
        np.testing.assert_allclose(found, plain(np.flatnonzero(group % 5 != number)), rtol=1e-8)


def test_the_least_loss_is_found_downhill_without_working_out_all_of_them():
    random = np.random.default_rng(0)
    for _ in range(200):
        least = random.integers(0, 8, 4)
        table = np.abs(np.arange(8) - least[:, None]) + random.random((4, 1))
        asked = set()

        def loss(row, column, table=table, asked=asked):
            asked.add((row, column))
            return table[row, column]

        assert ridge._least(loss, 4, 8) == np.unravel_index(table.argmin(), table.shape)
    one = iter([1.0])
    assert ridge._least(lambda row, column: next(one), 1, 1) == (0, 0)
    near = set()
    ridge._least(lambda row, column: near.add((row, column)) or abs(column - 4), 3, 8)
    assert len(near) == 9


def test_scales_are_a_table_of_which_the_last_column_is_looked_at_first():
    random = np.random.default_rng(0)
    vectors, ad, group, _, weight = rows_of(60, 900, 30, width=6)
    truth = np.array([3.0, 3.0, 1.0, 1.0, 0.0, 0.0])
    target = vectors[ad] @ truth + random.normal(size=len(ad))
    table = [[np.repeat([1.0, word, other], 2) for other in (0.0, 0.7, 1.4)] for word in (0.0, 0.5)]
    fit = fit_ridge(vectors, ad, group, target, weight, group % 5, (0.001, 0.1, 10.0), table)
    assert fit.scale == (1, 0)  # the second pair of columns tells something, and the third nothing
    assert not fit.weights[4:].any()
    alone = fit_ridge(vectors, ad, group, target, weight, group % 5, (fit.penalty,), [[table[1][0]]])
    np.testing.assert_allclose(fit.weights, alone.weights)
    np.testing.assert_allclose(fit.of_folds, alone.of_folds)


def test_topics_of_few_texts_are_the_leading_singular_vectors(monkeypatch):
    random = np.random.default_rng(0)
    words = csr_matrix(random.normal(size=(40, 90)) * (random.random((40, 90)) > 0.8))
    want = np.linalg.svd(words.toarray(), full_matrices=False)[2][:10]
    found = topics_of(words, 10)
    np.testing.assert_allclose(np.abs((found * want).sum(axis=1)), 1, rtol=1e-4)
    equal = topics_of(csr_matrix(np.tile(words[:1].toarray(), (30, 1))), 15)  # of one text thirty times there is one
    np.testing.assert_allclose(np.linalg.norm(equal, axis=1), [1] + [0] * 14, atol=1e-5)
    monkeypatch.setattr(prior_texts, "_MOST_EXACT", 10)
    many = topics_of(words, 10)
    assert many.shape == found.shape
    np.testing.assert_allclose(np.abs((many * want).sum(axis=1))[:3], 1, rtol=0.05)
