"""A new index version from the published one, with the popularity of a newer click log; nothing is embedded."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from adcascade.artifacts.fallback import load_newest
from adcascade.artifacts.store import VersionStore
from adcascade.catalog.ads_file import AdCatalog
from adcascade.catalog.lexical import analyzer_of
from adcascade.catalog.words import ANALYZER
from adcascade.records.clicks import REJECTED_FILE, ClickLog, LogReport, read_clicks
from adcascade.records.errors import InputError
from adcascade.records.popularity import PopularitySnapshot
from adcascade.records.times import AHEAD
from adcascade.terminal.progress import Progress
from adcascade.towers.artifact import TrainedTowers, load_towers
from adcascade.vectors.errors import BuildError
from index_builder.artifact import (
    ADS_FILE,
    LEXICAL_FOLDER,
    TOWERS_FOLDER,
    VECTORS_FILE,
    IndexManifest,
    open_store,
    read_manifest,
)
from index_builder.build import REJECTED_FILE as REJECTED_ADS_FILE
from index_builder.build import BuildReport
from index_builder.make_index import AssemblyOptions, Contents, assemble, index_words

_NO_TOWERS = (
    "index version {version} was built without towers, so popularity plays no part in it; train them with adcascade "
    "train-retrieval and build with --towers"
)


def refresh(
    root: Path,
    clicks: Path,
    options: AssemblyOptions,
    *,
    publish: bool = True,
    max_rejected: float = 0.01,
    rejected_file: Path | None = None,
    progress: Progress = lambda *_: None,
    on_read: Callable[[ClickLog, LogReport], None] = lambda *_: None,
) -> BuildReport | None:
    """Counts the rows that are newer than what the published version knows, and makes a version with their biases.

    Args:
        clicks: A click log of the ads that the version knows; rows that it has counted already change nothing.
        options: How to index; `width` is that of the published version whatever it says.
        rejected_file: Where the log's rejected rows are listed; None for a file in the root.
        on_read: Called with the log, before anything is counted.

    Returns:
        None if no row is newer; then nothing is made.

    Raises:
        InputError: The log cannot be read, too many of its rows are of ads that nobody knows, or rows have no time.
        BuildError: The published version has no towers, or its popularity is of the future; or the recall is too low.
        ArtifactError: Nothing is published, it and all that was published before it are damaged, or the root cannot be
            written.
    """
    started = time.perf_counter()
    store = open_store(root)
    version, (before, towers) = load_newest(store, partial(_read, store))
    if towers is None:
        raise BuildError(_NO_TOWERS.format(version=version))
    source = store.path(version)
    _check_present(towers.popularity, version)
    log, report = read_clicks(
        clicks,
        {*AdCatalog(source / ADS_FILE).ids, *towers.popularity.ad_ids},
        why_rejected=_why_rejected(root / REJECTED_ADS_FILE),
        max_rejected=max_rejected,
        timed=True,
        rejected_file=rejected_file or root / REJECTED_FILE,
    )
    on_read(log, report)
    if not log.has_time:
        raise InputError(f"popularity is counted by when ads were clicked; {clicks}: {log.untimed_rows}")
    if log.time.max() < towers.popularity.as_of_us:
        return None
    popularity = towers.popularity.updated(log)
    with store.begin() as draft:
        _copy_ads(source, draft.path)
        texts = np.load(draft.path / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        contents = Contents(texts, before.encoder_name, before.encoder_sha256, 0, towers.with_popularity(popularity))
        manifest = assemble(draft.path, contents, options.with_width(before.dimension - 1), progress)
        manifest = manifest.model_copy(update={"build_seconds": round(time.perf_counter() - started, 3)})
        store.commit(draft, manifest.model_dump(mode="json"))
    if publish:
        store.publish(draft.version, verify=False)
    return BuildReport(draft.version, publish, manifest, dict(report.rejected), clicks)


def _copy_ads(source: Path, target: Path) -> None:
    """Copies ads, vectors and words from a version; of one that has none, or cut them otherwise, these are made."""
    for name in (ADS_FILE, VECTORS_FILE):
        shutil.copyfile(source / name, target / name)
    if (source / LEXICAL_FOLDER).is_dir() and analyzer_of(source / LEXICAL_FOLDER) == ANALYZER:
        shutil.copytree(source / LEXICAL_FOLDER, target / LEXICAL_FOLDER)
    else:
        index_words(target)


def _read(store: VersionStore, version: str) -> tuple[IndexManifest, TrainedTowers | None]:
    """The manifest and the towers, if there are any, of a version. Raises ArtifactError."""
    _, manifest = read_manifest(store, version)
    return manifest, load_towers(store.path(version) / TOWERS_FOLDER) if manifest.space_sha256 else None


def _check_present(popularity: PopularitySnapshot, version: str) -> None:
    """Raises BuildError if a version counted rows of the future: no newer row would ever be counted."""
    limit = (datetime.now(UTC) + AHEAD).timestamp() * 1e6
    if popularity.as_of_us > limit:
        raise BuildError(
            f"index version {version} has counted clicks of "
            f"{datetime.fromtimestamp(popularity.as_of_us / 1e6, UTC):%Y}: "
            "publish an earlier version (adcascade index rollback), or train the towers on a log without them and build"
        )


def _why_rejected(file: Path) -> Mapping[str, str]:
    """Why the last build rejected ads, by their ids, from its list."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {line["ad_id"]: f"{line['reason']}: {line['detail']}" for line in lines if line["ad_id"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
