"""An evaluation as one HTML page that needs nothing else: tables and plots inside. Knows no models."""

from itertools import groupby
from pathlib import Path

from adcascade.reports.page import render
from ranking.errors import ModelError
from ranking.evaluation.report import calibration_line, cut_short_line, stages_line, text_fit_line
from ranking.evaluation.results import RANKER, Evaluation, TrainReport

try:
    from ranking.evaluation import plots
except ModuleNotFoundError as missing:  # said before minutes are spent on a training that could not be reported
    raise ModelError(f"reports need {missing.name}: pip install 'adcascade[train]'") from missing

_METRICS = {
    "auc": "AUC",
    "log_loss": "log loss",
    "gauc": "GAUC",
    "normalised_entropy": "NE",
    "pr_auc": "PR-AUC",
    "ndcg_5": "nDCG@5",
    "ndcg_10": "nDCG@10",
    "mrr": "MRR",
    "pair_accuracy": "pair accuracy",
    "ece": "ECE",
    "predicted_over_actual": "predicted / actual",
}


def write_page(path: Path, evaluation: Evaluation, title: str, trained: TrainReport | None = None) -> None:
    """Writes the page; `trained` adds what training found."""
    parts = [(name, list(group)) for name, group in groupby(evaluation.slices, key=lambda part: part.name)]
    stages = dict.fromkeys(point.stage for point in trained.losses if point.step) if trained else {}
    path.write_text(
        render(
            "ranking.evaluation",
            "page.html.j2",
            title=title,
            evaluation=evaluation,
            trained=trained,
            names=_METRICS,
            ranker=RANKER,
            roc=plots.roc_plot(evaluation.curves),
            reliability=plots.reliability_plot(evaluation.curves),
            gain=plots.gain_plot(evaluation.curves),
            lift=plots.lift_plot(evaluation.curves),
            losses={stage: plots.loss_plot(trained.losses, stage) for stage in stages} if trained else {},
            slices=[(name, group, plots.slices_plot(name, group)) for name, group in parts],
            notes=_notes(trained) if trained else [],
        ),
        encoding="utf-8",
    )


def _notes(trained: TrainReport) -> list[str]:
    lines = [cut_short_line(trained), stages_line(trained.stages), text_fit_line(trained.text_fit)]
    return [line for line in (*lines, calibration_line(trained.calibration)) if line]
