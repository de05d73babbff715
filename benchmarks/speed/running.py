"""How a benchmark is run from a command: its options, its progress, and where its result goes. Knows no benchmark."""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adcascade.records.errors import InputError
from adcascade.terminal.console import Console
from adcascade.terminal.progress import LongWork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.speed.interleaved_timing import Progress
    from benchmarks.speed.results import BenchResult

OUT = Path("adcascade-bench")

Out = Annotated[
    Path,
    typer.Option(help="Folder for the JSON, the plot and the page; what is there from an earlier run is replaced."),
]
Ads = Annotated[int, typer.Option(min=1000, help="Ads to search; a million take a quarter of an hour to embed.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often each contender is timed.")]
Compare = Annotated[Path | None, typer.Option(help="An earlier JSON file, to show what moved.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]


@contextmanager
def explained() -> "Iterator[None]":
    """What is missing becomes an error that says what to install."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise InputError(f"benchmarks need {missing.name}: pip install -e '.[serve,train,bench]'") from missing


def run_bench(
    name: str, bench: "Callable[[Path, Progress], BenchResult]", out: Path, compare: Path | None, as_json: bool
) -> "BenchResult":
    """Runs a benchmark, writes what it found into `out`, and prints it.

    Args:
        bench: Is given a folder for what it makes on the way, and what to tell of its progress.
        compare: An earlier result, to show what moved.

    Raises:
        InputError: `compare` is of another benchmark, or nothing can be written into `out`.
    """
    with explained():
        from benchmarks.speed.display import tables, terminal
        from benchmarks.speed.page import write_page, write_plot
        from benchmarks.speed.results import BenchResult

    before = BenchResult.load(compare) if compare is not None else None
    if before is not None and before.bench != name:
        raise InputError(f"{compare} is a result of bench {before.bench}, not of bench {name}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {out}: {error.strerror}") from error
    with tempfile.TemporaryDirectory() as folder, _progress() as bar:
        task = bar.add_task("Preparing", total=None)
        found = bench(
            Path(folder), lambda done, total: bar.update(task, description="Timing", completed=done, total=total)
        )
    files = [out / f"{name}.{ending}" for ending in ("json", "png", "html")]
    found.save(files[0])
    write_plot(files[1], found)
    write_page(files[2], found)
    if as_json:
        print(found.model_dump_json(indent=2))  # noqa: T201
    else:
        terminal().print(tables(found, before), highlight=False)
    Console(stderr=True).print(f"Written: {', '.join(map(str, files))}", highlight=False, soft_wrap=True)
    return found


def _progress() -> LongWork:
    return LongWork(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
