"""What training and evaluation show: progress bars, tables, JSON. Knows no models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ranking.training.results import RANKER, Evaluation, TextFit, TrainReport

if TYPE_CHECKING:
    from ranking.training.behaviour import Progress as TrainProgress
    from records.clicks import LogReport

_STAGES = {"behaviour": "Learning from behaviour", "text": "Fine-tuning the text"}


@contextmanager
def train_progress() -> "Iterator[TrainProgress]":
    """A progress bar for each stage on standard error, with the best validation loss so far."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks = {}

        def show(stage: str, step: int, done: float, best: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task("", total=1.0)
            description = f"{_STAGES[stage]}, step {step}, validation loss {best:.4f}"
            bars.update(tasks[stage], completed=done, description=description)

        yield show
        for task in tasks.values():
            bars.update(task, completed=1.0)


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """Metrics of the ranker and the baselines, for people."""
    table = Table(
        title=title,
        caption=f"Tested on {evaluation.impressions:,} impressions, {evaluation.clicks:,} clicks. "
        "Brackets: 95 % bootstrap intervals over users. Ranker: predicted / actual clicks "
        f"{evaluation.predicted_over_actual:.3f}",
    )
    for column in ("model", "AUC", "log loss"):
        table.add_column(column)
    for model, metrics in evaluation.metrics.items():
        cells = [f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]" for metric in metrics.values()]
        table.add_row(model, *cells, style="bold" if model == RANKER else "")
    return table


def text_fit_line(fit: TextFit) -> str:
    """What fine-tuning the text brought, in a sentence or two."""
    if fit.steps == 0:
        return "The text layers were not fine-tuned: the model predicts from counters, past events and interests."
    rows = f"on {fit.validation_rows:,} rows"
    if fit.kept_step == 0:
        return (
            f"Fine-tuning the text for {fit.steps} steps hardly lowered the validation loss ({fit.loss_before:.4f} "
            f"{rows}): the model predicts from counters, past events and interests, and leaves its text layers out. "
            "A larger log or more time (--max-minutes, --epochs) may change that."
        )
    return (
        f"Fine-tuning the text lowered the validation loss {rows} from {fit.loss_before:.4f} to {fit.loss_kept:.4f} "
        f"(step {fit.kept_step} of {fit.steps})."
    )


def rejected_lines(report: "LogReport") -> str:
    """What was left out of a click log and why; empty if nothing was."""
    if not report.rejected:
        return ""
    lines = [f"  {count} {reason}, such as {report.examples[reason]}" for reason, count in report.rejected.items()]
    return "\n".join([f"{sum(report.rejected.values()):,} of {report.rows:,} rows of the log were left out:", *lines])


def train_report_as_dict(report: TrainReport) -> dict[str, object]:
    """A report as plain JSON values."""
    return {
        "version": report.version,
        "split": report.split,
        "rows": report.rows,
        "rejected": report.rejected,
        "text_fit": asdict(report.text_fit),
        "test": evaluation_as_dict(report.evaluation),
    }


def evaluation_as_dict(evaluation: Evaluation) -> dict[str, object]:
    """An evaluation as plain JSON values."""
    return {
        "impressions": evaluation.impressions,
        "clicks": evaluation.clicks,
        "predicted_over_actual": evaluation.predicted_over_actual,
        "metrics": {
            model: {name: json.loads(metric.model_dump_json()) for name, metric in metrics.items()}
            for model, metrics in evaluation.metrics.items()
        },
    }
