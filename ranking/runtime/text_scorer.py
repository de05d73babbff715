"""What the text layers add to the logits of candidates, user by user. Knows no wire and nothing of past clicks.

Two ways to read: the user once, with ad states that are kept between requests, or every pair anew. Both bound memory by
tokens, not by the size of a request, and belong to the thread of the engine.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adcascade.serving.byte_cache import ByteBudgetCache
from adcascade.serving.slices import SliceBudget, Slices, by_cost
from adcascade.vectors.encoder import CHARS_PER_TOKEN, estimated_tokens
from ranking.model.batch import PairBatch, TokenIds, TokenRows, pad, tokenize
from ranking.model.joint import JointCrossEncoder
from ranking.model.passes import AdPass
from ranking.runtime.ad_state_cache import AdStateCache
from ranking.runtime.backends import TextBackend, UserKept
from ranking.runtime.user_state_cache import UserStateCache

log = logging.getLogger(__name__)

# Ads of a part: of like length, so that few tokens are padding.
_ADS_A_PART = 16
# Numbers of ads and of tokens are rounded up to multiples: OpenVINO compiles anew for each shape that it meets.
_ADS_STEP, _AD_TOKENS_STEP, _USER_TOKENS_STEP = 4, 4, 16
# Memory for the tokens of ads: a new one is read more than once in the request that brings it.
_TOKENS_BYTES, _BYTES_A_TOKEN = 16 * 2**20, 40
# How long a slice may take, and how many tokens, or pairs of user and ad in tokens, the first ones read.
_SLICE_SECONDS, _FIRST_TOKENS, _FIRST_PAIR_TOKENS = 0.04, 512, 1024
_LEAST_TOKENS, _MOST_TOKENS = 64, 16_384
# Words of other scripts than Latin letters, digits and marks without accents take up to so many times as long to find.
_OTHER_SCRIPTS = 16


class Reader:
    """Turns texts into tokens for one model.

    Args:
        device: Where the tokens go.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_user_tokens: int, max_ad_tokens: int, device: torch.device
    ):
        self._tokenizer = tokenizer
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._device = device
        self._ads: ByteBudgetCache[TokenIds] = ByteBudgetCache(_TOKENS_BYTES, lambda ids: _BYTES_A_TOKEN * len(ids))
        self.max_user_tokens = max_user_tokens
        self.max_ad_tokens = max_ad_tokens

    @property
    def max_user_chars(self) -> int:
        """Characters of a user text that are read."""
        return CHARS_PER_TOKEN * self.max_user_tokens

    @property
    def max_ad_chars(self) -> int:
        """Characters of an ad text that are read."""
        return CHARS_PER_TOKEN * self.max_ad_tokens

    def tokens_of_ad(self, text: str) -> int:
        """About how many tokens are read of an ad text."""
        return estimated_tokens(text, self.max_ad_tokens)

    def users(self, texts: Sequence[str]) -> TokenRows:
        """User texts, cut where the model cuts them."""
        tokens = tokenize(self._tokenizer, texts, self.max_user_tokens)
        return self._rows(tokens, _USER_TOKENS_STEP, self.max_user_tokens)

    def ads(self, texts: Sequence[str]) -> TokenRows:
        """Ad texts, cut where the model cuts them."""
        kept = {text: self._ads.get(text) for text in texts}
        found = {text: ids for text, ids in kept.items() if ids is not None}
        new = [text for text in kept if text not in found]
        for text, ids in zip(new, tokenize(self._tokenizer, new, self.max_ad_tokens), strict=True):
            self._ads.put(text, ids)
            found[text] = ids
        return self._rows([found[text] for text in texts], _AD_TOKENS_STEP, self.max_ad_tokens)

    def _rows(self, tokens: Sequence[TokenIds], step: int, most: int) -> TokenRows:
        longest = max(map(len, tokens), default=1)
        return pad(tokens, self._pad_id, min(_up(longest, step), most)).to(self._device)


