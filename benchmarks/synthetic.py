"""Logs made up from known probabilities: whether training finds what is there."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

from adcascade.records.datasets.synthetic import TRUTH_FILE, SyntheticOptions, make_synthetic
from adcascade.records.splits import Split
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run, predicted
from ranking.data.dataset import Dataset, load_dataset
from ranking.evaluation.metrics import Sample, expected_calibration_error
from ranking.evaluation.predict import Predicted
from ranking.training.options import TrainOptions
from ranking.training.train import Trained, train


def synthetic(run: Run) -> list[Finding]:
    """Logs whose true probabilities are known."""
    check = "synthetic log"
    lines, minutes = run.for_each_seed(check, lambda seed: _synthetic(run, seed))
    table = np.array(lines)

    def of_column(column: int, figure: str, target: str, is_met: Callable[[np.ndarray], bool] | None) -> Finding:
        values = table[:, column]
        ends = np.r_[values.mean(), values.min(), values.max()]
        met = None if is_met is None else bool(is_met(values))
        return finding(check, figure, target, ends, met, lines, minutes, "interval: lowest and highest seed")

    return [
        of_column(0, "ECE against the true probabilities", "at most 0.005", lambda errors: errors.mean() <= 0.005),
        of_column(
            1, "position effect recovered, as a share", "0.95 to 1.05", lambda found: abs(found.mean() - 1) <= 0.05
        ),
        of_column(
            2,
            "CVR error of ESMM minus that of a model of clicked rows alone, on those",
            "interval below 0",
            lambda differences: differences.max() < 0,
        ),
        of_column(3, "CVR error of ESMM minus that of the same network, its CVR learned on clicks alone", "", None),
    ]


def _synthetic(run: Run, seed: int) -> tuple[float, float, float, float]:
    """Calibration error, share of the position effect, and CVR error of ESMM minus those of both alternatives."""
    folder = run.folder / f"synthetic-{seed}"
    made = SyntheticOptions(users=150, requests=30_000, conversion_logit=-3.0, seed=seed)  # a CVR of about 0.1
    files = make_synthetic(folder, made)
    truth = pq.read_table(folder / TRUTH_FILE)
    data = load_dataset(files.ads, files.clicks, files.users, split="time")
    options = TrainOptions.of(seed=seed, epochs=0)
    true_cvr = truth["p_conversion"].to_numpy()
    trained = train(data, options)
    found = predicted(data, trained)
    error = _cvr_error(trained, found, true_cvr)
    shared = train(data, options.but(conversions_over="clicks"))
    shared_error = _cvr_error(shared, predicted(data, shared), true_cvr)
    p_click = trained.spec.calibration.probability(found.logits)
    return (
        _error_to_truth(p_click, truth["p_click_any_place"].to_numpy()[found.rows]),
        _recovered_positions(trained, made),
        _cvr_error(trained, found, true_cvr, data.log.clicks > 0) - _own_model_error(data, options, true_cvr),
        error - shared_error,
    )


def _recovered_positions(trained: Trained, made: SyntheticOptions) -> float:
    """Slope of the learned effects of places over the true ones."""
    effects = trained.model.behaviour.positions.weight[1 : made.places + 1, 0].detach().numpy()
    true_effects = made.position_effects - made.position_effects.mean()
    return float(effects @ true_effects / (true_effects @ true_effects))


def _cvr_error(trained: Trained, found: Predicted, true_cvr: np.ndarray, of: np.ndarray | None = None) -> float:
    """Mean absolute error over the test part, or over those of its rows for which `of` is true."""
    assert trained.spec.conversion is not None
    wanted = slice(None) if of is None else of[found.rows]
    p_conversion = trained.spec.conversion.probability(found.conversion_logits)
    return float(np.abs(p_conversion - true_cvr[found.rows])[wanted].mean())


def _own_model_error(data: Dataset, options: TrainOptions, true_cvr: np.ndarray) -> float:
    """Of a model that never saw a row without a click: conversions are its clicks, and clicks its impressions."""
    clicked = np.flatnonzero(data.log.clicks > 0)
    place = np.full(len(data.log), -1)
    place[clicked] = np.arange(len(clicked))
    log = data.log.take(clicked)
    alone = replace(
        data,
        log=replace(log, impressions=log.clicks, clicks=log.conversions, conversions=np.zeros_like(log.clicks)),
        keys=data.keys.take(clicked),
        split=Split(*(place[part][place[part] >= 0] for part in data.split)),
    )
    trained = train(alone, options)
    found = predicted(alone, trained)
    p_conversion = trained.spec.calibration.probability(found.logits)
    return float(np.abs(p_conversion - true_cvr[clicked[found.rows]]).mean())


def _error_to_truth(p_click: np.ndarray, truth: np.ndarray) -> float:
    """Calibration error over 15 bins of equal mass, with true probabilities in place of clicks."""
    millions = np.full(len(truth), 1_000_000)
    units = np.arange(len(truth))
    sample = Sample(p_click, np.round(truth * millions).astype(np.int64), millions, units, units)
    return expected_calibration_error(sample, np.ones(len(truth)))
