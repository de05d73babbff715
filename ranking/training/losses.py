"""What training minimises. Plain functions of tensors; each returns a sum, so that batches of any size add up.

Rows are aggregated: `clicks` of `impressions` (0 or 1 of 1 in a row-level log), float32 [rows], like `logits`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def click_loss(logits: Tensor, clicks: Tensor, impressions: Tensor) -> Tensor:
    """Binary cross-entropy of every impression, in nats, summed."""
    return (clicks * F.softplus(-logits) + (impressions - clicks) * F.softplus(logits)).sum()


def conversion_loss(click: Tensor, conversion: Tensor, conversions: Tensor, impressions: Tensor) -> Tensor:
    """Binary cross-entropy of a conversion, over all impressions and not over the clicked ones alone, summed.

    p_conversion is learned as a factor of p_click x p_conversion (ESMM, arXiv 1804.07931), so that it holds for ads
    that nobody would click, too.

    Args:
        click, conversion: Logits of a click, and of a conversion given the click.
    """
    both = F.logsigmoid(click) + F.logsigmoid(conversion)
    neither = torch.log1p(-both.exp().clamp(max=1 - 1e-6))
    return -(conversions * both + (impressions - conversions) * neither).sum()


def clicked_conversion_loss(conversion: Tensor, conversions: Tensor, clicks: Tensor) -> Tensor:
    """Binary cross-entropy of a conversion over the clicked rows alone, summed: what ESMM is to be compared with."""
    return click_loss(conversion, conversions, clicks)


def listwise_loss(logits: Tensor, clicks: Tensor, impressions: Tensor, groups: Tensor) -> Tensor:
    """How surprising it is which rows of a group were clicked, given how many clicks it had, in nats, summed.

    The conditional logit (McFadden 1974; ListNet, Cao et al. 2007, for one click): within a group, a click falls on a
    row with odds impressions x exp(logit). What is common to the group does not count.

    Args:
        groups: Number of each row's group, int64 [rows], from 0.
    """
    scores = logits + impressions.log()
    count = int(groups.max()) + 1
    top = scores.new_full((count,), -math.inf).scatter_reduce(0, groups, scores.detach(), "amax")
    total = scores.new_zeros(count).index_add(0, groups, (scores - top[groups]).exp())
    return -(clicks * (scores - top[groups] - total.log()[groups])).sum()


def pairwise_loss(logits: Tensor, clicks: Tensor, impressions: Tensor, groups: Tensor) -> Tensor:
    """RankNet (Burges et al. 2005) on the pairs of a group, weighted so that a group counts as much as its clicks.

    A pair's target is the probability that the first row has the higher CTR: for single impressions 1, 0 or 1/2, for
    counts the normal approximation of two proportions. See `listwise_loss` for the arguments.
    """
    first, second = _pairs(groups)
    if not len(first):
        return logits.sum() * 0
    ctr = clicks / impressions
    pooled = (clicks[first] + clicks[second]) / (impressions[first] + impressions[second])
    variance = pooled * (1 - pooled) * (1 / impressions[first] + 1 / impressions[second])
    target = torch.special.ndtr((ctr[first] - ctr[second]) / variance.clamp(min=1e-12).sqrt())
    single = (impressions[first] == 1) & (impressions[second] == 1)
    target = torch.where(single, (1 + torch.sign(ctr[first] - ctr[second])) / 2, target)
    counts = logits.new_zeros(int(groups.max()) + 1)
    weights = counts.index_add(0, groups, clicks) / counts.index_add(0, groups[first], torch.ones_like(target)).clamp(
        min=1
    )
    losses = F.binary_cross_entropy_with_logits(logits[first] - logits[second], target, reduction="none")
    return (losses * weights[groups[first]]).sum()


def _pairs(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Every two rows of one group, once, int64 [pairs] each; work and memory go with the pairs, not with all rows."""
    order = groups.argsort(stable=True)
    place, sizes = torch.arange(len(groups), device=groups.device), groups.bincount()
    # Each row is paired with those that come after it in its group.
    after = sizes.cumsum(0).repeat_interleave(sizes) - place - 1
    first = place.repeat_interleave(after)
    second = first + 1 + torch.arange(len(first), device=groups.device) - (after.cumsum(0) - after)[first]
    return order[first], order[second]


GROUP_LOSSES = {"listwise": listwise_loss, "pairwise": pairwise_loss}
