"""The command ``adcascade train-retrieval``.

What loads a model library is imported where it is used, so that ``--help`` answers at once.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from adcascade.records.clicks import REJECTED_FILE
from adcascade.records.joined import Joined
from adcascade.terminal.console import Console
from adcascade.terminal.flags import with_flags_of
from adcascade.terminal.log_display import show_log_read
from adcascade.terminal.options import Encoder, Json, MaxRejected, Newest, Rejected, Users, VectorsFolder
from adcascade.terminal.progress import LongWork, build_progress
from adcascade.towers.findings import CUT_OFFS
from adcascade.towers.training.options import TowerOptions
from adcascade.vectors.encoder import EMBEDDED
from adcascade.vectors.errors import NotPublished
from adcascade.vectors.vector_store import default_folder, remembering

if TYPE_CHECKING:
    from adcascade.towers.artifact import TowerSpec
    from adcascade.towers.training.train import TowerReport
    from adcascade.training.stage import OnProgress, TrainingProgress

Ads = Annotated[Path, typer.Option(help="Catalog: Parquet, JSONL or CSV, or a folder of such files.")]
Clicks = Annotated[
    Path,
    typer.Option(help="Click log with request_id, ad_id, user_id, timestamp, clicks, impressions; row-level."),
]
Split = Annotated[
    str,
    typer.Option(
        help="What is kept back for a test: time (the newest tenth of the rows), user (the newest fifth of each "
        "user's), ad (the same, of ads that are never trained on), or none."
    ),
]
Publish = Annotated[bool, typer.Option(help="Make the new version the one that builds take.")]
PublishAnyway = Annotated[
    bool, typer.Option(help="Publish even what finds less than popularity, recent popularity or the likeness of texts.")
]

_PURPOSE = {"choose": "to choose", "train": "on all rows"}
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
    rejected: Rejected = None,
    publish: Publish = True,
    publish_anyway: PublishAnyway = False,
    vectors: VectorsFolder = None,
    as_json: Json = False,
) -> None:
    """Train the two towers of retrieval on a click log: one puts ads, the other users, into one space.

    Then give them to a build: adcascade build --ads ADS --towers OUT --out INDEX. The towers are trained twice: first
    without the newest rows, which choose how much recent popularity counts, then on all rows but those kept back for a
    test. Towers that find less than popularity, recent popularity or the likeness of texts are kept, but not published,
    and the exit code is 3.

    A training that was killed is taken up again by the same command.
    """
    from adcascade.towers.training.data import load_retrieval_data
    from adcascade.towers.training.train import train_and_save
    from adcascade.vectors.bulk_encoder import load_bulk_encoder

    text_encoder = load_bulk_encoder(encoder)
    with build_progress() as progress, remembering(text_encoder, vectors or default_folder(out)) as kept:
        data = load_retrieval_data(
            ads,
            clicks,
            users,
            kept,
            split=split,
            seed=options.seed,
            max_rejected=max_rejected,
            newest=newest,
            rejected_file=rejected or out / REJECTED_FILE,
            progress=progress,
            on_read=lambda read: show_joined(read, users, rejected or out / REJECTED_FILE),
        )
    Console(stderr=True).print(kept.said, highlight=False, soft_wrap=True)
    with training_progress() as watch:
        report = train_and_save(
            data, text_encoder, out, options, publish=publish, publish_anyway=publish_anyway, watch=watch
        )
    if as_json:
        print(json.dumps(report_as_dict(report), indent=2))  # noqa: T201
    else:
        Console().print(report_table(report))
    warn_of(report)
    if publish and not report.published:
        raise NotPublished(
            f"{what_finds_more(report.spec.better_than())}, so version {report.version} was kept, but not published: "
            f"train longer, or on more rows; or `adcascade towers publish {out} {report.version}`, or --publish-anyway"
        )


def show_joined(read: Joined, users: Path | None, rejected_file: Path | None) -> None:
    """What was read of a log and its users, on standard error."""
    show_log_read(read.log, read.report, None if users is None else read.users, rejected_file)


def what_finds_more(better: Sequence[str], width: int | None = None) -> str:
    """Half a sentence about towers that find less than what needs no training."""
    of_width = "" if width is None else f", cut to {width} numbers,"
    return f"{' and '.join(better)} found more than these towers{of_width} on the rows that chose"


def warn_of(report: "TowerReport") -> None:
    """Says on standard error what an owner should know before these towers serve."""
    console = Console(stderr=True)
    for line in warnings_of(report.spec):
        console.print(f"Warning: {line}", style="yellow", highlight=False, soft_wrap=True)


def warnings_of(spec: "TowerSpec") -> list[str]:
    """A training that was cut short, towers that find less than what needs none, users who all get the same."""
    lines = []
    for stage, passes in spec.passes.items():
        if passes.cut_short:
            minutes = passes.minutes_of_all
            pace = "" if minutes is None else f"; at this pace all of them take {minutes:,.1f} minutes"
            lines.append(f"{_STAGES[stage][0].lower()}{_STAGES[stage][1:]} {passes}{pace}.")
    if better := spec.better_than():
        lines.append(
            f"{what_finds_more(better)}. The log may be too small for them, or the training too short (--epochs, "
            "--max-minutes); see `adcascade evaluate-retrieval`."
        )
    narrow = [width for width in spec.recall if width != spec.shape.width]
    for width in narrow:
        if set(spec.better_than(width)) - set(better):
            lines.append(
                f"{what_finds_more(spec.better_than(width), width)}: build with all numbers, or more than these."
            )
    spread = spec.spread
    if spread is not None and spread.is_collapsed:
        lines.append(
            f"these towers put the ad {spread.first_ad} first for {spread.first_of} of {spread.users} users, and show "
            f"{spread.shown:,} of {spread.ads:,} ads among anybody's first ten: they hardly tell users apart. Train "
            "longer (--epochs, --max-minutes)."
        )
    return lines


@contextmanager
def training_progress() -> Iterator["OnProgress"]:
    """A bar for each of the two trainings, on standard error."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    columns_of_time = (TextColumn("{task.fields[loss]}"), TimeElapsedColumn(), TimeRemainingColumn())
    with LongWork(*columns, *columns_of_time) as bars:
        tasks = {}

        def show(step: "TrainingProgress") -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bars.add_task(_STAGES[step.stage], total=1.0, loss="")
            loss = "" if math.isnan(step.training_loss) else f"loss {step.training_loss:.3f}"
            bars.update(tasks[step.stage], completed=step.done, loss=loss)

        yield show


