"""A user's profile and history as one or more interest vectors, without a click log. Knows no FAISS.

Each event is a vector (of the ad it is about, or of its text) with a weight: its type's sign and strength, halved with
every half-life of age. A long history is clustered (Ward, as in PinnerSage, arXiv 2007.03634), and each cluster of
liked events, together with the interests text and away from disliked events, makes one unit vector.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

from adcascade.records.errors import InputError
from adcascade.records.users import EVENT_WEIGHT, Context, Event, UserProfile
from adcascade.vectors.encoder import Vectors
from index_builder.artifact import IndexVersion

Weights = npt.NDArray[np.float64]

# Without a time, the event this many places from the newest counts half.
_HALF_LIFE_EVENTS = 20.0
# The interests text counts as much as this share of everything that was liked; alone, it is all there is.
_TEXT_SHARE = 0.5
# How far a vector of dislikes pushes.
_PUSH = 0.3
_SECONDS_PER_DAY = 86_400.0
_CLUSTERED_EVENTS = 200
# Texts of events that are read, at most; older ones count next to nothing, and each costs as much as the newest.
_TEXT_EVENTS = 200
# Half-lives after which an event's weight falls no more, so that it stays a number.
_MOST_HALF_LIVES = 60.0


@dataclass(frozen=True)
class InterestSettings:
    """How profiles become vectors; see `retrieval.settings`."""

    half_life_days: float = 14.0
    max_interests: int = 4
    events_per_interest: int = 8


@dataclass(frozen=True)
class Interests:
    """What a user is interested in.

    Attributes:
        vectors: float32 [interests, dimension]; without towers unit vectors, heaviest first.
        weights: Share of the candidates that each interest brings first, summing to at most 1, float64 [interests].
        unknown_history: Events whose ad is not in the index version.
    """

    vectors: Vectors
    weights: Weights
    unknown_history: int


class InterestModel(Protocol):
    """Anything that turns users into interest vectors in the space of an index version."""

    def texts_of(self, user: UserProfile) -> list[str]:
        """The texts that `of` needs vectors of."""

    def of(
        self, users: Sequence[UserProfile], contexts: Sequence[Context], texts: Mapping[str, Vectors]
    ) -> "Sequence[Interests | InputError]":
        """Interests of each user, or why there are none.

        Args:
            contexts: Where ads would be shown to each user.
            texts: Unit vector of each of `texts_of`, float32 [text dimension].
        """


class TextInterests:
    """Interests as means of text vectors, for an index version without towers."""

    def __init__(self, loaded: IndexVersion, settings: InterestSettings) -> None:
        self._row_of, self._vectors, self._settings = loaded.catalog.row_of, loaded.vectors, settings

    def texts_of(self, user: UserProfile) -> list[str]:
        """See `InterestModel`."""
        with_texts = [event for event in user.history if event.text]
        return texts_of(user, with_texts[-_TEXT_EVENTS:])

    def of(
        self, users: Sequence[UserProfile], contexts: Sequence[Context], texts: Mapping[str, Vectors]
    ) -> "list[Interests | InputError]":
        """See `InterestModel`; contexts say nothing here."""
        return [self._of(user, texts) for user in users]

    def _of(self, user: UserProfile, texts: Mapping[str, Vectors]) -> "Interests | InputError":
        try:
            return compute_interests(user, self._ad_vectors, texts, self._settings)
        except InputError as error:
            return error

    def _ad_vectors(self, ad_ids: list[str]) -> tuple[list[int], Vectors]:
        places = [place for place, ad_id in enumerate(ad_ids) if ad_id in self._row_of]
        return places, np.asarray(self._vectors[[self._row_of[ad_ids[place]] for place in places]])


def texts_of(user: UserProfile, events: Sequence[Event] | None = None) -> list[str]:
    """The texts of a user: those of the events (or of `events`, which are some of them) and the interests."""
    texts = [event.text for event in (user.history if events is None else events) if event.text]
    return [*texts, user.interests.strip()] if user.interests.strip() else texts


def compute_interests(
    user: UserProfile,
    ad_vectors: Callable[[list[str]], tuple[list[int], Vectors]],
    text_vectors: Mapping[str, Vectors],
    settings: InterestSettings,
) -> Interests:
    """Turns a user into interest vectors.

    Args:
        user: The profile; its history is oldest first.
        ad_vectors: Takes ad ids; returns the places of those it knows, and their vectors [known, dimension].
        text_vectors: Vector of each of the texts that are read (see `texts_of`), float32 [dimension]; an event whose
            text has none is passed over.

    Raises:
        InputError: Nothing is known of the user that could be searched with.
    """
    events, vectors, unknown = _event_vectors(user.history, ad_vectors, text_vectors)
    weights = _weights(events, settings.half_life_days)
    liked, disliked = weights > 0, weights < 0
    text = text_vectors.get(user.interests.strip()) if user.interests.strip() else None
    if not liked.any() and text is None:
        raise InputError(_nothing_known(user, unknown))
    push = _PUSH * _unit(np.abs(weights[disliked]) @ vectors[disliked]) if disliked.any() else 0.0
    found = []
    for members in _clusters(vectors[liked], weights[liked], settings):
        mass = weights[liked][members]
        center = _unit(mass @ vectors[liked][members])
        pull = _TEXT_SHARE * text if text is not None else 0.0
        found.append((float(mass.sum()), _unit(center + pull - push)))
    if not found and text is not None:
        found = [(1.0, _unit(text - push))]
    found.sort(key=lambda interest: -interest[0])
    masses = np.array([mass for mass, _ in found])
    return Interests(np.stack([vector for _, vector in found]).astype(np.float32), masses / masses.sum(), unknown)


def _event_vectors(
    history: tuple[Event, ...],
    ad_vectors: Callable[[list[str]], tuple[list[int], Vectors]],
    text_vectors: Mapping[str, Vectors],
) -> tuple[list[Event], Vectors, int]:
    """The events that have a vector, in order, their vectors, and how many have none."""
    about_ads = [event for event in history if event.ad_id]
    places, vectors = ad_vectors([event.ad_id for event in about_ads])
    by_event = {id(about_ads[place]): vector for place, vector in zip(places, vectors, strict=True)}
    by_event.update({id(event): text_vectors[event.text] for event in history if event.text in text_vectors})
    events = [event for event in history if id(event) in by_event]
    known = [by_event[id(event)] for event in events]
    stacked = np.stack(known) if known else np.zeros((0, vectors.shape[1]), np.float32)
    return events, stacked, len(about_ads) - len(places)


def _weights(events: list[Event], half_life_days: float) -> Weights:
    """Signed weight of each event. Age counts from the newest event, so that a user who returns is not forgotten."""
    strength = np.array([EVENT_WEIGHT[event.type] for event in events])
    newest = max((event.timestamp for event in events if event.timestamp), default=datetime.now(UTC))
    ages = [
        (newest - event.timestamp).total_seconds() / _SECONDS_PER_DAY / half_life_days
        if event.timestamp
        else (len(events) - 1 - place) / _HALF_LIFE_EVENTS
        for place, event in enumerate(events)
    ]
    weights: Weights = strength * 0.5 ** np.minimum(ages, _MOST_HALF_LIVES)
    return weights


def _clusters(vectors: Vectors, weights: Weights, settings: InterestSettings) -> list[npt.NDArray[np.int64]]:
    """Groups of liked events by likeness; events older than the newest 200 join no group."""
    count = len(vectors)
    if count == 0:
        return []
    recent = np.arange(max(0, count - _CLUSTERED_EVENTS), count)
    groups = min(settings.max_interests, max(1, len(recent) // settings.events_per_interest))
    if groups == 1:
        return [recent]
    labels = fcluster(linkage(vectors[recent], method="ward"), groups, criterion="maxclust")
    return [recent[labels == label] for label in np.unique(labels)]


def _unit(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _nothing_known(user: UserProfile, unknown: int) -> str:
    if not user.history:
        return "the user is empty: send interests, or a history with at least one liked ad or search"
    if unknown == len(user.history):
        return f"none of the {unknown} ads of the history is in this index version; send interests, or newer events"
    return "the history holds nothing the user liked; send interests, or a view, click, conversion or search"
