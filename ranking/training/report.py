"""What training and evaluation show: progress bars, tables, JSON. Knows no models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ranking.training.results import RANKER, Evaluation, TrainReport

if TYPE_CHECKING:
    from ranking.training.train import Progress as TrainProgress


@contextmanager
def train_progress() -> "Iterator[TrainProgress]":
    """A progress bar on standard error, with the losses."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("Training", total=1.0)

        def show(step: int, done: float, loss: float, best: float) -> None:
            bars.update(task, completed=done, description=f"Training, step {step}, validation loss {best:.4f}")

        yield show
        bars.update(task, completed=1.0)


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """Metrics of the ranker and the baselines, for people."""
    table = Table(
        title=f"{title}: {evaluation.impressions:,} newest impressions, {evaluation.clicks:,} clicks",
        caption=f"95 % bootstrap intervals over users. Ranker: predicted / actual clicks "
        f"{evaluation.predicted_over_actual:.3f}",
    )
    for column in ("model", "AUC", "log loss"):
        table.add_column(column)
    for model, metrics in evaluation.metrics.items():
        cells = [f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]" for metric in metrics.values()]
        table.add_row(model, *cells, style="bold" if model == RANKER else "")
    return table


def train_report_as_dict(report: TrainReport) -> dict[str, object]:
    """A report as plain JSON values."""
    return {
        "version": report.version,
        "split": report.split,
        "rows": report.rows,
        "rejected": report.rejected,
        "test": {
            "impressions": report.evaluation.impressions,
            "clicks": report.evaluation.clicks,
            "predicted_over_actual": report.evaluation.predicted_over_actual,
            "metrics": {
                model: {name: json.loads(metric.model_dump_json()) for name, metric in metrics.items()}
                for model, metrics in report.evaluation.metrics.items()
            },
        },
    }
