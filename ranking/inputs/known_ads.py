"""The ads of a catalog as they are ranked, each with its text; those that were asked for lately are kept.

Making an ad from its row and rendering it takes far longer than looking it up, and most requests name the same ads as
the ones before. Knows no wire.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import overload

from adcascade.catalog.ads_file import AdCatalog
from adcascade.records.ads import Ad
from ranking.inputs.keywords import MOST_KEYWORD_CHARS, AdParts, parts_of
from ranking.inputs.text import render_ad

_KEPT_BYTES = 64 * 2**20
# Of an ad beside its texts: its fields, and two places in dictionaries. A text takes up to four bytes a character.
_AD_BYTES, _CHAR_BYTES = 2048, 4


@dataclass(frozen=True)
class KnownAd:
    """An ad, and its text as the model reads it."""

    ad: Ad
    text: str

    @classmethod
    def of(cls, ad: Ad) -> "KnownAd":
        """The ad with its text."""
        return cls(ad, render_ad(ad))

    @property
    def parts(self) -> AdParts:
        """The same with its keywords apart; made when first asked for, since few versions read it."""
        chars, keywords = self._apart
        return AdParts(self.text[:chars], keywords)

    @cached_property
    def _apart(self) -> tuple[int, str]:
        """Characters of the text before its keywords, which come last in it, and these in lines."""
        parts = parts_of(self.ad, self.text)
        return len(parts.text), parts.keywords


@dataclass(frozen=True)
class PartsOf(Sequence[AdParts]):
    """The parts of some ads, each made when it is asked for."""

    ads: Sequence[KnownAd]

    def __len__(self) -> int:
        return len(self.ads)

    def __iter__(self) -> Iterator[AdParts]:
        return (one.parts for one in self.ads)

    @overload
    def __getitem__(self, place: int) -> AdParts: ...

    @overload
    def __getitem__(self, place: slice) -> "PartsOf": ...

    def __getitem__(self, place: int | slice) -> "AdParts | PartsOf":
        return PartsOf(self.ads[place]) if isinstance(place, slice) else self.ads[place].parts


class KnownAds:
    """Ads of one catalog by id. Thread-safe.

    Args:
        max_bytes: about what may be kept; the ads that were read first give way.
    """

    def __init__(self, catalog: AdCatalog, max_bytes: int = _KEPT_BYTES) -> None:
        self._catalog = catalog
        self._kept: dict[str, KnownAd] = {}
        self._bytes, self._max_bytes = 0, max_bytes
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, ad_ids: Iterable[str]) -> dict[str, KnownAd]:
        """The ads of the given ids that are in the catalog, by id."""
        wanted = dict.fromkeys(ad_ids)
        kept = self._kept  # of a dictionary, a single look needs no lock
        found = {ad_id: known for ad_id in wanted if (known := kept.get(ad_id)) is not None}
        if len(found) == len(wanted):
            return found
        fresh = self._catalog.find(ad_id for ad_id in wanted if ad_id not in found)
        made = {ad_id: KnownAd.of(ad) for ad_id, ad in fresh.items()}
        self._keep(made)
        return found | made

    def _keep(self, made: dict[str, KnownAd]) -> None:
        with self._lock:
            for ad_id, known in made.items():
                if ad_id not in self._kept:
                    self._kept[ad_id] = known
                    self._bytes += _bytes_of(known)
            while self._bytes > self._max_bytes:
                oldest = next(iter(self._kept))
                self._bytes -= _bytes_of(self._kept.pop(oldest))


def _bytes_of(known: KnownAd) -> int:
    ad = known.ad
    fields = (ad.ad_id, ad.title, ad.body, ad.advertiser, ad.category, ad.language, ad.landing_url, ad.image_uri)
    words = [*fields, *ad.keywords, *ad.attributes.keys(), *ad.attributes.values(), known.text]
    lines = min(sum(map(len, ad.keywords)), MOST_KEYWORD_CHARS) + len(ad.keywords)  # at most, once they are asked for
    return _AD_BYTES + _CHAR_BYTES * (sum(map(len, words)) + lines)
