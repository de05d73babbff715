"""The main job from nothing to recommendations, on MovieLens-100k: data, train, build, evaluate, serve, recommend."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adcascade.records.clicks import Integers
from adcascade.records.datasets.movielens import LICENCE, DatasetFiles, export_movielens, find_movielens
from adcascade.records.history import with_history
from adcascade.records.users import UserProfile
from adcascade.terminal.console import Console
from adcascade.terminal.progress import build_progress, working
from adcascade.towers.artifact import load_choosing_towers, load_published_towers
from adcascade.towers.training.commands import report_as_dict as towers_as_dict
from adcascade.towers.training.commands import report_table as towers_table
from adcascade.towers.training.commands import training_progress, warnings_of
from adcascade.towers.training.data import load_retrieval_data
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.train import TowerReport
from adcascade.towers.training.train import train_and_save as train_and_save_towers
from adcascade.vectors.bulk_encoder import load_bulk_encoder
from adcascade.vectors.vector_store import remembering
from index_builder.build import BuildOptions, BuildReport, build
from index_builder.commands import report_as_dict, report_table
from pipeline.answers import Recommendations
from pipeline.client import DEFAULT_CANDIDATES, AdPipeline
from pipeline.display import as_dict, order_line, pipeline_table, recommendations_table, user_panel
from pipeline.evaluate import evaluate_pipeline, load_stages
from pipeline.evaluate_shown import evaluate_shown
from pipeline.fit_order import fit_order, save_with_order, towers_of
from pipeline.processes import own_folder, running
from pipeline.results import PipelineEvaluation
from ranking.data.dataset import Dataset, load_dataset
from ranking.evaluation.report import (
    cut_short_line,
    evaluation_table,
    stages_line,
    text_fit_line,
    train_report_as_dict,
)
from ranking.evaluation.results import TrainReport
from ranking.spec import OrderBlend
from ranking.store import open_store
from ranking.training.options import TrainOptions
from ranking.training.run import REPORT_FILE, train_and_save

_USERS_SHOWN = 3
_HISTORY_SHOWN_TO_SERVERS = 200
_SMOKE_USERS, _SMOKE_MINUTES = 120, 0.3


@dataclass(frozen=True)
class QuickstartFolder:
    """Where everything that the quickstart makes lies."""

    root: Path

    @property
    def data(self) -> Path:
        """The three input files."""
        return self.root / "data"

    @property
    def towers(self) -> Path:
        """Root of the tower versions."""
        return self.root / "towers"

    @property
    def index(self) -> Path:
        """Root of the index versions."""
        return self.root / "index"

    @property
    def model(self) -> Path:
        """Root of the model versions."""
        return self.root / "model"

    @property
    def vectors(self) -> Path:
        """Text vectors, so that no step embeds what another one has."""
        return self.root / "vectors"

    @property
    def logs(self) -> Path:
        """What the servers log."""
        return self.root / "logs"


def quickstart(root: Path, *, minutes: float, text: bool, smoke: bool, as_json: bool) -> None:
    """Runs all steps and shows them.

    Args:
        root: Folder for everything that is made.
        minutes: Limit of each training: of the towers and of the ranker.
        text: Fine-tune the ranker's text layers.
        smoke: A small part of the log and of the time, to see that everything works.
        as_json: Print one JSON document on standard output; progress goes to standard error.

    Raises:
        InputError: MovieLens-100k is not installed.
        BuildError, ModelError, TrainingError, ArtifactError, ServiceError: as the steps raise them.
    """
    console = Console(stderr=as_json)
    started = time.perf_counter()
    folder = QuickstartFolder(root)
    files = _data(console, folder, smoke=smoke)
    limit = min(minutes, _SMOKE_MINUTES) if smoke else minutes
    towers = _train_towers(console, folder, files, limit)
    built = _build(console, folder, files)
    data = load_dataset(files.ads, files.clicks, files.users)
    trained = _train_ranker(console, folder, data, limit, text=text)
    order = _fit_order(console, folder, files, data)
    evaluated = _evaluate(console, folder, data)
    answers = _serve(console, folder, data)
    console.print(f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes; everything is under {root}.")
    _next_steps(console, folder)
    if as_json:
        document = {
            "train-retrieval": towers_as_dict(towers),
            "build": report_as_dict(built),
            "train": train_report_as_dict(trained),
            "fit-order": order.model_dump(mode="json"),
            "evaluate-pipeline": evaluated.as_dict(),
            "recommend": {user.user_id: as_dict(answer) for user, answer in answers},
        }
        print(json.dumps(document, indent=2))  # noqa: T201


def _data(console: Console, folder: QuickstartFolder, *, smoke: bool) -> DatasetFiles:
    console.rule("1. Data")
    files = export_movielens(find_movielens(), folder.data, max_users=_SMOKE_USERS if smoke else None)
    console.print("Titles stand in for ads, a rating of 4 or 5 for a click, one of 5 for a conversion as well.")
    console.print("Written in AdCascade's formats:")
    for path in (files.ads, files.clicks, files.users):
        console.print(f"  {path}", highlight=False)
    console.print(f"{LICENCE}.", style="dim")
    return files


def _train_towers(console: Console, folder: QuickstartFolder, files: DatasetFiles, minutes: float) -> TowerReport:
    console.rule("2. Train the retrieval towers")
    console.print(f"Which ads are clicked by whom next, learned in at most {minutes:g} minutes.")
    with build_progress() as progress, remembering(load_bulk_encoder(), folder.vectors) as encoder:
        data = load_retrieval_data(files.ads, files.clicks, files.users, encoder, progress=progress)
    with training_progress() as watch:
        options = TowerOptions(max_minutes=minutes)
        # Of a few minutes and a few users, and to show the rest: what is wrong with them is said.
        report = train_and_save_towers(data, encoder, folder.towers, options, publish_anyway=True, watch=watch)
    console.print(towers_table(report))
    for line in warnings_of(report.spec):
        console.print(f"Note: {line}", markup=False, highlight=False)
    return report


def _build(console: Console, folder: QuickstartFolder, files: DatasetFiles) -> BuildReport:
    console.rule("3. Build the index")
    towers = load_published_towers(folder.towers)
    with build_progress() as progress, remembering(load_bulk_encoder(), folder.vectors) as encoder:
        report = build(files.ads, folder.index, encoder, BuildOptions(), progress, towers)
    console.print(report_table(report))
    return report


def _train_ranker(
    console: Console, folder: QuickstartFolder, data: Dataset, minutes: float, *, text: bool
) -> TrainReport:
    console.rule("4. Train the ranker")
    training, validation, test = map(len, data.split)
    console.print(
        f"{len(data.log):,} impressions, CTR {data.log.ctr:.3f}; by time: {training:,} to train on, "
        f"{validation:,} to choose and calibrate, {test:,} to test. At most {minutes:g} minutes of training."
    )
    options = TrainOptions.of(max_minutes=minutes)
    if not text:
        console.print(
            "The text layers are not fine-tuned: titles of films bring next to nothing here (--text does it)."
        )
        options = TrainOptions.of(max_minutes=minutes, epochs=0)
    report = train_and_save(data, folder.model, options)
    console.print(evaluation_table(report.evaluation, f"Model version {report.version}"))
    for line in filter(None, (stages_line(report.stages), text_fit_line(report.text_fit), cut_short_line(report))):
        console.print(line, highlight=False)
    page = open_store(folder.model).path(report.version) / REPORT_FILE
    if page.exists():
        console.print(f"Report with plots: {page}", highlight=False, soft_wrap=True)
    return report


def _fit_order(console: Console, folder: QuickstartFolder, files: DatasetFiles, data: Dataset) -> OrderBlend:
    console.print("What retrieval's score counts beside p_click, by towers that have not learned these users' clicks:")
    retriever, model = load_stages(folder.index, folder.model)
    kept = load_choosing_towers(folder.towers, towers_of(retriever))
    # Ratings of one moment are what a user chose to rate, not what was shown together: they say nothing of the others.
    order = fit_order(data, files.ads, retriever, model, folder.vectors, "users", kept)
    retriever.close()
    save_with_order(open_store(folder.model), model, order)
    console.print(order_line(order), markup=False, highlight=False)
    return order


def _evaluate(console: Console, folder: QuickstartFolder, data: Dataset) -> PipelineEvaluation:
    console.rule("5. Evaluate both stages")
    console.print("What users of the newest tenth of the log clicked next, and who would have put it on top:")
    retriever, model = load_stages(folder.index, folder.model)
    found = evaluate_pipeline(data, retriever, model, [DEFAULT_CANDIDATES], vectors=folder.vectors)
    # Ratings of a day stand in for ads that a user had before them together.
    found = replace(found, shown=evaluate_shown(data, retriever, model, found.retrieval_weight, "days"))
    retriever.close()
    console.print(pipeline_table(found), highlight=False)
    return found


def _serve(console: Console, folder: QuickstartFolder, data: Dataset) -> list[tuple[UserProfile, Recommendations]]:
    console.rule("6. Serve and recommend")
    servers = [
        ("retrieval", ["--index", str(folder.index)]),
        ("ranking", ["--model", str(folder.model), "--index", str(folder.index)]),
    ]
    titles = {ad_id: ad.title for ad_id, ad in data.ads.items()}
    answers = []
    with own_folder(folder.logs), running(servers, folder.logs) as started:
        with working("Starting the servers", console):
            retrieval, ranking = (server.wait_until_serving() for server in started)
        console.print(f"retrieval on {retrieval}, ranking on {ranking}, both healthy\n", highlight=False)
        with AdPipeline(retrieval, ranking) as pipeline:
            for user in _some_users(data):
                answer = pipeline.recommend(user, k=10, timeout_seconds=30)
                answers.append((user, answer))
                table = recommendations_table(answer, console.width)
                console.print(user_panel(user, titles), table, "", sep="\n", highlight=False)
    return answers


def _some_users(data: Dataset) -> list[UserProfile]:
    """The users seen last who have a history to speak of, with what they did."""
    end = int(data.log.time.max()) + 1
    _, last_row = np.unique(data.log.user_id.codes[::-1], return_index=True)
    newest: Integers = np.sort(last_row)
    users = (str(data.log.user_id[len(data.log) - 1 - int(row)]) for row in newest)
    found: list[UserProfile] = []
    for user_id in users:
        user = with_history(data.users[user_id], data.histories, end, _HISTORY_SHOWN_TO_SERVERS)
        if len(user.history) >= 30:
            found.append(user)
        if len(found) == _USERS_SHOWN:
            break
    return found


def _next_steps(console: Console, folder: QuickstartFolder) -> None:
    index, model = folder.index, folder.model
    files = "--ads your-ads.jsonl --clicks your-clicks.csv --users your-users.csv"
    console.rule("7. The same with your own files")
    commands = (
        f"adcascade train-retrieval {files} --out {folder.towers}",
        f"adcascade build --ads your-ads.jsonl --towers {folder.towers} --out {index}",
        f"adcascade train {files} --out {model}",
        f"adcascade fit-order {files} --towers {folder.towers} --index {index} --model {model}",
        f"adcascade evaluate-pipeline {files} --index {index} --model {model}",
        f"adcascade serve --index {index} --model {model}",
        'adcascade recommend --interests "trail running shoes" --k 10',
    )
    for command in commands:
        console.print(f"  {command}", highlight=False, soft_wrap=True)
