"""Retrieval against what users clicked next, beside its peers. Knows no wire.

Each user of the test part is asked for once, as of the end of the training part, by the code that serves; ads that they
had met before are left out for every method.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from adcascade.catalog.schedule import Schedule
from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from adcascade.records.history import Histories
from adcascade.records.popularity import PopularitySnapshot
from adcascade.records.users import EventType, UserProfile
from adcascade.towers.evaluation.holdout import HeldOut, held_out
from adcascade.towers.evaluation.metrics import Places, recall_at, with_interval
from adcascade.towers.model import EVENT_TYPES
from adcascade.towers.training.data import RetrievalData
from retrieval.evaluation.baselines import UNPERSONAL, baselines
from retrieval.evaluation.evaluator import RetrievalEvaluator, ranks_in
from retrieval.evaluation.results import CURVE, RECALLS, RETRIEVAL, ZERO_SHOT, RetrievalEvaluation, Slice
from retrieval.interests import Interests, InterestSettings, TextInterests
from retrieval.query import MAX_K, Query, Retrieved
from retrieval.retriever import Retriever

log = logging.getLogger(__name__)

# Told how many users of how many are done.
Progress = Callable[[int, int], None]

_USERS_AT_ONCE = 32
# The k of the parts' recall, and that of a catalog of fewer ads than a thousand.
_K, _K_OF_FEW, _FEW_ADS = 100, 10, 1000
_KNOWN_EVENTS = (0, 1, 3)
_EVENTS = {"none": (0, 0), "1": (1, 1), "2 to 5": (2, 5), "more": (6, np.inf)}
_CLICKS = {"never shown": (-1, -1), "none": (0, 0), "1 to 9": (1, 9), "10 to 99": (10, 99), "more": (100, np.inf)}


@dataclass(frozen=True)
class Found:
    """Numbers of the ads that a user gets, best first, int64 [ads], and retrieval's scores, float64 [ads]."""

    ads: Integers
    scores: npt.NDArray[np.float64]


def evaluate_retrieval(
    data: RetrievalData, retriever: Retriever, *, with_baselines: bool = True, progress: Progress = lambda *_: None
) -> RetrievalEvaluation:
    """Judges a retriever on the test part of a log.

    Raises:
        InputError: Nobody clicked a new ad in the test part.
    """
    warn_of_known_rows(data, retriever)
    judge, popularity = judge_of(data)
    profiles = profiles_of(data, judge.judged)
    told = _in_parts(progress, len(_KNOWN_EVENTS) + 1, len(profiles))
    found = retrieved(retriever, profiles, judge.judged, data, max(RECALLS), told(0))
    judge.add_lists(RETRIEVAL, [one.ads for one in found], max(RECALLS))
    if with_baselines:
        add_baselines(judge, data, retriever, profiles, popularity)
    k = _K if len(data.ads) >= _FEW_ADS else _K_OF_FEW
    known = [
        _as_if(events, judge, data, retriever, profiles, told(part), k)
        for part, events in enumerate(_KNOWN_EVENTS, start=1)
    ]
    return RetrievalEvaluation(
        comparison=judge.comparison([RETRIEVAL]),
        known_events=[*known, _slice("all", judge.places, k)],
        by_events=_by_events(judge, k),
        by_ads=_by_ads(judge, data, k),
        curves={
            name: [(k, float(recall_at(places, k).mean())) for k in CURVE if k <= len(data.ads)]
            for name, places in judge.places.items()
        },
        k=k,
    )


def warn_of_known_rows(data: RetrievalData, retriever: Retriever) -> None:
    """Logs a warning unless the index knows exactly the rows that this data sets apart to train on."""
    towers = retriever.index.loaded.towers
    if towers is None:
        return
    if towers.spec.training_sha256 != data.training_sha256:
        log.warning(
            "the towers were trained on other rows than this split's, so they may know what they are tested on: "
            "give the files, the number of newest rows, the split and the seed of their training"
        )
    elif towers.popularity.as_of_us > int(data.log.time[data.split.train].max()) + 1:
        log.warning(
            "the index was refreshed with clicks of the test part, so it knows how popular ads are then: "
            "judge a version as it was built"
        )


def judge_of(data: RetrievalData) -> tuple[RetrievalEvaluator, PopularitySnapshot]:
    """The users of the test part, and how popular ads were before it. Raises what `evaluate_retrieval` does."""
    if not len(data.split.test):
        raise InputError("this split keeps no rows to test: choose time, user or ad")
    judged = held_out(data.log, data.split.train, data.split.test, data.number_of)
    if not len(judged):
        raise InputError("there is nothing to evaluate: nobody clicked an ad that was new to them in the test part")
    popularity = PopularitySnapshot.of(data.log.take(data.split.train))
    schedule = Schedule.of([(ad.start_time, ad.end_time) for ad in data.ads])
    return RetrievalEvaluator(judged, popularity.clicks(data.ad_ids, np.inf), schedule), popularity


