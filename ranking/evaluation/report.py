"""What training and evaluation show in a terminal and as JSON. Knows no models."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from adcascade.terminal.progress import LongWork
from ranking.evaluation.results import RANKER, TEACHER, Evaluation, TextFit, TrainReport

if TYPE_CHECKING:
    from adcascade.reports.interval import Interval
    from adcascade.training.stage import OnProgress, TrainingProgress
    from ranking.data.log_report import Day, LogFacts
    from ranking.spec import ExportParity

_STAGES = {
    "behaviour": "Learning from behaviour",
    "trees": "Fitting boosted trees",
    "prior": "Reading the texts of ads",
    "text": "Fine-tuning the text",
}
# Columns of the table in a terminal; all metrics are in the report and in the JSON.
_SHOWN = {"auc": "AUC", "log_loss": "log loss", "gauc": "GAUC", "ece": "ECE"}


@contextmanager
def train_progress() -> "Iterator[OnProgress]":
    """A progress bar for each stage on standard error, with the best validation loss so far."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
    with LongWork(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bars:
        tasks = {}

        def show(step: "TrainingProgress") -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bars.add_task("", total=1.0)
            loss = "" if math.isnan(step.best_loss) else f", validation loss {step.best_loss:.4f}"
            description = f"{_STAGES[step.stage]}, step {step.step}{loss}"
            bars.update(tasks[step.stage], completed=step.done, description=description)

        yield show


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """Metrics of the ranker and its peers, for people."""
    table = Table(title=title, caption=_caption(evaluation))
    for column in ("model", *_SHOWN.values(), *(["ms a request"] if evaluation.milliseconds else [])):
        table.add_column(column)
    for model, metrics in evaluation.metrics.items():
        auc = metrics["auc"]
        cells = [f"{auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}]"]
        cells += [_plain(metrics[name].value) for name in _SHOWN if name != "auc"]
        if evaluation.milliseconds:
            cells.append(f"{evaluation.milliseconds[model]:.1f}" if model in evaluation.milliseconds else "")
        table.add_row(model, *cells, style="bold" if model == RANKER else "")
    return table


def _caption(evaluation: Evaluation) -> str:
    caption = (
        f"Tested on {evaluation.impressions:,} impressions, {evaluation.clicks:,} clicks. Brackets: 95 % bootstrap "
        f"intervals over {evaluation.units}. Ranker: predicted / actual clicks {evaluation.predicted_over_actual:.3f}; "
        f"chance alone gives an ECE of {evaluation.calibration_noise:.4f}."
    )
    baselines = [name for name in evaluation.differences if name != TEACHER]
    best = max(baselines, key=lambda name: evaluation.metrics[name]["auc"].value, default="")
    for name in (TEACHER, best):
        if name in evaluation.differences:
            lead = evaluation.differences[name]["auc"]
            caption += f" Ranker minus {name}: AUC {lead.value:+.4f} [{lead.low:+.4f}, {lead.high:+.4f}]."
    return f"{caption} {evaluation.baselines_note}".rstrip()


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def text_fit_line(fit: TextFit) -> str:
    """What reading the ads' texts brought, in a sentence or two."""
    gain = fit.prior_gain
    if gain is None:
        return _fine_tuning(fit, "counters, past events and interests")
    rows = "the validation part"
    if fit.prior_with_training:
        rows += " and of the training part, where each row is judged without its fold"
    prior = (
        f"What texts alone say, learned from {fit.prior_ads:,} ads in closed form, adds {gain.value:.3f} "
        f"[{gain.low:.3f}, {gain.high:.3f}] to the log-likelihood of a request (or of an ad, where requests show one: "
        f"shown often, it counts for less, as far as ads differ by more than their texts) of {rows}."
    )
    return f"{prior} {_fine_tuning(fit, 'counters, past events, interests and that')}"


def _fine_tuning(fit: TextFit, others: str) -> str:
    """What fine-tuning brought; `others` is what the model predicts from without it."""
    if fit.reads_text and fit.kept_step == 0:
        return f"No step of {fit.steps} improved the text layers: they are as the earlier version had them."
    rows = f"on {fit.validation_rows:,} rows"
    if fit.kept_step == 0 and fit.by_clock:
        return (
            f"The text was trained for {fit.steps:,} of {fit.planned:,} steps, then --max-minutes ended it: too few to "
            f"tell whether it helps (validation loss {fit.loss_before:.4f} {rows}, hardly lower by then). The model "
            f"predicts from {others}, and leaves its text layers out. Give it more time."
        )
    if fit.steps == 0:
        return f"The text layers were not fine-tuned: the model predicts from {others}."
    if fit.kept_step == 0:
        return (
            f"The text added nothing: {fit.steps:,} steps of fine-tuning hardly lowered the validation loss "
            f"({fit.loss_before:.4f} {rows}): the model predicts from {others}, and leaves "
            "its text layers out. A larger log or more passes (--epochs) may change that."
        )
    return (
        f"Fine-tuning the text lowered the validation loss {rows} from {fit.loss_before:.4f} to {fit.loss_kept:.4f} "
        f"(step {fit.kept_step} of {fit.steps})."
    )


def stages_line(stages: dict[str, str]) -> str:
    """How far each stage of a training came."""
    said = "; ".join(f"{stage}: {how}" for stage, how in stages.items())
    return f"Trained ({said})." if said else "Nothing was trained."


def cut_short_line(report: TrainReport) -> str:
    """A warning of stages that the clock ended; empty without one."""
    if not report.cut_short:
        return ""
    said = "; ".join(f"{stage} {report.stages[stage]}" for stage in report.cut_short if stage in report.stages)
    return (
        f"Warning: {said}. How many steps fit depends on how busy the machine is; with more minutes it may learn more."
    )


def exports_table(version: str, exports: "dict[str, ExportParity]") -> Table:
    """How near each way to run a version is to the model in float32."""
    pairs = next(iter(exports.values())).pairs
    table = Table(title=f"Model version {version}: {pairs:,} pairs beside torch in float32")
    for column in ("run in", "largest difference of a logit", "correlation", "AUC", "AUC difference"):
        table.add_column(column, justify="left" if column == "run in" else "right")
    for name, one in exports.items():
        auc = ("", "") if one.auc is None else (f"{one.auc:.4f}", f"{one.auc_difference:+.4f}")
        table.add_row(name, f"{one.largest_difference:.1e}", f"{one.correlation:.5f}", *auc)
    return table


def calibration_line(losses: dict[str, float]) -> str:
    """Which calibration was chosen, beside the others."""
    if not losses:
        return "Nothing was calibrated: the validation part is too small."
    best = min(losses, key=losses.__getitem__)
    others = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    return f"Calibration: {best} (cross-validated log loss on the validation part: {others})."


def log_lines(facts: "LogFacts") -> str:
    """A click log and its split in a few lines."""
    parts = zip(("training", "validation", "test"), facts.ctr, strict=True)
    ctr = ", ".join(f"{name} {value:.4f}" for name, value in parts if value is not None)
    lines = [
        f"{facts.rows:,} rows, {facts.impressions:,} impressions, {facts.clicks:,} clicks, "
        f"{facts.conversions:,} conversions; {facts.ads:,} ads, {facts.users:,} users, {facts.requests:,} requests.",
        f"CTR by part (split: {facts.split}): {ctr}.",
    ]
    if len(facts.days) > 1:
        lines.append(f"{facts.days[0].day} to {facts.days[-1].day}, CTR by day: {_by_day(facts.days)}")
    if any(value is not None for value in facts.ctr[2:]):
        lines.append(
            f"Of the test rows {facts.unseen_ads:.1%} show an ad, {facts.unseen_users:.1%} a user, that no training "
            "row has."
        )
    if facts.duplicates:
        lines.append(f"{facts.duplicates:,} rows repeat the request, user, ad and time of another; they count.")
    if facts.clicks_before_shown:
        lines.append(f"{facts.clicks_before_shown:,} clicks are older than the start of their ad: check the clocks.")
    return "\n".join(lines)


def _by_day(days: "Sequence[Day]") -> str:
    """CTR of up to eight runs of days, as a line."""
    runs = [days[start::1][: math.ceil(len(days) / 8)] for start in range(0, len(days), math.ceil(len(days) / 8))]
    shares = [sum(day.clicks for day in run) / max(1, sum(day.impressions for day in run)) for run in runs]
    return " ".join(f"{share:.3f}" for share in shares)


def train_report_as_dict(report: TrainReport) -> dict[str, Any]:
    """A report as plain JSON values."""
    plain = {name: value for name, value in asdict(report).items() if name not in ("evaluation", "losses")}
    losses = [{name: _json_number(value) for name, value in asdict(point).items()} for point in report.losses]
    return {**plain, "losses": losses, "test": evaluation_as_dict(report.evaluation)}


def evaluation_as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain JSON values; what is not a number is null."""
    return {
        "impressions": evaluation.impressions,
        "clicks": evaluation.clicks,
        "predicted_over_actual": evaluation.predicted_over_actual,
        "metrics": _metrics_as_dict(evaluation.metrics),
        "ranker_minus": _metrics_as_dict(evaluation.differences),
        "threshold": evaluation.threshold,
        "threshold_note": evaluation.threshold_note,
        **({"baselines_note": evaluation.baselines_note} if evaluation.baselines_note else {}),
        "units": evaluation.units,
        "at_threshold": evaluation.at_threshold,
        "calibration_noise": evaluation.calibration_noise,
        "milliseconds": evaluation.milliseconds,
        "slices": [{name: _json_number(value) for name, value in asdict(one).items()} for one in evaluation.slices],
    }


def _metrics_as_dict(metrics: "dict[str, dict[str, Interval]]") -> dict[str, Any]:
    return {
        model: {
            name: {end: value if math.isfinite(value) else None for end, value in asdict(metric).items()}
            for name, metric in of_model.items()
        }
        for model, of_model in metrics.items()
    }


def _json_number(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value
