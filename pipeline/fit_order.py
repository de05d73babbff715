"""What retrieval's score counts in the order of both stages, fitted on the validation part of a log. Knows no wire.

Towers of an index version have mostly learned the rows that validate the ranker, and would seem surer there than they
are. So towers of the same options and weights that have learned the training part alone stand in for them: those that
the weights were chosen with if they have learned just these rows, else others that are trained.

Where requests show several ads, it is known what was shown together and what was clicked: a conditional logit over
log-odds of p_click and retrieval's score says what each counts. Where they show one, both stages are asked for users of
the validation part as of its beginning, and the least weight is taken that puts what they clicked then on top as well
as the best does, but for chance.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from adcascade.artifacts.store import VersionStore
from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from adcascade.records.splits import Split
from adcascade.reports.interval import bootstrap
from adcascade.terminal.progress import tracked
from adcascade.towers.artifact import TrainedTowers
from adcascade.towers.evaluation.metrics import ndcg_at, with_interval
from adcascade.towers.training.commands import training_progress
from adcascade.towers.training.data import RetrievalData
from adcascade.towers.training.train import train_as_chosen
from adcascade.vectors.bulk_encoder import in_bulk
from adcascade.vectors.vector_store import remembering
from index_builder.build import BuildOptions, build
from pipeline.client import DEFAULT_CANDIDATES
from pipeline.conditional_logit import Choices
from pipeline.evaluate import counters_before, retrieval_data_of, scored_candidates
from pipeline.evaluate_shown import profile_before
from pipeline.order import FittedBy, log_odds
from ranking.artifact import ModelVersion, save_derived
from ranking.data.dataset import Dataset
from ranking.evaluation.predict import predict
from ranking.inputs.features import REQUEST_ROWS
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.runtime.hardware import choose_device
from ranking.spec import OrderBlend
from retrieval.evaluation.evaluate import judge_of, profiles_of, retrieved
from retrieval.evaluation.evaluator import ranks_in
from retrieval.evaluation.shown_scores import Floats, scores_of_shown
from retrieval.loading import load_published
from retrieval.retriever import Retriever

log = logging.getLogger(__name__)

# Where nobody can tell a weight from a larger one, as where p_click says nothing.
LARGEST_WEIGHT = 64.0
_GRID = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LARGEST_WEIGHT)
# Enough to fit two numbers by; more would only take time.
_MAX_REQUESTS, _MAX_USERS = 20_000, 2000
_RESAMPLES = 1000
_TOP = 10


def fit_order(
    data: Dataset,
    ads: Path,
    retriever: Retriever,
    model: ModelVersion,
    vectors: Path,
    by: FittedBy = "auto",
    kept: TrainedTowers | None = None,
) -> OrderBlend:
    """Fits the order on the validation part of a log that is split by time or user by user.

    Args:
        ads: The catalog that `data` was read from.
        retriever: Its towers say how those that stand in are trained.
        vectors: Folder of the text vectors that commands share.
        by: What is fitted on; "auto" takes requests if they show several ads in the mean.
        kept: Towers that all was chosen with for those of the index, see `load_choosing_towers`; None trains some.

    Raises:
        InputError: The index version has no towers, or the validation part has nothing to fit on.
        BuildError, TrainingError, ArtifactError: as training the towers and building their index raise them.
    """
    towers_of(retriever)
    part = data.with_split(Split(data.split.train, np.empty(0, np.int64), data.split.valid))
    with _standing_in(part, ads, retriever, vectors, kept) as (known, stand_in):
        rows_a_request = len(data.log) / max(1, len(data.request_rows))
        if by == "requests" or (by == "auto" and rows_a_request >= REQUEST_ROWS):
            return fit_on_requests(part, stand_in, model)
        return fit_on_users(part, known, stand_in, model)


def towers_of(retriever: Retriever) -> TrainedTowers:
    """The towers of its index version; raises InputError if it has none."""
    found = retriever.index.loaded.towers
    if found is None:
        raise InputError(
            "the index version has no towers, and without them p_click alone makes the order: there is nothing to fit"
        )
    return found


def save_with_order(store: VersionStore, model: ModelVersion, order: OrderBlend, *, publish: bool = True) -> str:
    """Commits the version with this order as a new one, and returns its name; raises ArtifactError."""
    return save_derived(store, model, model.spec.model_copy(update={"order": order}), publish=publish)


@contextmanager
def _standing_in(
    part: Dataset, ads: Path, retriever: Retriever, vectors: Path, kept: TrainedTowers | None = None
) -> Iterator[tuple[RetrievalData, Retriever]]:
    """The data as retrieval is judged on it, and a retriever that has learned nothing of the test rows of `part`."""
    loaded = retriever.index.loaded
    assert loaded.towers is not None
    with TemporaryDirectory(prefix="adcascade-order-") as folder:
        with remembering(in_bulk(retriever.encoder), vectors) as encoder:
            known = retrieval_data_of(part, encoder)
            towers = _of_training_part(known, loaded.towers, kept)
            options = BuildOptions(index="flat", max_rejected=1.0, width=loaded.manifest.dimension - 1)
            build(ads, Path(folder), encoder, options, towers=towers)
        stand_in, _ = load_published(Path(folder))
        try:
            yield known, stand_in
        finally:
            stand_in.close()


def _of_training_part(known: RetrievalData, towers: TrainedTowers, kept: TrainedTowers | None) -> TrainedTowers:
    """Towers as `towers` that have learned the training rows of `known` alone: those that are kept, or new ones."""
    if kept is not None and kept.spec.training_sha256 == known.training_sha256:
        return kept
    if kept is not None:
        log.warning("the towers that all was chosen with have learned other rows than the ranker: some are trained")
    with training_progress() as watch:
        return train_as_chosen(known, towers.spec, watch)


def fit_on_requests(data: Dataset, retriever: Retriever, model: ModelVersion) -> OrderBlend:
    """Fits on requests of the test part of `data`; where what retrieval adds is not certain, p_click alone counts.

    Raises InputError if none of them shows several ads, of which some impression was clicked and some was not.
    """
    chosen = _rows_to_choose_among(data, data.split.test)
    data = data.reading(model.spec.shape.context_words)
    predicted = predict(data, model, chosen, choose_device("auto"), "auto")
    said = np.empty(len(data.log))
    said[predicted.rows] = log_odds(model.spec.calibration.probability(predicted.logits))
    scored, of_scored = _with_scores(data, retriever, chosen)
    rows = _rows_to_choose_among(data, scored)
    found = np.full(len(data.log), np.nan)
    found[scored] = of_scored
    scores = found[rows]
    _, start = np.unique(data.groups[rows], return_index=True)
    clicks, impressions = data.log.clicks[rows], data.log.impressions[rows]
    choices = Choices(np.column_stack([said[rows], scores]), clicks, impressions, start)
    both, alone = choices.fit(np.array([0, 1])), choices.fit(np.array([0]))
    gains = choices.log_likelihood(both) - choices.log_likelihood(alone)
    (gain,) = bootstrap(lambda drawn: [float(drawn @ gains / drawn.sum())], len(gains), resamples=_RESAMPLES)
    weight = _ratio(both) if gain.low > 0 else 0.0
    return OrderBlend(retrieval_weight=weight, fitted_on="requests", units=len(gains), gain=gain)


def _ratio(weights: Floats) -> float:
    """What retrieval's score counts where the log-odds count 1."""
    of_odds, of_score = weights.tolist()
    return LARGEST_WEIGHT if of_score >= LARGEST_WEIGHT * of_odds else round(of_score / of_odds, 4)


