"""The build command, for ``python -m index_builder`` and ``adcascade build`` alike."""

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from adcascade.records.clicks import REJECTED_FILE as LOG_REJECTED_FILE
from adcascade.terminal.console import Console
from adcascade.terminal.log_display import show_log_read
from adcascade.terminal.options import Encoder, IndexRoot, VectorsFolder
from adcascade.terminal.progress import build_progress
from adcascade.vectors.bulk_encoder import AUTO, load_bulk_encoder
from adcascade.vectors.encoder import EMBEDDED
from adcascade.vectors.errors import NotPublished
from adcascade.vectors.vector_store import default_folder, remembering
from index_builder.build import BuildOptions, BuildReport, build

if TYPE_CHECKING:
    from adcascade.towers.artifact import TowerSpec, TrainedTowers

DEFAULTS = BuildOptions()

Ads = Annotated[Path, typer.Option(help="Catalog: a Parquet, JSONL or CSV file (.gz, too), or a folder of such files.")]
Out = Annotated[Path, typer.Option(help="Root of the index versions; made if missing.")]
Engine = Annotated[
    str, typer.Option(help="What runs the encoder: torch, openvino, or auto: openvino where there is no GPU.")
]
Index = Annotated[
    str, typer.Option(help="auto, flat, hnsw, hnsw8, ivf, compact, or any FAISS factory string such as IVF256,PQ48.")
]
MinRecall = Annotated[float, typer.Option(min=0, max=1, help="Recall against exact search below which a build fails.")]
RecallK = Annotated[int, typer.Option(min=1, max=1000, help="The k of that recall.")]
MaxRejected = Annotated[float, typer.Option(min=0, max=1, help="Share of unusable rows above which a build fails.")]
Towers = Annotated[
    Path | None,
    typer.Option(help="Root of the tower versions (adcascade train-retrieval): find ads by clicks, not by text alone."),
]
Width = Annotated[
    int | None,
    typer.Option(min=1, help="Keep so many numbers of the towers' vectors, for a smaller index; default: all."),
]
Publish = Annotated[bool, typer.Option(help="Make the new version the one that servers load.")]
PublishAnyway = Annotated[
    bool, typer.Option(help="Publish even if vectors cut to --width find less than what needs no training.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")]


def build_command(
    ads: Ads,
    out: Out,
    towers: Towers = None,
    encoder: Encoder = EMBEDDED,
    engine: Engine = AUTO,
    index: Index = DEFAULTS.index,
    min_recall: MinRecall = DEFAULTS.min_recall,
    recall_k: RecallK = DEFAULTS.recall_k,
    max_rejected: MaxRejected = DEFAULTS.max_rejected,
    width: Width = None,
    publish: Publish = True,
    as_json: Json = False,
    publish_anyway: PublishAnyway = False,
    vectors: VectorsFolder = None,
) -> None:
    """Embed a catalog of ads into a new FAISS index version and publish it.

    Only texts that no command has embedded before are embedded (see --vectors), or, of the published version, only
    those that changed. Rows that cannot be used are listed
    with their reasons in OUT/rejected.jsonl. A failed or killed build leaves the published version as it was.
    """
    options = BuildOptions(
        index=index,
        min_recall=min_recall,
        recall_k=recall_k,
        max_rejected=max_rejected,
        publish=publish,
        width=width,
    )
    trained = None if towers is None else _published(towers)
    if trained is not None and width is not None and publish and not publish_anyway:
        _check_width(trained.spec, width)
    with build_progress() as progress:
        loaded = load_bulk_encoder(encoder, engine)
        gc.collect()
        gc.freeze()  # what was loaded stays: no collection of garbage has to look at it again while rows are read
        with remembering(loaded, vectors or default_folder(out)) as kept:
            report = build(ads, out, kept, options, progress, trained)
    if as_json:
        print(json.dumps(report_as_dict(report), indent=2))  # noqa: T201
    else:
        Console().print(report_table(report))


