"""An index version of made-up ads, kept between runs: vectors by a real encoder, everything else by a real build."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from adcascade.records.ads import Ad
from adcascade.vectors.encoder import TextEncoder, Vectors
from benchmarks.speed.texts import recombined_ads
from index_builder.artifact import IndexVersion, load_version, open_store
from index_builder.build import BuildOptions, build


class KeptVectors:
    """An encoder that has encoded a catalog before: gives its vectors in their order, whatever the texts."""

    def __init__(self, encoder: TextEncoder, vectors: Vectors) -> None:
        self.name, self.sha256, self.dimension = encoder.name, encoder.sha256, encoder.dimension
        self.variant = encoder.variant
        self.max_chars = encoder.max_chars
        self._vectors = vectors
        self._given = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See `TextEncoder`."""
        first, self._given = self._given, self._given + len(texts)
        return np.array(self._vectors[first : self._given])


def made_index(
    folder: Path, sources: Sequence[Ad], vectors: Vectors, encoder: TextEncoder, seed: int = 0
) -> tuple[Path, IndexVersion]:
    """The root and the published version of an index of the first recombined ads, one for each vector.

    Args:
        folder: Where it is kept for the next run.
        vectors: see `benchmarks.speed.vectors.made_vectors`; of the same sources and seed.
    """
    root = folder / f"index-{len(vectors)}-{seed}"
    store = open_store(root)
    if store.current() is None:
        catalog = folder / f"ads-{len(vectors)}-{seed}.jsonl"
        write_catalog(catalog, recombined_ads(sources, len(vectors), seed))
        build(catalog, root, KeptVectors(encoder, vectors), BuildOptions())
        catalog.unlink()
    version = store.current()
    assert version is not None
    return root, load_version(store, version)


def write_catalog(path: Path, ads: Iterable[Ad]) -> None:
    """Ads as JSON lines, as a build reads them."""
    with path.open("w", encoding="utf-8") as lines:
        for ad in ads:
            plain = {"ad_id": ad.ad_id, "title": ad.title, "body": ad.body, "category": ad.category}
            lines.write(json.dumps(plain) + "\n")
