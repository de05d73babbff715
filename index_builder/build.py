"""Ads to vectors to FAISS to a published version, as plain functions. Knows no gRPC."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adcascade.artifacts.errors import ArtifactError
from adcascade.artifacts.fallback import load_newest
from adcascade.artifacts.files import private_opener
from adcascade.artifacts.store import Draft, VersionStore
from adcascade.catalog.ad_text import embedding_text
from adcascade.catalog.ads_file import iter_ads, read_schedule, write_ads
from adcascade.records.ads import REPEATED, Ad, RejectedAd, read_ads
from adcascade.terminal.progress import Progress
from adcascade.vectors.distinct import DistinctVectors
from adcascade.vectors.encoder import TextEncoder, Vectors
from adcascade.vectors.errors import BuildError
from adcascade.vectors.faiss_index import check_kind
from adcascade.vectors.vector_file import StoredVectors, load_vectors
from adcascade.vectors.vector_store import RememberingEncoder, text_key
from index_builder.artifact import ADS_FILE, VECTORS_FILE, IndexManifest, open_store, read_manifest
from index_builder.make_index import AssemblyOptions, Contents, assemble, index_words

if TYPE_CHECKING:
    from adcascade.towers.artifact import TrainedTowers

log = logging.getLogger(__name__)

REJECTED_FILE = "rejected.jsonl"

# Enough to sort by length, few enough that a progress bar moves every few seconds on a laptop.
_EMBED_ROWS = 2048


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        index: auto, flat, hnsw, hnsw8, ivf, compact, or a FAISS factory string.
        min_recall: recall@recall_k against exact search that a version must reach, 0 to 1.
        recall_queries: how many ads of the catalog serve as queries when recall is measured.
        max_rejected: share of unusable rows, 0 to 1, above which the build fails.
        publish: make the new version the current one.
        seed: for the choice of queries and training vectors.
        width: numbers of the towers' vectors to keep, without the bias; all if None.
    """

    index: str = "auto"
    min_recall: float = 0.95
    recall_k: int = 100
    recall_queries: int = 500
    max_rejected: float = 0.01
    publish: bool = True
    seed: int = 0
    width: int | None = None

    @property
    def assembly(self) -> AssemblyOptions:
        """The part that turns vectors into an index."""
        return AssemblyOptions(self.index, self.min_recall, self.recall_k, self.recall_queries, self.seed, self.width)


@dataclass(frozen=True)
class BuildReport:
    """What a build made."""

    version: str
    published: bool
    manifest: IndexManifest
    rejected: dict[str, int]
    rejected_file: Path


def build(
    ads: Path,
    root: Path,
    encoder: TextEncoder,
    options: BuildOptions,
    progress: Progress = lambda *_: None,
    towers: "TrainedTowers | None" = None,
) -> BuildReport:
    """Builds an index version from a catalog and publishes it.

    Args:
        towers: Put ads and users into the space of these; without them, ads are found by their text vectors.

    Raises:
        InputError: The catalog cannot be read.
        BuildError: FAISS is missing or refuses the kind of index, the towers were trained with another encoder, too
            many rows are unusable, no ad is left, or the recall is too low.
        ArtifactError: The root cannot be written, is full, or is being written by another build.
    """
    started = time.perf_counter()
    if towers is not None:
        from index_builder.space import check_width  # loads torch, which builds without towers do without

        towers.check_encoder(encoder)
        check_width(towers, options.width)
    elif options.width is not None:
        raise BuildError("a width cuts the vectors of towers: give their root with --towers, or leave --width out")
    check_kind(options.index, encoder.dimension if towers is None else towers.spec.shape.dimension)
    store = open_store(root)
    if towers is None:
        _warn_of_lost_towers(store)
    with store.begin() as draft, ThreadPoolExecutor(1) as beside:
        count, rejected = _write_catalog(ads, draft.path, root / REJECTED_FILE, options.max_rejected, progress)
        _tell_of_times(draft.path / ADS_FILE)
        reusable = _Reusable.of(store, encoder)
        words = beside.submit(index_words, draft.path)  # Python's work, while the encoder computes
        texts, reused = _embed(draft, count, encoder, reusable, progress)
        words.result()
        contents = Contents(texts, encoder.name, encoder.sha256, embedded=count - reused, towers=towers)
        manifest = assemble(draft.path, contents, options.assembly, progress)
        manifest = manifest.model_copy(update={"build_seconds": round(time.perf_counter() - started, 3)})
        store.commit(draft, manifest.model_dump(mode="json"))
    if options.publish:
        store.publish(draft.version, verify=False)
    return BuildReport(draft.version, options.publish, manifest, dict(rejected), root / REJECTED_FILE)


