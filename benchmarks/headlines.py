"""Real A/B tests of headlines (the Upworthy Research Archive): which of two was clicked more."""

from pathlib import Path

import numpy as np
from scipy import stats

from adcascade.records.clicks import ClickLog, read_clicks
from adcascade.records.datasets.upworthy import export_upworthy
from adcascade.records.errors import InputError
from adcascade.records.splits import split_folds
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run, predicted
from ranking.data.dataset import load_dataset
from ranking.evaluation.request_metrics import pair_accuracies
from ranking.training.options import TrainOptions
from ranking.training.train import train

_FOLDS = 5


def upworthy_folds(run: Run) -> list[Finding]:
    """Real headline tests: which of two headlines was clicked more."""
    check = "Upworthy, 5 folds by test"
    if run.upworthy is None:
        raise InputError("give the archive's file with --upworthy")
    files = export_upworthy(run.upworthy, run.folder / "upworthy")

    def measure(fold: int) -> tuple[float, float]:
        pairs, certain = _upworthy(files.ads, files.clicks, fold)
        run.console.print(f"fold {fold}: {pairs:.3f} of all pairs, {certain:.3f} of those that differ for certain")
        return pairs, certain

    lines, minutes = run.for_each(_FOLDS, f"{check}, fold", measure)
    halves = _half_by_the_other(read_clicks(files.clicks, None)[0])
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


def _upworthy(ads: Path, clicks: Path, fold: int) -> tuple[float, float]:
    data = load_dataset(ads, clicks, None, split="request")
    data = data.with_split(split_folds(data.log.request_id, _FOLDS, fold))
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
        max_ad_tokens=40,
        min_text_gain=0.0,
    )
    trained = train(data, options)
    found = predicted(data, trained)
    log = data.log.take(found.rows)
    return pair_accuracies(found.logits, log.clicks, log.impressions, data.groups[found.rows])
