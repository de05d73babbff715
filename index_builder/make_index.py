"""A catalog and its text vectors to a searchable index version: words, the space, FAISS, the recall. Knows no catalog
files but its own, and not how texts are embedded."""

import hashlib
import logging
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adcascade.catalog.ads_file import iter_ads
from adcascade.catalog.lexical import LexicalIndex
from adcascade.terminal.progress import Progress
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.errors import BuildError
from adcascade.vectors.faiss_index import build_index, factory_strings, write_index
from index_builder.artifact import ADS_FILE, INDEX_FILE, LEXICAL_FOLDER, IndexManifest
from index_builder.recall import Recall, draw_queries, reach_recall, reach_recall_of

if TYPE_CHECKING:
    from adcascade.towers.artifact import TrainedTowers


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssemblyOptions:
    """See `build.BuildOptions`."""

    index: str
    min_recall: float
    recall_k: int
    recall_queries: int
    seed: int
    width: int | None

    def with_width(self, width: int) -> "AssemblyOptions":
        """The same for vectors of another width."""
        return replace(self, width=width)


@dataclass(frozen=True)
class Contents:
    """What an index is made from, beside the catalog that lies in its folder.

    Attributes:
        texts: unit text vectors of the catalog's ads, float32 [ads, text dimension].
        encoder_name, encoder_sha256: which encoder made them.
        embedded: how many of them were made anew.
        towers: what puts ads and users into one space; None to search by the text vectors.
    """

    texts: Vectors
    encoder_name: str
    encoder_sha256: str
    embedded: int
    towers: "TrainedTowers | None"


def index_words(folder: Path) -> None:
    """Writes the index of the words of the catalog in the folder of a draft."""
    texts = (text for batch in iter_ads(folder / ADS_FILE) for text in batch.texts)
    LexicalIndex.of(texts).save(folder / LEXICAL_FOLDER)


def assemble(folder: Path, contents: Contents, options: AssemblyOptions, progress: Progress) -> IndexManifest:
    """Writes everything but catalog, words and text vectors into the folder of a draft; returns its manifest.

    Raises BuildError as `build_index` and `reach_recall_of` do, or if `options.width` does not suit the towers.
    """
    towers, count = contents.towers, len(contents.texts)
    vectors = contents.texts
    if towers is not None:
        from index_builder.space import project_ads  # loads torch, which builds without towers do without

        vectors = project_ads(folder, contents.texts, towers, options.width, progress)
    factory, index, recall = _index_with_recall(vectors, towers, options, progress)
    write_index(index, folder / INDEX_FILE)
    return IndexManifest(
        encoder_name=contents.encoder_name,
        encoder_sha256=contents.encoder_sha256,
        dimension=vectors.shape[1],
        metric="inner_product",
        factory=factory,
        search_parameters=recall.search_parameters,
        ad_count=count,
        content_sha256=_content_sha256(folder / ADS_FILE),
        recall=recall.recall,
        recall_k=recall.k,
        recall_queries=recall.queries,
        recall_curve=[asdict(point) for point in recall.curve],
        embedded=contents.embedded,
        reused=count - contents.embedded,
        index_bytes=(folder / INDEX_FILE).stat().st_size,
        build_seconds=0.0,
        space_sha256="" if towers is None else towers.spec.space_sha256,
        popularity_at=None if towers is None else datetime.fromtimestamp(towers.popularity.as_of_us / 1e6, UTC),
    )


def _index_with_recall(
    vectors: Vectors, towers: "TrainedTowers | None", options: AssemblyOptions, progress: Progress
) -> tuple[str, Any, Recall]:
    """The first of the indexes worth trying that reaches the recall: its factory string, itself, and what it reaches.

    Raises BuildError if none does.
    """
    count, dimension = vectors.shape
    rows = draw_queries(count, options.recall_queries, options.seed)
    held_out = rows if towers is None else rows[:0]
    factories = factory_strings(options.index, count, dimension, is_unit=towers is None)
    for factory in factories:
        index = build_index(vectors, factory, held_out, options.seed, lambda done: progress("index", done, count))
        try:
            if towers is None:
                return factory, index, reach_recall(index, vectors, rows, options.recall_k, options.min_recall)
            queries = np.ascontiguousarray(towers.queries[: options.recall_queries, :dimension])
            return factory, index, reach_recall_of(index, vectors, queries, options.recall_k, options.min_recall)
        except BuildError as error:
            if factory == factories[-1]:
                raise
            log.warning("another index than %s is tried: %s", factory, error)
    raise AssertionError("there is always a factory string to try")


def _content_sha256(ads: Path) -> str:
    """Hash of all ad ids and texts in order."""
    digest = hashlib.sha256()
    for batch in iter_ads(ads):
        for ad_id, key in zip(batch.ids, batch.keys, strict=True):
            digest.update(ad_id.encode("utf-8", "surrogatepass") + b"\0" + key)
    return digest.hexdigest()