def refresh_command(
    index: IndexRoot,
    clicks: Annotated[Path, typer.Option(help="Click log; rows newer than the published version are counted.")],
    kind: Annotated[
        str, typer.Option("--kind", help="auto, flat, hnsw, hnsw8, ivf, compact, or a FAISS factory string.")
    ] = "auto",
    min_recall: MinRecall = DEFAULTS.min_recall,
    max_rejected: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unusable rows above which nothing is made.")
    ] = DEFAULTS.max_rejected,
    rejected: Annotated[
        Path | None, typer.Option(help="List rejected rows in this file; default: rejected-clicks.jsonl in INDEX.")
    ] = None,
    publish: Publish = True,
    as_json: Json = False,
) -> None:
    """Bring the popularity and freshness of the ads up to date, without embedding anything.

    Makes a new index version from the published one, which must have towers; takes seconds, so it can run every few
    minutes: `adcascade index prune` removes old versions. Without newer rows it makes none. New ads need a build.
    Rows that cannot be used are listed in INDEX/rejected-clicks.jsonl; see --rejected.
    """
    from index_builder.refresh import refresh  # loads torch, which --help does without

    options = BuildOptions(index=kind, min_recall=min_recall).assembly
    rejected_file = rejected or index / LOG_REJECTED_FILE
    with build_progress() as progress:
        report = refresh(
            index,
            clicks,
            options,
            publish=publish,
            max_rejected=max_rejected,
            rejected_file=rejected_file,
            progress=progress,
            on_read=lambda log, found: show_log_read(log, found, rejected_file=rejected_file),
        )
    if report is None:
        Console(stderr=True).print("No row is newer than what the published version has counted; nothing was made.")
    if as_json:
        print(json.dumps(None if report is None else report_as_dict(report), indent=2))  # noqa: T201
    elif report is None:
        return
    else:
        Console().print(report_table(report))


def _published(root: Path) -> "TrainedTowers":
    from adcascade.towers.artifact import load_published_towers  # loads torch, which --help does without

    return load_published_towers(root)


def _check_width(spec: "TowerSpec", width: int) -> None:
    """Raises NotPublished, before anything is made, if vectors of this width find less than what needs no training."""
    if better := set(spec.better_than(width)) - set(spec.better_than()):
        raise NotPublished(
            f"cut to {width} numbers, these towers found less than {' and '.join(sorted(better))} on the rows that "
            "chose: keep more numbers (--width), or all; or build with --no-publish or --publish-anyway"
        )


def report_as_dict(report: BuildReport) -> dict[str, object]:
    """A report as plain JSON values."""
    return {
        "version": report.version,
        "published": report.published,
        "rejected": report.rejected,
        "bytes_per_ad": round(report.manifest.bytes_per_ad, 1),
        **report.manifest.model_dump(mode="json"),
    }


def report_table(report: BuildReport) -> Table:
    """What a build made, for people."""
    manifest = report.manifest
    table = Table(
        title=f"Index version {report.version}{' (published)' if report.published else ''}", show_header=False
    )
    widened = ", ".join(f"{name}={value}" for name, value in manifest.search_parameters.items())
    rows = {
        "ads": f"{manifest.ad_count:,} ({manifest.embedded:,} embedded, {manifest.reused:,} reused)",
        "rejected": ", ".join(f"{count} {reason}" for reason, count in report.rejected.items()) or "none",
        "encoder": manifest.encoder_name,
        "towers": f"{manifest.space_sha256[:12]}, popularity of {manifest.popularity_at:%Y-%m-%d %H:%M} UTC"
        if manifest.space_sha256
        else "none: ads are found by the likeness of texts",
        "dimension": str(manifest.dimension),
        "index": f"{manifest.factory}{f' with {widened}' if widened else ''}",
        "bytes per ad": f"{manifest.bytes_per_ad:,.0f}",
        f"recall@{manifest.recall_k}": f"{manifest.recall:.4f} against exact search, {manifest.recall_queries} queries",
        "seconds": f"{manifest.build_seconds:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
