"""Metrics of an order against every order of what is equal, and against scikit-learn, which averages over ties, too."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from adcascade.reports.ranking_metrics import ndcg, reciprocal_rank, tied_places

# Of each item a score and a gain, with many that are equal.
ONE_LIST = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6)


def by_definition(gains_in_order, k):
    """nDCG of the first `k`, and 1 / place of the first that has a gain, of items in a known order."""
    gains = list(gains_in_order)

    def dcg(ordered):
        return sum(gain / np.log2(place + 2) for place, gain in enumerate(ordered[:k]))

    return dcg(gains) / dcg(sorted(gains, reverse=True)), 1 / (1 + next(i for i, gain in enumerate(gains) if gain))


def over_all_orders(items, k):
    """The mean of both over every order in which no item stands before one of a higher score."""
    found = [
        by_definition([gain for _, gain in order], k)
        for order in permutations(items)
        if all(before >= after for (before, _), (after, _) in pairwise(order))
    ]
    return np.mean(found, axis=0)


def flat(lists, random):
    """Scores, gains and numbers of the lists of all items, in no order."""
    rows = [(score, gain, number) for number, items in enumerate(lists) for score, gain in items]
    scores, gains, numbers = np.array(rows)[random.permutation(len(rows))].T
    return scores.astype(float), gains.astype(float), numbers


@settings(max_examples=60, deadline=None)
@given(st.lists(ONE_LIST, min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_metrics_of_an_order_are_their_mean_over_every_order_of_what_is_equal(lists, k, seed):
    scores, gains, numbers = flat(lists, np.random.default_rng(seed))
    first, tied = tied_places(scores, numbers)
    found = np.transpose([ndcg(gains, first, tied, numbers, k), reciprocal_rank(gains > 0, first, tied, numbers)])
    nothing = np.full(2, np.nan)
    want = [over_all_orders(items, k) if any(gain for _, gain in items) else nothing for items in lists]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 5)), min_size=2, max_size=40),
    st.integers(1, 50),
)
def test_ndcg_agrees_with_scikit_learn_with_ties(items, k):
    scores, gains = np.array(items).T
    assume(gains.max() > 1e-3)
    one = np.zeros(len(items), np.int64)
    found = ndcg(gains, *tied_places(scores, one), one, k)
    assert found == pytest.approx([ndcg_score([gains], [scores], k=k)], abs=1e-9)


def test_items_that_are_left_out_have_no_gain_but_take_their_places():
    """Two relevant items share the second and the third place; whether the first is named makes no difference."""
    whole = ndcg(np.array([0.0, 1.0, 1.0]), np.array([0, 1, 1]), np.array([1, 2, 2]), np.zeros(3, np.int64), 10)
    relevant = ndcg(np.ones(2), np.array([1, 1]), np.array([2, 2]), np.zeros(2, np.int64), 10)
    assert whole == pytest.approx(relevant)
    assert relevant[0] < 1


def test_no_lists_have_no_metrics():
    nothing = np.empty(0, np.int64)
    first, tied = tied_places(np.empty(0), nothing)
    assert len(ndcg(np.empty(0), first, tied, nothing, 10)) == 0
    assert len(reciprocal_rank(np.empty(0, bool), first, tied, nothing)) == 0
