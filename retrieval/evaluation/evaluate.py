"""Retrieval against what users clicked next, beside its peers. Knows no wire.

Each user of the test part is asked for once, as of the end of the training part, by the code that serves; ads that they
had met before are left out for every method.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from index_builder.towers import EVENT_TYPES
from index_builder.training.data import RetrievalData
from index_builder.training.held_out import HeldOut, held_out
from index_builder.training.ranks import Interval, ndcg_at, places_of, recall_at, reciprocal_rank, with_interval
from records.clicks import Integers
from records.errors import InputError
from records.history import Histories
from records.popularity import PopularitySnapshot
from records.users import EventType, UserProfile
from retrieval.evaluation.peers import UNPERSONAL, peers
from retrieval.evaluation.results import RECALLS, RETRIEVAL, ZERO_SHOT, RetrievalEvaluation, Slice
from retrieval.interests import Interests, InterestSettings, TextInterests
from retrieval.retriever import MAX_K, Query, Retrieved, Retriever

# Told how many users of how many are done.
Progress = Callable[[int, int], None]

_FIRST = 100
_USERS_AT_ONCE = 32
_NOT_FOUND = np.iinfo(np.int32).max
_KNOWN_EVENTS = (0, 1, 3)
_SLICES = {"no events": (0, 0), "1 event": (1, 1), "2 to 5 events": (2, 5), "more events": (6, np.inf)}


class _Judge:
    """Methods on the same users: places of their clicks, and what they would be shown."""

    def __init__(self, judged: HeldOut, clicks_of_ads: npt.NDArray[np.float64]) -> None:
        self.judged = judged
        self._clicks_of_ads = clicks_of_ads
        self.places: dict[str, list[Integers]] = {}
        self.coverage: dict[str, float] = {}
        self.lift: dict[str, float] = {}

    def add_scores(self, name: str, scores: Callable[[int], npt.NDArray[np.float32]]) -> None:
        """A method that scores all ads for the user at a place."""
        places, shown = [], []
        for user in range(len(self.judged)):
            of_user = scores(user)
            places.append(places_of(of_user, self.judged.clicked[user], self.judged.seen[user]))
            left = of_user.copy()
            left[self.judged.seen[user]] = -np.inf
            first = min(_FIRST, len(left))
            shown.append(np.argpartition(-left, first - 1)[:first])
        self._add(name, places, shown)

    def add_lists(self, name: str, lists: Sequence[Integers]) -> None:
        """A method that answers with the numbers of ads, best first."""
        places = []
        for found, clicked in zip(lists, self.judged.clicked, strict=True):
            place_of = {ad: place for place, ad in enumerate(found.tolist())}
            places.append(np.array([place_of.get(ad, _NOT_FOUND) for ad in clicked.tolist()]))
        self._add(name, places, [found[:_FIRST] for found in lists])

    def _add(self, name: str, places: list[Integers], shown: Sequence[Integers]) -> None:
        self.places[name] = places
        together = np.concatenate(shown) if len(shown) else np.empty(0, np.int64)
        self.coverage[name] = len(np.unique(together)) / len(self._clicks_of_ads)
        self.lift[name] = float(self._clicks_of_ads[together].mean() / max(self._clicks_of_ads.mean(), 1e-9))


def evaluate_retrieval(
    data: RetrievalData, retriever: Retriever, *, with_peers: bool = True, progress: Progress = lambda *_: None
) -> RetrievalEvaluation:
    """Judges a retriever on the test part of a log.

    Raises:
        InputError: Nobody clicked a new ad in the test part.
    """
    judged = held_out(data.log, data.parts.training, data.parts.test, data.number_of)
    if not len(judged):
        raise InputError("there is nothing to evaluate: nobody clicked an ad that was new to them in the test part")
    training = data.log.take(data.parts.training)
    popularity = PopularitySnapshot.of(training)
    judge = _Judge(judged, popularity.clicks(data.ad_ids, np.inf))
    profiles = _profiles(data, judged)
    steps = len(_KNOWN_EVENTS) + 1
    told = _in_parts(progress, steps, len(judged))
    judge.add_lists(RETRIEVAL, _retrieved(retriever, profiles, judged, data, told(0)))
    if with_peers:
        _add_peers(judge, data, retriever, profiles, popularity)
    known = [_slice("all", judge.places)]
    for part, events in enumerate(_KNOWN_EVENTS, start=1):
        known.insert(part - 1, _as_if(events, judge, data, retriever, profiles, told(part)))
    return RetrievalEvaluation(
        users=len(judged),
        clicks=sum(map(len, judged.clicked)),
        metrics={name: _metrics(places) for name, places in judge.places.items()},
        lead={
            name: {k: with_interval(recall_at(judge.places[RETRIEVAL], k) - recall_at(places, k)) for k in RECALLS}
            for name, places in judge.places.items()
            if name != RETRIEVAL
        },
        coverage=judge.coverage,
        popularity_lift=judge.lift,
        known_events=known,
        by_events=_by_events(judge),
    )


def _in_parts(progress: Progress, parts: int, users: int) -> Callable[[int], Progress]:
    def part(number: int) -> Progress:
        return lambda done, total: progress(number * users + done, parts * users)

    return part


def _profiles(data: RetrievalData, judged: HeldOut) -> list[UserProfile]:
    """Users as of the end of what they did in the training part, with their newest events."""
    histories = Histories(data.log.take(data.parts.training))
    end = np.iinfo(np.int64).max
    return [
        UserProfile(
            user,
            data.users[user].interests if user in data.users else "",
            data.users[user].attributes if user in data.users else {},
            histories.before(user, end, MAX_K),
        )
        for user in judged.users
    ]


def _retrieved(
    retriever: Retriever, profiles: Sequence[UserProfile], judged: HeldOut, data: RetrievalData, progress: Progress
) -> list[Integers]:
    """Numbers of the ads that each user gets, best first; none for a user of whom nothing is known."""
    found: list[Integers] = []
    k = min(max(RECALLS), len(data.ads))
    for start in range(0, len(profiles), _USERS_AT_ONCE):
        some = profiles[start : start + _USERS_AT_ONCE]
        seen = judged.seen[start : start + len(some)]
        queries = [
            Query(user, None, k, frozenset(data.ad_ids[ad] for ad in met)) for user, met in zip(some, seen, strict=True)
        ]
        for answer in retriever.answer(queries):
            ids = [one.ad_id for one in answer.candidates] if isinstance(answer, Retrieved) else []
            found.append(np.array([data.number_of[ad_id] for ad_id in ids if ad_id in data.number_of], np.int64))
        progress(start + len(some), len(profiles))
    return found


def _add_peers(
    judge: _Judge,
    data: RetrievalData,
    retriever: Retriever,
    profiles: Sequence[UserProfile],
    popularity: PopularitySnapshot,
) -> None:
    judged, sequences = judge.judged, judge.judged.sequences
    zero_shot = TextInterests(retriever.index.loaded, InterestSettings()).of(
        [UserProfile(user.user_id, history=user.history) for user in profiles], {}
    )
    nothing = np.zeros(len(data.ads), np.float32)

    def by_text(user: int) -> npt.NDArray[np.float32]:
        found = zero_shot[user]
        return (found.vectors @ data.texts.T).max(axis=0) if isinstance(found, Interests) else nothing

    judge.add_scores(ZERO_SHOT, by_text)
    clicked = sequences.types != EVENT_TYPES.index(EventType.IMPRESSION)
    users = np.repeat(np.arange(len(sequences.users)), np.diff(sequences.start))[clicked]
    shape = (len(sequences.users) + 1, len(data.ads))  # the last row is of users without events
    clicks = csr_matrix((np.ones(len(users)), (users, sequences.ads[clicked])), shape)
    clicks.data[:] = 1.0  # an ad clicked twice is clicked
    of_user = np.where(judged.of_user >= 0, judged.of_user, len(sequences.users))
    for name, peer in peers(len(data.ads), popularity, data.ad_ids).items():
        judge.add_scores(name, peer(clicks, of_user).__getitem__)


def _as_if(
    events: int,
    judge: _Judge,
    data: RetrievalData,
    retriever: Retriever,
    profiles: Sequence[UserProfile],
    progress: Progress,
) -> Slice:
    """As if only so many of each user's newest clicks were known; what needs no user stays as it is."""
    few = []
    for user in profiles:
        clicks = [event for event in user.history if event.type is not EventType.IMPRESSION]
        few.append(UserProfile(user.user_id, user.interests, user.attributes, tuple(clicks[len(clicks) - events :])))
    lists = _retrieved(retriever, few, judge.judged, data, progress)
    as_if = _Judge(judge.judged, np.ones(len(data.ads)))
    as_if.add_lists(RETRIEVAL, lists)
    others = {name: places for name, places in judge.places.items() if name in UNPERSONAL}
    return _slice(str(events), {**as_if.places, **others})


def _slice(name: str, places: Mapping[str, Sequence[Integers]]) -> Slice:
    some = next(iter(places.values()))
    return Slice(name, len(some), {method: with_interval(recall_at(found, 100)) for method, found in places.items()})


def _by_events(judge: _Judge) -> list[Slice]:
    events = judge.judged.events
    found = []
    for name, (low, high) in _SLICES.items():
        users = np.flatnonzero((events >= low) & (events <= high))
        if len(users):
            found.append(_slice(name, {method: [of[user] for user in users] for method, of in judge.places.items()}))
    return found


def _metrics(places: Sequence[Integers]) -> dict[str, Interval]:
    found = {f"recall@{k}": with_interval(recall_at(places, k)) for k in RECALLS}
    return {**found, "ndcg@10": with_interval(ndcg_at(places, 10)), "mrr": with_interval(reciprocal_rank(places))}
