"""The commands ``adcascade train`` and ``adcascade evaluate``.

What loads a model library is imported where it is used, so that ``--help`` answers at once.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from index_builder.encoder import EMBEDDED
from ranking.store import open_store
from ranking.training.options import TrainOptions
from ranking.training.report import (
    evaluation_as_dict,
    evaluation_table,
    rejected_lines,
    text_fit_line,
    train_report_as_dict,
)

if TYPE_CHECKING:
    from records.clicks import LogReport

log = logging.getLogger(__name__)

DEFAULTS = TrainOptions()

Ads = Annotated[Path, typer.Option(help="Catalog: Parquet, JSONL or CSV, or a folder of such files.")]
Clicks = Annotated[Path, typer.Option(help="Click log: request_id, ad_id, clicks, impressions; user_id, timestamp.")]
Users = Annotated[Path | None, typer.Option(help="Users: user_id and any attributes.")]
Split = Annotated[
    str,
    typer.Option(
        help="What the test holds: time (the newest rows), random (rows), request (whole requests), ad (ads never "
        "trained on), or auto: time where every row has one, else request."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")]
MaxRejected = Annotated[float, typer.Option(min=0, max=1, help="Share of unusable log rows above which this fails.")]


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
    behaviour_epochs: Annotated[
        int, typer.Option(min=0, help="Passes over the training rows for counters and past events, at most.")
    ] = DEFAULTS.behaviour_epochs,
    behaviour_learning_rate: Annotated[float, typer.Option(min=0)] = DEFAULTS.behaviour_learning_rate,
    epochs: Annotated[
        float, typer.Option(min=0, help="Passes over the training rows for the text, at most; 0 leaves it out.")
    ] = DEFAULTS.epochs,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Stop training after this long.")] = None,
    learning_rate: Annotated[float, typer.Option(min=0)] = DEFAULTS.learning_rate,
    split: Split = "auto",
    seed: Annotated[int, typer.Option(help="Of a split at random, and of training.")] = DEFAULTS.seed,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = DEFAULTS.device,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = DEFAULTS.precision,
    max_rejected: MaxRejected = 0.01,
    publish: Annotated[bool, typer.Option(help="Make the new version the one that servers load.")] = True,
    as_json: Json = False,
) -> None:
    """Train the click model on a click log, evaluate it on rows it has not seen, and publish it.

    It learns from counters and past events first, then fine-tunes the text.

    The log is split by time: the first 80 % train, the next 10 % choose the best weights and calibrate them, the last
    10 % test. Without timestamps whole requests are drawn at random instead; see --split.
    """
    from ranking.training.dataset import load_dataset
    from ranking.training.run import train_and_save

    options = TrainOptions(
        base=base,
        architecture=architecture,
        join_layer=join_layer,
        train_layers=train_layers,
        max_user_tokens=max_user_tokens,
        max_ad_tokens=max_ad_tokens,
        behaviour_epochs=behaviour_epochs,
        behaviour_learning_rate=behaviour_learning_rate,
        epochs=epochs,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        precision=precision,
    )
    data = load_dataset(ads, clicks, users, split=split, seed=seed, max_rejected=max_rejected)
    _show_rejected(data.report)
    report = train_and_save(data, out, options, publish=publish)
    if as_json:
        print(json.dumps(train_report_as_dict(report), indent=2))  # noqa: T201
        return
    console = Console()
    console.print(evaluation_table(report.evaluation, f"Model version {report.version}, split by {report.split}"))
    console.print(text_fit_line(report.text_fit), highlight=False)


def _show_rejected(report: "LogReport") -> None:
    if report.rejected:
        Console(stderr=True).print(rejected_lines(report), highlight=False, soft_wrap=True)


def evaluate_command(
    model: Annotated[Path, typer.Option(help="Root of the model versions.")],
    ads: Ads,
    clicks: Clicks,
    users: Users = None,
    version: Annotated[str, typer.Option(help="Default: the published one.")] = "",
    split: Split = "auto",
    seed: Annotated[int, typer.Option(help="Of a split at random.")] = 0,
    max_rejected: MaxRejected = 0.01,
    as_json: Json = False,
) -> None:
    """Measure a model version on the test part of a click log (see --split), beside simple baselines.

    If the log is the one that the version was trained on, these are the rows it was tested on then.
    """
    from ranking.artifact import load_version
    from ranking.training.dataset import load_dataset
    from ranking.training.evaluate import evaluate

    store = open_store(model)
    name = version or store.current_path().name
    store.verify(name)
    loaded = load_version(store, name)
    data = load_dataset(ads, clicks, users, split=split, seed=seed, max_rejected=max_rejected)
    _show_rejected(data.report)
    if data.sha256 != loaded.spec.data_sha256:
        log.warning("this is not the log that version %s was trained on; rows it learned from may be tested", name)
    with Console(stderr=True).status("Evaluating"):
        evaluation = evaluate(data, loaded.model, loaded.tokenizer, loaded.spec)
    if as_json:
        document = {"version": name, "split": data.split, "rejected": data.report.rejected}
        print(json.dumps({**document, "test": evaluation_as_dict(evaluation)}, indent=2))  # noqa: T201
    else:
        Console().print(evaluation_table(evaluation, f"Model version {name}, split by {data.split}"))
