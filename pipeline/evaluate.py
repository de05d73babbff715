"""Both stages against what users clicked next: what retrieval finds, and what ranking adds on top. Knows no wire.

Each user of the test part is asked for once, with the history and the counters of the moment before it begins; ads that
they met before are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adcascade.catalog.ads_file import AdCatalog
from adcascade.records.clicks import Integers
from adcascade.records.counters import CounterSnapshot
from adcascade.records.users import Context, UserProfile
from adcascade.terminal.console import Console
from adcascade.terminal.progress import tracked
from adcascade.towers.training.data import RetrievalData
from adcascade.towers.training.split import TowerSplit
from adcascade.vectors.bulk_encoder import in_bulk
from adcascade.vectors.encoder import TextEncoder
from adcascade.vectors.vector_store import remembering
from pipeline.order import order_of, weight_of
from pipeline.results import PipelineEvaluation, ranking_of
from ranking.artifact import ModelVersion
from ranking.data.dataset import Dataset
from ranking.inputs.prepare import prepare
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.training.versions import load_named
from retrieval.evaluation.evaluate import Found, add_baselines, judge_of, profiles_of, retrieved, warn_of_known_rows
from retrieval.evaluation.results import RECALLS, RETRIEVAL
from retrieval.loading import load_published
from retrieval.retriever import Retriever

# Ads that a page shows, as the gateway says by default: nDCG is judged on as many.
SHOWN = 10


def load_stages(index: Path, model: Path) -> tuple[Retriever, ModelVersion]:
    """Both stages as servers run them: the published versions under these roots, verified.

    Raises:
        ArtifactError: Nothing is published there, or it is damaged.
        BuildError: The encoder of the index cannot be loaded, or has changed.
        ModelError: The model is of another shape than this program's.
    """
    retriever, _ = load_published(index)
    return retriever, load_named(str(model))


def retrieval_data_of(data: Dataset, encoder: TextEncoder) -> RetrievalData:
    """The ranker's data as retrieval is judged on it: the same log, with the same test part."""
    split = data.split
    rows = TowerSplit(split.train, split.valid, np.sort(np.concatenate([split.train, split.valid])), split.test)
    return RetrievalData.of(list(data.ads.values()), data.log, data.report, dict(data.users), rows, encoder)


def evaluate_pipeline(
    data: Dataset,
    retriever: Retriever,
    model: ModelVersion,
    candidates: Sequence[int],
    retrieval_weight: float | None = None,
    *,
    with_baselines: bool = True,
    vectors: Path | None = None,
) -> PipelineEvaluation:
    """Asks both stages for each user of the test part of a log that is split by time or user by user.

    Args:
        candidates: How many ads retrieval brings and ranking scores, each in turn.
        retrieval_weight: See `order.order_of`; None for what the model version says, see `order.weight_of`.
        vectors: Folder of the text vectors that commands share; None embeds all texts of the catalog.

    Raises:
        InputError: Nobody clicked an ad that was new to them in the test part.
    """
    judged_by = _embedded(data, retriever, vectors)
    warn_of_known_rows(judged_by, retriever)
    judge, popularity = judge_of(judged_by)
    profiles = profiles_of(judged_by, judge.judged)
    weight = weight_of(retrieval_weight, model.spec.retrieval_weight)
    engine = RankingEngine(replace(model, counters=counters_before(data)), EngineSettings())
    catalog = retriever.index.loaded.catalog
    alone = retrieved(retriever, profiles, judge.judged, judged_by, max(*RECALLS, *candidates))
    judge.add_lists(RETRIEVAL, [one.ads for one in alone], max(RECALLS))
    without = sum(len(one.ads) == 0 for one in alone)
    for count in sorted(candidates):
        found = retrieved(retriever, profiles, judge.judged, judged_by, count)
        ranked = [
            scored_candidates(engine, user, context, one, judged_by, catalog).in_order(weight)
            for user, context, one in tracked(
                list(zip(profiles, judge.judged.contexts, found, strict=True)), f"Ranking {count}"
            )
        ]
        judge.add_lists(ranking_of(count), ranked, count)
    if with_baselines:
        add_baselines(judge, judged_by, retriever, profiles, popularity)
    ours = [RETRIEVAL, *(ranking_of(count) for count in sorted(candidates))]
    return PipelineEvaluation(judge.comparison(ours), without, weight)


def _embedded(data: Dataset, retriever: Retriever, vectors: Path | None) -> RetrievalData:
    encoder = in_bulk(retriever.encoder)
    if vectors is None:
        return retrieval_data_of(data, encoder)
    with remembering(encoder, vectors) as kept:
        found = retrieval_data_of(data, kept)
    Console(stderr=True).print(kept.said, highlight=False, soft_wrap=True)
    return found


def counters_before(data: Dataset) -> CounterSnapshot:
    """What the rows before the test part count."""
    earlier = np.sort(np.concatenate([data.split.train, data.split.valid]))
    return CounterSnapshot.of(data.log.take(earlier), {name: ids[earlier] for name, ids in data.keys.items()})


@dataclass(frozen=True)
class ScoredCandidates:
    """Numbers of a user's candidates in the retrieval order, and what both stages say of each, float64 [ads]."""

    ads: Integers
    p_click: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]

    def in_order(self, retrieval_weight: float) -> Integers:
        """The candidates, best first."""
        ordered: Integers = self.ads[order_of(self.p_click, self.scores, retrieval_weight)]
        return ordered


def scored_candidates(
    engine: RankingEngine,
    user: UserProfile,
    context: Context,
    found: Found,
    data: RetrievalData,
    catalog: AdCatalog,
) -> ScoredCandidates:
    """What ranking says of the candidates that a user gets, but for those that may not be shown."""
    ads = [data.ads[number] for number in found.ads.tolist()]
    if context.timestamp is None:  # of a log without times, which is not of now
        ads = [replace(ad, start_time=None, end_time=None) for ad in ads]
    query = prepare(user, context, ads, catalog, skip_unknown=True, shown=SHOWN).query if ads else None
    if query is None or not query.ad_ids:
        return ScoredCandidates(found.ads[:0], np.empty(0), np.empty(0))
    (answer,) = engine.rank([query])
    place_of = {data.ad_ids[number]: place for place, number in enumerate(found.ads.tolist())}
    places = np.array([place_of[ad_id] for ad_id in query.ad_ids])
    return ScoredCandidates(found.ads[places], answer.p_click, found.scores[places])
