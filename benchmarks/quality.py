"""``make bench-quality``: every quality target with the figure reached.

Each check trains from nothing for several seeds, so the whole takes hours on a laptop; ``--check`` runs one alone and
keeps what the others found. Results go to ``docs/quality.json``, and from there into ``docs/quality.md``.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from adcascade.artifacts.errors import ArtifactError
from adcascade.records.errors import InputError
from adcascade.terminal.console import Console
from adcascade.terminal.exits import clean_exit
from adcascade.training.errors import TrainingError
from benchmarks.architectures import distillation, join_layers, shared_and_joint, throughput
from benchmarks.documents import put_between
from benchmarks.findings import Finding, as_markdown, as_table, keep, read
from benchmarks.headlines import upworthy_folds, upworthy_prior, upworthy_ridge
from benchmarks.impressions import impressions_last_day
from benchmarks.movielens import movielens_ads, movielens_random, movielens_time
from benchmarks.posts import posts_by_page
from benchmarks.retrieval import retrieval_ads, retrieval_time, retrieval_users
from benchmarks.retrieval_speed import retrieval_speed
from benchmarks.runs import Run
from benchmarks.synthetic import synthetic
from ranking.errors import ModelError

_WIDTH_OF_A_FILE = 160

CHECKS: dict[str, Callable[[Run], list[Finding]]] = {
    "retrieval-users": retrieval_users,
    "retrieval-time": retrieval_time,
    "retrieval-ads": retrieval_ads,
    "retrieval-speed": retrieval_speed,
    "movielens-random": movielens_random,
    "movielens-ads": movielens_ads,
    "movielens-time": movielens_time,
    "synthetic": synthetic,
    "upworthy": upworthy_folds,
    "upworthy-ridge": upworthy_ridge,
    "upworthy-prior": upworthy_prior,
    "impressions": impressions_last_day,
    "posts": posts_by_page,
    "shared-and-joint": shared_and_joint,
    "distillation": distillation,
    "join-layers": join_layers,
    "throughput": throughput,
}


def main(
    check: Annotated[list[str] | None, typer.Option(help=f"One or more of: {', '.join(CHECKS)}.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each figure is the mean of.")] = 3,
    upworthy: Annotated[
        Path | None, typer.Option(help="The archive's CSV or Parquet file; not part of AdCascade.")
    ] = None,
    impressions: Annotated[
        Path | None,
        typer.Option(
            help="A folder with ads.parquet and impressions.parquet, a log of several days; not part of AdCascade."
        ),
    ] = None,
    posts: Annotated[
        Path | None,
        typer.Option(help="A file of ads with text, targets, page, clicks and impressions; not part of AdCascade."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("docs/quality.json"),
    show: Annotated[
        bool, typer.Option("--show", help="Run nothing; write the tables again from what is kept.")
    ] = False,
) -> None:
    """Measure the quality of both stages on real and made-up logs, beside the project's targets."""
    given = {"upworthy": upworthy, "impressions": impressions, "posts": posts}
    lacking = {kind for kind, path in given.items() if path is None}
    wanted = check or [name for name in CHECKS if name.split("-")[0] not in lacking]
    unknown = set(wanted) - CHECKS.keys()
    if unknown:
        raise InputError(f"there is no check {', '.join(sorted(unknown))}; choose of {', '.join(CHECKS)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in [] if show else wanted:
            keep(out, CHECKS[name](Run(seeds, Path(folder), upworthy, impressions, Console(stderr=True), posts)))
            _write_table(out)
    _write_table(out)
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH_OF_A_FILE)
    console.print(as_table(read(out)))


def _write_table(results: Path) -> None:
    put_between(results.with_suffix(".md"), "figures", as_markdown(read(results)))


if __name__ == "__main__":
    with clean_exit(InputError, ArtifactError, ModelError, TrainingError):
        typer.run(main)
