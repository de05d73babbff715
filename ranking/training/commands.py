"""The commands ``adcascade train`` and ``adcascade evaluate``."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from index_builder.encoder import EMBEDDED
from ranking.artifact import load_version, open_store, save_version
from ranking.training.dataset import Dataset, load_dataset
from ranking.training.evaluate import MODEL, Evaluation, evaluate
from ranking.training.train import Progress as TrainProgress
from ranking.training.train import Trained, TrainOptions, train
from records.history import CounterSnapshot

log = logging.getLogger(__name__)

DEFAULTS = TrainOptions()

Ads = Annotated[Path, typer.Option(help="Catalog: Parquet, JSONL or CSV, or a folder of such files.")]
Clicks = Annotated[Path, typer.Option(help="Click log: request_id, ad_id, clicks, impressions; user_id, timestamp.")]
Users = Annotated[Path | None, typer.Option(help="Users: user_id and any attributes.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")]
MaxRejected = Annotated[float, typer.Option(min=0, max=1, help="Share of unusable log rows above which this fails.")]


@dataclass(frozen=True)
class TrainReport:
    """What a training made."""

    version: str
    split: str
    rows: int
    rejected: dict[str, int]
    evaluation: Evaluation


def train_command(
    ads: Ads,
    clicks: Clicks,
    out: Annotated[Path, typer.Option(help="Root of the model versions; made if missing.")],
    users: Users = None,
    base: Annotated[str, typer.Option(help="BERT-like Hugging Face directory or hub name.")] = EMBEDDED,
    architecture: Annotated[str, typer.Option(help="shared_user, or joint for the plain cross-encoder.")] = (
        DEFAULTS.architecture
    ),
    join_layer: Annotated[
        int | None, typer.Option(help="First layer in which ads attend to the user; default: the top third.")
    ] = None,
    train_layers: Annotated[str, typer.Option(help="joined (fast) or all.")] = DEFAULTS.train_layers,
    max_user_tokens: Annotated[int, typer.Option(min=8)] = DEFAULTS.max_user_tokens,
    max_ad_tokens: Annotated[int, typer.Option(min=4)] = DEFAULTS.max_ad_tokens,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the training rows, at most.")] = DEFAULTS.epochs,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Stop training after this long.")] = None,
    learning_rate: Annotated[float, typer.Option(min=0)] = DEFAULTS.learning_rate,
    seed: int = DEFAULTS.seed,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = DEFAULTS.device,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = DEFAULTS.precision,
    max_rejected: MaxRejected = 0.01,
    publish: Annotated[bool, typer.Option(help="Make the new version the one that servers load.")] = True,
    as_json: Json = False,
) -> None:
    """Fine-tune the click model on a click log, evaluate it on the newest rows, and publish it.

    The log is split by time: the first 80 % train, the next 10 % choose the best weights and calibrate them, the last
    10 % test. Without timestamps whole requests are drawn at random instead.
    """
    options = TrainOptions(
        base=base,
        architecture=architecture,
        join_layer=join_layer,
        train_layers=train_layers,
        max_user_tokens=max_user_tokens,
        max_ad_tokens=max_ad_tokens,
        epochs=epochs,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        precision=precision,
    )
    data = load_dataset(ads, clicks, users, seed=seed, max_rejected=max_rejected)
    report = train_and_save(data, out, options, publish=publish)
    if as_json:
        print(json.dumps(train_report_as_dict(report), indent=2))  # noqa: T201
    else:
        Console().print(evaluation_table(report.evaluation, f"Model version {report.version}, split by {report.split}"))


def train_and_save(data: Dataset, out: Path, options: TrainOptions, *, publish: bool = True) -> TrainReport:
    """Trains, evaluates on the test part, and commits a version with its metrics.

    Raises:
        ModelError: The base model cannot be used.
        ArtifactError: `out` cannot be written.
    """
    store = open_store(out)
    with store.begin() as draft:
        with train_progress() as progress:
            trained = train(data, options, progress)
        with Console(stderr=True).status("Evaluating on the newest rows"):
            evaluation = evaluate(data, trained, device=options.device, precision=options.precision)
        metrics = {f"test_{name}": metric for name, metric in evaluation.metrics[MODEL].items()}
        spec = trained.spec.model_copy(update={"metrics": metrics})
        save_version(store, draft, spec, trained.model, trained.tokenizer, CounterSnapshot.of(data.log))
    if publish:
        store.publish(draft.version)
    return TrainReport(draft.version, data.split, len(data.log), dict(data.report.rejected), evaluation)


def evaluate_command(
    model: Annotated[Path, typer.Option(help="Root of the model versions.")],
    ads: Ads,
    clicks: Clicks,
    users: Users = None,
    version: Annotated[str, typer.Option(help="Default: the published one.")] = "",
    seed: Annotated[int, typer.Option(help="Of the split, for logs without timestamps.")] = 0,
    max_rejected: MaxRejected = 0.01,
    as_json: Json = False,
) -> None:
    """Measure a model version on the newest 10 % of a click log, beside two baselines.

    If the log is the one that the version was trained on, these are the rows it was tested on then.
    """
    store = open_store(model)
    name = version or store.current_path().name
    store.verify(name)
    loaded = load_version(store, name)
    data = load_dataset(ads, clicks, users, seed=seed, max_rejected=max_rejected)
    if data.sha256 != loaded.spec.data_sha256:
        log.warning("this is not the log that version %s was trained on; rows it learned from may be tested", name)
    with Console(stderr=True).status("Evaluating"):
        evaluation = evaluate(data, Trained(loaded.model, loaded.tokenizer, loaded.spec))
    if as_json:
        report = TrainReport(name, data.split, len(data.log), dict(data.report.rejected), evaluation)
        print(json.dumps(train_report_as_dict(report), indent=2))  # noqa: T201
    else:
        Console().print(evaluation_table(evaluation, f"Model version {name}, split by {data.split}"))


@contextmanager
def train_progress() -> Iterator[TrainProgress]:
    """A progress bar on standard error, with the losses."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("Training", total=1.0)

        def show(step: int, done: float, loss: float, best: float) -> None:
            words = f"Training, step {step}, loss {loss:.3f}, best validation log loss {best:.4f}"
            bars.update(task, completed=done, description=words if step else "Training")

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
        table.add_row(model, *cells, style="bold" if model == MODEL else "")
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
                model: {name: metric.model_dump() for name, metric in metrics.items()}
                for model, metrics in report.evaluation.metrics.items()
            },
        },
    }