def _tell_of_times(ads: Path) -> None:
    """An ad outside its time is in the index, and in no answer until its time comes."""
    now = read_schedule(ads).at(None)
    if not now.is_everything:
        log.warning(
            "%d of %d ads may not be shown now: start_time is still to come, or end_time is over",
            now.ads - now.count,
            now.ads,
        )


def _warn_of_lost_towers(store: VersionStore) -> None:
    """A version without towers in place of one with them answers worse, and not at all to users without a past."""
    try:
        version = store.current()
        had_towers = version is not None and bool(read_manifest(store, version)[1].space_sha256)
    except ArtifactError:
        return
    if had_towers:
        log.warning("the published version has towers and this one will have none: build with --towers to keep them")


def _write_catalog(
    source: Path, directory: Path, rejected_file: Path, max_rejected: float, progress: Progress
) -> tuple[int, Counter[str]]:
    """Streams usable ads to ads.parquet and the others, with reasons, to rejected.jsonl."""
    rejected: Counter[str] = Counter()
    beside = rejected_file.with_suffix(".tmp")
    with open(beside, "w", encoding="utf-8", opener=private_opener) as lines:

        def usable() -> Iterator[tuple[Ad, bytes]]:
            for number, row in enumerate(read_ads(source), start=1):
                if number % 1000 == 0:
                    progress("read", number, 0)
                if isinstance(row, RejectedAd):
                    rejected[row.reason] += 1
                    lines.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
                else:
                    yield row, text_key(embedding_text(row))

        try:
            count = write_ads(usable(), directory / ADS_FILE)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    os.replace(beside, rejected_file)
    progress("read", count, count)
    bad = sum(rejected.values())
    reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.most_common())
    if bad - rejected[REPEATED] > max_rejected * (count + bad):
        raise BuildError(
            f"{bad} of {count + bad} ads are unusable ({reasons}), more than --max-rejected {max_rejected:.1%}; "
            f"see {rejected_file}. Nothing was published"
        )
    if count == 0:
        raise BuildError(f"{source} holds no usable ad{f' ({reasons}); see {rejected_file}' if bad else ''}")
    return count, rejected


@dataclass(frozen=True)
class _Reusable:
    """Vectors of the published version, by the key of their text; `keys` is sorted, `rows` follows it."""

    keys: npt.NDArray[np.bytes_]
    rows: npt.NDArray[np.int64]
    vectors: StoredVectors

    @classmethod
    def of(cls, store: VersionStore, encoder: TextEncoder) -> "_Reusable | None":
        """The published version's vectors if the same encoder made them; None if not, or if it cannot be read.

        Where it is damaged, the newest whole version published before it serves.
        """
        try:
            if store.current() is None:
                return None
            version, (_, manifest) = load_newest(store, partial(read_manifest, store))
        except ArtifactError as error:
            log.warning("embedding everything again: the published version cannot be reused: %s", error)
            return None
        if manifest.encoder_sha256 != encoder.sha256:
            return None
        path = store.path(version)
        keys = np.array([key for batch in iter_ads(path / ADS_FILE) for key in batch.keys], "S16")
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], order, load_vectors(path / VECTORS_FILE))

    def find(self, keys: list[bytes]) -> npt.NDArray[np.int64]:
        """The row whose text has each key, or -1."""
        wanted = np.array(keys, "S16")
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.rows[place], -1)


def _embed(
    draft: Draft, count: int, encoder: TextEncoder, reusable: _Reusable | None, progress: Progress
) -> tuple[Vectors, int]:
    """Writes vectors.npy batch by batch; returns it memory-mapped, and how many ads were not embedded again."""
    path = draft.path / VECTORS_FILE
    done = reused = 0
    distinct = DistinctVectors()
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, encoder.dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        progress("embed", 0, count)
        for batch in iter_ads(draft.path / ADS_FILE, _EMBED_ROWS):
            known = reusable.find(batch.keys) if reusable else np.full(len(batch), -1)
            fresh = np.flatnonzero(known < 0)
            block = np.empty((len(batch), encoder.dimension), "<f4")
            before = _embedded_by(encoder)
            texts = batch.take(fresh.tolist()).texts
            block[fresh] = encoder.encode(texts)
            made = len(fresh) if before is None else (_embedded_by(encoder) or 0) - before
            if reusable:
                block[known >= 0] = reusable.vectors[known[known >= 0]]
            if not np.isfinite(block).all():
                raise BuildError(f"the encoder {encoder.name!r} made NaN or infinite vectors; nothing was published")
            distinct.add(texts, block[fresh])
            file.write(block.data)
            done += len(batch)
            reused += len(batch) - made
            progress("embed", done, count)
    distinct.check(encoder.name)
    return np.load(path, mmap_mode="r", allow_pickle=False), reused


def _embedded_by(encoder: TextEncoder) -> int | None:
    """How many texts an encoder that keeps vectors has embedded so far; None of one that embeds them all."""
    return encoder.embedded if isinstance(encoder, RememberingEncoder) else None
