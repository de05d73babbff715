"""The command ``adcascade train-retrieval``.

What loads a model library is imported where it is used, so that ``--help`` answers at once.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from index_builder.commands import Encoder
from index_builder.encoder import EMBEDDED
from index_builder.progress import LongWork, build_progress
from index_builder.training.options import TowerOptions
from serving.flags import with_flags_of

if TYPE_CHECKING:
    from index_builder.training.train import TowerReport, Watch

Ads = Annotated[Path, typer.Option(help="Catalog: Parquet, JSONL or CSV, or a folder of such files.")]
Clicks = Annotated[
    Path,
    typer.Option(help="Click log with request_id, ad_id, user_id, timestamp, clicks, impressions; row-level."),
]
Users = Annotated[Path | None, typer.Option(help="Users: user_id and any attributes.")]
Split = Annotated[
    str,
    typer.Option(
        help="What is kept back for a test: time (the newest tenth of the rows), user (the newest fifth of each "
        "user's), ad (the same, of ads that are never trained on), or none."
    ),
]
MaxRejected = Annotated[float, typer.Option(min=0, max=1, help="Share of unusable log rows above which this fails.")]
Newest = Annotated[
    int | None,
    typer.Option(min=1, help="Use only so many of the log's newest rows, so that any log fits; default: all."),
]
Publish = Annotated[bool, typer.Option(help="Make the new version the one that builds take.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

_STAGES = {"choose": "Training to choose by later rows", "train": "Training on all of them"}


@with_flags_of(TowerOptions)
def train_retrieval_command(
    ads: Ads,
    clicks: Clicks,
    out: Annotated[Path, typer.Option(help="Root of the tower versions; made if missing.")],
    options: TowerOptions,
    users: Users = None,
    encoder: Encoder = EMBEDDED,
    split: Split = "time",
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    publish: Publish = True,
    as_json: Json = False,
) -> None:
    """Train the two towers of retrieval on a click log: one puts ads, the other users, into one space.

    Then give them to a build: adcascade build --ads ADS --towers OUT --out INDEX. The towers are trained twice: first
    without the newest rows, which choose how much recent popularity counts and how a user's interests share the
    candidates, then on all rows but those kept back for a test.
    """
    from index_builder.bulk_encoder import load_bulk_encoder
    from index_builder.training.data import load_retrieval_data
    from index_builder.training.train import train_and_save

    text_encoder = load_bulk_encoder(encoder)
    with build_progress() as progress:
        data = load_retrieval_data(
            ads,
            clicks,
            users,
            text_encoder,
            split=split,
            seed=options.seed,
            max_rejected=max_rejected,
            newest=newest,
            progress=progress,
        )
    with training_progress() as watch:
        report = train_and_save(data, text_encoder, out, options, publish=publish, watch=watch)
    if as_json:
        print(json.dumps(report_as_dict(report), indent=2))  # noqa: T201
    else:
        Console().print(report_table(report))
    Console(stderr=True).print(warning_of_weak(report.spec.better), style="yellow", end="")


def warning_of_weak(better: Sequence[str]) -> str:
    """What to say of towers that find less than what needs no training."""
    if not better:
        return ""
    return (
        f"Warning: on the rows that chose, {' and '.join(better)} found more than these towers. The log may be too "
        "small for them, or the training too short (--epochs, --max-minutes); see `adcascade evaluate-retrieval`.\n"
    )


@contextmanager
def training_progress() -> Iterator["Watch"]:
    """A bar for each of the two trainings, on standard error."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    columns_of_time = (TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TimeRemainingColumn())
    with LongWork(*columns, *columns_of_time) as bars:
        tasks = {}

        def show(stage: str, done: float, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_STAGES[stage], total=1.0, loss=loss)
            bars.update(tasks[stage], completed=done, loss=loss)

        yield show


def report_as_dict(report: "TowerReport") -> dict[str, object]:
    """A report as plain JSON values."""
    return {**asdict(report), "spec": report.spec.model_dump(mode="json")}


def report_table(report: "TowerReport") -> Table:
    """What a training made, for people."""
    spec = report.spec
    table = Table(title=f"Tower version {report.version}", show_header=False)
    recall = ", ".join(f"{value:.3f} with {width}" for width, value in spec.recall.items())
    beside = ", ".join(f"{value:.3f} of {name}" for name, value in spec.recall_beside.items())
    rows = {
        "learned from": f"{report.events:,} events of {report.users:,} users, {report.ads_clicked:,} ads clicked",
        "vectors": f"{spec.shape.interests} of {spec.shape.width} numbers per user, and a bias",
        "recall@10": f"{beside or 'unknown'} (users with a past, of the rows that chose)",
        "recall@100": f"{recall} numbers of the vectors alone (all users of these rows)",
        "encoder": spec.encoder_name,
        "seconds": f"{report.seconds:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
