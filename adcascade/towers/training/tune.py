"""What the validation part decides: weights of popularity and neighbours; and recall by width."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from adcascade.records.clicks import Integers
from adcascade.records.popularity import FEATURES
from adcascade.records.users import EventType, UserProfile
from adcascade.towers.evaluation.holdout import HeldOut
from adcascade.towers.evaluation.metrics import ranks_of, recall_at, with_interval
from adcascade.towers.findings import CUT_OFFS, Lead, TowerComparison
from adcascade.towers.model import EVENT_TYPES, Towers, UserEvents, attribute_buckets
from adcascade.towers.training.batches import Catalog, attributes_of, padded, user_events
from adcascade.towers.training.fit import short_widths
from adcascade.towers.training.score_weights import ScoreWeights, fit_score_weights

# How many times louder than the likelihood of the clicks says, neighbours may be: it weighs every click alike, and
# those far down the list, where neighbours know nothing, are many. Still louder, and new ads, which have no neighbours
# yet, would hardly be found.
_LOUDER = (0, 1, 2, 3)
# Enough to choose a handful of numbers by; more would only take memory.
MAX_USERS, _MAX_ADS = 1000, 50_000
_USERS_AT_ONCE = 64
_K = 100
_ALL_CLICKS, _RECENT_CLICKS = (FEATURES.index(f"clicks, half-life {days} days") for days in ("inf", "14"))


@dataclass(frozen=True)
class Choice:
    """What was chosen; see `adcascade.towers.artifact.TowerSpec`."""

    weights: ScoreWeights
    recall: dict[int, float]
    compared: TowerComparison


@dataclass(frozen=True)
class SideScores:
    """What is known of ads and users beside the towers.

    Attributes:
        popularity: features, float32 [ads, features].
        novelty: what being new adds to an ad's bias, float32 [ads].
        neighbours: see `fit_ease.neighbour_scores`, of the users of the sequences.
    """

    popularity: npt.NDArray[np.float32]
    novelty: npt.NDArray[np.float32]
    neighbours: csr_matrix


@torch.no_grad()
def interests_of(
    towers: Towers, catalog: Catalog, judged: HeldOut, profiles: Mapping[str, UserProfile]
) -> npt.NDArray[np.float32]:
    """Interest vectors of the users, float32 [users, 1 + width]."""
    attributes = attributes_of(profiles, list(judged.users))
    contexts = torch.from_numpy(attribute_buckets([context.values for context in judged.contexts]))
    found = []
    for start in range(0, len(judged), _USERS_AT_ONCE):
        places = np.arange(start, min(start + _USERS_AT_ONCE, len(judged)))
        events = _events(towers, catalog, judged, places, attributes)
        found.append(towers.users.interests(events, contexts[places]))
    vectors: npt.NDArray[np.float32] = torch.cat(found).numpy()
    return vectors


def _events(towers: Towers, catalog: Catalog, judged: HeldOut, places: Integers, attributes: Tensor) -> UserEvents:
    history = towers.shape.history
    windows = []
    for user in judged.of_user[places].tolist():
        part = judged.sequences.of(user) if user >= 0 else slice(0, 0)
        windows.append(slice(max(part.start, part.stop - history), part.stop))
    return user_events(towers.ads, catalog, padded(judged.sequences, windows), attributes[places])


def tune(
    towers: Towers,
    catalog: Catalog,
    judged: HeldOut,
    profiles: Mapping[str, UserProfile],
    beside: SideScores,
    seed: int,
) -> Choice:
    """Fits and chooses on users of the validation part.

    Args:
        beside: as of the end of the rows that the towers were trained on.

    Returns:
        The weights; the recall of each width is that of the vectors alone, without neighbours, and that
        of `compared` is of all together.
    """
    generator = np.random.default_rng(seed)
    judged = judged.take(np.sort(generator.permutation(len(judged))[:MAX_USERS]))
    interests = interests_of(towers, catalog, judged, profiles)
    ads = _some_ads(judged, len(catalog), generator)
    clicked, seen = ([_places(ads, some) for some in column] for column in (judged.clicked, judged.seen))
    rows = torch.from_numpy(ads)
    with torch.no_grad():
        vectors = towers.ads.vectors(catalog.texts[rows], catalog.buckets[rows]).numpy()
    scores = _scores(interests, vectors, towers.shape.width)
    features, item_scores = beside.popularity[ads], beside.neighbours[judged.of_user][:, ads].toarray()
    weights = fit_score_weights(scores, features, item_scores, clicked, seen)
    added = features @ weights.popularity + beside.novelty[ads]
    vectors[:, 0] += added
    weight_scale = max(
        _LOUDER, key=lambda times: _found(scores + added + times * weights.neighbours * item_scores, clicked, seen)
    )
    weights = replace(weights, neighbours=weight_scale * weights.neighbours)
    widths = (towers.shape.width, *short_widths(towers.shape.width))
    added_by_neighbours = weights.neighbours * item_scores
    others = {
        "popularity": np.broadcast_to(features[:, _ALL_CLICKS], scores.shape),
        "recent popularity": np.broadcast_to(features[:, _RECENT_CLICKS], scores.shape),
        "likeness of texts": _likeness(catalog, judged, rows),
    }
    known = np.flatnonzero(judged.events > 0).tolist()  # for the others popularity speaks when they are served

    def recalls(of_all: npt.NDArray[np.float32]) -> dict[int, npt.NDArray[np.float64]]:
        places = [ranks_of(of_all[user], clicked[user], seen[user]) for user in known]
        return {k: recall_at(places, k) for k in CUT_OFFS}

    compared = _compared(
        {width: recalls(_scores(interests, vectors, width) + added_by_neighbours) for width in widths},
        {name: recalls(of_all) for name, of_all in others.items()},
        len(known),
    )
    recall = {width: _recall(_scores(interests, vectors, width), clicked, seen, _K) for width in widths}
    return Choice(weights, recall, compared)


def _scores(
    interests: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], width: int
) -> npt.NDArray[np.float32]:
    """Of vectors cut to a width, float32 [users, ads]."""
    scores: npt.NDArray[np.float32] = interests[:, : 1 + width] @ np.ascontiguousarray(vectors[:, : 1 + width]).T
    return scores


def _likeness(catalog: Catalog, judged: HeldOut, rows: Tensor) -> npt.NDArray[np.float32]:
    """How like the text of each of the ads is to those that each user clicked, float32 [users, ads]."""
    means = torch.zeros(len(judged), catalog.texts.shape[1])
    for place, user in enumerate(judged.of_user.tolist()):
        events = judged.sequences.of(user) if user >= 0 else slice(0, 0)
        clicked = judged.sequences.types[events] != EVENT_TYPES.index(EventType.IMPRESSION)
        if clicked.any():
            means[place] = catalog.texts[torch.from_numpy(judged.sequences.ads[events][clicked])].mean(dim=0)
    likeness: npt.NDArray[np.float32] = (means @ catalog.texts[rows].T).numpy()
    return likeness


def _some_ads(judged: HeldOut, count: int, generator: np.random.Generator) -> Integers:
    """All ads of a catalog, or those that were clicked and some others."""
    if count <= _MAX_ADS:
        return np.arange(count)
    return np.unique(np.concatenate([generator.integers(0, count, _MAX_ADS), *judged.clicked]))


def _places(ads: Integers, some: Integers) -> Integers:
    """Places in `ads` (in order) of those of `some` that are there."""
    place = np.minimum(np.searchsorted(ads, some), len(ads) - 1)
    found: Integers = place[ads[place] == some]
    return found


def _found(scores: npt.NDArray[np.float32], clicked: list[Integers], seen: list[Integers]) -> float:
    """Mean of recall@10 and recall@100."""
    return (_recall(scores, clicked, seen, 10) + _recall(scores, clicked, seen, _K)) / 2


def _recall(scores: npt.NDArray[np.float32], clicked: list[Integers], seen: list[Integers], k: int) -> float:
    """Mean recall@k of the users."""
    places = [ranks_of(*of_user) for of_user in zip(scores, clicked, seen, strict=True)]
    return float(recall_at(places, k).mean())


def _compared(
    towers: Mapping[int, Mapping[int, npt.NDArray[np.float64]]],
    others: Mapping[str, Mapping[int, npt.NDArray[np.float64]]],
    users: int,
) -> TowerComparison:
    """Of the recalls of each user, by width (or name) and k."""
    if not users:
        return TowerComparison(users=0, towers={}, others={}, lead={})
    return TowerComparison(
        users=users,
        towers={width: {k: float(found.mean()) for k, found in of.items()} for width, of in towers.items()},
        others={name: {k: float(found.mean()) for k, found in of.items()} for name, of in others.items()},
        lead={
            width: {name: {k: _lead(of[k] - other[k]) for k in CUT_OFFS} for name, other in others.items()}
            for width, of in towers.items()
        },
    )


def _lead(differences: npt.NDArray[np.float64]) -> Lead:
    found = with_interval(differences)
    return Lead(value=found.value, low=found.low, high=found.high)
