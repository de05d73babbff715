"""In which order both stages' candidates stand, and the weights that clicks within requests tell."""

import numpy as np
import pytest

from pipeline.conditional_logit import Choices
from pipeline.order import DEFAULT_RETRIEVAL_WEIGHT, log_odds, order_of, weight_of


def made_up(weights, requests=3000, ads=5, seed=0):
    """Requests of several ads of which one is clicked, as these weights say."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(requests, ads, 2)) * [1.0, 7.0] + random.normal(size=(requests, 1, 2)) * 50
    noise = random.gumbel(size=(requests, ads))
    clicked = np.argmax(inputs @ np.asarray(weights) + noise, axis=1)
    clicks = (np.arange(ads) == clicked[:, None]).astype(np.int64)
    start = np.arange(0, requests * ads, ads)
    return Choices(inputs.reshape(-1, 2), clicks.ravel(), np.ones(requests * ads, np.int64), start)


def test_the_weights_that_made_the_clicks_are_found():
    fitted = made_up([1.0, 0.2]).fit(np.array([0, 1]))
    assert fitted == pytest.approx([1.0, 0.2], rel=0.08)


def test_nothing_fits_better_than_what_is_found():
    choices = made_up([0.7, 0.05])
    best = choices.fit(np.array([0, 1]))
    for change in ([0.05, 0], [-0.05, 0], [0, 0.01], [0, -0.01]):
        assert choices.log_likelihood(best).sum() > choices.log_likelihood(best + change).sum()


def test_what_speaks_against_a_click_counts_nothing():
    fitted = made_up([1.0, -0.2]).fit(np.array([0, 1]))
    assert fitted[1] == 0
    assert fitted[0] > 0.2


def test_an_input_that_is_left_out_has_no_weight():
    choices = made_up([1.0, 0.2])
    assert choices.fit(np.array([0]))[1] == 0


def test_an_input_that_is_alike_within_each_request_has_no_weight():
    choices = made_up([1.0, 0.2], requests=500)
    alike = choices.inputs.copy()
    alike[:, 0] = np.repeat(np.random.default_rng(1).normal(size=500) / 3, 5)
    fitted = Choices(alike, choices.clicks, choices.impressions, choices.start).fit(np.array([0, 1]))
    assert fitted[0] == 0
    assert fitted[1] > 0.05


def test_a_row_of_several_impressions_is_as_many_rows():
    inputs = np.array([[0.3, 1.0], [-1.0, 2.0], [0.5, 0.0]])
    together = Choices(inputs, np.array([2, 0, 1]), np.array([3, 1, 2]), np.array([0]))
    rows = np.array([0, 0, 0, 1, 2, 2])
    apart = Choices(inputs[rows], np.array([1, 1, 0, 0, 1, 0]), np.ones(6, np.int64), np.array([0]))
    weights = np.array([0.8, 0.1])
    assert together.log_likelihood(weights) == pytest.approx(apart.log_likelihood(weights))


def test_chance_alone_picks_each_ad_alike():
    choices = made_up([0.0, 0.0], requests=10, ads=4)
    assert choices.log_likelihood(np.zeros(2)) == pytest.approx([-np.log(4)] * 10)


def test_the_caller_goes_before_the_version_and_the_version_before_the_default():
    assert weight_of(0.0, 2.0) == 0.0
    assert weight_of(None, 0.0) == 0.0
    assert weight_of(None, None) == DEFAULT_RETRIEVAL_WEIGHT


def test_certain_probabilities_have_finite_odds():
    assert np.isfinite(log_odds([0.0, 1.0])).all()
    assert order_of([0.2, 1.0, 0.0], [0, 0, 0], 0.0).tolist() == [1, 0, 2]
