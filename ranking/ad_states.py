"""A bounded cache of what the model computed for an ad below the join layer. Knows no users and no wire.

One slab of memory holds all entries, so that the states of a batch are gathered by one index operation. Not
thread-safe: it belongs to the thread that owns the model.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# What fills the cache: takes places in the asked-for list, returns how many rows each has, int64 [places], and these,
# [places, rows, width].
Compute = Callable[[Sequence[int]], tuple[Tensor, Tensor]]


class AdStateCache:
    """Least recently used ad states, by ad text.

    Args:
        max_ads: How many ads fit.
        max_rows: Rows of the longest ad.
        width: Numbers per row.
        device: Where states are kept.
    """

    def __init__(self, max_ads: int, max_rows: int, width: int, device: torch.device) -> None:
        if max_ads < 1:
            raise ValueError("max_ads must be at least 1")
        # Untouched pages of an empty tensor cost no memory: the slab grows as it fills.
        self._states = torch.empty((max_ads, max_rows, width), device=device)
        self._lengths = torch.ones(max_ads, dtype=torch.int64, device=device)
        self._slots: OrderedDict[str, int] = OrderedDict()

    @staticmethod
    def bytes_per_ad(max_rows: int, width: int) -> int:
        """Memory that one ad takes, in bytes."""
        return 4 * max_rows * width

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def max_ads(self) -> int:
        """How many ads fit."""
        return len(self._states)

    def gather(self, texts: Sequence[str], compute: Compute) -> tuple[Tensor, Tensor, int]:
        """States of the given ads, computing those that are missing.

        Args:
            texts: At most `max_ads` different ones.
            compute: Called once with the places in `texts` of the missing ads, each text once.

        Returns:
            States float32 [texts, longest, width], a mask of their rows, bool [texts, longest], and how many texts
            were found.
        """
        found = sum(text in self._slots for text in texts)
        missing: dict[str, int] = {}
        for place, text in enumerate(texts):
            if text in self._slots:
                self._slots.move_to_end(text)
            else:
                missing.setdefault(text, place)
        if missing:
            self._fill(list(missing), *compute(list(missing.values())))
        slots = torch.tensor([self._slots[text] for text in texts], device=self._lengths.device)
        lengths = self._lengths[slots]
        longest = int(lengths.max())
        mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
        return self._states[slots, :longest], mask, found

    def _fill(self, texts: Sequence[str], lengths: Tensor, states: Tensor) -> None:
        slots = torch.tensor([self._take_slot(text) for text in texts], device=self._lengths.device)
        # Whole slots are written: what an empty tensor holds could be NaN, which no attention mask keeps out.
        self._states[slots] = F.pad(states.to(self._states.dtype), (0, 0, 0, self._states.shape[1] - states.shape[1]))
        self._lengths[slots] = lengths.to(self._lengths.device)

    def _take_slot(self, text: str) -> int:
        slot = len(self._slots) if len(self._slots) < self.max_ads else self._slots.popitem(last=False)[1]
        self._slots[text] = slot
        return slot
