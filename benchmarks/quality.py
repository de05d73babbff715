"""``make bench-quality``: every quality target with the figure reached.

Each check trains from nothing for several seeds, so the whole takes hours on a laptop; ``--check`` runs one alone and
keeps what the others found. Results go to ``docs/quality.json``, and from there into ``docs/quality.md``.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer
from rich.console import Console

from benchmarks.findings import Finding, as_markdown, as_table, keep, machine
from ranking.engine import choose_device
from ranking.training.dataset import Dataset, load_dataset
from ranking.training.evaluate import evaluate
from ranking.training.metrics import Sample, expected_calibration_error, pair_accuracies
from ranking.training.options import TrainOptions
from ranking.training.predict import Predicted, predict
from ranking.training.results import RANKER, Evaluation
from ranking.training.train import Trained, train
from records.errors import InputError
from records.movielens import export_movielens, find_movielens
from records.splits import split_folds
from records.synthetic import TRUTH_FILE, SyntheticOptions, make_synthetic
from records.upworthy import export_upworthy
from serving.exits import clean_exit

_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"
_FOLDS = 5


@dataclass(frozen=True)
class Run:
    """What the checks are run with."""

    seeds: int
    folder: Path
    upworthy: Path | None
    console: Console


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
    evaluations, started = [], time.monotonic()
    for seed in range(run.seeds):
        with run.console.status(f"{check}, seed {seed}"):
            data = load_dataset(files.ads, files.clicks, files.users, split=split, seed=seed)
            trained = train(data, TrainOptions(seed=seed, epochs=0))
            evaluations.append(_evaluated(data, trained))
    return _click_findings(check, evaluations, targets, (time.monotonic() - started) / 60)


def _evaluated(data: Dataset, trained: Trained) -> Evaluation:
    return evaluate(data, trained.model, trained.tokenizer, trained.spec, which_peers="all")


def _click_findings(
    check: str, evaluations: Sequence[Evaluation], targets: dict[str, tuple[str, float]], minutes: float
) -> list[Finding]:
    """AUC, log loss, the lead over the best peer, and calibration."""
    findings = []
    for name, label in (("auc", "AUC"), ("log_loss", "log loss")):
        ends = np.array([_ends(one, name) for one in evaluations]).mean(axis=0)
        words, bound = targets.get(name, ("", np.nan))
        met = None if not words else bool(ends[0] >= bound if name == "auc" else ends[0] <= bound)
        findings.append(_finding(check, label, words, ends, met, evaluations, minutes))
    leads = np.array([_lead(one) for one in evaluations])
    peers = ", ".join(dict.fromkeys(_best_peer(one) for one in evaluations))
    ends = np.r_[leads[:, 0].mean(), leads[:, 1].min(), leads[:, 2].max()]
    note = f"best peer: {peers}; interval: the widest of the seeds"
    above = "interval above 0"
    findings.append(
        _finding(check, "AUC minus best peer's", above, ends, bool(ends[1] > 0), evaluations, minutes, note)
    )
    ends = np.array([_ends(one, "ece") for one in evaluations]).mean(axis=0)
    noise = float(np.mean([one.calibration_noise for one in evaluations]))
    note = f"chance alone gives {noise:.4f}"
    met = bool(ends[0] <= 0.01)
    findings.append(_finding(check, "ECE", "at most 0.01", ends, met, evaluations, minutes, note))
    ends = np.array([_ends(one, "predicted_over_actual") for one in evaluations]).mean(axis=0)
    met = bool(0.98 <= ends[0] <= 1.02)
    words = "0.98 to 1.02"
    findings.append(_finding(check, "predicted / actual clicks", words, ends, met, evaluations, minutes))
    return findings


def _finding(
    check: str,
    figure: str,
    target: str,
    ends: np.ndarray,
    met: bool | None,
    runs: Sequence[object],
    minutes: float,
    note: str = "",
) -> Finding:
    reached, low, high = (float(end) for end in ends)
    return Finding(check, figure, target, reached, low, high, met, len(runs), minutes, machine(), note)


def _ends(evaluation: Evaluation, name: str) -> tuple[float, float, float]:
    metric = evaluation.metrics[RANKER][name]
    return metric.value, metric.low, metric.high


def _best_peer(evaluation: Evaluation) -> str:
    return max(evaluation.differences, key=lambda name: evaluation.metrics[name]["auc"].value)


def _lead(evaluation: Evaluation) -> tuple[float, float, float]:
    lead = evaluation.differences[_best_peer(evaluation)]["auc"]
    return lead.value, lead.low, lead.high


def synthetic(run: Run) -> list[Finding]:
    """Logs whose true probabilities are known."""
    check, started = "synthetic log", time.monotonic()
    lines = []
    for seed in range(run.seeds):
        with run.console.status(f"{check}, seed {seed}"):
            lines.append(_synthetic(run, seed))
    table, minutes = np.array(lines), (time.monotonic() - started) / 60

    def finding(column: int, figure: str, target: str, met: bool) -> Finding:
        values = table[:, column]
        ends = np.r_[values.mean(), values.min(), values.max()]
        return _finding(check, figure, target, ends, met, lines, minutes, "interval: lowest and highest seed")

    error, effect, _ = table.mean(axis=0)
    return [
        finding(0, "ECE against the true probabilities", "at most 0.005", bool(error <= 0.005)),
        finding(1, "position effect recovered, as a share", "0.95 to 1.05", bool(0.95 <= effect <= 1.05)),
        finding(
            2,
            "CVR error of ESMM minus that of training on clicks alone",
            "interval below 0",
            bool(table[:, 2].max() < 0),
        ),
    ]


def _synthetic(run: Run, seed: int) -> tuple[float, float, float]:
    """Calibration error, share of the position effect, and CVR error of ESMM minus that of clicks alone."""
    folder = run.folder / f"synthetic-{seed}"
    made = SyntheticOptions(users=150, requests=20_000, seed=seed)
    files = make_synthetic(folder, made)
    truth = pq.read_table(folder / TRUTH_FILE)
    data = load_dataset(files.ads, files.clicks, files.users, split="time")
    errors = []
    for over in ("clicks", "impressions"):
        trained = train(data, TrainOptions(seed=seed, epochs=0, conversions_over=over))
        predicted = _predicted(data, trained)
        assert trained.spec.conversion is not None
        p_conversion = trained.spec.conversion.probability(predicted.conversion_logits)
        errors.append(np.abs(p_conversion - truth["p_conversion"].to_numpy()[predicted.rows]).mean())
    p_click = trained.spec.calibration.probability(predicted.logits)
    effects = trained.model.behaviour.positions.weight[1 : made.places + 1, 0].detach().numpy()
    true_effects = made.position_effects - made.position_effects.mean()
    share = float(effects @ true_effects / (true_effects @ true_effects))
    return _error_to_truth(p_click, truth["p_click_any_place"].to_numpy()[predicted.rows]), share, errors[1] - errors[0]


def _predicted(data: Dataset, trained: Trained) -> Predicted:
    device = choose_device("auto")
    return predict(data, trained.model, trained.tokenizer, trained.spec, data.parts[2], device, "auto")


def _error_to_truth(p_click: np.ndarray, truth: np.ndarray) -> float:
    """Calibration error over 15 bins of equal mass, with true probabilities in place of clicks."""
    millions = np.full(len(truth), 1_000_000)
    units = np.arange(len(truth))
    sample = Sample(p_click, np.round(truth * millions).astype(np.int64), millions, units, units)
    return expected_calibration_error(sample, np.ones(len(truth)))


def upworthy(run: Run) -> list[Finding]:
    """Real headline tests: which of two headlines was clicked more."""
    check, started = "Upworthy, 5 folds by test", time.monotonic()
    if run.upworthy is None:
        raise InputError("give the archive's file with --upworthy")
    files = export_upworthy(run.upworthy, run.folder / "upworthy")
    lines = []
    for fold in range(_FOLDS):
        with run.console.status(f"{check}, fold {fold}"):
            lines.append(_upworthy(files.ads, files.clicks, fold))
    table, minutes = np.array(lines), (time.monotonic() - started) / 60
    deviation = 1.96 * table.std(axis=0, ddof=1) / np.sqrt(_FOLDS)
    findings = []
    for column, (figure, target, bound) in enumerate(
        (
            ("pairs of a test in the right order", "at least 0.65", 0.65),
            ("pairs with |z| > 1.96 in the right order", "at least 0.75", 0.75),
        )
    ):
        mean = table[:, column].mean()
        ends = np.r_[mean, mean - deviation[column], mean + deviation[column]]
        met = bool(mean >= bound)
        findings.append(_finding(check, figure, target, ends, met, lines, minutes, "interval: over folds"))
    return findings


def _upworthy(ads: Path, clicks: Path, fold: int) -> tuple[float, float]:
    data = load_dataset(ads, clicks, None, split="request")
    data = data.with_parts(split_folds(data.log.request_id, _FOLDS, fold))
    options = TrainOptions(
        train_layers="all",
        join_layer=0,
        epochs=4,
        learning_rate=1e-4,
        pairs_per_step=64,
        average_decay=0.99,
        group_loss="listwise",
        group_weight=0.9,
        validate_every=60,
        patience=4,
        max_user_tokens=8,
        max_ad_tokens=40,
        min_text_gain=0.0,
    )
    trained = train(data, options)
    predicted = _predicted(data, trained)
    log = data.log.take(predicted.rows)
    return pair_accuracies(predicted.logits, log.clicks, log.impressions, data.groups[predicted.rows])


CHECKS: dict[str, Callable[[Run], list[Finding]]] = {
    "movielens-random": movielens_random,
    "movielens-ads": movielens_ads,
    "movielens-time": movielens_time,
    "synthetic": synthetic,
    "upworthy": upworthy,
}


def main(
    check: Annotated[list[str] | None, typer.Option(help=f"One or more of: {', '.join(CHECKS)}.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each figure is the mean of.")] = 3,
    upworthy: Annotated[
        Path | None, typer.Option(help="The archive's CSV or Parquet file; not part of AdCascade.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("docs/quality.json"),
) -> None:
    """Measure what the ranker's quality is on real and made-up logs, beside the project's targets."""
    console = Console()
    wanted = check or [name for name in CHECKS if name != "upworthy" or upworthy is not None]
    unknown = set(wanted) - CHECKS.keys()
    if unknown:
        raise InputError(f"there is no check {', '.join(sorted(unknown))}; choose of {', '.join(CHECKS)}")
    kept: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            found = CHECKS[name](Run(seeds, Path(folder), upworthy, Console(stderr=True)))
            kept = keep(out, found)
            _put_into(out.with_suffix(".md"), as_markdown(kept))
            console.print(as_table(found))
    console.print(as_table(kept))


def _put_into(document: Path, table: str) -> None:
    """Puts the table between its marks, if the document has them."""
    if not document.exists():
        return
    text = document.read_text()
    if _BEGIN in text and _END in text:
        before, after = text.split(_BEGIN)[0], text.split(_END)[1]
        document.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}")


if __name__ == "__main__":
    with clean_exit(InputError):
        typer.run(main)
