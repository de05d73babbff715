"""What is fitted beside the network once it knows what people did: boosted trees, and what texts alone say.

Both are fitted on the training part, and kept where they help on the validation part.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from safetensors.torch import save

from adcascade.records.clicks import Integers
from adcascade.records.coded import Mask, OfCodes
from adcascade.training.stage import StageContext
from adcascade.training.workers import Workers
from ranking.artifact import Ranker
from ranking.data.behaviour_rows import behaviour_logits, known_logits
from ranking.data.dataset import Dataset
from ranking.data.known_logits import KnownLogits, RowLogits
from ranking.model.behaviour import BehaviourLogits
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.model.trees import BoostedTrees, as_text, of_text
from ranking.training.begin import Start, wants_prior
from ranking.training.options import TrainOptions
from ranking.training.text_prior import LogitsOf, TrainedPrior, prior_as_text, prior_of_text, train_text_prior
from ranking.training.trees import train_trees, wants_trees

# Of --max-minutes, what each may take at most.
_TREES_SHARE, _PRIOR_SHARE = 0.1, 0.1


@dataclass(frozen=True)
class Beside:
    """A network with what stands beside it.

    Attributes:
        ranker: with trees and a prior of texts, where they help.
        known: logits of the rows of the log, without what text says to a user; of training rows those of rows like
            them, since trees and prior know these very rows by heart.
        of_position: what the place where the ad of each row stood adds, looked up by row.
    """

    ranker: Ranker
    known: KnownLogits
    of_position: RowLogits

    @property
    def sha256(self) -> str:
        """Of trees and prior: where the clock ends them, another run's are others."""
        prior = "" if self.ranker.text_prior is None else save(self.ranker.text_prior.tensors).hex()
        return hashlib.sha256(f"{as_text(self.ranker.trees)} {prior}".encode()).hexdigest()


def fit_beside(data: Dataset, start: Start, options: TrainOptions, whole: StageContext) -> Beside:
    """Fits what stands beside the trained network of `start`."""
    ranker = start.ranker
    of_position = _of_positions(data, start)
    if wants_trees(options, data):
        ranker = replace(ranker, trees=_trees(data, start, whole))
    known = KnownLogits(partial(_known, _mask(data), start, ranker))
    if not wants_prior(options, ranker.model):
        return Beside(ranker, known, of_position)
    # Of training rows trees say nothing here, so that a prior would gain more on them than on others.
    prior = _prior(
        data,
        start,
        lambda rows: (known[rows] + of_position[rows]).astype(np.float64),
        whole,
        training_decides=ranker.trees is None,
    )
    if prior is None:
        return Beside(ranker, known, of_position)

    ranker = replace(ranker, text_prior=prior.prior)
    start.rows.keep_of_texts(prior.prior, prior.of_ads)

    def with_prior(rows: Integers) -> BehaviourLogits:
        added = start.rows.of_texts(ranker, rows).numpy()
        asked = rows.astype(prior.rows.dtype, copy=False)  # of another type, all of the prior's would be copied
        place = np.minimum(np.searchsorted(prior.rows, asked), len(prior.rows) - 1)
        own = np.flatnonzero(prior.rows[place] == asked)
        added[own] = prior.cross_fitted[place[own]]
        return BehaviourLogits(torch.from_numpy(known[rows] + added), torch.from_numpy(known.conversion(rows)))

    return Beside(ranker, KnownLogits(with_prior), of_position)


@torch.no_grad()
def _of_positions(data: Dataset, start: Start) -> OfCodes[np.float32]:
    """What the place of each row's ad adds: one number a place."""
    places = torch.arange(int(data.log.position.max(initial=0)) + 1, device=_device(start))
    return OfCodes(data.log.position, start.ranker.model.behaviour.of_position(places).cpu().numpy())


def _trees(data: Dataset, start: Start, whole: StageContext) -> BoostedTrees | None:
    """Boosted trees of the training part, where they help the network on the validation part."""
    if whole.workers.count > 1:  # where the clock ends it, each process would end with trees of its own
        alone = replace(whole, workers=Workers())
        return of_text(whole.workers.share(lambda: as_text(_trees(data, start, alone)), _device(start)))
    seconds = None if whole.seconds is None else _TREES_SHARE * whole.seconds
    network = behaviour_logits(start.ranker.model.behaviour, start.rows, data.split.valid)
    return train_trees(data, start.rows.dense, network.click.double().numpy(), replace(whole, seconds=seconds))


def _mask(data: Dataset) -> Mask:
    """Which rows of the log train, bool [log rows]."""
    is_train = np.zeros(len(data.log), np.bool_)
    is_train[data.split.train] = True
    return is_train


def _known(is_train: Mask, start: Start, ranker: Ranker, rows: Integers) -> BehaviourLogits:
    """Of training rows the network alone, since trees know these rows by heart."""
    if ranker.trees is None:
        return known_logits(ranker, start.rows, rows)
    click, conversion = torch.empty(len(rows)), torch.empty(len(rows))
    for at, score in (
        (np.flatnonzero(is_train[rows]), partial(behaviour_logits, ranker.model.behaviour)),
        (np.flatnonzero(~is_train[rows]), partial(known_logits, ranker)),
    ):
        found = score(start.rows, rows[at])
        click[at], conversion[at] = found.click, found.conversion
    return BehaviourLogits(click, conversion)


def _prior(
    data: Dataset, start: Start, known: LogitsOf, whole: StageContext, *, training_decides: bool
) -> TrainedPrior | None:
    """What texts alone say of clicks, where that helps; see `train_text_prior` for the arguments."""
    if whole.workers.count > 1:
        alone = replace(whole, workers=Workers())

        def make() -> str:
            return prior_as_text(_prior(data, start, known, alone, training_decides=training_decides))

        return prior_of_text(whole.workers.share(make, _device(start)))
    model = start.ranker.model
    assert isinstance(model, SharedUserCrossEncoder)
    seconds = None if whole.seconds is None else _PRIOR_SHARE * whole.seconds
    context = replace(whole, seconds=seconds)
    return train_text_prior(
        data, model.eval(), start.ads, start.ranker.pad_id, known, context, training_decides=training_decides
    )


def _device(start: Start) -> torch.device:
    return next(start.ranker.model.parameters()).device
