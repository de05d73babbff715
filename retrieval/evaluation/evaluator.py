"""Methods on the same users: where each puts the ads that these clicked next. Knows no models and no wire."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from adcascade.catalog.schedule import Schedule
from adcascade.records.clicks import Integers
from adcascade.towers.evaluation.holdout import HeldOut
from adcascade.towers.evaluation.metrics import (
    NOT_FOUND,
    Places,
    Shown,
    hit_at,
    ndcg_at,
    ranks_of,
    recall_at,
    reciprocal_rank,
    shown_first,
    with_interval,
)
from retrieval.evaluation.results import RECALLS, Comparison

_FIRST = 100


class RetrievalEvaluator:
    """Keeps what each method finds.

    Scores that are equal stand in no order (see `adcascade.towers.evaluation.metrics`); a list is judged as it is
    served.

    Args:
        judged: The users.
        clicks_of_ads: Clicks of each ad of the catalog before the test, float64 [ads].
        schedule: When each of them may be shown; a method that scores all ads is asked for those of the moment alone,
            as retrieval is. None if all may always.

    Attributes:
        places: method -> of each user, the places of the clicked ads.
    """

    def __init__(
        self, judged: HeldOut, clicks_of_ads: npt.NDArray[np.float64], schedule: Schedule | None = None
    ) -> None:
        self.judged = judged
        self._schedule = schedule
        self.clicks_of_ads = clicks_of_ads
        self.places: dict[str, list[Places]] = {}
        self._coverage: dict[str, float] = {}
        self._lift: dict[str, float] = {}
        self._asked: dict[str, int] = {}

    def add_scores(self, name: str, scores: Callable[[int], npt.NDArray[np.float32]]) -> None:
        """A method that scores all ads for the user at a place."""
        places, exposure = [], _Exposure(self.clicks_of_ads)
        for user in range(len(self.judged)):
            of_user, hidden = scores(user), self._hidden(user)
            found = ranks_of(of_user, self.judged.clicked[user], hidden)
            places.append(found.without(np.isin(self.judged.clicked[user], hidden)))
            exposure.add(shown_first(of_user, hidden, _FIRST))
        self._add(name, places, exposure)

    def _hidden(self, user: int) -> Integers:
        """Numbers of the ads that the user has met, or that may not be shown when they are asked for."""
        at, seen = self.judged.contexts[user].timestamp, self.judged.seen[user]
        if self._schedule is None or at is None:
            return seen
        allowed = self._schedule.at(at).allowed
        return seen if allowed is None else np.union1d(seen, np.flatnonzero(~allowed))

    def add_lists(self, name: str, lists: Sequence[Integers], asked: int) -> None:
        """A method that answers with the numbers of at most `asked` ads, best first; what needs more is not judged."""
        self._asked[name] = asked
        exposure = _Exposure(self.clicks_of_ads)
        for found in lists:
            first = found[:_FIRST]
            exposure.add(Shown(first, np.ones(len(first))))
        self._add(name, ranks_in(lists, self.judged), exposure)

    def _add(self, name: str, places: list[Places], exposure: "_Exposure") -> None:
        self.places[name] = places
        self._coverage[name] = exposure.coverage
        self._lift[name] = exposure.lift

    def comparison(self, ours: Sequence[str]) -> Comparison:
        """All methods; the lead of each of `ours` over every other method."""
        most = max(RECALLS)
        per_user = {name: _per_user(places, self._asked.get(name, most)) for name, places in self.places.items()}
        return Comparison(
            users=len(self.judged),
            clicks=sum(map(len, self.judged.clicked)),
            metrics={
                name: {metric: with_interval(values) for metric, values in metrics.items()}
                for name, metrics in per_user.items()
            },
            lead={
                mine: {
                    name: {
                        metric: with_interval(values - metrics[metric])
                        for metric, values in per_user[mine].items()
                        if metric in metrics
                    }
                    for name, metrics in per_user.items()
                    if name != mine
                }
                for mine in ours
            },
            coverage=self._coverage,
            popularity_lift=self._lift,
        )


class _Exposure:
    """Which ads are among the first of how many users, ties by expectation."""

    def __init__(self, clicks_of_ads: npt.NDArray[np.float64]) -> None:
        self._clicks = clicks_of_ads
        self._never = np.ones(len(clicks_of_ads))  # the chance that nobody is shown the ad
        self._shown = self._clicks_shown = 0.0

    def add(self, shown: Shown) -> None:
        """What one more user is shown."""
        self._never[shown.ads] *= 1 - shown.chance
        self._shown += float(shown.chance.sum())
        self._clicks_shown += float(shown.chance @ self._clicks[shown.ads])

    @property
    def coverage(self) -> float:
        """Share of the ads that somebody is shown."""
        return float(1 - self._never.mean())

    @property
    def lift(self) -> float:
        """Mean clicks of the ads that are shown, over that of all ads."""
        mean = self._clicks_shown / self._shown if self._shown else 0.0
        return float(mean / max(self._clicks.mean(), 1e-9))


def ranks_in(lists: Sequence[Integers], judged: HeldOut) -> list[Places]:
    """Places of each user's clicked ads in the list that they got."""
    places = []
    for found, clicked in zip(lists, judged.clicked, strict=True):
        place_of = {ad: place for place, ad in enumerate(found.tolist())}
        places.append(Places.known([place_of.get(ad, NOT_FOUND) for ad in clicked.tolist()]))
    return places


def _per_user(places: Sequence[Places], asked: int) -> dict[str, npt.NDArray[np.float64]]:
    """Each of `results.METRICS`, one value a user; no recall@k of more than were asked for."""
    found = {f"recall@{k}": recall_at(places, k) for k in RECALLS if k <= max(asked, min(RECALLS))}
    return {**found, "ndcg@10": ndcg_at(places, 10), "mrr": reciprocal_rank(places), "hit@10": hit_at(places, 10)}