def _rows_to_choose_among(data: Dataset, among: Integers) -> Integers:
    """Rows of requests of several ads, with a click and an impression without one; of so many requests at most.

    They come request by request.
    """
    groups, size = data.groups[among], len(data.request_rows)
    clicks, impressions = (
        np.bincount(groups, of[among], minlength=size) for of in (data.log.clicks, data.log.impressions)
    )
    several = np.bincount(groups, minlength=size) > 1
    requests = np.flatnonzero(several & (clicks > 0) & (clicks < impressions))
    if not len(requests):
        raise InputError(
            "the validation part of the log has no request of several ads of the index with a click and an impression "
            "without one"
        )
    drawn = np.random.default_rng(0).permutation(requests)[:_MAX_REQUESTS]
    rows: Integers = among[np.isin(groups, drawn)]
    return rows[np.argsort(data.groups[rows], kind="stable")]


def _with_scores(data: Dataset, retriever: Retriever, rows: Integers) -> tuple[Integers, Floats]:
    """The rows whose ads the index version has, request by request, and retrieval's scores of them."""
    parts = np.split(rows, np.flatnonzero(np.diff(data.groups[rows])) + 1)
    asked = [
        (profile_before(data, int(part[0])), data.log.context_at(int(part[0])), data.log.ad_id[part].tolist())
        for part in parts
    ]
    scores = np.concatenate(scores_of_shown(retriever, asked))
    known = np.isfinite(scores)
    return rows[known], scores[known]


def fit_on_users(data: Dataset, known: RetrievalData, retriever: Retriever, model: ModelVersion) -> OrderBlend:
    """The least weight of a small grid that puts what users of the test part clicked then on top as well as the best.

    As well: its nDCG@10 is lower by at most a standard error of the difference (the rule of Breiman et al. 1984). The
    less of retrieval's score the order needs, the more the ranker decides, which knows what is clicked once shown.

    Raises InputError if nobody clicked an ad that was new to them there.
    """
    judged = judge_of(known)[0].judged
    judged = judged.take(np.sort(np.random.default_rng(0).permutation(len(judged))[:_MAX_USERS]))
    profiles = profiles_of(known, judged)
    engine = RankingEngine(replace(model, counters=counters_before(data)), EngineSettings())
    catalog = retriever.index.loaded.catalog
    found = retrieved(retriever, profiles, judged, known, DEFAULT_CANDIDATES)
    users = list(zip(profiles, judged.contexts, found, strict=True))
    scored = [
        scored_candidates(engine, user, context, one, known, catalog)
        for user, context, one in tracked(users, "Fitting the order")
    ]
    ndcg = [ndcg_at(ranks_in([one.in_order(weight) for one in scored], judged), _TOP) for weight in _GRID]
    chosen = least_as_good(np.array(ndcg))
    gain = with_interval(ndcg[chosen] - ndcg[0], resamples=_RESAMPLES)
    return OrderBlend(retrieval_weight=_GRID[chosen], fitted_on="users", units=len(judged), gain=gain)


def least_as_good(values: Floats) -> int:
    """Place of the first choice whose mean is below the highest by at most a standard error of the difference.

    Args:
        values: of each choice for each unit, float64 [choices, units].
    """
    behind = values[np.argmax(values.mean(axis=1))] - values
    error = behind.std(axis=1) / np.sqrt(values.shape[1])
    return int(np.argmax(behind.mean(axis=1) <= error))