def _in_parts(progress: Progress, parts: int, users: int) -> Callable[[int], Progress]:
    def part(number: int) -> Progress:
        return lambda done, total: progress(number * users + done, parts * users)

    return part


def profiles_of(data: RetrievalData, judged: HeldOut) -> list[UserProfile]:
    """Users as of the end of what they did in the training part, with their newest events."""
    histories = Histories(data.log.take(data.split.train))
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


def retrieved(
    retriever: Retriever,
    profiles: Sequence[UserProfile],
    judged: HeldOut,
    data: RetrievalData,
    count: int,
    progress: Progress = lambda *_: None,
) -> list[Found]:
    """What each user gets; nothing for one of whom nothing is known."""
    found = []
    k = min(count, len(data.ads))
    for start in range(0, len(profiles), _USERS_AT_ONCE):
        some = profiles[start : start + _USERS_AT_ONCE]
        queries = [
            Query(
                user,
                None,
                k,
                frozenset(data.ad_ids[ad] for ad in met),
                context=context,
                at_any_time=context.timestamp is None,  # of a log without times, which is not of now
            )
            for user, met, context in zip(some, judged.seen[start:], judged.contexts[start:], strict=False)
        ]
        for answer in retriever.answer(queries):
            candidates = answer.candidates if isinstance(answer, Retrieved) else []
            known = [one for one in candidates if one.ad_id in data.number_of]
            numbers = np.array([data.number_of[one.ad_id] for one in known], np.int64)
            found.append(Found(numbers, np.array([one.score for one in known], np.float64)))
        progress(start + len(some), len(profiles))
    return found


def add_baselines(
    judge: RetrievalEvaluator,
    data: RetrievalData,
    retriever: Retriever,
    profiles: Sequence[UserProfile],
    popularity: PopularitySnapshot,
) -> None:
    """Fits the peers on the clicks before the test, and adds what they find."""
    judged, sequences = judge.judged, judge.judged.sequences
    zero_shot = TextInterests(retriever.index.loaded, InterestSettings()).of(
        [UserProfile(user.user_id, history=user.history) for user in profiles], judged.contexts, {}
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
    for name, peer in baselines(len(data.ads), popularity, data.ad_ids).items():
        judge.add_scores(name, peer(clicks, of_user).__getitem__)


def _as_if(
    events: int,
    judge: RetrievalEvaluator,
    data: RetrievalData,
    retriever: Retriever,
    profiles: Sequence[UserProfile],
    progress: Progress,
    k: int,
) -> Slice:
    """As if only so many of each user's newest clicks were known; what needs no user stays as it is."""
    few = []
    for user in profiles:
        clicks = [event for event in user.history if event.type is not EventType.IMPRESSION]
        few.append(UserProfile(user.user_id, user.interests, user.attributes, tuple(clicks[len(clicks) - events :])))
    found = retrieved(retriever, few, judge.judged, data, _K, progress)
    others = {name: places for name, places in judge.places.items() if name in UNPERSONAL}
    return _slice(str(events), {RETRIEVAL: ranks_in([one.ads for one in found], judge.judged), **others}, k)


def _slice(name: str, places: Mapping[str, Sequence[Places]], k: int) -> Slice:
    some = next(iter(places.values()))
    recall = {method: recall_at(found, k) for method, found in places.items()}
    return Slice(
        name,
        len(some),
        sum(map(len, some)),
        recall={method: with_interval(values) for method, values in recall.items()},
        lead={
            method: with_interval(recall[RETRIEVAL] - values)
            for method, values in recall.items()
            if method != RETRIEVAL
        },
    )


def _by_events(judge: RetrievalEvaluator, k: int) -> list[Slice]:
    events = judge.judged.events
    found = []
    for name, (low, high) in _EVENTS.items():
        users = np.flatnonzero((events >= low) & (events <= high))
        if len(users):
            some = {method: [of[user] for user in users] for method, of in judge.places.items()}
            found.append(_slice(name, some, k))
    return found


def _by_ads(judge: RetrievalEvaluator, data: RetrievalData, k: int) -> list[Slice]:
    """Users with a click on such an ad, and those clicks alone."""
    shown = frozenset(data.log.ad_id[data.split.train].compact().names.to_pylist())
    known = np.array([ad_id in shown for ad_id in data.ad_ids])
    clicks = np.where(known, judge.clicks_of_ads, -1)
    found = []
    for name, (low, high) in _CLICKS.items():
        of_users = [(clicks[ads] >= low) & (clicks[ads] <= high) for ads in judge.judged.clicked]
        if any(of_user.any() for of_user in of_users):
            some = {
                method: [of.take(which) for of, which in zip(places, of_users, strict=True) if which.any()]
                for method, places in judge.places.items()
            }
            found.append(_slice(name, some, k))
    return found
