"""What is fitted beside the network once it knows what people did: boosted trees, and what texts alone say.

Both are solved or grown from the training part in seconds, and kept where they help on the validation part.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from adcascade.training.stage import StageContext
from adcascade.training.workers import Workers
from ranking.artifact import Ranker
from ranking.data.behaviour_rows import behaviour_logits, known_logits
from ranking.data.dataset import Dataset
from ranking.model.behaviour import BehaviourLogits
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.model.trees import BoostedTrees, as_text, of_text
from ranking.training.begin import Start
from ranking.training.options import TrainOptions
from ranking.training.text_prior import TrainedPrior, prior_as_text, prior_of_text, train_text_prior
from ranking.training.trees import train_trees, wants_trees

# Of --max-minutes, what each may take at most.
_TREES_SHARE, _PRIOR_SHARE = 0.1, 0.1


@dataclass(frozen=True)
class Beside:
    """A network with what stands beside it.

    Attributes:
        ranker: with trees and a prior of texts, where they help.
        known: logits of every row of the log, without what text says to a user.
        for_text: the same as fine-tuning is to learn beside them: of training rows what is known of rows like these,
            since trees and prior know these very rows by heart.
        of_position: what the place where each ad stood adds, float32 [log rows].
    """

    ranker: Ranker
    known: BehaviourLogits
    for_text: BehaviourLogits
    of_position: torch.Tensor


def fit_beside(data: Dataset, start: Start, options: TrainOptions, whole: StageContext) -> Beside:
    """Fits what stands beside the trained network of `start`."""
    ranker, rows, everything = start.ranker, start.rows, np.arange(len(data.log))
    with torch.no_grad():
        of_position = rows.of_position(ranker.model.behaviour, everything).cpu()
    if wants_trees(options, data):
        ranker = replace(ranker, trees=_trees(data, start, whole))
    known = known_logits(ranker, rows, everything)
    for_text = _for_text(known, data, start, ranker)
    prior = _prior(data, start, for_text.click + of_position, whole) if _wants_prior(options, ranker) else None
    if prior is not None:
        ranker = replace(ranker, text_prior=prior.prior)
        known = _with(known, torch.from_numpy(prior.added))
        for_text = _with(for_text, torch.from_numpy(prior.without_own_fold))
    return Beside(ranker, known, for_text, of_position)


def _with(logits: BehaviourLogits, added: torch.Tensor) -> BehaviourLogits:
    return replace(logits, click=logits.click + added)


def _trees(data: Dataset, start: Start, whole: StageContext) -> BoostedTrees | None:
    """Boosted trees of the training part, where they help the network on the validation part."""
    if whole.workers.count > 1:  # where the clock ends it, each process would end with trees of its own
        alone = replace(whole, workers=Workers())
        return of_text(whole.workers.share(lambda: as_text(_trees(data, start, alone)), _device(start)))
    seconds = None if whole.seconds is None else _TREES_SHARE * whole.seconds
    network = behaviour_logits(start.ranker.model.behaviour, start.rows, data.split.valid)
    return train_trees(data, start.rows.dense, network.click.double().numpy(), replace(whole, seconds=seconds))


def _for_text(known: BehaviourLogits, data: Dataset, start: Start, ranker: Ranker) -> BehaviourLogits:
    """Of training rows the network alone."""
    if ranker.trees is None:
        return known
    train = data.split.train
    click = known.click.clone()
    click[torch.from_numpy(train)] = behaviour_logits(start.ranker.model.behaviour, start.rows, train).click
    return replace(known, click=click)


def _wants_prior(options: TrainOptions, ranker: Ranker) -> bool:
    """Not where the layers that it reads are to be trained; a plain cross-encoder has none that know no user."""
    frozen = options.text.train_layers == "joined" or options.text.epochs == 0
    return options.text.prior == "auto" and frozen and isinstance(ranker.model, SharedUserCrossEncoder)


def _prior(data: Dataset, start: Start, known: torch.Tensor, whole: StageContext) -> TrainedPrior | None:
    """What texts alone say of clicks, where that helps on the validation part."""
    if whole.workers.count > 1:
        alone = replace(whole, workers=Workers())
        shared = whole.workers.share(lambda: prior_as_text(_prior(data, start, known, alone)), _device(start))
        return prior_of_text(shared)
    model = start.ranker.model
    assert isinstance(model, SharedUserCrossEncoder)
    seconds = None if whole.seconds is None else _PRIOR_SHARE * whole.seconds
    context = replace(whole, seconds=seconds)
    return train_text_prior(data, model.eval(), start.ads, start.ranker.pad_id, known.double().numpy(), context)


def _device(start: Start) -> torch.device:
    return next(start.ranker.model.parameters()).device
