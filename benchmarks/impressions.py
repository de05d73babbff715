"""A log of real impressions, shown several together: the ranker against its peers on the last day."""

from dataclasses import replace

import numpy as np

from adcascade.records.errors import InputError
from adcascade.records.splits import Split
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run
from ranking.data.dataset import Dataset, load_dataset
from ranking.evaluation.baselines import ALL_FEATURES, CLICK_RATES, COUNTER_TREES, COUNTERS, POPULARITY, TREES
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.results import RANKER, Evaluation
from ranking.training.options import TrainOptions
from ranking.training.train import train

_DAY = 86_400_000_000  # microseconds
# Of the days before the last, the newest requests that validate.
_VALID = 1 / 9
# What users did before the log, where it is known.
_HISTORY = "history_before.parquet"
_FIGURES = {"auc": "AUC", "gauc": "GAUC", "ndcg_5": "nDCG@5 in a request"}


def impressions_last_day(run: Run) -> list[Finding]:
    """Trained on all days but the last of a log of impressions, tested on that."""
    if run.impressions is None:
        raise InputError("give a folder with ads.parquet and impressions.parquet with --impressions")
    ads, clicks = run.impressions / "ads.parquet", run.impressions / "impressions.parquet"
    before = run.impressions / _HISTORY
    history = before if before.exists() else None
    data = _last_day(load_dataset(ads, clicks, None, split="time", history=history))

    def measure(seed: int) -> Evaluation:
        trained = train(data, TrainOptions.of(seed=seed, epochs=0))
        return evaluate(data, trained, which_baselines="all")

    check = f"{run.impressions.name}, last day of real impressions, without fine-tuning"
    evaluations, minutes = run.for_each_seed(check, measure)
    return [found for name in _FIGURES for found in _findings(check, name, evaluations, minutes)]


def _last_day(data: Dataset) -> Dataset:
    """The same log split by days, UTC; a request is of the day on which it begins."""
    log = data.log
    begins = np.full(len(data.request_rows), np.iinfo(np.int64).max)
    np.minimum.at(begins, data.groups, log.time)
    of_row = begins[data.groups]
    is_test = of_row // _DAY == of_row.max() // _DAY
    earlier = np.flatnonzero(~is_test)
    if not len(earlier):
        raise InputError("the log is of one day, and there is none to learn from")
    is_valid = of_row[earlier] >= np.quantile(of_row[earlier], 1 - _VALID)
    split = Split(earlier[~is_valid], earlier[is_valid], np.flatnonzero(is_test))
    return replace(data, split=split)


def _findings(check: str, name: str, evaluations: list[Evaluation], minutes: float) -> list[Finding]:
    """A figure of the ranker, and its difference from the peer that is best in it, of all and of those on counters."""
    label, figures = _FIGURES[name], [one.metrics[RANKER][name] for one in evaluations]
    ends = np.array([(one.value, one.low, one.high) for one in figures]).mean(axis=0)
    found = [finding(check, label, "", ends, None, evaluations, minutes)]
    for best, among in (("best peer's", _all_peers), ("best peer's on counters alone", _on_counters)):
        peers = [max(among(one), key=lambda peer: one.metrics[peer][name].value) for one in evaluations]
        leads = [one.differences[peer][name] for one, peer in zip(evaluations, peers, strict=True)]
        lead = np.array([(one.value, one.low, one.high) for one in leads])
        widest = np.r_[lead[:, 0].mean(), lead[:, 1].min(), lead[:, 2].max()]
        note = f"best peer: {', '.join(dict.fromkeys(peers))}; interval: the widest of the seeds"
        met = bool(widest[1] > 0) if name == "auc" else bool(widest[0] > 0)
        target = "interval above 0" if name == "auc" else "above 0"
        found.append(finding(check, f"{label} minus {best}", target, widest, met, evaluations, minutes, note))
    return found


def _all_peers(evaluation: Evaluation) -> set[str]:
    return set(evaluation.differences)


def _on_counters(evaluation: Evaluation) -> set[str]:
    """Peers that read no text, and no feature that compares texts: where none does, all features are counters."""
    peers = _all_peers(evaluation)
    of_features = {COUNTERS, COUNTER_TREES} if COUNTERS in peers else {ALL_FEATURES, TREES}
    return peers & {POPULARITY, CLICK_RATES, *of_features}
