"""The command ``adcascade evaluate-pipeline``. What loads a model library is imported where it is used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adcascade.terminal.console import Console
from adcascade.terminal.options import (
    IndexRoot,
    Json,
    MaxRejected,
    ModelRoot,
    Newest,
    Rejected,
    Report,
    RetrievalBaselines,
    RetrievalWeight,
    Users,
    VectorsFolder,
)
from adcascade.terminal.progress import working
from adcascade.vectors.vector_store import default_folder
from pipeline.client import MAX_K
from pipeline.display import pipeline_notes, pipeline_table
from pipeline.results import Together
from ranking.training.commands import show_log

if TYPE_CHECKING:
    from pipeline.results import PipelineEvaluation

PipelineSplit = Literal["time", "user"]


def evaluate_pipeline_command(
    index: IndexRoot,
    model: ModelRoot,
    ads: Annotated[Path, typer.Option(help="Catalog: Parquet, JSONL or CSV.")],
    clicks: Annotated[Path, typer.Option(help="Click log with timestamps; its newest rows test.")],
    users: Users = None,
    split: Annotated[
        PipelineSplit, typer.Option(help="time: the newest tenth tests; user: the newest fifth of each user's.")
    ] = "time",
    candidates: Annotated[
        list[int],
        typer.Option(min=1, max=MAX_K, help="How many ads to retrieve and rank; give it again for another number."),
    ] = [100, 500],  # noqa: B006 (typer copies it)
    retrieval_weight: RetrievalWeight = None,
    together: Annotated[
        Together,
        typer.Option(
            help="What was shown together, for the order of what was shown. requests: the ads of one; days: all that a "
            "user saw on one; auto: requests, if they show several ads."
        ),
    ] = "auto",
    baselines: RetrievalBaselines = True,
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    report: Report = None,
    vectors: VectorsFolder = None,
    as_json: Json = False,
) -> None:
    """Measure both stages together: how many of the clicks that followed they put on top.

    Each user of the test part who clicked an ad that was new to them is asked for once, as of its beginning. Where ads
    were shown together, it also says in which order both would have put these. `adcascade evaluate` measures the ranker
    alone, on what was really shown, and `adcascade evaluate-retrieval` retrieval alone.
    """
    from pipeline.evaluate import evaluate_pipeline, load_stages
    from pipeline.evaluate_shown import evaluate_shown
    from ranking.data.dataset import load_dataset
    from ranking.training.versions import warn_of_rows_it_knows

    if report is not None:
        _make_room(report)
    with working("Loading"):
        retriever, ranker = load_stages(index, model)
    data = load_dataset(
        ads, clicks, users, split=split, max_rejected=max_rejected, newest=newest, rejected_file=rejected
    )
    show_log(data, users, rejected)
    warn_of_rows_it_knows(ranker, data)
    found = evaluate_pipeline(
        data,
        retriever,
        ranker,
        candidates,
        retrieval_weight,
        with_baselines=baselines,
        vectors=vectors or default_folder(index),
    )
    shown = evaluate_shown(data, retriever, ranker, found.retrieval_weight, together)
    found = replace(found, shown=shown)
    if report is not None:
        _write_report(report, found, f"index version {retriever.index.loaded.version}, model version {ranker.version}")
    _show(found, as_json)


def _make_room(report: Path) -> None:
    """Before the work: says what is missing to draw, too."""
    from adcascade.reports.page import make_room
    from retrieval.evaluation import page  # noqa: F401 (imported to see that it can be)

    make_room(report)


def _write_report(report: Path, found: "PipelineEvaluation", versions: str) -> None:
    from retrieval.evaluation.page import write_comparison_page

    heading, notes = "Both stages, retrieval alone, and its peers", pipeline_notes(found)
    write_comparison_page(report, found.comparison, f"Both stages, {versions}", heading, notes)
    Console(stderr=True).print(f"Report with plots: {report}", highlight=False, soft_wrap=True, markup=False)


def _show(found: "PipelineEvaluation", as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))  # noqa: T201
    else:
        Console().print(pipeline_table(found), highlight=False)
