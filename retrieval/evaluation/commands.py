"""The command ``adcascade evaluate-retrieval``. What loads a model library is imported where it is used."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adcascade.terminal.console import Console
from adcascade.terminal.options import (
    Json,
    MaxRejected,
    Newest,
    Rejected,
    Report,
    RetrievalBaselines,
    Users,
    VectorsFolder,
)
from adcascade.terminal.progress import build_progress, working
from adcascade.towers.training.commands import Ads, Clicks, Split, show_joined
from adcascade.vectors.vector_store import default_folder, remembering

if TYPE_CHECKING:
    from retrieval.evaluation.results import RetrievalEvaluation


def evaluate_retrieval_command(
    index: Annotated[Path, typer.Option(help="Root of the index versions; the published one is judged.")],
    ads: Ads,
    clicks: Clicks,
    users: Users = None,
    split: Split = "time",
    seed: Annotated[int, typer.Option(help="Of a split by ad; give that of the training.")] = 0,
    baselines: RetrievalBaselines = True,
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    report: Report = None,
    vectors: VectorsFolder = None,
    as_json: Json = False,
) -> None:
    """Measure how well retrieval finds the ads that users clicked next, beside simple and strong peers.

    With the files, --newest, --split and --seed that the towers were trained with, the test rows are those that no
    training saw.
    """
    from adcascade.towers.training.data import load_retrieval_data
    from adcascade.vectors.bulk_encoder import in_bulk
    from retrieval.evaluation.evaluate import evaluate_retrieval
    from retrieval.loading import load_published

    if report is not None:
        from adcascade.reports.page import make_room, never_at_the_cost_of
        from retrieval.evaluation.page import write_page  # before the work: it says what is missing to draw

        make_room(report)
    console = Console(stderr=True)
    with working("Loading", console):
        retriever, encoder = load_published(index)
    with build_progress() as progress:
        with remembering(in_bulk(encoder), vectors or default_folder(index)) as kept:
            data = load_retrieval_data(
                ads,
                clicks,
                users,
                kept,
                split=split,
                seed=seed,
                max_rejected=max_rejected,
                newest=newest,
                rejected_file=rejected,
                progress=progress,
                on_read=lambda read: show_joined(read, users, rejected),
            )
        console.print(kept.said, highlight=False, soft_wrap=True)
        found = evaluate_retrieval(
            data, retriever, with_baselines=baselines, progress=lambda done, total: progress("ask", done, total)
        )
    _show(found, as_json)
    if report is not None:
        with never_at_the_cost_of("the figures above hold", "The same command draws it again"):
            write_page(report, found, f"Retrieval, index version {retriever.index.loaded.version}")
            console.print(f"Report with plots: {report}", highlight=False, soft_wrap=True)


def _show(found: "RetrievalEvaluation", as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))  # noqa: T201
        return
    from retrieval.evaluation.report import evaluation_tables

    Console().print(evaluation_tables(found), highlight=False)
