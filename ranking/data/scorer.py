"""A model over batches of (user, ads), for training and evaluation. Knows no serving and no labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.clicks import Integers
from ranking.artifact import Ranker
from ranking.data.text_batches import BatchMaker, LabelledBatch
from ranking.model.batch import by_length
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.runtime.ad_state_cache import AdStateCache

_CACHED_ADS = 50_000


@dataclass(frozen=True)
class Scored:
    """Logits of a batch, float32 [pairs], and what the text layers made of each pair, [pairs, hidden]."""

    logits: Tensor
    states: Tensor


class Scorer:
    """Runs a model over batches; where nothing below the join layer is trained, those ad states are kept."""

    def __init__(self, ranker: Ranker, device: torch.device, bfloat16: bool, *, keep: bool) -> None:
        self.model = model = ranker.model
        self._device = device
        self._bfloat16 = bfloat16
        self._cache: AdStateCache | None = None
        if keep and isinstance(model, SharedUserCrossEncoder):
            hidden = int(model.encoder.config.hidden_size)
            self._cache = AdStateCache(_CACHED_ADS, ranker.spec.max_ad_tokens, hidden, device)

    def logits(self, batch: LabelledBatch) -> Tensor:
        """Logits of a batch, float32 [pairs]."""
        if not torch.is_grad_enabled() and self.model.text_is_untrained:
            return batch.behaviour
        return self.score(batch).logits

    def score(self, batch: LabelledBatch) -> Scored:
        """Logits of a batch, and the states that its text part comes from."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            model = self.model
            if self._cache is None or not isinstance(model, SharedUserCrossEncoder):
                added, states = model.read(batch.pairs)
            else:
                hidden, mask = self._ad_states(model, self._cache, batch)
                users = model.many_users(batch.pairs.users, batch.pairs.ads_per_user)
                added, states = model.add_many(users, hidden, mask, batch.pairs.dense)
            return Scored(batch.behaviour + added.float(), states)

    @staticmethod
    @torch.no_grad()
    def _ad_states(model: SharedUserCrossEncoder, cache: AdStateCache, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            rows = batch.pairs.ads.take(places)
            states: Tensor | None = None
            for some, part in by_length(rows):
                read = model.ad_states(part)
                if states is None:
                    states = read.new_zeros(*rows.ids.shape, read.shape[2])
                states[some, : read.shape[1]] = read
            assert states is not None
            return rows.lengths, states

        hidden, mask, _ = cache.gather(batch.ad_texts, compute)
        return hidden, mask


def predict_logits(
    scorer: Scorer, maker: BatchMaker, blocks: list[Integers], pairs_per_batch: int = 256
) -> tuple[Integers, npt.NDArray[np.float64]]:
    """Row indices and logits of all rows in `blocks`, in evaluation mode."""
    scorer.model.eval()
    if scorer.model.text_is_untrained:  # then no text need be read
        rows_of_blocks = np.concatenate(blocks)
        return rows_of_blocks, maker.behaviour_of(rows_of_blocks)
    rows, logits = [], []
    with torch.no_grad():
        for batch in maker.batches(blocks, pairs_per_batch):
            rows.append(batch.rows)
            logits.append(scorer.logits(batch).cpu().numpy().astype(np.float64))
    return np.concatenate(rows), np.concatenate(logits)
