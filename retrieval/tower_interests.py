"""A user's profile and history to interest vectors by the user tower of an index version. Knows no FAISS.

Events are looked up as the vectors that the index version keeps of its ads; only texts (searches, interests) are
encoded, by whoever calls. A user of whom nothing is known gets the vector of a newcomer.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import torch

from adcascade.records.users import Context, Event, UserProfile
from adcascade.towers.artifact import TrainedTowers
from adcascade.towers.model import EVENT_TYPES, INTERESTS_TYPE, UNKNOWN_GAP, UserEvents, attribute_buckets, gap_class
from adcascade.vectors.encoder import Vectors
from index_builder.artifact import IndexVersion
from retrieval.interests import Interests, texts_of

_TYPE_OF = {kind: place for place, kind in enumerate(EVENT_TYPES)}


class TowerInterests:
    """The user tower over what an index version knows of ads."""

    def __init__(self, loaded: IndexVersion, towers: TrainedTowers) -> None:
        assert loaded.event_vectors is not None
        self._row_of = loaded.catalog.row_of
        self._event_vectors = loaded.event_vectors
        self._trained = towers
        self._dimension = loaded.manifest.dimension

    def texts_of(self, user: UserProfile) -> list[str]:
        """The texts that `of` needs vectors of: those of the events that are read, and the interests."""
        return texts_of(user, self._known(user)[0])

    @torch.inference_mode()
    def of(
        self, users: Sequence[UserProfile], contexts: Sequence[Context], texts: Mapping[str, Vectors]
    ) -> list[Interests]:
        """See `InterestModel`."""
        known = [self._known(user) for user in users]
        vectors = self._trained.towers.users.interests(
            self._events(users, [events for events, _ in known], texts),
            torch.from_numpy(attribute_buckets([context.values for context in contexts])),
        )
        cut = vectors[:, None, : self._dimension].numpy()
        # The one vector of a user brings all candidates: none is its share before others'.
        return [Interests(of_user, np.zeros(1), unknown) for of_user, (_, unknown) in zip(cut, known, strict=True)]

    def _known(self, user: UserProfile) -> tuple[list[Event], int]:
        """The newest events that are about a text or an ad of this index, and how many of all are not."""
        known = [event for event in user.history if event.text or event.ad_id in self._row_of]
        return known[-self._trained.spec.shape.history :], len(user.history) - len(known)

    def _events(
        self, users: Sequence[UserProfile], histories: Sequence[list[Event]], texts: Mapping[str, Vectors]
    ) -> UserEvents:
        shape = self._trained.spec.shape
        said = [user.interests.strip() for user in users]
        lengths = [len(events) + bool(text) for events, text in zip(histories, said, strict=True)]
        longest = max(1, *lengths)
        vectors = np.zeros((len(users), longest, shape.event_width), np.float32)
        types = np.zeros((len(users), longest), np.int64)
        gaps = np.full((len(users), longest), UNKNOWN_GAP)
        of_texts = self._text_events(texts)
        for row, (events, text) in enumerate(zip(histories, said, strict=True)):
            first = int(bool(text))
            if text:
                vectors[row, 0], types[row, 0] = of_texts[text], INTERESTS_TYPE
            about_ads = [place for place, event in enumerate(events) if event.ad_id]
            rows = [self._row_of[events[place].ad_id] for place in about_ads]
            vectors[row, [first + place for place in about_ads]] = self._event_vectors[rows]
            for place, event in enumerate(events, start=first):
                if event.text:
                    vectors[row, place] = of_texts[event.text]
                types[row, place] = _TYPE_OF[event.type]
            gaps[row, first : first + len(events)] = _gaps([event.timestamp for event in events])
        return UserEvents(
            torch.from_numpy(vectors),
            torch.from_numpy(types),
            torch.from_numpy(gaps),
            torch.tensor(lengths),
            torch.from_numpy(attribute_buckets([user.attributes for user in users])),
        )

    def _text_events(self, texts: Mapping[str, Vectors]) -> dict[str, Vectors]:
        """What events about these texts are to the user tower."""
        if not texts:
            return {}
        stacked = torch.from_numpy(np.stack(list(texts.values())))
        buckets = torch.zeros(len(texts), dtype=torch.int64)
        return dict(zip(texts, self._trained.towers.ads.events(stacked, buckets).numpy(), strict=True))


def _gaps(times: Sequence[datetime | None]) -> list[int]:
    """Class of the time since the event before, unknown for the first."""
    pairs = zip([None, *times], times, strict=False)  # each time after the one before
    return [
        gap_class((later - earlier).total_seconds() if earlier is not None and later is not None else None)
        for earlier, later in pairs
    ]
