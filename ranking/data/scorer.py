"""A model over batches of (user, ads), for training and evaluation. Knows no serving and no labels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.clicks import Integers
from ranking.artifact import Ranker
from ranking.data.text_batches import BatchMaker, LabelledBatch
from ranking.model.batch import TokenRows, distinct, read_by_length, stacked
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.runtime.ad_state_cache import AdStateCache

_CACHED_ADS = 50_000
# Pairs whose users are read together; many small products of matrices take twice as long as few large ones.
_PAIRS_AHEAD = 1024


@dataclass(frozen=True)
class Scored:
    """Logits of a batch, float32 [pairs], and what the text layers made of each pair, [pairs, hidden]."""

    logits: Tensor
    states: Tensor


class Scorer:
    """Runs a model over batches; where nothing below the join layer is trained, those ad states are kept.

    Attributes:
        bfloat16: whether it computes in bfloat16.
    """

    def __init__(self, ranker: Ranker, device: torch.device, bfloat16: bool, *, keep: bool) -> None:
        self.model = model = ranker.model
        self._device = device
        self.bfloat16 = bfloat16
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
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.bfloat16):
            model = self.model
            if self._cache is None or not isinstance(model, SharedUserCrossEncoder):
                added, states = model.read(batch.pairs)
            else:
                below = None if batch.users_below is None else batch.users_below()
                hidden, mask, _ = self._cache.gather(batch.ad_texts, _reader(model, batch.pairs.ads))
                users = model.many_users(batch.pairs.users, batch.pairs.ads_per_user, below)
                added, states = model.add_many(users, hidden, mask, batch.pairs.dense)
            return Scored(batch.behaviour + added.float(), states)

    def read_ahead(self, batches: Iterable[LabelledBatch]) -> Iterator[LabelledBatch]:
        """The same batches; what the layers below the joined ones make of their texts is computed for several at once.

        It is computed when the first of these is scored, and only where those layers are not trained.
        """
        model, cache = self.model, self._cache
        if cache is None or not isinstance(model, SharedUserCrossEncoder):
            yield from batches
            return
        for group in _grouped(batches):
            ahead = _TextsAhead(model, cache, group)
            for number, batch in enumerate(group):
                yield replace(batch, users_below=partial(ahead.users_of, number))


class _TextsAhead:
    """The texts of several batches, read together below the joined layers once one of them is asked for."""

    def __init__(self, model: SharedUserCrossEncoder, cache: AdStateCache, group: Sequence[LabelledBatch]) -> None:
        self._model, self._cache, self._group = model, cache, group
        self._texts, which = distinct(stacked([batch.pairs.users for batch in group]))
        self._which = torch.split(which, [len(batch.pairs.ads_per_user) for batch in group])
        self._states: Tensor | None = None

    @torch.no_grad()
    def users_of(self, number: int) -> Tensor:
        """States of the users of a batch, [users, tokens, hidden]."""
        if self._states is None:
            self._states = read_by_length(self._texts, self._model.user_states_below)
            self._read_ads()
        return self._states[self._which[number], : self._group[number].pairs.users.ids.shape[1]]

    def _read_ads(self) -> None:
        """Puts the ads that no batch before had into the cache, while they fit beside each other."""
        texts = [text for batch in self._group for text in batch.ad_texts]
        place = {text: number for number, text in enumerate(texts)}
        new = self._cache.missing(texts)[: self._cache.max_ads]
        if new:
            rows = stacked([batch.pairs.ads for batch in self._group]).take([place[text] for text in new])
            self._cache.gather(new, _reader(self._model, rows))


def _reader(model: SharedUserCrossEncoder, ads: TokenRows) -> Callable[[Sequence[int]], tuple[Tensor, Tensor]]:
    """Computes the states of some ads for a cache."""

    @torch.no_grad()
    def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = ads.take(places)
        return rows.lengths, read_by_length(rows, model.ad_states)

    return compute


def _grouped(batches: Iterable[LabelledBatch]) -> Iterator[list[LabelledBatch]]:
    """So many batches together as have `_PAIRS_AHEAD` pairs, and one at least."""
    waiting: list[LabelledBatch] = []
    pairs = 0
    for batch in batches:
        waiting.append(batch)
        pairs += len(batch.rows)
        if pairs >= _PAIRS_AHEAD:
            yield waiting
            waiting, pairs = [], 0
    if waiting:
        yield waiting


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
        for batch in scorer.read_ahead(maker.batches(blocks, pairs_per_batch)):
            rows.append(batch.rows)
            logits.append(scorer.logits(batch).cpu().numpy().astype(np.float64))
    return np.concatenate(rows), np.concatenate(logits)
