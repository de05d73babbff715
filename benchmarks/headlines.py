"""Real A/B tests of headlines (the Upworthy Research Archive): which of two was clicked more."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from adcascade.records.clicks import ClickLog, Integers
from adcascade.records.datasets.upworthy import export_upworthy
from adcascade.records.errors import InputError
from adcascade.records.splits import split_folds
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run, predicted
from ranking.calibration.ridge import Vectors
from ranking.data.dataset import Dataset, load_dataset
from ranking.evaluation.request_metrics import pair_accuracies
from ranking.evaluation.text_ridge import ad_layers, text_ridge_logits
from ranking.training.options import TrainOptions
from ranking.training.train import Trained, train

_FOLDS = 5
# The same for whatever reads the headlines.
_HEADLINE_TOKENS = 40


def upworthy_folds(run: Run) -> list[Finding]:
    """Real headline tests: which of two headlines was clicked more."""
    return _over_folds(run, "Upworthy, 5 folds by test", _load(run), _fine_tuned)


def upworthy_ridge(run: Run) -> list[Finding]:
    """The same of a ridge regression on frozen layers, which fine-tuning has to beat."""
    data = _load(run)
    vectors, place = ad_layers(data, max_tokens=_HEADLINE_TOKENS)
    check = "Upworthy, 5 folds by test, ridge on frozen layers without fine-tuning"
    return _over_folds(run, check, data, lambda fold: _ridge(fold, vectors, place))


def upworthy_prior(run: Run) -> list[Finding]:
    """The same of a model whose prior of texts alone is learned."""
    check = "Upworthy, 5 folds by test, prior of texts without fine-tuning"
    return _over_folds(run, check, _load(run), _prior)


def _load(run: Run) -> Dataset:
    if run.upworthy is None:
        raise InputError("give the archive's file with --upworthy")
    files = export_upworthy(run.upworthy, run.folder / "upworthy")
    return load_dataset(files.ads, files.clicks, None, split="request")


def _over_folds(
    run: Run, check: str, data: Dataset, accuracies: Callable[[Dataset], tuple[float, float]]
) -> list[Finding]:
    """Figures from what `accuracies` finds on the test part of each fold, see `pair_accuracies`."""

    def measure(fold: int) -> tuple[float, float]:
        pairs, certain = accuracies(data.with_split(split_folds(data.log.request_id, _FOLDS, fold)))
        run.console.print(f"fold {fold}: {pairs:.3f} of all pairs, {certain:.3f} of those that differ for certain")
        return pairs, certain

    lines, minutes = run.for_each(_FOLDS, f"{check}, fold", measure)
    halves = _half_by_the_other(data.log)
    note = "interval: Student's t over folds"

    def of_column(column: int, figure: str, target: str, bound: float) -> Finding:
        values = np.array(lines)[:, column]
        ends = (values.mean(), *stats.t.interval(0.95, _FOLDS - 1, values.mean(), stats.sem(values)))
        half = f"half of the clicks foretells the other half's to {halves[column]:.2f}"
        return finding(check, figure, target, ends, bool(ends[0] >= bound), lines, minutes, f"{note}; {half}")

    return [
        of_column(0, "pairs of a test in the right order", "at least 0.65", 0.65),
        of_column(1, "pairs of different CTR (z beyond 1.96) in the right order", "at least 0.75", 0.75),
    ]


def _half_by_the_other(log: ClickLog) -> tuple[float, float]:
    """Pairs in the right order, if each headline's CTR among half of its visitors foretells that among the others."""
    random = np.random.default_rng(0)
    impressions = log.impressions // 2
    clicks = random.hypergeometric(log.clicks, log.impressions - log.clicks, impressions)
    tests = log.request_id.codes.astype(np.int64)
    return pair_accuracies(clicks / impressions, log.clicks - clicks, log.impressions - impressions, tests)


def _ridge(data: Dataset, vectors: Vectors, place: Integers) -> tuple[float, float]:
    """Fitted on training and validation part: its penalty is chosen by folds within them."""
    learned_from, test = np.concatenate([data.split.train, data.split.valid]), data.split.test
    logits, log = text_ridge_logits(data, vectors, place, learned_from)[test], data.log.take(test)
    return pair_accuracies(logits, log.clicks, log.impressions, data.groups[test])


def _prior(data: Dataset) -> tuple[float, float]:
    lengths = {"max_user_tokens": 8, "max_ad_tokens": _HEADLINE_TOKENS}
    return _of_trained(data, train(data, TrainOptions.of(behaviour_epochs=0, epochs=0, **lengths)))


def _fine_tuned(data: Dataset) -> tuple[float, float]:
    options = TrainOptions.of(
        behaviour_epochs=0,  # nobody has a past, and no ad is in two tests
        train_layers="all",
        epochs=2,
        learning_rate=3e-5,
        head_learning_rate=3e-4,
        pairs_per_step=64,
        ema_decay=0.99,
        group_loss="listwise",
        group_weight=1.0,  # how often a test was clicked says nothing of its headlines
        validate_every=40,
        patience=4,
        max_user_tokens=8,
        max_ad_tokens=_HEADLINE_TOKENS,
        min_text_gain=0.0,
    )
    return _of_trained(data, train(data, options))


def _of_trained(data: Dataset, trained: Trained) -> tuple[float, float]:
    found = predicted(data, trained)
    log = data.log.take(found.rows)
    return pair_accuracies(found.logits, log.clicks, log.impressions, data.groups[found.rows])
