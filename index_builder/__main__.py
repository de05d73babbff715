"""``python -m index_builder --ads FILE --out ROOT``, training, refreshing, and the commands of the version store."""

from adcascade.terminal.extras import require_serve
from adcascade.terminal.threads import share_cores

require_serve()
share_cores()

from pathlib import Path
from typing import Annotated

import typer

from adcascade.artifacts.commands import add_version_commands
from adcascade.artifacts.errors import ArtifactError
from adcascade.records.errors import InputError
from adcascade.serving.logs import set_up_command_logging
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.terminal.console import show_whatever_the_encoding
from adcascade.terminal.exits import clean_exit
from adcascade.terminal.options import Encoder, VectorsFolder
from adcascade.towers.training.commands import train_retrieval_command
from adcascade.vectors.bulk_encoder import AUTO
from adcascade.vectors.encoder import EMBEDDED
from adcascade.vectors.errors import BuildError
from index_builder import commands
from index_builder.artifact import open_store

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("train-retrieval")(train_retrieval_command)
app.command("refresh")(commands.refresh_command)
add_version_commands(app, open_store)


@app.callback(invoke_without_command=True)
def build(
    ctx: typer.Context,
    ads: Annotated[Path | None, typer.Option(help="Catalog: Parquet, JSONL or CSV file, or a folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Root of the index versions.")] = None,
    towers: commands.Towers = None,
    encoder: Encoder = EMBEDDED,
    engine: commands.Engine = AUTO,
    index: commands.Index = commands.DEFAULTS.index,
    min_recall: commands.MinRecall = commands.DEFAULTS.min_recall,
    recall_k: commands.RecallK = commands.DEFAULTS.recall_k,
    max_rejected: commands.MaxRejected = commands.DEFAULTS.max_rejected,
    width: commands.Width = None,
    publish: commands.Publish = True,
    as_json: commands.Json = False,
    publish_anyway: commands.PublishAnyway = False,
    vectors: VectorsFolder = None,
) -> None:
    """Build an index version from a catalog of ads and publish it, or (with a command) manage versions."""
    if ctx.invoked_subcommand is not None:
        return
    if ads is None or out is None:
        raise typer.BadParameter("a build needs --ads and --out; or give a command, see --help")
    commands.build_command(
        ads,
        out,
        towers,
        encoder,
        engine,
        index,
        min_recall,
        recall_k,
        max_rejected,
        width,
        publish,
        as_json,
        publish_anyway,
        vectors,
    )


if __name__ == "__main__":
    switch_off_telemetry()
    show_whatever_the_encoding()
    set_up_command_logging()
    with clean_exit(InputError, ArtifactError, BuildError):
        app(prog_name="python -m index_builder")
