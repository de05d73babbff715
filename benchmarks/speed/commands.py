"""``adcascade bench``: speed, side by side with what one would otherwise use. What loads models is imported late."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from records.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed side by side with what you would otherwise use. Contenders take turns in one run, so ratios "
    "hold on a busy machine, too. Each benchmark prints a table and writes JSON, a plot and a page.",
)

Out = Annotated[Path, typer.Option(help="Folder for the JSON, the plot and the page.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often each contender is timed.")]
Compare = Annotated[Path | None, typer.Option(help="An earlier JSON file, to show what moved.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]


@app.callback()
def _bench() -> None:
    """Keeps `bench rank` two words while it is alone."""


@app.command("rank")
def rank_command(
    join_layer: Annotated[
        int, typer.Option(min=0, max=5, help="First of the six layers in which ads attend to the user.")
    ] = 4,
    backend: Annotated[
        str, typer.Option(help="What runs the text layers: torch, openvino, or auto for the faster.")
    ] = "auto",
    rounds: Rounds = 5,
    out: Out = Path("adcascade-bench"),
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """One request of 10 to 1,000 candidates through the ranking server, against CrossEncoder.predict on the same texts.

    Needs MovieLens-100k (pip install --no-deps recbole==1.2.1), whose titles are recombined into as many ads as wanted.
    """
    try:
        from benchmarks.speed.display import tables, terminal
        from benchmarks.speed.page import write_page, write_plot
        from benchmarks.speed.rank import RankSettings, bench_rank
        from benchmarks.speed.results import BenchResult
    except ModuleNotFoundError as missing:
        raise InputError(f"benchmarks need {missing.name}: pip install 'adcascade[cpu,train,bench]'") from missing

    before = BenchResult.load(compare) if compare is not None else None
    with tempfile.TemporaryDirectory() as folder, _progress() as bar:
        task = bar.add_task("Timing", total=None)
        found = bench_rank(
            RankSettings(join_layer, backend, rounds),
            Path(folder),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    files = [out / f"{found.bench}.{ending}" for ending in ("json", "png", "html")]
    found.save(files[0])
    write_plot(files[1], found)
    write_page(files[2], found)
    if as_json:
        print(found.model_dump_json(indent=2))  # noqa: T201
    else:
        terminal().print(tables(found, before), highlight=False)
    Console(stderr=True).print(f"Written: {', '.join(map(str, files))}", highlight=False, soft_wrap=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
