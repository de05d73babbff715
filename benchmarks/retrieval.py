"""MovieLens-100k: what retrieval finds beside its peers, and what ranking makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adcascade.records.datasets.movielens import DatasetFiles, export_movielens, find_movielens
from adcascade.reports.interval import Interval
from adcascade.towers.artifact import load_published_towers
from adcascade.towers.training.data import RetrievalData, load_retrieval_data
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.train import train_and_save
from adcascade.vectors.encoder import load_encoder
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run
from index_builder.build import BuildOptions, build
from pipeline.evaluate import evaluate_pipeline
from pipeline.order import DEFAULT_RETRIEVAL_WEIGHT
from pipeline.results import PipelineEvaluation, ranking_of
from ranking.data.dataset import load_dataset
from ranking.training.options import TrainOptions
from ranking.training.run import train_and_save as train_and_save_ranker
from ranking.training.versions import load_named
from retrieval.evaluation.evaluate import evaluate_retrieval
from retrieval.evaluation.results import RETRIEVAL, ZERO_SHOT, Comparison, RetrievalEvaluation
from retrieval.loading import load_published

_USERS, _TIME, _ADS = (
    "MovieLens-100k, retrieval, newest fifth of each user's",
    "MovieLens-100k, retrieval, by time, users with a past",
    "MovieLens-100k, retrieval, ads unseen in training",
)
_STAGES = "MovieLens-100k, both stages, newest fifth of each user's"
_CANDIDATES = (100, 500)


@dataclass(frozen=True)
class _Measured:
    """Of one seed."""

    evaluation: RetrievalEvaluation
    minutes: float
    index_recall: float
    both: PipelineEvaluation | None


def retrieval_users(run: Run) -> list[Finding]:
    """Each user's newest events test: retrieval alone, and both stages."""
    measured, minutes = _for_each_seed(run, _USERS, "user", with_ranker=True)
    found = [one.evaluation for one in measured]
    compared = [one.comparison for one in found]
    both = [one.both.comparison for one in measured if one.both is not None]

    def of_retrieval(figure: str, target: str, intervals: Sequence[Interval], met: _Met, note: str = "") -> Finding:
        return _finding(_USERS, figure, target, intervals, met, minutes, note)

    def of_both(figure: str, target: str, intervals: Sequence[Interval], met: _Met) -> Finding:
        return _finding(_STAGES, figure, target, intervals, met, minutes)

    ranked, more = (ranking_of(count) for count in _CANDIDATES)
    one_click = [next(part for part in one.known_events if part.name == "1") for one in found]
    return [
        of_retrieval("recall@100", "at least 0.61", _metric(compared, "recall@100"), _at_least(0.61)),
        of_retrieval(
            "recall@100 minus EASE's", "interval above 0", _leads(compared, "EASE", "recall@100"), _above_zero
        ),
        of_retrieval("recall@10", "at least 0.20", _metric(compared, "recall@10"), _at_least(0.20)),
        *_baselines(_USERS, compared, minutes),
        of_retrieval(
            "recall@100 minus popularity's, as if one click of each user were known",
            "interval above 0",
            [part.lead["popularity"] for part in one_click],
            _above_zero,
        ),
        of_retrieval(
            "recall@100 of the index against exact search",
            "at least 0.98",
            [Interval(one.index_recall, one.index_recall, one.index_recall) for one in measured],
            _at_least(0.98),
        ),
        of_retrieval(
            "minutes of training",
            "at most 15",
            [Interval(one.minutes, one.minutes, one.minutes) for one in measured],
            lambda ends: bool(ends[0] <= 15),
        ),
        of_both(f"recall@10 after {ranked}", "at least 0.24", _metric(both, "recall@10", ranked), _at_least(0.24)),
        of_both(f"recall@10 after {more}", "", _metric(both, "recall@10", more), None),
        of_both(f"nDCG@10 after {ranked}", "", _metric(both, "ndcg@10", ranked), None),
        of_both(f"nDCG@10 after {more}", "", _metric(both, "ndcg@10", more), None),
        of_both("nDCG@10 of retrieval alone", "", _metric(both, "ndcg@10"), None),
        of_both("nDCG@10 of EASE", "", _metric(both, "ndcg@10", "EASE"), None),
    ]


def retrieval_time(run: Run) -> list[Finding]:
    """The newest tenth of the rows tests."""
    measured, minutes = _for_each_seed(run, _TIME, "time", known_users=True)
    compared = [one.evaluation.comparison for one in measured]
    return [
        _finding(_TIME, "recall@100", "at least 0.55", _metric(compared, "recall@100"), _at_least(0.55), minutes),
        _finding(_TIME, "recall@10", "at least 0.27", _metric(compared, "recall@10"), _at_least(0.27), minutes),
        *_baselines(_TIME, compared, minutes),
    ]


