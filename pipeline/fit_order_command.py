"""The command ``adcascade fit-order``. What loads a model library is imported where it is used."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from adcascade.records.clicks import REJECTED_FILE
from adcascade.terminal.console import Console
from adcascade.terminal.options import IndexRoot, Json, MaxRejected, ModelRoot, Newest, Rejected, Users, VectorsFolder
from adcascade.terminal.progress import working
from adcascade.vectors.vector_store import default_folder
from pipeline.display import order_line
from pipeline.evaluate_command import PipelineSplit
from pipeline.order import FittedBy
from ranking.store import open_store
from ranking.training.commands import Publish, show_log


def fit_order_command(
    index: IndexRoot,
    model: ModelRoot,
    ads: Annotated[Path, typer.Option(help="Catalog: Parquet, JSONL or CSV.")],
    clicks: Annotated[Path, typer.Option(help="Click log of the ranker's training, with timestamps.")],
    users: Users = None,
    split: Annotated[PipelineSplit, typer.Option(help="That of the ranker's training.")] = "time",
    by: Annotated[
        FittedBy,
        typer.Option(
            help="requests: what was clicked of ads shown together; users: what they clicked next; auto: requests, if "
            "they show several ads. Choose users if what the log has as a request was not shown together."
        ),
    ] = "auto",
    towers: Annotated[
        Path | None,
        typer.Option(
            help="Root of the tower versions that the index was built with: those that all was chosen with take part, "
            "if they have learned the ranker's training rows alone, and none are trained.",
            show_default="train some",
        ),
    ] = None,
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    vectors: VectorsFolder = None,
    publish: Publish = True,
    as_json: Json = False,
) -> None:
    """Fit what retrieval's score counts in the order of both stages, and publish the result as a new model version.

    It is fitted on the rows that validated the ranker: what was clicked of several ads shown together, or what users
    clicked next. Towers that have not learned these rows take part in that: with --towers those of the training of the
    index's, or else others that are trained for it and thrown away. The pipeline takes the weight of the version that
    answers, unless it is given one.
    """
    from adcascade.towers.artifact import load_choosing_towers
    from pipeline.evaluate import load_stages
    from pipeline.fit_order import fit_order, save_with_order, towers_of
    from ranking.data.dataset import load_dataset
    from ranking.training.versions import warn_of_rows_it_knows

    with working("Loading"):
        retriever, ranker = load_stages(index, model)
        kept = None if towers is None else load_choosing_towers(towers, towers_of(retriever))
    rejected_file = rejected or model / REJECTED_FILE
    data = load_dataset(
        ads, clicks, users, split=split, max_rejected=max_rejected, newest=newest, rejected_file=rejected_file
    )
    show_log(data, users, rejected_file)
    warn_of_rows_it_knows(ranker, data)
    with closing(retriever):
        order = fit_order(data, ads, retriever, ranker, vectors or default_folder(index), by, kept)
    made = save_with_order(open_store(model), ranker, order, publish=publish)
    if as_json:
        print(json.dumps({"version": made, "source": ranker.version, "order": order.model_dump(mode="json")}, indent=2))  # noqa: T201
        return
    console = Console()
    console.print(f"Model version {made} made from {ranker.version}.", highlight=False)
    console.print(order_line(order), markup=False, highlight=False)
