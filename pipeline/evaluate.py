"""Both stages against what users clicked next: what retrieval finds, and what ranking adds on top. Knows no wire.

The newest tenth of a click log tests. Each of its users is asked for once, at the moment the test begins, with the
history and the counters of that moment; ads that they met before are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from index_builder.artifact import AdCatalog
from pipeline.results import BOTH_STAGES, ORDERS, POPULARITY, RETRIEVAL, PipelineEvaluation
from ranking.artifact import Metric, ModelVersion
from ranking.candidates import prepare
from ranking.engine import EngineSettings, RankingEngine
from ranking.training.dataset import Dataset
from ranking.training.versions import load_named
from records.ads import Ad
from records.clicks import ClickLog
from records.counters import CounterSnapshot
from records.errors import InputError
from records.history import Histories, with_history
from records.users import Context, UserProfile
from retrieval.loading import load_published
from retrieval.retriever import Query, Retrieved, Retriever

_TOPS = (1, 5, 10, 20, 50, 100, 200, 500, 1000)
_HISTORY_EVENTS = 200
_USERS_PER_BATCH = 16
_DRAWS = 1000


@dataclass(frozen=True)
class _TestUser:
    """A user of the test part, as of its beginning; `seen` is every ad they met before, `clicked` those new to them."""

    profile: UserProfile
    seen: frozenset[str]
    clicked: frozenset[str]


def load_stages(index: Path, model: Path) -> tuple[Retriever, ModelVersion]:
    """Both stages as servers run them: the published versions under these roots, verified.

    Raises:
        ArtifactError: Nothing is published there, or it is damaged.
        BuildError: The encoder of the index cannot be loaded, or has changed.
        ModelError: The model is of another shape than this program's.
    """
    retriever, _ = load_published(index)
    return retriever, load_named(str(model))


def evaluate_pipeline(data: Dataset, retriever: Retriever, model: ModelVersion, candidates: int) -> PipelineEvaluation:
    """Asks both stages for each user of the test part of a log that is split by time.

    Args:
        candidates: How many ads retrieval brings and ranking scores.

    Raises:
        InputError: Nobody clicked in the test part.
    """
    moment = int(data.log.time[data.parts[2]].min())
    users = list(_test_users(data, moment))
    if not users:
        raise InputError("there is nothing to evaluate: no known user clicked a new ad in the test part of the log")
    earlier = np.concatenate(data.parts[:2])
    counters = CounterSnapshot.of(data.log.take(earlier), {name: ids[earlier] for name, ids in data.keys.items()})
    engine = RankingEngine(replace(model, counters=counters), EngineSettings())
    popular = _most_clicked(data.log.take(earlier))
    catalog = retriever.index.loaded.catalog
    places: dict[str, list[list[int]]] = {order: [] for order in ORDERS}
    without = 0
    for start in track(range(0, len(users), _USERS_PER_BATCH), "Asking for each user", console=Console(stderr=True)):
        some = users[start : start + _USERS_PER_BATCH]
        for user, ads in zip(some, _retrieved(retriever, some, candidates), strict=True):
            without += not ads
            found = {
                POPULARITY: [ad_id for ad_id in popular if ad_id not in user.seen],
                RETRIEVAL: [ad.ad_id for ad in ads],
                BOTH_STAGES: _ranked(engine, user.profile, ads, catalog, moment),
            }
            for order, ids in found.items():
                places[order].append([place for place, ad_id in enumerate(ids) if ad_id in user.clicked])
    return _summed_up(users, places, without, candidates)


def _most_clicked(log: ClickLog) -> list[str]:
    names, ads = np.unique(log.ad_id.astype(str), return_inverse=True)
    ordered: list[str] = names[np.argsort(-np.bincount(ads, log.clicks), kind="stable")].tolist()
    return ordered


def _test_users(data: Dataset, moment: int) -> Iterator[_TestUser]:
    log, histories = data.log, Histories(data.log)
    rows = data.parts[2][(log.clicks[data.parts[2]] > 0) & (log.user_id[data.parts[2]] != "")]
    clicked: dict[str, set[str]] = {}
    for user_id, ad_id in zip(log.user_id[rows].tolist(), log.ad_id[rows].tolist(), strict=True):
        clicked.setdefault(user_id, set()).add(ad_id)
    for user_id, ads in clicked.items():
        profile = data.users.get(user_id, UserProfile(user_id))
        seen = histories.ads_before(user_id, moment)
        if ads - seen:
            user = with_history(profile, histories, moment, _HISTORY_EVENTS)
            yield _TestUser(user, seen, frozenset(ads - seen))


def _retrieved(retriever: Retriever, users: Sequence[_TestUser], count: int) -> list[list[Ad]]:
    """The candidates of each user, best first; none for a user of whom nothing is known."""
    answers = retriever.answer([Query(user.profile, None, count, user.seen, with_ads=True) for user in users])
    found = [answer.candidates if isinstance(answer, Retrieved) else [] for answer in answers]
    return [[candidate.ad for candidate in some if candidate.ad is not None] for some in found]


def _ranked(engine: RankingEngine, user: UserProfile, ads: Sequence[Ad], catalog: AdCatalog, moment: int) -> list[str]:
    if not ads:
        return []
    context = Context(timestamp=datetime.fromtimestamp(moment / 1e6, UTC))
    query = prepare(user, context, ads, catalog, skip_unknown=True).query
    (answer,) = engine.rank([query])
    return [query.ad_ids[place] for place in np.argsort(-answer.p_click, kind="stable")]


def _summed_up(
    users: Sequence[_TestUser], places: Mapping[str, list[list[int]]], without: int, candidates: int
) -> PipelineEvaluation:
    clicks = np.array([len(user.clicked) for user in users])
    draws = np.random.default_rng(0).multinomial(len(users), np.full(len(users), 1 / len(users)), size=_DRAWS)
    tops = [top for top in _TOPS if top < candidates] + [candidates]
    hits = {
        (order, top): np.array([sum(place < top for place in of_user) for of_user in found])
        for order, found in places.items()
        for top in tops
    }
    return PipelineEvaluation(
        users=len(users),
        clicks=int(clicks.sum()),
        without_candidates=without,
        candidates=candidates,
        click_share={order: {top: _share(hits[order, top], clicks, draws) for top in tops} for order in ORDERS},
        hit_rate={
            order: {top: _share(hits[order, top] > 0, np.ones(len(users)), draws) for top in tops} for order in ORDERS
        },
        ranking_gain={top: _share(hits[BOTH_STAGES, top] - hits[RETRIEVAL, top], clicks, draws) for top in tops},
    )


def _share(part: npt.ArrayLike, whole: npt.ArrayLike, draws: npt.NDArray[np.int64]) -> Metric:
    """Sum of a part over that of the whole, with its 95 % bootstrap interval over users; arrays [users]."""
    parts, wholes = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    low, high = np.percentile((draws @ parts) / (draws @ wholes), [2.5, 97.5])
    return Metric(value=float(parts.sum() / wholes.sum()), low=float(low), high=float(high))
