"""Both stages against what was clicked of ads that were shown together. Knows no wire.

Retrieval's list says what a user may want next among all ads; this says in which order ads stand that somebody had
before them, where it is known of each whether it was clicked. Both stages know a user as of the moment before the first
of these ads; counters are those of all rows that are not of the test part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adcascade.records.clicks import Integers
from adcascade.records.coded import NO_VALUE, Mask, combinations
from adcascade.records.users import UserProfile
from adcascade.reports.interval import bootstrap
from adcascade.reports.ranking_metrics import ndcg, tied_places
from adcascade.terminal.progress import tracked
from pipeline.evaluate import SHOWN, counters_before
from pipeline.order import log_odds
from pipeline.results import ORDERS, ShownEvaluation, Together
from ranking.artifact import ModelVersion
from ranking.data.dataset import Dataset
from ranking.inputs.features import REQUEST_ROWS
from ranking.inputs.prepare import prepare
from ranking.inputs.query import MAX_CANDIDATES
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from retrieval.evaluation.shown_scores import Floats, scores_of_shown
from retrieval.query import MAX_K
from retrieval.retriever import Retriever

_MINUTE_MICROSECONDS = 60 * 1_000_000
_DAY_MICROSECONDS = 24 * 60 * _MINUTE_MICROSECONDS
# More would only take time.
_MAX_LISTS, _RESAMPLES = 1000, 1000


def evaluate_shown(
    data: Dataset, retriever: Retriever, model: ModelVersion, retrieval_weight: float, together: Together = "auto"
) -> ShownEvaluation | None:
    """In which order both stages put what was shown together in the test part.

    Args:
        retrieval_weight: See `order.order_of`.
        together: What was: the ads of a request, or all that a user saw on one day by the clock on their wall.
            "auto" takes requests if they show several ads in the mean.

    Returns:
        None where retrieval has no scores of its own, since the index version has no towers, or where nothing was shown
        together of which some was clicked and some was not.
    """
    if together == "auto":
        several = len(data.log) >= REQUEST_ROWS * max(1, len(data.request_rows))
        together = "requests" if several else "none"
    if together == "none" or retriever.index.loaded.towers is None:
        return None
    lists = _lists(data, by_day=together == "days")
    if not lists:
        return None
    scored = _scored(data, retriever, model, lists, retrieval_weight)
    if not scored:
        return None
    return _compared(scored, retrieval_weight, "day" if together == "days" else "request")


@dataclass(frozen=True)
class _Shown:
    """Ads that were shown together.

    Attributes:
        rows: the first of each ad, int64 [ads], in the order of time.
        clicked: whether it was clicked at any of the times that it was shown, bool [ads].
    """

    rows: Integers
    clicked: Mask

    @property
    def has_both(self) -> bool:
        """Whether some were clicked and some were not."""
        return 0 < int(self.clicked.sum()) < len(self.clicked)


@dataclass(frozen=True)
class _Scored:
    """Ads of one list: what each of `ORDERS` says of them, float64 [orders, ads], and 1 for what the user clicked."""

    user: int
    scores: Floats
    clicked: Floats


def _lists(data: Dataset, *, by_day: bool) -> list[_Shown]:
    """What was shown together in the test part, of which some was clicked and some not."""
    log, rows = data.log, np.sort(data.split.test)
    group = data.groups[rows]
    if by_day:
        users = log.user_id.codes[rows]
        rows, users = rows[users != NO_VALUE], users[users != NO_VALUE]
        at_home = log.time[rows] + _MINUTE_MICROSECONDS * log.utc_offset[rows].astype(np.int64)
        _, group = combinations([users, at_home // _DAY_MICROSECONDS])
    first, same = combinations([group, log.ad_id.codes[rows]])
    clicked = np.bincount(same, log.clicks[rows], minlength=len(first)) > 0
    order = np.lexsort((first, group[first]))
    cuts = np.flatnonzero(np.diff(group[first[order]])) + 1
    parts = [part[:MAX_CANDIDATES] for part in np.split(order, cuts)]
    found = [_Shown(rows[first[part]], clicked[part]) for part in parts]
    found = [one for one in found if one.has_both]
    drawn = np.random.default_rng(0).permutation(len(found))[:_MAX_LISTS]
    return [found[place] for place in np.sort(drawn).tolist()]


def _scored(
    data: Dataset, retriever: Retriever, model: ModelVersion, lists: Sequence[_Shown], weight: float
) -> list[_Scored]:
    engine = RankingEngine(replace(model, counters=counters_before(data)), EngineSettings())
    log, catalog = data.log, retriever.index.loaded.catalog
    found = []
    for one in tracked(list(lists), "Ranking what was shown"):
        first = int(one.rows[0])
        user, context = profile_before(data, first), log.context_at(first)
        ids: list[str] = log.ad_id[one.rows].tolist()
        query = prepare(user, context, ids, catalog, skip_unknown=True, shown=min(SHOWN, len(ids))).query
        if not query.ad_ids:
            continue
        (answer,), (scores,) = engine.rank([query]), scores_of_shown(retriever, [(user, context, query.ad_ids)])
        place_of = {ad_id: place for place, ad_id in enumerate(ids)}
        clicked = one.clicked[[place_of[ad_id] for ad_id in query.ad_ids]].astype(np.float64)
        odds = log_odds(answer.p_click)
        if 0 < clicked.sum() < len(clicked):
            orders = np.array([scores, odds, odds + weight * scores])
            found.append(_Scored(int(log.user_id.codes[first]), orders, clicked))
    return found


def _compared(scored: Sequence[_Scored], weight: float, together: str) -> ShownEvaluation:
    """Means over lists, with intervals over users; lists of nobody are units of their own."""
    sizes = [len(one.clicked) for one in scored]
    of = np.repeat(np.arange(len(scored)), sizes)
    clicked, orders = np.concatenate([one.clicked for one in scored]), np.hstack([one.scores for one in scored])
    values = np.array([ndcg(clicked, *tied_places(order, of), of, SHOWN) for order in orders])  # [orders, lists]
    users = np.array([-1 - place if one.user == NO_VALUE else one.user for place, one in enumerate(scored)])
    _, unit = np.unique(users, return_inverse=True)

    def means(drawn: Floats) -> Floats:
        counted = drawn[unit]
        mean = values @ counted / counted.sum()
        return np.concatenate([mean, mean[1:] - mean[0]])

    found = bootstrap(means, int(unit.max()) + 1, resamples=_RESAMPLES)
    return ShownEvaluation(
        together=together,
        lists=len(scored),
        ads=float(np.mean(sizes)),
        retrieval_weight=weight,
        ndcg=dict(zip(ORDERS, found, strict=False)),
        gain=dict(zip(ORDERS[1:], found[len(ORDERS) :], strict=True)),
    )


def profile_before(data: Dataset, row: int) -> UserProfile:
    """The user of a row just before it."""
    user_id = data.log.user_id[row]
    user = data.users.get(user_id, UserProfile(user_id))
    history = data.histories.before(user_id, int(data.log.time[row]), MAX_K) if user_id else ()
    return replace(user, history=history)
