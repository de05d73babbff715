"""Bootstrap intervals against scipy's, and what a statistic is asked with."""

import numpy as np
import pytest
from scipy import stats

from adcascade.reports.interval import bootstrap
from adcascade.towers.evaluation.metrics import with_interval


def test_an_interval_is_the_one_that_scipy_finds():
    values = np.random.default_rng(0).exponential(1.0, 400)
    want = stats.bootstrap([values], np.mean, n_resamples=4000, method="percentile", random_state=1)
    found = with_interval(values, resamples=4000)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(want.confidence_interval), abs=0.1 * want.standard_error)


def test_each_resample_draws_as_many_units_as_there_are():
    asked = []
    bootstrap(lambda drawn: [asked.append(drawn) or 0.0], 50, resamples=200)
    ones, *drawn = np.array(asked)
    assert (ones == 1).all()
    assert len(drawn) == 200
    assert (np.sum(drawn, axis=1) == 50).all()
    assert np.mean(drawn, axis=0) == pytest.approx(np.ones(50), abs=0.4)  # about five standard errors
    assert np.var(drawn) == pytest.approx(1 - 1 / 50, rel=0.1)  # binomial
    again = []
    bootstrap(lambda drawn: [again.append(drawn) or 0.0], 50, resamples=200)
    np.testing.assert_array_equal(asked, again)


def test_a_difference_is_paired_and_draws_without_a_number_do_not_count():
    values = np.array([0.0, 1.0, 2.0, 3.0])

    def statistic(drawn):
        mean = drawn @ values / 4
        return [mean, mean - (drawn @ (values + 1)) / 4, mean if drawn[0] else np.nan, np.nan]

    mean, difference, sometimes, never = bootstrap(statistic, 4, resamples=300)
    assert mean.low < mean.value == 1.5 < mean.high
    assert (difference.low, difference.value, difference.high) == (-1, -1, -1)
    assert sometimes.low <= sometimes.high < mean.high  # the first unit, which has no worth, is among them
    assert np.isnan([never.value, never.low, never.high]).all()