def report_as_dict(report: "TowerReport") -> dict[str, object]:
    """A report as plain JSON values."""
    return {**asdict(report), "spec": report.spec.model_dump(mode="json")}


def compared_lines(spec: "TowerSpec") -> list[tuple[int, str]]:
    """For each k, the recall of the towers by width and of what needs no training, as they would be served."""
    found = spec.compared
    if found is None or not found.users:
        return [(k, "unknown: nobody on the rows that chose has a past") for k in CUT_OFFS]
    lines = []
    for k in CUT_OFFS:
        ours = ", ".join(f"{recall[k]:.3f} with {width} numbers" for width, recall in found.towers.items())
        others = ", ".join(f"{recall[k]:.3f} of {name}" for name, recall in found.others.items())
        lines.append((k, f"{ours}; {others} ({found.users:,} users with a past, of the rows that chose)"))
    return lines


def report_table(report: "TowerReport") -> Table:
    """What a training made, for people."""
    spec = report.spec
    kept = "" if report.published else " (not published)"
    table = Table(title=f"Tower version {report.version}{kept}", show_header=False)
    recall = ", ".join(f"{value:.3f} with {width}" for width, value in spec.recall.items())
    passes = {stage: str(found) for stage, found in spec.passes.items()}
    rows = {
        "learned from": f"{report.events:,} events of {report.users:,} users, {report.ads_clicked:,} ads clicked",
        "trained": "; ".join(f"{_PURPOSE[stage]}: {said}" for stage, said in passes.items()),
        "vectors": f"{spec.shape.width} numbers per user, and a bias",
        **{f"recall@{k}": line for k, line in compared_lines(spec)},
        "vectors alone": f"recall@100 {recall} numbers (all users of the rows that chose)",
        "encoder": spec.encoder_name,
        "seconds": f"{report.seconds:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
