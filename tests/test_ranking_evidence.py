"""What ads of many impressions count beside those of few, where ads differ by more than chance."""

import numpy as np
import pytest
from scipy.special import expit

from ranking.calibration.evidence import random_effects_weight, working_response

ADS = 3000


def ads_that_differ(deviation, groups, seed=0):
    random = np.random.default_rng(seed)
    impressions = np.exp(random.normal(7, 1.5, ADS)).astype(np.int64) + 20
    clicks = random.binomial(impressions, expit(random.normal(-3, deviation, ADS)))
    return working_response(np.full(ADS, -3.0), clicks, impressions, groups)


@pytest.mark.parametrize("shown_together", [ADS, 5])
def test_where_ads_differ_by_chance_alone_each_counts_as_its_impressions_do(shown_together):
    groups = np.arange(ADS) // shown_together
    target, weight = ads_that_differ(0.0, groups)
    found = random_effects_weight(target, weight, np.arange(ADS), groups)
    assert np.all(found <= weight)
    # weight / (1 + tau^2 W): chance alone leaves a tau of 0.02 or so.
    tells = weight > 0
    assert np.all(1 / found[tells] - 1 / weight[tells] < 0.0005)


@pytest.mark.parametrize("shown_together", [ADS, 5])
def test_where_they_differ_by_more_no_ad_drowns_the_others(shown_together):
    groups = np.arange(ADS) // shown_together
    target, weight = ads_that_differ(0.3, groups)
    found = random_effects_weight(target, weight, np.arange(ADS), groups)
    assert weight.max() > 50 * np.median(weight)
    assert np.array_equal(found == 0, weight == 0)


@pytest.mark.parametrize("shown_together", [ADS, 10, 4, 2])
def test_the_variance_between_ads_is_estimated_however_many_stand_together(shown_together):
    """Of normal targets with known weights: weight / (1 + tau^2 weight) tells the tau^2 that was found."""
    random, number = np.random.default_rng(0), 20_000
    groups = np.arange(number) // shown_together
    weight = np.exp(random.normal(2, 1, number))
    y = random.normal(0, 0.5, number) + random.normal(0, 1 / np.sqrt(weight))
    mean = np.bincount(groups, weight * y) / np.bincount(groups, weight)
    found = random_effects_weight(y - mean[groups], weight, np.arange(number), groups)
    tau_squared = 1 / found - 1 / weight
    np.testing.assert_allclose(tau_squared, 0.25, rtol=0.1)


def test_all_rows_of_an_ad_share_its_effect():
    groups = np.zeros(ADS, np.int64)
    target, weight = ads_that_differ(0.3, groups)
    whole = random_effects_weight(target, weight, np.arange(ADS), groups)
    rows = np.repeat(np.arange(ADS), 4)
    cut = random_effects_weight(target[rows], weight[rows] / 4, rows, groups[rows])
    np.testing.assert_allclose(np.bincount(rows, cut), whole, rtol=1e-6)


def test_rows_that_tell_nothing_get_no_weight():
    assert not random_effects_weight(np.zeros(4), np.zeros(4), np.arange(4), np.array([0, 0, 1, 1])).any()
