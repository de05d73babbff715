"""A bounded cache of what the model computed for an ad below the join layer. Knows no users and no wire.

One slab of memory holds all entries, cut into pages of a few rows: a short ad takes no more than it needs, and the
states of a batch are gathered by one index operation. Not thread-safe: it belongs to the thread that owns the model.

Which ads give way is decided as in a segmented LRU (Karedla, Love and Wherry, 1994): an ad is on probation until it is
asked for again, and those on probation give way first once they take more than their share. So a client who sends ads
that nobody sends twice pushes out no ad of the catalog.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adcascade.serving.byte_cache import ENTRY_BYTES, digest_of

# What fills the cache: takes places in the asked-for list, returns how many rows each has, int64 [places], and these,
# [places, rows, width].
Compute = Callable[[Sequence[int]], tuple[Tensor, Tensor]]

# Stands for "no page" in a table of pages; it holds zeros, since what an empty tensor holds could be NaN, which no
# attention mask keeps out.
_NO_PAGE = 0
# Of all pages, for ads that were asked for once.
_PROBATION_SHARE = 0.2


class AdStateCache:
    """Ad states that were used lately, by ad text, of which a digest is kept.

    Args:
        max_ads: How many ads of the longest kind fit; of shorter ones more do.
        max_rows: Rows of the longest ad.
        width: Numbers per row.
        device: Where states are kept.
        dtype: What they are kept in.
        page_rows: Rows of a page.
        request_ads: New ads of one request, which is read part by part: so many may be on probation at least, or the
            later parts would push out the earlier ones.
    """

    def __init__(
        self,
        max_ads: int,
        max_rows: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        page_rows: int = 8,
        request_ads: int = 0,
    ) -> None:
        if max_ads < 1:
            raise ValueError("max_ads must be at least 1")
        pages_each = -(-max_rows // page_rows)
        pages = max_ads * pages_each
        # Untouched pages of an empty tensor cost no memory: the slab grows as it fills.
        self._slab = torch.empty((1 + pages, page_rows, width), device=device, dtype=dtype)
        self._slab[_NO_PAGE] = 0
        self._tables = np.full((pages, pages_each), _NO_PAGE, np.int64)
        self._lengths = np.ones(pages, np.int64)
        self._slots: dict[bytes, int] = {}
        # The keys of both segments, the one that was asked for last at the end.
        self._probation: OrderedDict[bytes, None] = OrderedDict()
        self._protected: OrderedDict[bytes, None] = OrderedDict()
        self._pages_on_probation = 0
        self._most_on_probation = max(_PROBATION_SHARE * pages, request_ads * pages_each)
        self._free_slots = list(range(pages - 1, -1, -1))
        self._free_pages = list(range(pages, 0, -1))
        self.max_ads = max_ads

    @staticmethod
    def bytes_per_ad(max_rows: int, width: int, dtype: torch.dtype = torch.float32, page_rows: int = 8) -> int:
        """Memory that an ad of so many rows takes, in bytes, with what finds it again: a slot for each page."""
        return -(-max_rows // page_rows) * (page_rows * width * dtype.itemsize + ENTRY_BYTES)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, text: str) -> bool:
        return digest_of(text) in self._slots

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those that are not kept, each once."""
        return [text for text in dict.fromkeys(texts) if text not in self]

    def has_room(self, ads: int) -> bool:
        """Whether so many more ads fit, whatever their length, without another one giving way."""
        return len(self._free_pages) >= ads * self._tables.shape[1]

    def gather(self, texts: Sequence[str], compute: Compute) -> tuple[Tensor, Tensor, int]:
        """States of the given ads, computing those that are missing.

        Args:
            texts: At most `max_ads` different ones.
            compute: Called once with the places in `texts` of the missing ads, each text once.

        Returns:
            States [texts, rows, width] with as many rows as the longest has, in whole pages; a mask of those that an ad
            has, bool [texts, rows]; and how many texts were found.
        """
        keys = [digest_of(text) for text in texts]
        found = sum(key in self._slots for key in keys)
        missing: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key in self._slots:
                self._protect(key)
            else:
                missing.setdefault(key, place)
        if missing:
            self._fill(list(missing), frozenset(keys), *compute(list(missing.values())))
        slots = [self._slots[key] for key in keys]
        lengths = self._lengths[slots]
        pages = torch.from_numpy(self._tables[slots, : self._pages(int(lengths.max()))]).to(self._slab.device)
        # Whole pages at a time: several times faster than to index by a table.
        states = self._slab.index_select(0, pages.flatten()).view(len(texts), -1, self._slab.shape[2])
        mask = torch.from_numpy(np.arange(states.shape[1]) < lengths[:, None]).to(self._slab.device)
        return states, mask, found

    def protect(self, texts: Sequence[str]) -> None:
        """Spares ads, which must be kept, the time on probation: they belong to the catalog."""
        for text in texts:
            self._protect(digest_of(text))

    def _protect(self, key: bytes) -> None:
        if key in self._probation:
            del self._probation[key]
            self._pages_on_probation -= self._pages(int(self._lengths[self._slots[key]]))
            self._protected[key] = None
        else:
            self._protected.move_to_end(key)

    def _pages(self, rows: int) -> int:
        return -(-rows // self._slab.shape[1])

    def _fill(self, keys: Sequence[bytes], asked: frozenset[bytes], lengths: Tensor, states: Tensor) -> None:
        """Keeps the states of new keys; of those that are `asked` for in this request, none gives way."""
        page_rows = self._slab.shape[1]
        slots = [self._take_slot(key, asked, rows) for key, rows in zip(keys, lengths.tolist(), strict=True)]
        tables = torch.from_numpy(self._tables[slots, : self._pages(states.shape[1])]).to(states.device)
        small = states.to(self._slab.dtype)
        padded = F.pad(small, (0, 0, 0, tables.shape[1] * page_rows - states.shape[1]))
        pages = tables.flatten()
        taken = torch.nonzero(pages != _NO_PAGE)[:, 0]
        self._slab.index_copy_(0, pages[taken], padded.view(-1, *self._slab.shape[1:]).index_select(0, taken))

    def _take_slot(self, key: bytes, asked: frozenset[bytes], rows: int) -> int:
        pages = self._pages(rows)
        while len(self._free_pages) < pages:
            self._drop(self._oldest(asked))
        slot = self._free_slots.pop()
        self._tables[slot, :pages] = [self._free_pages.pop() for _ in range(pages)]
        self._lengths[slot] = rows
        self._slots[key] = slot
        self._probation[key] = None
        self._pages_on_probation += pages
        return slot

    def _oldest(self, asked: frozenset[bytes]) -> bytes:
        """The key that gives way next: within a segment the oldest is asked for only if all of them are."""
        segments = [self._protected, self._probation]
        if self._pages_on_probation > self._most_on_probation:
            segments.reverse()
        oldest = (next(iter(segment), None) for segment in segments)
        return next(key for key in oldest if key is not None and key not in asked)

    def _drop(self, key: bytes) -> None:
        slot = self._slots.pop(key)
        taken = self._tables[slot]
        pages = taken[taken != _NO_PAGE].tolist()
        if key in self._probation:
            del self._probation[key]
            self._pages_on_probation -= len(pages)
        else:
            del self._protected[key]
        self._free_pages += pages
        self._free_slots.append(slot)
        taken[:] = _NO_PAGE
