"""What ads' texts and keywords alone add to the logits of candidates: a number an ad, read once and kept.

Belongs to the thread of the engine. Knows no wire and no users.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adcascade.serving.slices import SliceBudget, Slices
from ranking.artifact import ModelVersion
from ranking.inputs.keywords import AdParts
from ranking.inputs.query import MAX_CANDIDATES
from ranking.model.batch import by_length
from ranking.model.text_prior import TextPrior
from ranking.runtime.ad_state_cache import AdStateCache
from ranking.runtime.text_scorer import Reader, chars_to_find, read_ahead

# To read an ad again costs as much as in the text layers.
_CACHED = 200_000
# How long a slice may take that reads ads, and how many tokens the first ones have.
_SLICE_SECONDS, _FIRST_TOKENS, _LEAST_TOKENS, _MOST_TOKENS = 0.04, 512, 64, 16_384
# Characters of English keywords whose terms are found in the time that the layers take for a token.
_KEYWORD_CHARS = 64


class PriorNumbers:
    """What the prior of a version adds for each ad.

    Args:
        loaded: a version on `device`.
        prior: its prior of texts.
        reader: of its texts.

    Attributes:
        reads_keywords: whether an ad is read in two parts; without, `parts` are not looked at.
    """

    def __init__(self, loaded: ModelVersion, prior: TextPrior, reader: Reader, device: torch.device) -> None:
        self._loaded, self._reader, self._device = loaded, reader, device
        self.reads_keywords = prior.reads_keywords
        self._slice = SliceBudget(_SLICE_SECONDS, _FIRST_TOKENS, least=_LEAST_TOKENS, most=_MOST_TOKENS)
        self._cache = AdStateCache(_CACHED, 1, 1, device, page_rows=1, request_ads=MAX_CANDIDATES)

    def missing(self, ad_texts: Sequence[str], parts: Sequence[AdParts]) -> list[AdParts]:
        """Those ads that are not kept, each once; see `RankQuery` for the arguments."""
        by_key = self._by_key(self._parts(ad_texts, parts))
        return [by_key[key] for key in self._cache.missing(list(by_key))]

    def cost_of(self, ad_texts: Sequence[str], parts: Sequence[AdParts]) -> int:
        """About how many tokens are read for what is not kept."""
        return sum(map(self._cost, self.missing(ad_texts, parts)))

    def of(self, ad_texts: Sequence[str], parts: Sequence[AdParts]) -> Slices[Tensor]:
        """What each candidate adds, whoever the user is, float32 [candidates]."""
        ads = self._parts(ad_texts, parts)
        by_key, keys = self._by_key(ads), list(map(self._key, ads))

        def read(some: Sequence[str]) -> Tensor:
            return self._read(some, by_key)

        yield from read_ahead(self._cache.missing(keys), lambda key: self._cost(by_key[key]), self._slice, read)
        return read(keys)

    def prefetch(self, ad_texts: Sequence[str], parts: Sequence[AdParts]) -> bool:
        """Reads ads before anybody asks for them; False, and nothing done, if others would have to give way."""
        if not self._cache.has_room(len(ad_texts)):
            return False
        by_key = self._by_key(self._parts(ad_texts, parts))
        missing = self._cache.missing(list(by_key))
        if missing:
            self._read(missing, by_key)
            self._cache.protect(missing)
        return True

    def _parts(self, ad_texts: Sequence[str], parts: Sequence[AdParts]) -> list[AdParts]:
        """What is read of each ad. Texts are cut here, so that one that was cut before has the same key."""
        most = self._reader.max_ad_chars
        if self.reads_keywords and parts:
            return [AdParts(one.text[:most], one.keywords) for one in parts]
        return [AdParts(text[:most], "") for text in ad_texts]

    def _key(self, one: AdParts) -> str:
        return one.key if self.reads_keywords else one.text

    def _by_key(self, ads: Sequence[AdParts]) -> dict[str, AdParts]:
        return {self._key(one): one for one in ads}

    def _cost(self, one: AdParts) -> int:
        keywords = sum(map(chars_to_find, one.keywords.splitlines()))
        return self._reader.tokens_of_ad(one.text) + keywords // _KEYWORD_CHARS

    def _read(self, keys: Sequence[str], by_key: dict[str, AdParts]) -> Tensor:
        def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            ads = [by_key[keys[place]] for place in places]
            rows = self._reader.ads([one.text for one in ads])
            added = torch.empty(len(places), device=self._device)
            for some, part in by_length(rows):
                keywords = [ads[place].keywords for place in some]
                added[some] = self._loaded.of_texts(part, keywords if any(keywords) else ())
            return torch.ones_like(rows.lengths), added[:, None, None]

        return self._cache.gather(keys, compute)[0][:, 0, 0]
