"""Metrics against direct definitions and against scikit-learn; intervals that hold the truth."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from ranking.evaluation.bootstrap import with_intervals
from ranking.evaluation.metrics import (
    METRICS,
    Sample,
    at_threshold,
    auc,
    calibration_noise,
    log_loss,
    reliability,
    unrolled,
)
from ranking.evaluation.request_metrics import pair_accuracies

RANDOM = np.random.default_rng(0)


def make_sample(p_click, clicks, impressions=None, units=None, requests=None):
    rows = np.arange(len(p_click))
    return Sample(
        np.array(p_click, float),
        np.array(clicks, np.int64),
        np.ones(len(rows), np.int64) if impressions is None else np.array(impressions, np.int64),
        rows if units is None else np.array(units),
        rows if requests is None else np.array(requests),
    )


def drawn_sample(rows, *, users=20, seed=0):
    """Clicks drawn from the probabilities themselves."""
    random = np.random.default_rng(seed)
    p_click = random.uniform(0.05, 0.95, rows)
    units = np.sort(np.r_[np.arange(users), random.integers(0, users, rows - users)])
    return make_sample(
        p_click,
        random.random(rows) < p_click,
        None,
        units,
        np.unique(units * 10 + np.arange(rows) % 3, return_inverse=True)[1],
    )


def value(name, sample, weights=None):
    return METRICS[name](sample, np.ones(len(sample.p_click)) if weights is None else weights)


def test_counts_weigh_like_rows():
    scores, clicks, impressions = np.array([0.2, 0.7, 0.4]), np.array([1, 3, 0]), np.array([4, 5, 2])
    rows = [(s, y) for s, c, n in zip(scores, clicks, impressions, strict=True) for y in [1] * c + [0] * (n - c)]
    single, labels = np.array([s for s, _ in rows]), np.array([y for _, y in rows])
    ones = np.ones(len(rows), np.int64)
    assert auc(scores, clicks, impressions) == pytest.approx(auc(single, labels, ones))
    assert log_loss(scores, clicks, impressions) == pytest.approx(log_loss(single, labels, ones))
    aggregated, plain = make_sample(scores, clicks, impressions), make_sample(single, labels)
    for name in ("pr_auc", "normalised_entropy", "predicted_over_actual"):
        assert value(name, aggregated) == pytest.approx(value(name, plain))


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_of_two_is_a_row_that_stands_twice(name):
    sample = drawn_sample(300)
    twice = np.flatnonzero(sample.units < 7)
    rows = np.concatenate([np.arange(300), twice])
    copies = np.r_[sample.units, sample.units[twice] + 20]
    requests = np.r_[sample.requests, sample.requests[twice] + sample.requests.max() + 1]
    doubled = make_sample(
        sample.p_click[rows], sample.clicks[rows], None, copies, np.unique(requests, return_inverse=True)[1]
    )
    weights = np.where(sample.units < 7, 2.0, 1.0)
    # A bin of the calibration error may end between the two copies.
    tolerance = 0.1 if name == "ece" else 1e-6
    assert value(name, sample, weights) == pytest.approx(value(name, doubled), rel=tolerance)


def test_gauc_is_the_mean_auc_of_users_who_clicked_and_passed():
    sample = drawn_sample(200, users=8)
    parts = [sample.units == unit for unit in range(8)]
    both = [part for part in parts if 0 < sample.clicks[part].sum() < part.sum()]
    want = np.average(
        [roc_auc_score(sample.clicks[part], sample.p_click[part]) for part in both],
        weights=[part.sum() for part in both],
    )
    assert value("gauc", sample) == pytest.approx(want)


def test_ndcg_is_of_the_requests_of_two_rows_and_a_click():
    """Against scikit-learn: a request of one row, and one without a click, have nothing to rank."""
    sample = drawn_sample(300, users=90)
    requests = [sample.requests == request for request in range(sample.requests.max() + 1)]
    ranked = [rows for rows in requests if rows.sum() > 1 and sample.clicks[rows].any()]
    assert 10 < len(ranked) < len(requests)
    for k in (5, 10):
        want = np.mean([ndcg_score([sample.clicks[rows]], [sample.p_click[rows]], k=k) for rows in ranked])
        assert value(f"ndcg_{k}", sample) == pytest.approx(want)


def test_mrr_and_pairs_of_a_request_by_hand():
    sample = make_sample([0.9, 0.5, 0.5, 0.1], [0, 1, 0, 1], None, [0] * 4, [0] * 4)
    assert value("mrr", sample) == pytest.approx((1 / 2 + 1 / 3) / 2)  # the first click is one of two that are equal
    assert value("pair_accuracy", sample) == pytest.approx(0.5 / 4)  # of 4 pairs that differ, one is a tie


def test_pairs_of_counts_compare_click_rates():
    sample = make_sample([0.3, 0.2, 0.1], [10, 30, 5], [1000, 1000, 100], [0] * 3, [0] * 3)
    assert value("pair_accuracy", sample) == pytest.approx(0 + 0 / 3)
    assert value("pair_accuracy", make_sample([0.1, 0.2, 0.3], [10, 30, 5], [1000, 1000, 100], [0] * 3, [0] * 3)) == 1


def test_pairs_that_differ_for_certain_are_counted_apart():
    # CTRs of 10 %, 11 % and 20 % in one request: 10 and 11 % differ by |z| = 0.7, the others by more than 5.
    clicks, impressions = np.array([100, 110, 200]), np.full(3, 1000)
    one = np.zeros(3, np.int64)
    for scores, want in (
        ([1.0, 2.0, 3.0], (1, 1)),
        ([2.0, 1.0, 3.0], (2 / 3, 1)),
        ([1.0, 3.0, 2.0], (2 / 3, 1 / 2)),
        ([1.0, 1.0, 1.0], (1 / 2, 1 / 2)),
    ):
        assert pair_accuracies(np.array(scores), clicks, impressions, one) == pytest.approx(want)
    assert np.isnan(pair_accuracies(np.array([1.0, 2.0]), clicks[:2], impressions[:2], one[:2])[1])


def test_pairs_are_of_one_request_and_of_different_rates():
    clicks, impressions = np.array([100, 200, 300, 300]), np.full(4, 1000)
    requests = np.array([0, 0, 1, 1])
    assert pair_accuracies(np.array([1.0, 2.0, 0.0, 5.0]), clicks, impressions, requests) == (1, 1)


def test_what_has_no_order_has_no_metric_of_order():
    sample = make_sample([0.2, 0.3], [0, 0])
    for name in ("auc", "gauc", "ndcg_5", "mrr", "pair_accuracy", "predicted_over_actual"):
        assert np.isnan(value(name, sample)), name
    assert value("log_loss", sample) > 0


def test_calibration_error_is_small_for_the_truth_and_large_for_a_liar():
    truth = drawn_sample(20_000, seed=1)
    assert value("ece", truth) < 0.02
    assert value("ece", truth) == pytest.approx(calibration_noise(truth), abs=0.006)
    liar = make_sample(truth.p_click**2, truth.clicks, None, truth.units, truth.requests)
    assert value("ece", liar) == pytest.approx(np.mean(truth.p_click - truth.p_click**2), abs=0.02)


def test_bins_hold_equal_mass_also_of_counts():
    impressions = RANDOM.integers(1, 50, 3000)
    sample = make_sample(RANDOM.random(3000), RANDOM.binomial(impressions, 0.3), impressions)
    predicted, actual, mass = reliability(sample, np.ones(3000))
    assert len(predicted) == len(actual) == 15
    assert (np.diff(predicted) > 0).all()
    np.testing.assert_allclose(mass, 1 / 15, atol=0.005)


def test_precision_and_recall_at_a_threshold_by_hand():
    found = at_threshold(make_sample([0.9, 0.6, 0.4, 0.2], [1, 0, 1, 0]), 0.5)
    assert found == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": 0.5}
    assert at_threshold(make_sample([0.1, 0.2], [1, 0]), 0.5)["precision"] == 0


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    random, held = np.random.default_rng(0), 0
    grid = np.linspace(0.05, 0.95, 10_001)
    truth = float(np.mean(-grid * np.log(grid) - (1 - grid) * np.log(1 - grid)))
    for trial in range(16):
        p_click = random.uniform(0.05, 0.95, 300)
        sample = make_sample(p_click, random.random(300) < p_click, None, None, np.arange(300) // 10)
        metric = with_intervals({"m": sample}, resamples=60, seed=trial).metrics["m"]["log_loss"]
        held += metric.low <= truth <= metric.high
    assert held >= 12


def test_a_difference_of_two_models_has_a_narrower_interval_than_each_alone():
    truth = drawn_sample(2000, users=200)
    worse = make_sample(
        np.clip(truth.p_click + RANDOM.normal(0, 0.05, 2000), 0, 1), truth.clicks, None, truth.units, truth.requests
    )
    found = with_intervals({"truth": truth, "worse": worse}, resamples=100)
    lead, alone = found.differences["worse"]["auc"], found.metrics["worse"]["auc"]
    assert lead.value == pytest.approx(found.metrics["truth"]["auc"].value - alone.value)
    assert lead.low <= lead.value <= lead.high
    assert lead.high - lead.low < (alone.high - alone.low) / 2
    same = with_intervals({"one": truth, "other": truth}, resamples=20).differences["other"]["auc"]
    assert (same.low, same.value, same.high) == (0, 0, 0)


@pytest.mark.parametrize("tied", [False, True])
def test_metrics_of_sorted_scores_are_those_of_scikit_learn_and_of_rows_one_by_one(tied):
    generator = np.random.default_rng(5)
    impressions = generator.integers(1, 4, 400)
    p_click = generator.random(400).round(1 if tied else 9)
    clicks, units = generator.binomial(impressions, p_click), np.sort(generator.integers(0, 30, 400))
    units = np.unique(units, return_inverse=True)[1]
    requests = np.unique(units * 10 + generator.integers(0, 8, 400), return_inverse=True)[1]
    sample, weights = make_sample(p_click, clicks, impressions, units, requests), generator.integers(0, 3, 400)
    labels, counts, scores = unrolled(p_click, clicks, impressions, weights)
    assert value("pr_auc", sample, weights) == pytest.approx(
        average_precision_score(labels, scores, sample_weight=counts), abs=1e-9
    )
    assert value("auc", sample, weights) == pytest.approx(auc(p_click, clicks, impressions, weights), abs=1e-9)
    assert value("log_loss", sample, weights) == pytest.approx(log_loss(p_click, clicks, impressions, weights))
    of_users = [
        auc(*(column[units == one] for column in (p_click, clicks, impressions))) for one in range(max(units) + 1)
    ]
    np.testing.assert_allclose(sample.user_aucs[0], of_users)
    ctr, found = clicks / impressions, sample.of_requests
    for one in range(max(requests) + 1):
        rows = np.flatnonzero(requests == one)
        pairs = [(a, b) for a in rows for b in rows if ctr[a] > ctr[b]]
        right = sum((p_click[a] > p_click[b]) + 0.5 * (p_click[a] == p_click[b]) for a, b in pairs)
        assert (found.pairs[one], found.concordant[one]) == (len(pairs), right)
