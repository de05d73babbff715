"""What the behaviour part reads, as tensors: of one user, or of many at once. Knows no weights and no logs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ranking.inputs.features import INTERESTS_CLASS, UNKNOWN_TIME_GAP


@dataclass(frozen=True)
class AdInputs:
    """What the behaviour part reads of ads.

    Attributes:
        vectors: unit text vectors, float32 [ads, width].
        buckets: hashed ids, int64 [ads]; 0 for a text that is no ad.
    """

    vectors: Tensor
    buckets: Tensor


@dataclass(frozen=True)
class History:
    """Past events, and how each of some impressions stands to them.

    Attributes:
        ads: what the events are about, [events].
        types: class of each event's type, int64 [events].
        gaps: class of the time between event and impression, int64 [impressions, events].
        seen: which events each impression may look back on, bool [impressions, events].
    """

    ads: AdInputs
    types: Tensor
    gaps: Tensor
    seen: Tensor


def with_interests(history: History, interests: Tensor, seen: Tensor) -> History:
    """`history` after what users say of themselves: texts that they like, at no known time.

    Args:
        interests: their text vectors, float32 [texts, width].
        seen: which impressions are of the user who says so, bool [impressions, texts].
    """
    texts = len(interests)
    return History(
        AdInputs(torch.cat([interests, history.ads.vectors]), F.pad(history.ads.buckets, (texts, 0))),
        F.pad(history.types, (texts, 0), value=INTERESTS_CLASS),
        F.pad(history.gaps, (texts, 0), value=UNKNOWN_TIME_GAP),
        torch.cat([seen, history.seen], dim=1),
    )


@dataclass(frozen=True)
class Impressions:
    """Impressions to be scored.

    Attributes:
        dense: normalised features, float32 [impressions, features].
        context: ids of attributes, context and time of day (see `ranking.inputs.context`), int64 [impressions, words].
        ads: the candidates, [impressions].
    """

    dense: Tensor
    context: Tensor
    ads: AdInputs


@dataclass(frozen=True)
class Tile:
    """Users with about as many impressions and events each, side by side; whoever has fewer is padded.

    Attributes:
        shown: place of each impression in the batch, int64 [users, impressions]; of padding any place.
        events: place of each event among those of the batch, int64 [users, events]; of padding any place.
        gaps: class of the time between event and impression, int64 [users, impressions, events].
        seen: which events each impression may look back on, bool [users, impressions, events]; never padding.
    """

    shown: Tensor
    events: Tensor
    gaps: Tensor
    seen: Tensor


@dataclass(frozen=True)
class UserBatch:
    """Impressions of many users, and what each user did before. Each text stands in it once.

    Attributes:
        dense, context: see `Impressions`, [impressions, ...].
        texts: ads, and interests that users state, [texts].
        shown: which of the texts each impression shows, int64 [impressions].
        events: which of the texts each event is about, int64 [events].
        types: class of each event's type, int64 [events].
        tiles: the impressions that have a past, with their events.
        places: where each impression stands among those of all tiles, one tile after the other, padding counted; past
            their end for one without a past, int64 [impressions].
    """

    dense: Tensor
    context: Tensor
    texts: AdInputs
    shown: Tensor
    events: Tensor
    types: Tensor
    tiles: tuple[Tile, ...]
    places: Tensor