class TextLayers(Protocol):
    """What the text adds to logits."""

    def cost_of(self, ad_texts: Sequence[str], user_tokens: int) -> int:
        """About how many tokens must be read of a user's candidates, and of the user for each of them."""

    def text_logits(
        self, users: TokenRows, ad_texts: Sequence[Sequence[str]], dense: Sequence[Tensor]
    ) -> Slices[list[tuple[Tensor, int]]]:
        """For each user, what the text adds to the logits of their ads, float32 [ads], and how many ads were known.

        Args:
            users: a row each.
            ad_texts: of each user's candidates.
            dense: normalised features of each user's candidates, float32 [ads, features].
        """


class NoText:
    """Text layers that were not trained for clicks: they add nothing, and are not read."""

    def cost_of(self, ad_texts: Sequence[str], user_tokens: int) -> int:
        """See `TextLayers`."""
        return 0

    def text_logits(
        self, users: TokenRows, ad_texts: Sequence[Sequence[str]], dense: Sequence[Tensor]
    ) -> Slices[list[tuple[Tensor, int]]]:
        """See `TextLayers`."""
        yield
        return [(torch.zeros(len(features), device=features.device), 0) for features in dense]


class SharedText:
    """Reads each user once; what is kept of an ad is computed once.

    Args:
        cache_bytes: For ad states, at most; but one request's worth is always kept.
        user_cache_bytes: For user states, at most.
        token_budget: Ad tokens in one pass of the joined layers, at most.
        dtype: What ad states are kept in.
    """

    def __init__(
        self,
        backend: TextBackend,
        passes: AdPass,
        reader: Reader,
        *,
        cache_bytes: int,
        user_cache_bytes: int,
        token_budget: int,
        most_candidates: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._backend = backend
        self._reader = reader
        self._ads_a_chunk = max(1, token_budget // reader.max_ad_tokens)
        rows = passes.rows(reader.max_ad_tokens)
        fitting = cache_bytes // AdStateCache.bytes_per_ad(rows, passes.width, dtype)
        self._cache = AdStateCache(
            max(fitting, most_candidates), rows, passes.width, device, dtype, request_ads=most_candidates
        )
        self._users = UserStateCache(user_cache_bytes)
        self._slice = SliceBudget(_SLICE_SECONDS, _FIRST_TOKENS, least=_LEAST_TOKENS, most=_MOST_TOKENS)

    def cost_of(self, ad_texts: Sequence[str], user_tokens: int) -> int:
        """See `TextLayers`; ads whose states are kept cost nothing."""
        return sum(map(self._reader.tokens_of_ad, self._cache.missing(ad_texts)))

    def text_logits(
        self, users: TokenRows, ad_texts: Sequence[Sequence[str]], dense: Sequence[Tensor]
    ) -> Slices[list[tuple[Tensor, int]]]:
        """See `TextLayers`."""
        kept = self._users.read(users, self._backend.users)
        yield
        found = []
        for one in zip(kept, ad_texts, dense, strict=True):
            found.append((yield from self._of_user(*one)))
        return found

    def prefetch(self, texts: Sequence[str]) -> bool:
        """Reads these ads before anybody asks; False, and nothing done, if others would have to give way."""
        if not self._cache.has_room(len(texts)):
            return False
        missing = [text for text in texts if text not in self._cache]
        if missing:
            self._kept(missing)
            self._cache.protect(missing)
        return True

    def _of_user(self, user: UserKept, texts: Sequence[str], dense: Tensor) -> Slices[tuple[Tensor, int]]:
        logits = []
        new = set(self._cache.missing(texts))
        cached = sum(text not in new for text in texts) if new else len(texts)
        for chunk in _chunks(len(texts), self._ads_a_chunk):
            part = texts[chunk]
            yield from read_ahead(self._cache.missing(part), self._reader.tokens_of_ad, self._slice, self._kept)
            kept, mask = self._kept(part)
            logits.append(self._backend.join(user, kept, mask, dense[chunk]))
            yield
        return torch.cat(logits), cached

    def _kept(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            return kept_by_length(self._backend, self._reader.ads([texts[place] for place in places]))

        return self._cache.gather(texts, compute)[:2]


class JointText:
    """Reads every pair of user and ad anew: the plain cross-encoder.

    Args:
        token_budget: Tokens in one pass, at most.
    """

    def __init__(self, model: JointCrossEncoder, reader: Reader, *, token_budget: int, bfloat16: bool) -> None:
        self._model = model
        self._reader = reader
        self._token_budget = token_budget
        self._bfloat16 = bfloat16
        self._slice = SliceBudget(_SLICE_SECONDS, _FIRST_PAIR_TOKENS, least=_LEAST_TOKENS, most=token_budget)

    def cost_of(self, ad_texts: Sequence[str], user_tokens: int) -> int:
        """See `TextLayers`; the user is read anew for each ad."""
        return sum(user_tokens + self._reader.tokens_of_ad(text) for text in ad_texts)

    def text_logits(
        self, users: TokenRows, ad_texts: Sequence[Sequence[str]], dense: Sequence[Tensor]
    ) -> Slices[list[tuple[Tensor, int]]]:
        """See `TextLayers`."""
        found = []
        for row, one in enumerate(zip(ad_texts, dense, strict=True)):
            logits = yield from self._of_user(users.take([row]), *one)
            found.append((logits, 0))
        return found

    def _of_user(self, user: TokenRows, texts: Sequence[str], dense: Tensor) -> Slices[Tensor]:
        logits = []
        tokens_each = self._reader.max_ad_tokens + int(user.lengths[0])
        for chunk in _chunks(len(texts), max(1, min(self._token_budget, self._slice.cost) // tokens_each)):
            started = time.perf_counter()
            ads = self._reader.ads(texts[chunk])
            with torch.autocast(ads.ids.device.type, torch.bfloat16, enabled=self._bfloat16):
                logits.append(self._model(PairBatch(user, ads, (len(ads.ids),), dense[chunk])).float())
            # A GPU works on, so that there it seems faster than it is; `token_budget` bounds its slices all the same.
            self._slice.took(len(ads.ids) * tokens_each, time.perf_counter() - started)
            yield
        return torch.cat(logits)


def chars_to_find(text: str) -> int:
    """How many characters of plain English have words that are found in the time that those of a text take."""
    return len(text) if text.isascii() else _OTHER_SCRIPTS * len(text)


def read_ahead(
    missing: Sequence[str], cost: Callable[[str], int], budget: SliceBudget, read: Callable[[list[str]], object]
) -> Slices[None]:
    """Reads texts that a cache misses, in slices within `budget`, but for the last: who asks for all reads that."""
    for part in list(by_cost(missing, cost, budget.cost))[:-1]:
        started = time.perf_counter()
        read(part)
        budget.took(sum(map(cost, part)), time.perf_counter() - started)
        yield


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)


def _up(value: int, step: int) -> int:
    """The next multiple."""
    return -(-value // step) * step


def kept_by_length(backend: TextBackend, ads: TokenRows) -> tuple[Tensor, Tensor]:
    """How many rows are kept of each ad, int64 [ads], and these, float32 [ads, rows, width] (see `passes.AdPass`).

    Ads of like length are read together, so that no short one is padded to the longest.
    """
    order = torch.argsort(ads.lengths)
    count = len(order)
    # Some ads are read twice where that fills a part.
    order = torch.cat([order[:1].expand(_up(count, _ADS_STEP) - count), order])
    size = min(_ADS_A_PART, _up(math.ceil(len(order) / backend.parts_at_once), _ADS_STEP))
    places = [order[chunk] for chunk in _chunks(len(order), size)]
    parts = [_of_like_length(ads, some) for some in places]
    found = backend.ads(parts)
    extra = found[-1].shape[1] - parts[-1].ids.shape[1]
    kept = found[-1].new_zeros((count, found[-1].shape[1], found[-1].shape[2]))
    for some, part in zip(places, found, strict=True):
        kept[some, : part.shape[1]] = part
    return ads.lengths + extra, kept


def _of_like_length(ads: TokenRows, places: Tensor) -> TokenRows:
    lengths = ads.lengths[places]
    return TokenRows(ads.ids[places, : _up(int(lengths.max()), _AD_TOKENS_STEP)], lengths)
