"""The ``adcascade`` command. Knows which function does the work, not how."""

import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from adcascade.artifacts.commands import add_version_commands
from adcascade.artifacts.errors import ArtifactError
from adcascade.records.errors import InputError
from adcascade.serving.auth.commands import certs_app, tokens_app
from adcascade.serving.errors import ServiceError
from adcascade.serving.logs import set_up_command_logging
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.terminal.console import show_whatever_the_encoding
from adcascade.terminal.exits import clean_exit
from adcascade.terminal.options import Json
from adcascade.terminal.threads import share_cores
from adcascade.towers.store import open_store as open_tower_store
from adcascade.towers.training.commands import train_retrieval_command
from adcascade.training.errors import TrainingError
from adcascade.vectors.errors import BuildError
from index_builder.artifact import open_store as open_index_store
from index_builder.commands import build_command, refresh_command
from pipeline.evaluate_command import evaluate_pipeline_command
from pipeline.fit_order_command import fit_order_command
from pipeline.recommend_command import recommend_command
from pipeline.serve_command import serve_command
from ranking.errors import ModelError
from ranking.store import open_store as open_model_store
from ranking.training.commands import (
    calibrate_command,
    evaluate_command,
    export_command,
    train_command,
)
from retrieval.evaluation.commands import evaluate_retrieval_command

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A two-stage ad recommender: FAISS retrieval and a calibrated click model that reads the user once. "
    "Start with `adcascade quickstart`.",
)
app.command("build")(build_command)
app.command("refresh")(refresh_command)
app.command("train-retrieval")(train_retrieval_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("evaluate-retrieval")(evaluate_retrieval_command)
app.command("calibrate")(calibrate_command)
app.command("export")(export_command)
index_app = typer.Typer(no_args_is_help=True, help="List, verify, publish, roll back and prune index versions.")
towers_app = typer.Typer(no_args_is_help=True, help="List, verify, publish, roll back and prune tower versions.")
model_app = typer.Typer(no_args_is_help=True, help="List, verify, publish, roll back and prune model versions.")
add_version_commands(index_app, open_index_store)
add_version_commands(towers_app, open_tower_store)
add_version_commands(model_app, open_model_store)
app.add_typer(index_app, name="index")
app.add_typer(towers_app, name="towers")
app.add_typer(model_app, name="model")
app.add_typer(tokens_app, name="tokens")
app.add_typer(certs_app, name="certs")


@app.command("quickstart")
def quickstart_command(
    data: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("adcascade-data"),
    max_minutes: Annotated[float, typer.Option(min=0, help="Limit of each training: towers, and ranker.")] = 2.5,
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            help="Fine-tune the ranker's text layers, too: two to three minutes more, for hardly any AUC here.",
        ),
    ] = False,
    smoke: Annotated[
        bool, typer.Option(help="A small part of the log: shows in a minute or two that all works.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the main job on MovieLens-100k: towers, index, ranker, two servers, recommendations for three users."""
    from pipeline.quickstart import quickstart  # loads the model libraries, which other commands do without

    quickstart(data, minutes=max_minutes, text=text, smoke=smoke, as_json=as_json)


app.command("serve")(serve_command)
app.command("recommend")(recommend_command)
app.command("evaluate-pipeline")(evaluate_pipeline_command)
app.command("fit-order")(fit_order_command)


def add_commands_of_others() -> None:
    """Groups of commands that other packages bring, named as entry points."""
    for point in entry_points(group="adcascade.commands"):
        try:
            app.add_typer(point.load(), name=point.name)
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] != point.module.partition(".")[0]:
                raise
            _add_absent(point.name)


def _add_absent(name: str) -> None:
    """A command in the place of a group whose package is not in the wheel."""

    def absent() -> None:
        raise InputError(f"adcascade {name} runs from a checkout of the repository (make install), not from the wheel")

    takes_anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help="Runs from a checkout of the repository alone.", context_settings=takes_anything)(absent)


def main() -> None:
    """Entry point of the console script."""
    share_cores()
    switch_off_telemetry()
    add_commands_of_others()
    show_whatever_the_encoding()
    set_up_command_logging()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that children are stopped too
    with clean_exit(InputError, ArtifactError, BuildError, ModelError, ServiceError, TrainingError):
        app(prog_name="adcascade")


if __name__ == "__main__":
    main()
