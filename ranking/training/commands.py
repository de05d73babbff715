"""The commands ``adcascade train``, ``evaluate`` and ``calibrate``.

What loads a model library is imported where it is used, so that ``--help`` answers at once.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adcascade.records.clicks import REJECTED_FILE
from adcascade.records.errors import InputError
from adcascade.terminal.console import Console
from adcascade.terminal.flags import with_flags_of
from adcascade.terminal.log_display import show_log_read
from adcascade.terminal.options import History, Json, MaxRejected, Newest, Rejected, Users
from adcascade.terminal.progress import working
from adcascade.towers.training.commands import Ads
from ranking.evaluation.report import (
    calibration_line,
    cut_short_line,
    evaluation_as_dict,
    evaluation_table,
    exports_table,
    log_lines,
    stages_line,
    text_fit_line,
    train_report_as_dict,
)
from ranking.store import open_store
from ranking.training.options import TrainOptions

if TYPE_CHECKING:
    from ranking.data.dataset import Dataset

Clicks = Annotated[
    Path,
    typer.Option(
        help="Click log. Needs request_id, ad_id, clicks and impressions; better with user_id, timestamp, "
        "position and conversions; any other column is context."
    ),
]
Model = Annotated[Path, typer.Option(help="Root of the model versions.")]
Version = Annotated[str, typer.Option(help="Which version; default: the published one.")]
Split = Annotated[
    str,
    typer.Option(
        help="What the test holds: time (the newest rows), user (the newest fifth of each user's), random (rows), "
        "request (whole requests), ad (ads never trained on), or auto: time where every row has one, else request."
    ),
]
Baselines = Annotated[
    Literal["none", "fast", "all"],
    typer.Option(help="What to compare with: none, fast, or all (with three that read text, which take minutes)."),
]
Seed = Annotated[int, typer.Option(help="Of every split but that by time; give that of the training.")]
Publish = Annotated[bool, typer.Option(help="Make the new version the one that servers load.")]


@with_flags_of(TrainOptions)
def train_command(
    ads: Ads,
    clicks: Clicks,
    out: Annotated[Path, typer.Option(help="Root of the model versions; made if missing.")],
    options: TrainOptions,
    users: Users = None,
    history: History = None,
    split: Split = "auto",
    baselines: Baselines = "fast",
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    publish: Publish = True,
    as_json: Json = False,
) -> None:
    """Train the click model on a click log, evaluate it on rows it has not seen, and publish it.

    It learns from counters and past events first, fits boosted trees and what texts alone say beside it, then
    fine-tunes the text.

    The log is split by time: the first 80 % train, the next 10 % choose the best weights and calibrate them, the last
    10 % test. Without timestamps whole requests are drawn at random instead; see --split.

    A training that was killed is taken up again by the same command. To train in several processes, start it with
    torchrun --standalone --nproc-per-node N -m pipeline.cli train ...
    """
    from adcascade.training.workers import is_first_worker
    from ranking.data.dataset import load_dataset
    from ranking.training.run import REPORT_FILE, help_to_train, train_and_save

    rejected_file = (rejected or out / REJECTED_FILE) if is_first_worker() else None
    data = load_dataset(
        ads,
        clicks,
        users,
        split=split,
        seed=options.common.seed,
        max_rejected=max_rejected,
        newest=newest,
        rejected_file=rejected_file,
        history=history,
    )
    if not is_first_worker():
        help_to_train(data, out, options)
        return
    data = data.reading(options.base.context_words)
    show_log(data, users, rejected_file)
    show_unread(data)
    report = train_and_save(data, out, options, publish=publish, which_baselines=baselines)
    if as_json:
        print(json.dumps(train_report_as_dict(report), indent=2))  # noqa: T201
        return
    console = Console()
    console.print(evaluation_table(report.evaluation, f"Model version {report.version}, split by {report.split}"))
    for line in (stages_line(report.stages), text_fit_line(report.text_fit), calibration_line(report.calibration)):
        console.print(line, highlight=False)
    if warning := cut_short_line(report):
        Console(stderr=True).print(warning, style="yellow", highlight=False, soft_wrap=True)
    page = open_store(out).path(report.version) / REPORT_FILE
    if page.exists():
        console.print(f"Report with plots: {page}", highlight=False, soft_wrap=True)


def evaluate_command(
    model: Model,
    ads: Ads,
    clicks: Clicks,
    users: Users = None,
    history: History = None,
    version: Version = "",
    split: Split = "auto",
    seed: Seed = 0,
    baselines: Baselines = "fast",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="p_click from which precision and recall call a click; default: such that the share of impressions "
            "called is the CTR of the training part.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write a page with plots to this file.")] = None,
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    as_json: Json = False,
) -> None:
    """Measure a model version on the test part of a click log (see --split), beside simple peers.

    With the files, --history, --newest, --split and --seed that it was trained with, these are the rows it was tested
    on then.
    """
    from adcascade.reports.page import make_room, never_at_the_cost_of
    from ranking.data.dataset import load_dataset
    from ranking.evaluation.evaluate import evaluate
    from ranking.evaluation.page import write_page
    from ranking.training.versions import load_from, warn_of_rows_it_knows

    if report is not None:
        make_room(report)
    loaded = load_from(open_store(model), version)
    data = load_dataset(
        ads,
        clicks,
        users,
        split=split,
        seed=seed,
        max_rejected=max_rejected,
        newest=newest,
        rejected_file=rejected,
        history=history,
    )
    data = data.reading(loaded.spec.shape.context_words)
    show_log(data, users, rejected)
    show_unread(data)
    warn_of_rows_it_knows(loaded, data)
    with working("Evaluating"):
        evaluation = evaluate(data, loaded, which_baselines=baselines, threshold=threshold)
    title = f"Model version {loaded.version}, split by {data.split_by}"
    if as_json:
        document = {"version": loaded.version, "split": data.split_by, "rejected": data.report.rejected}
        print(json.dumps({**document, "test": evaluation_as_dict(evaluation)}, indent=2))  # noqa: T201
    else:
        Console().print(evaluation_table(evaluation, title))
    if report is not None:
        with never_at_the_cost_of("the figures above hold", "The same command draws it again"):
            write_page(report, evaluation, title)


def calibrate_command(
    model: Model,
    ads: Ads,
    clicks: Annotated[Path, typer.Option(help="Click log; rows newer than the version's counters are fitted.")],
    users: Users = None,
    history: History = None,
    version: Version = "",
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    publish: Publish = True,
    as_json: Json = False,
) -> None:
    """Fit the calibration of a model version anew on fresh clicks, and publish the result as a new version.

    Weights and counters stay as they are; rows are scored as servers score them. Rows that the version's counters hold
    already serve as histories alone, so the log may reach back beyond its training. Temperature, Platt, beta and
    isotonic calibration of p_click are compared.
    """
    from ranking.calibration.recalibrate import recalibrate
    from ranking.data.dataset import load_dataset

    rejected_file = rejected or model / REJECTED_FILE
    data = load_dataset(
        ads,
        clicks,
        users,
        split="none",
        max_rejected=max_rejected,
        newest=newest,
        rejected_file=rejected_file,
        history=history,
    )
    show_log(data, users, rejected_file)
    with working("Predicting and calibrating"):
        found = recalibrate(open_store(model), version, data, publish=publish)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))  # noqa: T201
        return
    console = Console()
    console.print(
        f"Model version {found.version} made from {found.source}, calibrated on {found.rows:,} fresh rows.",
        highlight=False,
    )
    console.print(calibration_line(found.calibration.log_loss), highlight=False)
    console.print(
        f"Predicted / actual clicks on these rows: {found.before:.3f} before, {found.after:.3f} now.", highlight=False
    )


def export_command(
    model: Model,
    version: Version = "",
    ads: Annotated[Path | None, typer.Option(help="Catalog of the log; see adcascade train --help.")] = None,
    clicks: Annotated[
        Path | None, typer.Option(help="A click log, best that of the training: int8 is calibrated and judged on it.")
    ] = None,
    users: Users = None,
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    int8: Annotated[bool, typer.Option(help="Also make the user pass and the ad pass int8; needs a log.")] = True,
    publish: Publish = True,
    as_json: Json = False,
) -> None:
    """Export the text layers of a model version for OpenVINO, and publish the result as a new version.

    Servers then time what they can run the version in as they load, and take the fastest; `--backend` names one.
    The export is refused if its logits are not those of the model, or if fewer bits cost quality: with a log (--ads and
    --clicks) that goes by the AUC on its newest tenth, too.
    """
    from ranking.data.dataset import load_dataset
    from ranking.export.export import export_version

    if (ads is None) != (clicks is None):
        raise InputError("a log is --ads and --clicks together")
    data = None
    if ads is not None and clicks is not None:
        data = load_dataset(ads, clicks, users, max_rejected=max_rejected, newest=newest, rejected_file=rejected)
        show_log(data, users, rejected)
    with working("Exporting"):
        made, exports = export_version(open_store(model), version, data, int8=int8, publish=publish)
    if as_json:
        plain = {name: parity.model_dump(mode="json") for name, parity in exports.items()}
        print(json.dumps({"version": made, "exports": plain}, indent=2))  # noqa: T201
        return
    console = Console()
    console.print(exports_table(made, exports))
    if data is None:
        console.print("Compared on made-up pairs, and without int8: give a log with --ads and --clicks.")


def show_log(data: "Dataset", users: Path | None = None, rejected_file: Path | None = None) -> None:
    """The data report, on standard error."""
    from ranking.data.log_report import report_on

    show_log_read(data.log, data.report, None if users is None else data.users, rejected_file)
    Console(stderr=True).print(log_lines(report_on(data)), highlight=False, markup=False)


def show_unread(data: "Dataset") -> None:
    """Names what a model reads of no impression that has everything, on standard error."""
    unread = data.words_of_context[data.context_words :]
    if unread:
        Console(stderr=True).print(
            f"Warning: {data.context_words} values of an impression are read (--context-words). Of one that has all, "
            f"these are not: {', '.join(unread)[:1000]}.",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
