"""The commands ``adcascade bench targets`` and ``adcascade bench training``: tables for documents."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from adcascade.records.errors import InputError
from adcascade.terminal.console import Console
from benchmarks.speed.running import OUT, Out, explained


def targets_command(
    document: Annotated[list[Path] | None, typer.Option(help="Put the table into these, between their marks.")] = None,
    out: Out = OUT,
) -> None:
    """Every target with what was reached, from what the other commands wrote into OUT; runs nothing.

    Plots are drawn anew from the same files, so that no plot shows another run than the table.
    """
    with explained():
        from benchmarks.documents import put_between
        from benchmarks.speed.page import write_plot
        from benchmarks.speed.targets import kept_results, targets_markdown

    results = kept_results(out)
    if not results:
        raise InputError(f"{out} holds no results; run adcascade bench rank --out {out} (or another) first")
    for result in results:
        write_plot(out / f"{result.bench}.png", result)
    table = targets_markdown(results)
    for path in document or []:
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        if not put_between(path, "speed", table):
            raise InputError(f"{path} has no place for the table: <!-- speed: begin --> and <!-- speed: end -->")
    print(table)  # noqa: T201


def training_command(
    size: Annotated[
        list[str] | None, typer.Option(help="ADS:ROWS of a synthetic log; give it again for another.")
    ] = None,
    document: Annotated[
        list[Path] | None, typer.Option(help="Put the table into these, between <!-- time: begin --> and its end.")
    ] = None,
) -> None:
    """How long trainings take by ads and rows, reckoned from one pass of each part (minutes)."""
    with explained():
        from benchmarks.documents import put_between
        from benchmarks.training_time import load_of_machine, machine_words, markdown, training_times

    sizes = [_size(one) for one in size or ["500:10000", "2000:20000"]]
    busy = load_of_machine()
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("Training") as status:
        found = training_times(sizes, Path(folder), status.update)
    table = markdown(found, f"{machine_words()} {busy}")
    for path in document or []:
        if not path.is_file() or not put_between(path, "time", table):
            raise InputError(f"{path} has no place for the table: <!-- time: begin --> and <!-- time: end -->")
    print(table)  # noqa: T201


def _size(text: str) -> tuple[int, int]:
    ads, _, rows = text.partition(":")
    if not (ads.isdecimal() and rows.isdecimal() and int(ads) >= 12 and int(rows) >= 1000):
        raise InputError(f"--size is ADS:ROWS, at least 12:1000, not {text!r}")
    return int(ads), int(rows)
