"""Losses against direct definitions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ranking.data.labels import all_labels, thinned_labels
from ranking.evaluation.metrics import log_loss
from ranking.training.losses import click_loss, conversion_loss, listwise_loss, pairwise_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, generator=GENERATOR, dtype=torch.float64)
CLICKS = torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64)
ONES = torch.ones(6, dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 0, 1, 1, 2])


def test_click_loss_is_the_log_loss_of_all_impressions():
    clicks, impressions = np.array([1, 3, 0]), np.array([4, 5, 2])
    p_click = np.array([0.2, 0.7, 0.4])
    loss = click_loss(torch.logit(torch.from_numpy(p_click)), torch.from_numpy(clicks), torch.from_numpy(impressions))
    assert float(loss) / impressions.sum() == pytest.approx(log_loss(p_click, clicks, impressions))


def test_conversion_loss_is_that_of_the_product_over_all_impressions():
    other = LOGITS.flip(0)
    product = torch.sigmoid(LOGITS) * torch.sigmoid(other)
    conversions = torch.tensor([1.0, 0, 0, 0, 0, 1], dtype=torch.float64)
    want = F.binary_cross_entropy(product, conversions, reduction="sum")
    assert float(conversion_loss(LOGITS, other, conversions, ONES)) == pytest.approx(float(want))
    assert torch.isfinite(conversion_loss(torch.tensor([60.0]), torch.tensor([60.0]), torch.zeros(1), torch.ones(1)))


def test_listwise_loss_is_cross_entropy_within_each_group():
    want = -(torch.log_softmax(LOGITS[:3], 0)[[0, 2]].sum() + torch.log_softmax(LOGITS[5:], 0).sum())
    assert float(listwise_loss(LOGITS, CLICKS, ONES, GROUPS)) == pytest.approx(float(want))


def test_listwise_loss_does_not_see_what_is_common_to_a_group_and_is_least_at_the_true_rates():
    clicks, impressions = torch.tensor([10.0, 30.0, 4.0]), torch.tensor([1000.0, 1000.0, 500.0])
    groups = torch.zeros(3, dtype=torch.int64)
    true = torch.log(clicks / impressions).requires_grad_()
    loss = listwise_loss(true, clicks, impressions, groups)
    (gradient,) = torch.autograd.grad(loss, true)
    torch.testing.assert_close(gradient, torch.zeros(3), atol=1e-4, rtol=0)
    with torch.no_grad():
        assert float(listwise_loss(true + 5, clicks, impressions, groups)) == pytest.approx(float(loss), rel=1e-5)
        assert float(listwise_loss(true.flip(0), clicks, impressions, groups)) > float(loss)


def test_pairwise_loss_compares_the_rows_of_a_group_alone():
    pairs = [(0, 1, 1.0), (0, 2, 0.5), (1, 2, 0.0)]  # the first group; 2 clicks on 3 pairs
    want = sum(F.binary_cross_entropy_with_logits(LOGITS[a] - LOGITS[b], torch.tensor(t).double()) for a, b, t in pairs)
    found = pairwise_loss(LOGITS, CLICKS, ONES, GROUPS)
    assert float(found) == pytest.approx(float(want) * 2 / 3)


def test_pairwise_loss_of_mixed_groups_is_the_sum_over_groups_and_needs_no_table_of_all_pairs():
    random = torch.Generator().manual_seed(1)
    groups = torch.randint(0, 15_000, (30_000,), generator=random)  # all pairs would take 450 million
    logits = torch.randn(30_000, generator=random, dtype=torch.float64)
    clicks = torch.randint(0, 2, (30_000,), generator=random).double()
    ones = torch.ones(30_000, dtype=torch.float64)
    some = groups < 300
    want = sum(
        float(pairwise_loss(logits[mine], clicks[mine], ones[mine], torch.zeros(int(mine.sum()), dtype=torch.int64)))
        for mine in (groups == group for group in range(300))
        if mine.any()
    )
    assert float(pairwise_loss(logits[some], clicks[some], ones[some], groups[some])) == pytest.approx(want)
    assert float(pairwise_loss(logits, clicks, ones, groups)) > want


def test_pairwise_loss_of_rows_that_stand_alone_is_nothing_but_can_be_differentiated():
    logits = LOGITS.clone().requires_grad_()
    loss = pairwise_loss(logits, CLICKS, ONES, torch.arange(6))
    loss.backward()
    assert float(loss) == 0
    assert torch.equal(logits.grad, torch.zeros(6, dtype=torch.float64))


def test_a_pair_of_counts_is_as_certain_as_its_counts():
    groups, logits = torch.zeros(2, dtype=torch.int64), torch.tensor([3.0, -3.0])
    few = pairwise_loss(logits, torch.tensor([2.0, 1.0]), torch.tensor([100.0, 100.0]), groups) / 3
    many = pairwise_loss(logits, torch.tensor([200.0, 100.0]), torch.tensor([10_000.0, 10_000.0]), groups) / 300
    assert float(many) < float(few)


def test_thinned_impressions_without_a_click_teach_the_same_rates(thin_log):
    rows = np.arange(len(thin_log))
    labels = thinned_labels(thin_log, rows, rows, 0.2, seed=0)
    assert labels.impressions.sum() < 0.4 * thin_log.impressions.sum()
    assert (labels.impressions[labels.rows] > 0).all()
    shift = labels.shift
    best = torch.tensor([0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([best], max_iter=50)

    def closure():
        optimizer.zero_grad()
        clicks, impressions = labels.tensors(labels.rows, torch.device("cpu"), "clicks", "impressions")
        loss = click_loss(best.expand(len(clicks)) + shift, clicks, impressions) / len(clicks)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(torch.sigmoid(best)) == pytest.approx(thin_log.ctr, rel=0.05)


def test_a_rate_of_one_keeps_every_row(thin_log):
    rows = np.arange(len(thin_log))
    kept = thinned_labels(thin_log, rows, rows, 1.0, seed=0)
    assert (kept.shift, len(kept.rows)) == (0, len(rows))
    assert np.array_equal(kept.impressions, all_labels(thin_log, rows).impressions)


@pytest.fixture(scope="module")
def thin_log():
    from test_records_history import make_log

    random = np.random.default_rng(0)
    rows = [(number, "u", "a", int(random.random() < 0.05), 0) for number in range(20_000)]
    return make_log([(time, user, ad, clicked, further + 1 - clicked) for time, user, ad, clicked, further in rows])
