"""What happened to the rows that are learned from, and what it costs to have foreseen something else."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.clicks import ClickLog, Integers
from adcascade.records.packed import index_type
from ranking.data.feature_table import RowFeatures
from ranking.model.trees import LabelledRows
from ranking.training.losses import GROUP_LOSSES, click_loss
from ranking.training.options import CommonOptions


@dataclass(frozen=True)
class Labels:
    """Counts of every row of a log, whole numbers [log rows]; only `rows` are learned from.

    Attributes:
        groups: number of each row's request.
        shift: what is added to a logit in training, because impressions without a click were left out: an odds of p
            in the log is an odds of p / rate in what is left (He et al. 2014, section 6.3).
    """

    rows: Integers
    clicks: Integers
    conversions: Integers
    impressions: Integers
    groups: Integers
    shift: float = 0.0

    def tensors(self, rows: Integers, device: torch.device, *names: str) -> tuple[Tensor, ...]:
        """The named columns of some rows, float32 [rows]."""
        return tuple(torch.from_numpy(getattr(self, name)[rows].astype(np.float32)).to(device) for name in names)

    def loss(self, logits: Tensor, rows: Integers, options: CommonOptions) -> Tensor:
        """Summed loss of some rows: clicks, and where asked for the order within each request."""
        clicks, impressions = self.tensors(rows, logits.device, "clicks", "impressions")
        loss = click_loss(logits + self.shift, clicks, impressions)
        if options.group_loss != "none":
            groups = torch.from_numpy(np.unique(self.groups[rows], return_inverse=True)[1]).to(logits.device)
            of_group = GROUP_LOSSES[options.group_loss](logits, clicks, impressions, groups)
            loss = (1 - options.group_weight) * loss + options.group_weight * of_group
        return loss


def labelled(clicks: Integers, impressions: Integers) -> tuple[Integers, Integers, Integers]:
    """Place, label and weight of the rows with clicks, and of those with impressions that were not clicked."""
    labels = np.repeat([1, 0], len(clicks))
    weights = np.concatenate([clicks, impressions - clicks])
    kept = np.flatnonzero(weights)
    return kept % len(clicks), labels[kept], weights[kept]


def labelled_rows(log: ClickLog, features: RowFeatures, rows: Integers) -> LabelledRows:
    """Some rows of a log for those who learn from a label and its weight; `features` are those of the whole log."""
    place, labels, weights = labelled(log.clicks[rows], log.impressions[rows])
    return LabelledRows(features[rows[place]], labels, weights)


def all_labels(log: ClickLog, groups: Integers, rows: Integers | None = None) -> Labels:
    """The given rows as they are; all, if None."""
    if rows is None:
        rows = np.arange(len(log), dtype=index_type(len(log)))
    return Labels(rows, log.clicks, log.conversions, log.impressions, groups)


def thinned_labels(log: ClickLog, groups: Integers, rows: Integers, rate: float, seed: int) -> Labels:
    """The given rows, of whose impressions without a click only about a share `rate` is kept."""
    if rate >= 1:
        return Labels(rows, log.clicks, log.conversions, log.impressions, groups)
    # Of n impressions without a click, each stays with probability `rate`: Binomial(n, rate) of them, [log rows].
    others: npt.NDArray[np.int64] = np.random.default_rng(seed).binomial(log.impressions - log.clicks, rate)
    impressions = log.clicks + others
    return Labels(rows[impressions[rows] > 0], log.clicks, log.conversions, impressions, groups, -float(np.log(rate)))
