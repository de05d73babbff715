"""Every row of a log as the behaviour part reads it. Knows no serving and no optimizer."""

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.clicks import NO_TIME, Integers
from adcascade.records.hashing import blake2b_bucket
from adcascade.records.history import HistoryView, Window, merged
from ranking.artifact import Ranker
from ranking.data.dataset import Dataset
from ranking.data.text_batches import AdTexts
from ranking.inputs.context import context_buckets
from ranking.inputs.features import time_gap_buckets
from ranking.model.batch import pad, tokenize
from ranking.model.behaviour import AdInputs, BehaviourLogits, BehaviourModel, History, Impressions, with_interests

# Of (impression, event) pairs in one pass; the windows of small users are merged up to this.
CELLS_PER_WINDOW = 65_536


class BehaviourRows:
    """Every row of a log as the behaviour part reads it.

    A user's interests stand at the head of their history, as a text that they liked at no known time.
    """

    def __init__(
        self,
        data: Dataset,
        ads: AdTexts,
        ranker: Ranker,
        device: torch.device,
    ) -> None:
        self._data = data
        self._spec = spec = ranker.spec
        self._device = device
        place = {ad_id: number for number, ad_id in enumerate(ads.texts)}
        self._ad = torch.from_numpy(data.log.ad_id.of_names(place.__getitem__, -1, np.int64))
        buckets = torch.tensor([blake2b_bucket(ad_id, spec.shape.id_buckets) for ad_id in ads.texts])
        self._ads = AdInputs(ads.vectors(ranker.model.text, ranker.pad_id).to(device), buckets.to(device))
        self._interests = _interests(data, ranker, device)
        self._classes = torch.from_numpy(np.select([data.log.conversions > 0, data.log.clicks > 0], [2, 1], 0))
        hashes = data.reading(spec.shape.context_words).context_hashes
        self._context = torch.from_numpy(context_buckets(hashes, spec.shape.context_buckets)).to(device)
        self._positions = torch.from_numpy(data.log.position).to(device)
        self._look_back(data.past)

    def _look_back(self, past: HistoryView) -> None:
        self.past = past
        self.dense = self._spec.normalise(self._data.features(past, self._spec.prior_ctr, self._spec.features))

    def with_history_of(self, past: HistoryView) -> "BehaviourRows":
        """The same rows, each of which sees what `past` lets it see."""
        if past is self.past:
            return self
        other = copy.copy(self)
        other._look_back(past)
        return other

    def windows(self, rows: Integers) -> list[Window]:
        """The rows in windows of one user."""
        return list(self.past.windows(rows, self._spec.shape.history_events))

    def score(self, model: BehaviourModel, window: Window) -> BehaviourLogits:
        """Logits of the rows of a window."""
        scored: BehaviourLogits = model(self._shown(window.rows), self._history(window))
        return scored

    def of_position(self, model: BehaviourModel, rows: Integers) -> Tensor:
        """See `BehaviourModel.of_position`."""
        return model.of_position(self._positions[torch.from_numpy(rows).to(self._device)])

    def center_positions(self, model: BehaviourModel, rows: Integers) -> None:
        """See `BehaviourModel.center_positions`."""
        impressions = torch.from_numpy(self._data.log.impressions[rows]).to(self._device)
        model.center_positions(self._positions[torch.from_numpy(rows).to(self._device)], impressions)

    def _shown(self, rows: Integers) -> Impressions:
        place = torch.from_numpy(rows).to(self._device)
        return Impressions(self._tensor(self.dense[rows]), self._context[place], self._keys(rows))

    def _history(self, window: Window) -> History:
        history = History(
            self._keys(window.events),
            self._classes[window.events].to(self._device),
            torch.from_numpy(self._gaps(window)).to(self._device),
            torch.from_numpy(window.visible).to(self._device),
        )
        if not self._interests:
            return history
        users = np.array(self._data.log.user_id[window.rows].tolist())
        stated = [user for user in np.unique(users).tolist() if user in self._interests]
        if not stated:
            return history
        interests = torch.cat([self._interests[user] for user in stated])
        return with_interests(history, interests, torch.from_numpy(users[:, None] == np.array(stated)).to(self._device))

    def _keys(self, rows: Integers) -> AdInputs:
        ads = self._ad[rows].to(self._device)
        return AdInputs(self._ads.vectors[ads], self._ads.buckets[ads])

    def _gaps(self, window: Window) -> Integers:
        now, then = self._data.log.time[window.rows, None], self._data.log.time[None, window.events]
        known = (now != NO_TIME) & (then != NO_TIME)
        return time_gap_buckets(np.where(known, (now - then) / 1e6, np.nan), self._spec.shape.time_gap_ends)

    def _tensor(self, values: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _interests(data: Dataset, ranker: Ranker, device: torch.device) -> dict[str, Tensor]:
    """Text vector of the interests of each user of the log who states any, float32 [1, width]."""
    users = (data.users.get(user_id) for user_id in data.log.user_id.sorted.names.to_pylist())
    stated = {user.user_id: user.interests.strip() for user in users if user and user.interests.strip()}
    if not stated:
        return {}
    text = ranker.model.text
    rows = pad(tokenize(ranker.tokenizer, list(stated.values()), ranker.spec.max_ad_tokens), ranker.pad_id)
    return dict(zip(stated, text(rows.to(text.center.device)).to(device).split(1), strict=True))


@torch.no_grad()
def behaviour_logits(model: BehaviourModel, rows: BehaviourRows, wanted: Integers) -> BehaviourLogits:
    """Logits of the wanted rows in evaluation mode, in their order, on the CPU."""
    model.eval()
    order: list[Integers] = []
    clicks, conversions = [], []
    for window in merged(rows.windows(wanted), CELLS_PER_WINDOW):
        scored = rows.score(model, window)
        order.append(window.rows)
        clicks.append(scored.click.cpu())
        conversions.append(scored.conversion.cpu())
    back = torch.from_numpy(np.argsort(np.concatenate(order))[np.argsort(np.argsort(wanted))])
    return BehaviourLogits(torch.cat(clicks)[back], torch.cat(conversions)[back])
