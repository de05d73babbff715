"""Reading the user once against reading every pair anew, and a student against its teacher, on MovieLens-100k.

A small part of an epoch of text, on top of behaviour that was learned alike, keeps these checks to minutes a seed: the
differences between architectures are what counts here, not how good either is. The text is kept whatever it brings.
"""

import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from adcascade.records.counters import CounterSnapshot
from adcascade.records.datasets.movielens import DatasetFiles, export_movielens, find_movielens
from adcascade.reports.interval import Interval
from adcascade.training.stage import TrainingProgress
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run
from ranking.artifact import ModelVersion
from ranking.data.dataset import Dataset, load_dataset
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.results import RANKER, TEACHER, Evaluation
from ranking.model.shared_user import JOINT, SHARED_USER
from ranking.training.options import TrainOptions
from ranking.training.run import train_and_save
from ranking.training.train import Trained, train
from ranking.training.versions import load_named

_TEST_ROWS = 3000
# So little of everything that a training takes minutes; the text is kept whatever it brings.
LITTLE_TEXT = TrainOptions.of(
    join_layer=4,
    behaviour_epochs=1,
    # Fitted to the end, trees would leave the text little to add, and so would words that are compared beside it.
    trees="none",
    content="none",
    behaviour_batch=8192,
    behaviour_min_steps=10,
    epochs=0.03,
    validate_every=10,
    validation_rows=500,
    calibration_rows=500,
    max_user_tokens=64,
    train_layers="all",
    min_text_gain=-np.inf,
)
_MARGIN = 0.002
_JOIN_LAYERS = (2, 3, 4, 5)
_JOIN_EPOCHS = 0.12
_TAUGHT = "5, distilled from 0"


def shared_and_joint(run: Run) -> list[Finding]:
    """The shared-user ranker and the plain cross-encoder after the same pairs of the same data."""
    check = "shared-user against joint, unseen ads, 2,400 pairs of text"

    def measure(seed: int) -> Evaluation:
        data = _unseen_ads(run, seed)
        options = LITTLE_TEXT.but(seed=seed)
        joint = _as_version(train(data, options.but(architecture=JOINT)), data)
        return _evaluated(data, train(data, options), joint)

    return _against_slower(check, "joint's", *run.for_each_seed(check, measure))


def distillation(run: Run) -> list[Finding]:
    """A student that joins the top two layers, taught by a model that joins all six."""
    check = "distilled from six joined layers to two, unseen ads, 2,400 pairs of text"

    def measure(seed: int) -> Evaluation:
        data = _unseen_ads(run, seed)
        options = LITTLE_TEXT.but(seed=seed)
        folder = run.folder / f"teacher-{seed}"
        train_and_save(data, folder, options.but(join_layer=0), which_baselines="none")
        student = train(data, options.but(teacher=str(folder)))
        return _evaluated(data, student, load_named(str(folder)))

    return _against_slower(check, "teacher's", *run.for_each_seed(check, measure))


def join_layers(run: Run) -> list[Finding]:
    """What is lost by joining fewer of the six layers, and what a teacher that joins all gives back."""
    check = "join layer of six, unseen ads, 9,600 pairs of text"

    def measure(seed: int) -> dict[str, Evaluation]:
        data = _unseen_ads(run, seed)
        options = LITTLE_TEXT.but(seed=seed, epochs=_JOIN_EPOCHS)
        folder = run.folder / f"all-joined-{seed}"
        train_and_save(data, folder, options.but(join_layer=0), which_baselines="none")
        all_joined = load_named(str(folder))
        how = {str(layer): options.but(join_layer=layer) for layer in _JOIN_LAYERS}
        how[_TAUGHT] = options.but(join_layer=_JOIN_LAYERS[-1], teacher=str(folder))
        return {name: _evaluated(data, train(data, one), all_joined) for name, one in how.items()}

    measured, minutes = run.for_each_seed(check, measure)

    def line(name: str, figure: str, metrics: Sequence[Interval], note: str = "") -> Finding:
        return finding(check, f"{figure}, join layer {name}", "", _mean(metrics), None, measured, minutes, note)

    names = list(measured[0])
    return [
        line("0", "AUC", [one[names[0]].metrics[TEACHER]["auc"] for one in measured]),
        *(line(name, "AUC", [one[name].metrics[RANKER]["auc"] for one in measured]) for name in names),
        *(
            line(name, "AUC minus that of 0", [one[name].differences[TEACHER]["auc"] for one in measured], "paired")
            for name in names
        ),
    ]


