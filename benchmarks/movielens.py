"""MovieLens-100k: the ranker against its peers, and whether its probabilities are true."""

from collections.abc import Sequence

import numpy as np

from adcascade.records.datasets.movielens import export_movielens, find_movielens
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run
from ranking.data.dataset import load_dataset
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.results import RANKER, Evaluation
from ranking.training.options import TrainOptions
from ranking.training.train import train


def movielens_random(run: Run) -> list[Finding]:
    """The split that published tables use."""
    targets = {"auc": ("at least 0.800", 0.800), "log_loss": ("at most 0.540", 0.540)}
    return _movielens(run, "MovieLens-100k, random 8:1:1", "random", targets)


def movielens_ads(run: Run) -> list[Finding]:
    """Ads that no training row has."""
    return _movielens(run, "MovieLens-100k, ads unseen in training", "ad", {"auc": ("at least 0.735", 0.735)})


def movielens_time(run: Run) -> list[Finding]:
    """The oldest rows train, the newest test."""
    return _movielens(run, "MovieLens-100k, by time", "time", {})


def _movielens(run: Run, check: str, split: str, targets: dict[str, tuple[str, float]]) -> list[Finding]:
    files = export_movielens(find_movielens(), run.folder / "movielens")

    def measure(seed: int) -> Evaluation:
        data = load_dataset(files.ads, files.clicks, files.users, split=split, seed=seed)
        trained = train(data, TrainOptions.of(seed=seed, epochs=0))
        return evaluate(data, trained, which_baselines="all")

    evaluations, minutes = run.for_each_seed(check, measure)
    return _click_findings(check, evaluations, targets, minutes)


def _click_findings(
    check: str, evaluations: Sequence[Evaluation], targets: dict[str, tuple[str, float]], minutes: float
) -> list[Finding]:
    """AUC, log loss, the lead over the best peer, and calibration."""
    findings = []
    for name, label in (("auc", "AUC"), ("log_loss", "log loss")):
        ends = np.array([_ends(one, name) for one in evaluations]).mean(axis=0)
        words, bound = targets.get(name, ("", np.nan))
        met = None if not words else bool(ends[0] >= bound if name == "auc" else ends[0] <= bound)
        findings.append(finding(check, label, words, ends, met, evaluations, minutes))
    leads = np.array([_lead(one) for one in evaluations])
    baselines = ", ".join(dict.fromkeys(_best_peer(one) for one in evaluations))
    ends = np.r_[leads[:, 0].mean(), leads[:, 1].min(), leads[:, 2].max()]
    note = f"best peer: {baselines}; interval: the widest of the seeds"
    above = "interval above 0"
    findings.append(finding(check, "AUC minus best peer's", above, ends, bool(ends[1] > 0), evaluations, minutes, note))
    ends = np.array([_ends(one, "ece") for one in evaluations]).mean(axis=0)
    noise = float(np.mean([one.calibration_noise for one in evaluations]))
    note = f"chance alone gives {noise:.4f}"
    met = bool(ends[0] <= 0.01)
    findings.append(finding(check, "ECE", "at most 0.01", ends, met, evaluations, minutes, note))
    ends = np.array([_ends(one, "predicted_over_actual") for one in evaluations]).mean(axis=0)
    met = bool(0.98 <= ends[0] <= 1.02)
    words = "0.98 to 1.02"
    findings.append(finding(check, "predicted / actual clicks", words, ends, met, evaluations, minutes))
    return findings


def _ends(evaluation: Evaluation, name: str) -> tuple[float, float, float]:
    metric = evaluation.metrics[RANKER][name]
    return metric.value, metric.low, metric.high


def _best_peer(evaluation: Evaluation) -> str:
    return max(evaluation.differences, key=lambda name: evaluation.metrics[name]["auc"].value)


def _lead(evaluation: Evaluation) -> tuple[float, float, float]:
    lead = evaluation.differences[_best_peer(evaluation)]["auc"]
    return lead.value, lead.low, lead.high
