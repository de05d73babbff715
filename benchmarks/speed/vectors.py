"""Vectors of made-up ads by a real encoder, kept on disk: a million takes a quarter of an hour to embed."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from adcascade.catalog.ad_text import embedding_text
from adcascade.records.ads import Ad
from adcascade.vectors.encoder import TextEncoder, Vectors
from benchmarks.speed.interleaved_timing import Progress
from benchmarks.speed.texts import recombined_ads

_AT_ONCE = 2048


def made_vectors(
    folder: Path,
    sources: Sequence[Ad],
    count: int,
    encoder: TextEncoder,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Vectors:
    """Unit vectors of the first `count` recombined ads, float32 [count, dimension], memory-mapped.

    What a stopped run has embedded, or one that wanted fewer, is used again.

    Args:
        folder: Where they are kept; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vectors-{encoder.sha256[:12]}-{seed}.f32"
    row_bytes = 4 * encoder.dimension
    done = min(count, path.stat().st_size // row_bytes if path.exists() else 0)
    if done < count:
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(done * row_bytes)
            file.truncate()
            fresh = islice(recombined_ads(sources, count, seed), done, None)
            while ads := list(islice(fresh, _AT_ONCE)):
                progress(done, count)
                file.write(np.ascontiguousarray(encoder.encode([embedding_text(ad) for ad in ads])).data)
                done += len(ads)
    return np.memmap(path, np.float32, "r", shape=(count, encoder.dimension))
