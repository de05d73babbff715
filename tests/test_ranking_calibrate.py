"""Calibration recovers known distortions, keeps the order, and picks what foretells best."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit, logit

from ranking.calibration.calibrate import (
    METHODS,
    fit_beta,
    fit_calibration,
    fit_conversions,
    fit_isotonic,
    fit_platt,
    fit_temperature,
)
from ranking.calibration.calibration import Calibration

RANDOM = np.random.default_rng(1)
TRUE = RANDOM.normal(size=20_000)
CLICKS = (RANDOM.random(20_000) < expit(TRUE)).astype(np.int64)
ONES = np.ones_like(CLICKS)


def test_platt_scaling_recovers_a_known_distortion():
    found = fit_platt((TRUE - 0.5) / 2.0, CLICKS, ONES)
    assert (found.slope, found.intercept) == pytest.approx((2.0, 0.5), abs=0.1)


def test_temperature_recovers_a_known_scale():
    assert fit_temperature(TRUE / 3, CLICKS, ONES).slope == pytest.approx(3.0, abs=0.15)


def test_beta_recovers_a_known_distortion():
    want = Calibration(method="beta", beta=(0.5, 1.5, 0.2))
    clicks = (RANDOM.random(20_000) < want.probability(TRUE)).astype(np.int64)
    assert fit_beta(TRUE, clicks, ONES).beta == pytest.approx(want.beta, abs=0.15)


def test_beta_of_ones_is_no_calibration():
    np.testing.assert_allclose(Calibration(method="beta").probability(TRUE), expit(TRUE), atol=1e-12)


def test_isotonic_follows_steps_that_no_line_can():
    truth = np.where(TRUE > 0.3, 0.8, 0.1)
    clicks = (RANDOM.random(20_000) < truth).astype(np.int64)
    found = fit_calibration(TRUE, clicks, ONES)
    assert found.method == "isotonic"
    assert np.abs(found.probability(TRUE) - truth).mean() < 0.03


def test_the_simple_method_wins_where_it_is_true():
    found = fit_calibration(TRUE / 2, CLICKS, ONES)
    assert found.method in ("temperature", "platt", "beta")
    assert set(found.log_loss) == set(METHODS)
    assert min(found.log_loss, key=found.log_loss.get) == found.method
    assert found.log_loss["none"] > found.log_loss["temperature"] + 0.005


@pytest.mark.parametrize("fit", METHODS.values(), ids=METHODS)
def test_every_method_keeps_the_order_and_stays_a_probability(fit):
    places = np.array([-80.0, -3.0, 0.0, 0.1, 4.0, 80.0])
    p_click = fit(TRUE * 0.7 + 1, CLICKS, ONES).probability(places)
    assert (np.diff(p_click) >= 0).all()
    assert (p_click >= 0).all()
    assert (p_click <= 1).all()


@pytest.mark.parametrize("fit", [fit_platt, fit_temperature, fit_beta])
def test_a_fit_that_would_turn_the_order_around_is_not_taken(fit):
    found = fit(-TRUE, CLICKS, ONES)
    assert found.method == "none"


@pytest.mark.parametrize("clicks", [0 * ONES, ONES])
def test_one_class_is_not_calibrated(clicks):
    assert fit_calibration(TRUE, clicks, ONES) == Calibration()


def test_counts_weigh_like_rows():
    logits, clicks, impressions = logit(np.array([0.1, 0.4, 0.8])), np.array([30, 90, 130]), np.array([200, 200, 200])
    rows = np.repeat(np.arange(3), impressions)
    labels = np.concatenate([np.r_[np.ones(c), np.zeros(n - c)] for c, n in zip(clicks, impressions, strict=True)])
    for fit in (fit_platt, fit_isotonic):
        one = fit(logits, clicks, impressions).probability(logits)
        other = fit(logits[rows], labels.astype(np.int64), np.ones(len(rows), np.int64)).probability(logits)
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_conversions_are_shifted_to_their_number():
    p_click = expit(TRUE)
    both = p_click * expit(TRUE - 1)
    conversions = (RANDOM.random(20_000) < both).astype(np.int64)
    found = fit_conversions(p_click, TRUE + 1, conversions, ONES)
    assert found.intercept == pytest.approx(-2, abs=0.15)
    assert (p_click * found.probability(TRUE + 1)).sum() == pytest.approx(conversions.sum(), rel=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [{"slope": 0.0}, {"slope": -1.0}, {"beta": (-0.1, 1.0, 0.0)}, {"points": ((0.0, 0.5), (1.0, 0.4))}],
)
def test_a_calibration_that_falls_is_no_calibration(wrong):
    with pytest.raises(ValidationError, match="turn the order"):
        Calibration(**wrong)
