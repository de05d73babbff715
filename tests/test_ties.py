"""Equal scores stand in no order: metrics are their expectation, of whatever order the log or the catalog has."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcascade.records.users import Context
from adcascade.reports.ranking_metrics import none_before
from adcascade.towers.evaluation.holdout import HeldOut
from adcascade.towers.evaluation.metrics import (
    Places,
    hit_at,
    ndcg_at,
    ranks_of,
    recall_at,
    reciprocal_rank,
    shown_first,
)
from adcascade.towers.training.sequences import Sequences
from ranking.evaluation.evaluate import _cumulative
from ranking.evaluation.metrics import METRICS, Sample, reliability
from retrieval.evaluation.evaluator import RetrievalEvaluator

NOTHING = np.empty(0, np.int64)


def sample_of(p_click, clicks, impressions=None, requests=None):
    rows = len(p_click)
    one = np.zeros(rows, np.int64)
    return Sample(
        np.array(p_click, float),
        np.array(clicks, np.int64),
        np.ones(rows, np.int64) if impressions is None else np.array(impressions, np.int64),
        one if requests is None else np.array(requests),
        one if requests is None else np.array(requests),
    )


def orders(scores):
    """The score of each ad or row in every order of those that are equal, made unequal by far less than they differ."""
    for order in permutations(range(len(scores))):
        yield np.array(scores, np.float64) + np.array(order) * 1e-3


def of_places(scores, clicked, seen=NOTHING):
    places = [ranks_of(scores, np.array(clicked), seen)]
    metrics = {f"recall@{k}": recall_at(places, k) for k in (1, 2, 4)}
    metrics |= {f"ndcg@{k}": ndcg_at(places, k) for k in (1, 3)} | {f"hit@{k}": hit_at(places, k) for k in (1, 2, 4)}
    return {name: float(values[0]) for name, values in {**metrics, "mrr": reciprocal_rank(places)}.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=5),
    st.sets(st.integers(0, 4), min_size=1, max_size=3),
    st.sets(st.integers(0, 4), max_size=1),
)
def test_each_metric_of_retrieval_is_its_mean_over_all_orders(scores, clicked, seen):
    clicked = sorted({ad for ad in clicked if ad < len(scores)} - seen)
    if not clicked:
        return
    left = np.array(sorted(ad for ad in seen if ad < len(scores)), np.int64)
    every = [of_places(broken, clicked, left) for broken in orders(scores)]
    want = {name: np.mean([one[name] for one in every]) for name in every[0]}
    assert of_places(np.array(scores, np.float32), clicked, left) == pytest.approx(want)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=5))
def test_each_metric_of_a_request_is_its_mean_over_all_orders(rows):
    scores, clicks = (np.array(column) for column in zip(*rows, strict=True))
    if not clicks.any():
        return
    ones = np.ones(len(rows))
    want = {name: [] for name in ("ndcg_5", "ndcg_10", "mrr", "pair_accuracy")}
    for broken in orders(scores):
        for name, values in want.items():
            values.append(METRICS[name](sample_of(broken, clicks, np.full(len(rows), 3)), ones))
    tied = sample_of(scores, clicks, np.full(len(rows), 3))
    found = {name: METRICS[name](tied, ones) for name in want}
    assert found == pytest.approx({name: np.mean(values) for name, values in want.items()}, nan_ok=True)


def test_what_has_no_ties_is_as_it_was():
    """By hand, of the definitions."""
    scores = np.array([0.9, 0.1, 0.5, 0.7], np.float32)
    found = of_places(scores, [1, 3])
    assert found["recall@2"] == 1 / 2
    assert found["mrr"] == 1 / 2
    assert found["ndcg@3"] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    sample = sample_of(scores, [0, 1, 0, 1])
    assert METRICS["mrr"](sample, np.ones(4)) == 1 / 2
    assert METRICS["ndcg_5"](sample, np.ones(4)) == pytest.approx(
        (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    )


def test_a_constant_ranker_gets_what_chance_gives_whatever_the_order_of_the_log():
    """A log whose first row of each request is the clicked one, and the same rows turned around."""
    clicks, requests = np.tile([1, 0, 0, 0], 50), np.repeat(np.arange(50), 4)
    for clicked in (clicks, clicks[::-1]):
        sample, ones = sample_of(np.full(200, 0.25), clicked, requests=requests), np.ones(200)
        assert METRICS["mrr"](sample, ones) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
        assert METRICS["ndcg_5"](sample, ones) == pytest.approx(np.mean(1 / np.log2(np.arange(2, 6))))
        for name in ("auc", "gauc", "pair_accuracy"):
            assert METRICS[name](sample, ones) == pytest.approx(0.5)
        assert METRICS["pr_auc"](sample, ones) == pytest.approx(0.25)
        assert METRICS["ece"](sample, ones) == pytest.approx(0)  # it says the CTR, which is right
        impressions, found = _cumulative(sample)
        assert (impressions.tolist(), found.tolist()) == ([0, 200], [0, 50])


def test_the_curve_of_calibration_does_not_know_the_order_of_the_log():
    """Two levels, and clicks on the first rows of each alone; the counts differ, too."""
    random = np.random.default_rng(0)
    p_click, clicks = np.repeat([0.2, 0.6], 30), np.tile(np.r_[np.ones(10), np.zeros(20)], 2).astype(int)
    impressions = random.integers(1, 5, 60)
    want = None
    for order in (np.arange(60), np.arange(60)[::-1], random.permutation(60)):
        found = reliability(sample_of(p_click[order], clicks[order], impressions[order]), np.ones(60))
        want = found if want is None else want
        for ours, theirs in zip(found, want, strict=True):
            np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize("turned", [False, True])
def test_a_method_that_scores_all_ads_alike_gets_what_chance_gives(turned):
    """Whatever the order of the catalog: here the clicked ads come first, or last."""
    ads, users = 200, 30
    clicked = [np.array([0, 1, 2]) if not turned else np.array([197, 198, 199])] * users
    nobody = Sequences([], np.zeros(1, np.int64), NOTHING, NOTHING, NOTHING, NOTHING, np.zeros((0, 0), np.int64))
    judged = HeldOut(
        [f"u{user}" for user in range(users)],
        clicked,
        [NOTHING] * users,
        [Context()] * users,
        nobody,
        np.full(users, -1),
    )
    popularity = np.arange(ads, dtype=np.float64) if not turned else np.arange(ads, dtype=np.float64)[::-1]
    judge = RetrievalEvaluator(judged, popularity)
    judge.add_scores("constant", lambda _: np.full(ads, 0.5, np.float32))
    found = judge.comparison(["constant"])
    metrics = {name: value.value for name, value in found.metrics["constant"].items()}
    assert metrics["recall@10"] == pytest.approx(10 / ads)
    assert metrics["recall@100"] == pytest.approx(100 / ads)
    none_of_ten = np.prod([(ads - 10 - taken) / (ads - taken) for taken in range(3)])
    assert metrics["hit@10"] == pytest.approx(1 - none_of_ten)
    random = np.random.default_rng(0)
    first = np.array([random.permutation(ads)[:3].min() for _ in range(20_000)])
    assert metrics["mrr"] == pytest.approx(np.mean(1 / (1 + first)), abs=0.002)
    assert found.popularity_lift["constant"] == pytest.approx(1)
    assert found.coverage["constant"] == pytest.approx(1 - 0.5**users)


def test_who_is_shown_first_is_sure_above_the_last_score_and_by_chance_at_it():
    found = shown_first(np.array([3, 1, 1, 9, 1, np.nan], np.float32), np.array([3]), 2)
    assert dict(zip(found.ads.tolist(), found.chance.tolist(), strict=True)) == pytest.approx(
        {0: 1, 1: 1 / 3, 2: 1 / 3, 4: 1 / 3}
    )
    assert shown_first(np.ones(2, np.float32), np.array([0, 1]), 100).ads.tolist() == []
    assert shown_first(np.arange(3, dtype=np.float32), NOTHING, 100).chance.tolist() == [1, 1, 1]


def test_a_score_that_is_no_number_stands_last():
    found = ranks_of(np.array([np.nan, 0.1, np.nan], np.float32), np.array([0, 1]), NOTHING)
    assert (found.first.tolist(), found.tied.tolist()) == ([1, 0], [2, 1])


def test_the_chance_to_meet_none_is_hypergeometric():
    assert none_before(4, 2).tolist() == pytest.approx([1, 1 / 2, 1 / 6, 0, 0])
    assert none_before(3, 3).tolist() == [1, 0, 0, 0]
    assert len(Places.known([1, 2])) == 2
