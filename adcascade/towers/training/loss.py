"""What the towers learn from: a softmax over ads, all or a sample of them. Plain functions of tensors."""

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_loss(interests: Tensor, vectors: Tensor, targets: Tensor, seen: Tensor, log_q: Tensor | None) -> Tensor:
    """Mean over moments of the cross entropy between what followed and a softmax over the ads not seen before.

    Where the ads are a sample, the logit of each is lowered by the log of its chance to be in it (Bengio and Senecal
    2008; Yi et al. 2019), or popular ads would be pushed away for being drawn often.

    Args:
        interests: [moments, dimension].
        vectors: of the ads, [ads, dimension].
        targets: weights of the ads that followed, 0 for others, [moments, ads].
        seen: ads that cannot follow any more, bool [moments, ads].
        log_q: log of each ad's chance to be in the sample, [ads]; None if these are all ads.
    """
    scores = interests @ vectors.T
    if log_q is not None:
        scores = scores - log_q
    scores = scores.masked_fill(seen, -torch.inf)
    share = targets / targets.sum(dim=1, keepdim=True)
    surprise = F.log_softmax(scores, dim=1).masked_fill(targets == 0, 0.0)
    return -(surprise * share).sum(dim=1).mean()