def retrieval_ads(run: Run) -> list[Finding]:
    """A fifth of the ads is in no training row; clicks on these, among all ads."""
    measured, minutes = _for_each_seed(run, _ADS, "ad")
    compared = [one.evaluation.comparison for one in measured]
    times = [
        one.metrics[RETRIEVAL]["recall@100"].value / one.metrics[ZERO_SHOT]["recall@100"].value for one in compared
    ]
    note = "interval: the least and the most of the seeds"
    ends = (float(np.mean(times)), min(times), max(times))
    figure = "recall@100 over zero-shot text's"
    return [
        _finding(_ADS, "recall@100", "", _metric(compared, "recall@100"), None, minutes),
        _finding(_ADS, f"recall@100 of {ZERO_SHOT}", "", _metric(compared, "recall@100", ZERO_SHOT), None, minutes),
        finding(_ADS, figure, "at least 3", ends, bool(ends[0] >= 3), measured, minutes, note),
    ]


# Takes value, low and high; None for a figure without a target.
_Met = Callable[[npt.NDArray[np.float64]], bool] | None


def _for_each_seed(
    run: Run, check: str, split: str, *, with_ranker: bool = False, known_users: bool = False
) -> tuple[list[_Measured], float]:
    files = export_movielens(find_movielens(), run.folder / "movielens")
    encoder = load_encoder()

    def measure(seed: int) -> _Measured:
        root = run.folder / f"retrieval-{split}-{seed}"
        data = load_retrieval_data(files.ads, files.clicks, files.users, encoder, split=split, seed=seed)
        trained = train_and_save(data, encoder, root / "towers", TowerOptions(seed=seed))
        towers = load_published_towers(root / "towers")
        built = build(files.ads, root / "index", encoder, BuildOptions(), towers=towers)
        retriever, _ = load_published(root / "index")
        evaluation = evaluate_retrieval(_of_known_users(data) if known_users else data, retriever)
        both = _both_stages(files, root, split, seed) if with_ranker else None
        retriever.close()
        recall = evaluation.comparison.metrics[RETRIEVAL]
        run.console.print(f"{split} {seed}: {recall['recall@100']}, {recall['recall@10']}", highlight=False)
        return _Measured(evaluation, trained.seconds / 60, built.manifest.recall, both)

    return run.for_each_seed(check, measure)


def _of_known_users(data: RetrievalData) -> RetrievalData:
    """The same with a test of users alone who have events in the training part, as published tables have it."""
    users = data.log.user_id.codes
    test = data.split.test[np.isin(users[data.split.test], users[data.split.train])]
    return replace(data, split=replace(data.split, test=test))


def _both_stages(files: DatasetFiles, root: Path, split: str, seed: int) -> PipelineEvaluation:
    data = load_dataset(files.ads, files.clicks, files.users, split=split, seed=seed)
    train_and_save_ranker(data, root / "model", TrainOptions.of(seed=seed, epochs=0))
    retriever, _ = load_published(root / "index")
    try:
        return evaluate_pipeline(
            data, retriever, load_named(str(root / "model")), _CANDIDATES, DEFAULT_RETRIEVAL_WEIGHT
        )
    finally:
        retriever.close()


def _baselines(check: str, compared: Sequence[Comparison], minutes: float) -> list[Finding]:
    """What the peers reach in the same run."""
    others = [name for name in compared[0].metrics if name != RETRIEVAL]
    return [
        _finding(check, f"{metric} of {name}", "", _metric(compared, metric, name), None, minutes)
        for metric in ("recall@100", "recall@10")
        for name in others
    ]


def _finding(
    check: str,
    figure: str,
    target: str,
    intervals: Sequence[Interval],
    met: _Met,
    minutes: float,
    note: str = "",
) -> Finding:
    """The mean over seeds, of the ends of the intervals as well."""
    ends = np.array([(one.value, one.low, one.high) for one in intervals]).mean(axis=0)
    return finding(check, figure, target, ends, None if met is None else met(ends), intervals, minutes, note)


def _metric(compared: Sequence[Comparison], metric: str, method: str = RETRIEVAL) -> list[Interval]:
    return [one.metrics[method][metric] for one in compared]


def _leads(compared: Sequence[Comparison], other: str, metric: str) -> list[Interval]:
    return [one.lead[RETRIEVAL][other][metric] for one in compared]


def _at_least(bound: float) -> Callable[[npt.NDArray[np.float64]], bool]:
    return lambda ends: bool(ends[0] >= bound)


def _above_zero(ends: npt.NDArray[np.float64]) -> bool:
    return bool(ends[1] > 0)
