"""A click log as batches of (user, ads) for the text layers.

Rows of one user stand together, so that the user is read once for many ads. A block's user text is made from what its
first row may look back on; the counters of each row from what that row may (see `adcascade.records.history`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adcascade.records.clicks import Integers
from adcascade.records.coded import NO_VALUE, CodedColumn, OfCodes, combinations
from ranking.artifact import Ranker
from ranking.data.dataset import Dataset
from ranking.data.feature_table import RowFeatures
from ranking.data.known_logits import RowLogits
from ranking.inputs.features import Features
from ranking.inputs.keywords import AdParts, parts_of
from ranking.model.batch import PairBatch, TokenIds, TokenRows, pad, tokenize
from ranking.model.shared_user import SharedUserCrossEncoder, TextVectors
from ranking.model.text_prior import TextPrior

_TEXTS_PER_PASS = 64
# Blocks whose users are put into words and tokens at once.
_BLOCKS_READ = 2048
_MAX_BLOCK_MICROSECONDS = 24 * 3600 * 1_000_000


def make_blocks(data: Dataset, rows: Integers, *, max_ads: int, merge_requests: bool) -> list[Integers]:
    """Groups rows so that each group reads its user once.

    Args:
        rows: Row indices in the order of time.
        max_ads: Rows in a block, at most.
        merge_requests: Put a user's consecutive requests of one day into one block (fewer user passes, histories up
            to a day old); otherwise a block is one request, as in serving.

    Rows of a block are of one fold, so that none of them is in the history that the others look back on.
    """
    users, requests = data.log.user_id.codes[rows], data.log.request_id.codes[rows]
    if merge_requests:
        requests = np.where(users != NO_VALUE, NO_VALUE, requests)
    _, unit = combinations([users, requests, data.fold[rows]])
    times = data.log.time[rows].tolist()
    blocks: dict[int, list[list[int]]] = {}
    begun: dict[int, int] = {}  # time of the first row of the newest block of each unit
    for row, key, time in zip(rows.tolist(), unit.tolist(), times, strict=True):
        groups = blocks.setdefault(key, [])
        if groups and len(groups[-1]) < max_ads and time - begun[key] <= _MAX_BLOCK_MICROSECONDS:
            groups[-1].append(row)
        else:
            groups.append([row])
            begun[key] = time
    return [np.array(group, np.int64) for groups in blocks.values() for group in groups]


@dataclass(frozen=True)
class LabelledBatch:
    """Pairs of some rows of the log, with what the behaviour part says of them.

    Attributes:
        behaviour: its logits at an average place on the page, float32 [pairs].
        of_position: what the place where the ad stood adds, float32 [pairs].
        ad_texts: in the order of the pairs.
        users_below: computes the users' states below the joined layers, if batches are read ahead, see
            `ranking.data.scorer`.
    """

    pairs: PairBatch
    behaviour: Tensor
    of_position: Tensor
    rows: Integers
    ad_texts: tuple[str, ...]
    users_below: Callable[[], Tensor] | None = None


class AdTexts:
    """The ads of a log and of its users' history as texts, tokens and vectors, for one model."""

    def __init__(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.texts = {ad_id: data.ad_text(ad_id) for ad_id in data.events.ad_id.sorted.names.to_pylist()}
        rows = tokenize(tokenizer, list(self.texts.values()), max_tokens)
        self.tokens: dict[str, TokenIds] = dict(zip(self.texts, rows, strict=True))
        self._ads, self._tokenizer, self._max_tokens = data.ads, tokenizer, max_tokens
        self._ids = list(self.texts)
        # By the ad's id, of those that were asked for.
        self._parts: dict[str, AdParts] = {}
        self._without_keywords: dict[str, TokenIds] = {}

    def parts(self, places: npt.NDArray[np.integer[Any]]) -> list[AdParts]:
        """The ads at some places of `texts`, their keywords apart; made when first asked for."""
        ids = [self._ids[place] for place in places.tolist()]
        for ad_id in ids:
            if ad_id not in self._parts:
                self._parts[ad_id] = parts_of(self._ads[ad_id], self.texts[ad_id])
        return [self._parts[ad_id] for ad_id in ids]

    def prior_tokens(self, places: npt.NDArray[np.integer[Any]], *, reads_keywords: bool) -> list[TokenIds]:
        """The tokens that a prior of texts reads of the ads at some places of `texts`.

        Texts without keywords are split when they are first asked for.
        """
        ids = [self._ids[place] for place in places.tolist()]
        if not reads_keywords:
            return [self.tokens[ad_id] for ad_id in ids]
        texts = {ad_id: one.text for ad_id, one in zip(ids, self.parts(places), strict=True)}
        other = [
            ad_id for ad_id, text in texts.items() if ad_id not in self._without_keywords and text != self.texts[ad_id]
        ]
        split = tokenize(self._tokenizer, [texts[ad_id] for ad_id in other], self._max_tokens)
        self._without_keywords |= zip(other, split, strict=True)
        return [self._without_keywords.get(ad_id, self.tokens[ad_id]) for ad_id in ids]

    def places(self, ad_ids: CodedColumn) -> OfCodes[np.int32]:
        """Where the ad of each row stands in `texts`, int32, looked up by row; -1 for an ad of no row."""
        place = {ad_id: number for number, ad_id in enumerate(self.texts)}
        return OfCodes(
            ad_ids.codes, np.array([*(place.get(name, -1) for name in ad_ids.names.to_pylist()), -1], np.int32)
        )

    def of_prior(
        self, places: npt.NDArray[np.integer[Any]], prior: TextPrior, model: SharedUserCrossEncoder, pad_id: int
    ) -> Features:
        """What a prior adds for the ads at some places of `texts`, float32 [places]."""
        device = next(model.parameters()).device
        some = self.prior_tokens(places, reads_keywords=prior.reads_keywords)
        found = of_like_length(some, pad_id, device, partial(prior.logits, model))
        if prior.reads_keywords and len(places):
            found += prior.of_keywords([one.keywords for one in self.parts(places)])
        return found

    @torch.no_grad()
    def vectors(self, text: TextVectors, pad_id: int, *, chunk: int = 1024) -> Tensor:
        """Unit text vector of each ad in the order of `texts`, float32 [ads, width]."""
        rows = list(self.tokens.values())
        chunks = (pad(rows[start : start + chunk], pad_id) for start in range(0, len(rows), chunk))
        return torch.cat([text(padded.to(text.center.device)) for padded in chunks])


@torch.no_grad()
def of_like_length(
    tokens: Sequence[TokenIds], pad_id: int, device: torch.device, read: Callable[[TokenRows], Tensor]
) -> Features:
    """What `read` makes of each text, those of like length together; float32 [texts, ...] in their order."""
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
    chunks = [order[start : start + _TEXTS_PER_PASS] for start in range(0, len(order), _TEXTS_PER_PASS)]
    found = [read(pad([tokens[place] for place in some], pad_id).to(device)).cpu() for some in chunks]
    return torch.cat(found)[np.argsort(order)].numpy() if found else np.empty(0, np.float32)


class BatchMaker:
    """Turns blocks of a dataset into batches for one model.

    Args:
        features: normalised dense features of the rows of the log, looked up by row.
        behaviour: logits of the rows of the log, looked up by row; see `LabelledBatch`.
        of_position: the same of what the place of the ad adds.
    """

    def __init__(
        self,
        data: Dataset,
        ads: AdTexts,
        features: RowFeatures,
        behaviour: RowLogits,
        of_position: RowLogits,
        ranker: Ranker,
        device: torch.device,
    ) -> None:
        self._data = data
        self._ads = ads
        self._features = features
        self._behaviour = behaviour
        self._of_position = of_position
        self._tokenizer, self._pad_id = ranker.tokenizer, ranker.pad_id
        self._max_user_tokens = ranker.spec.max_user_tokens
        self._device = device

    def batch(self, blocks: Sequence[Integers]) -> LabelledBatch:
        """One batch of several blocks."""
        return self._batch(blocks, self._users_of(blocks))

    def _users_of(self, blocks: Sequence[Integers]) -> list[TokenIds]:
        """The tokens of each block's user."""
        texts = self._data.user_texts(np.array([block[0] for block in blocks], np.int64))
        return tokenize(self._tokenizer, texts, self._max_user_tokens)

    def _batch(self, blocks: Sequence[Integers], user_tokens: Sequence[TokenIds]) -> LabelledBatch:
        rows = np.concatenate(blocks)
        log = self._data.log
        users = pad(user_tokens, self._pad_id)
        ads = pad([self._ads.tokens[ad_id] for ad_id in log.ad_id[rows]], self._pad_id)
        dense = torch.from_numpy(self._features[rows])
        return LabelledBatch(
            PairBatch(users.to(self._device), ads.to(self._device), tuple(map(len, blocks)), dense.to(self._device)),
            torch.from_numpy(self._behaviour[rows]).to(self._device),
            torch.from_numpy(self._of_position[rows]).to(self._device),
            rows,
            tuple(self._ads.texts[ad_id] for ad_id in log.ad_id[rows]),
        )

    def behaviour_of(self, rows: Integers) -> npt.NDArray[np.float64]:
        """What the behaviour part says of some rows, float64 [rows]."""
        return self._behaviour[rows].astype(np.float64)

    def batches(self, blocks: Sequence[Integers], pairs_per_batch: int) -> Iterator[LabelledBatch]:
        """Batches of whole blocks with about `pairs_per_batch` pairs, in the given order."""
        waiting: list[tuple[Integers, TokenIds]] = []
        pairs = 0
        if blocks:  # what is known of their rows is worked out for all of them together
            self.behaviour_of(np.concatenate(blocks))
        for start in range(0, len(blocks), _BLOCKS_READ):
            some = blocks[start : start + _BLOCKS_READ]
            for block, tokens in zip(some, self._users_of(some), strict=True):
                waiting.append((block, tokens))
                pairs += len(block)
                if pairs >= pairs_per_batch:
                    yield self._batch(*zip(*waiting, strict=True))
                    waiting, pairs = [], 0
        if waiting:
            yield self._batch(*zip(*waiting, strict=True))