def throughput(run: Run) -> list[Finding]:
    """Pairs a second in training: users read once for up to 64 ads, against one user and one ad a row."""
    check = "training throughput, 128-token users"
    files = export_movielens(find_movielens(), run.folder / "movielens")
    data = load_dataset(files.ads, files.clicks, files.users, split="time")
    options = TrainOptions.of(
        behaviour_epochs=0,
        epochs=0.008,
        pairs_per_step=128,
        max_ads_per_user=64,
        train_layers="all",
        validate_every=10**6,
        validation_rows=1,
        calibration_rows=1,
    )

    def measure(seed: int) -> float:
        joint, shared = (
            _seconds_per_step(data, options.but(seed=seed, architecture=architecture))
            for architecture in (JOINT, SHARED_USER)
        )
        return joint / shared

    ratios, minutes = run.for_each_seed(check, measure)
    ends = (statistics.median(ratios), min(ratios), max(ratios))
    note = "all layers trained; interval: lowest and highest round"
    figure = "shared-user over joint, pairs a second"
    return [finding(check, figure, "at least 5", ends, ends[0] >= 5, ratios, minutes, note)]


def _seconds_per_step(data: Dataset, options: TrainOptions) -> float:
    """Median over the first steps of the text layers, the very first left out."""
    ended: list[float] = []

    def watch(step: TrainingProgress) -> None:
        if step.stage == "text":
            ended.append(time.monotonic())

    train(data, options, watch)
    return float(statistics.median(np.diff(ended)[1:].tolist()))


def _unseen_ads(run: Run, seed: int) -> Dataset:
    return unseen_ads(export_movielens(find_movielens(), run.folder / "movielens"), seed)


def unseen_ads(files: DatasetFiles, seed: int) -> Dataset:
    """A log split by ad, with few test rows."""
    data = load_dataset(files.ads, files.clicks, files.users, split="ad", seed=seed)
    test = np.random.default_rng(seed).permutation(data.split.test)[:_TEST_ROWS]
    return data.with_split(data.split._replace(test=np.sort(test)))


def _as_version(trained: Trained, data: Dataset) -> ModelVersion:
    counters = CounterSnapshot.of(data.log, data.keys)
    return ModelVersion(trained.model, trained.tokenizer, trained.spec, "joint", datetime.now(UTC), counters)


def _evaluated(data: Dataset, trained: Trained, slower: ModelVersion) -> Evaluation:
    return evaluate(data, trained, which_baselines="none", teacher=slower)


def _against_slower(check: str, whose: str, evaluations: Sequence[Evaluation], minutes: float) -> list[Finding]:
    own = _mean([one.metrics[RANKER]["auc"] for one in evaluations])
    lead = _mean([one.differences[TEACHER]["auc"] for one in evaluations])
    faster = [one.milliseconds[TEACHER] / one.milliseconds[RANKER] for one in evaluations]
    speed = (statistics.median(faster), min(faster), max(faster))
    words = f"at least -{_MARGIN}"
    return [
        finding(check, "AUC", "", own, None, evaluations, minutes),
        finding(check, f"AUC minus {whose}", words, lead, lead[0] >= -_MARGIN, evaluations, minutes, "paired"),
        finding(
            check,
            "times faster for 100 ads it has met",
            "",
            speed,
            None,
            evaluations,
            minutes,
            "interval: lowest and highest seed",
        ),
    ]


def _mean(metrics: Sequence[Interval]) -> tuple[float, float, float]:
    """Of the values and of both ends of their intervals."""
    value, low, high = np.array([(one.value, one.low, one.high) for one in metrics]).mean(axis=0).tolist()
    return value, low, high
