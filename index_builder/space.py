"""Text vectors to the vectors of trained towers, written into an index version."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adcascade.catalog.ads_file import iter_ads
from adcascade.terminal.progress import Progress
from adcascade.towers.artifact import TrainedTowers, save_towers
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.errors import BuildError
from index_builder.artifact import AD_VECTORS_FILE, ADS_FILE, EVENT_VECTORS_FILE, TOWERS_FOLDER

_ROWS = 4096


def check_width(towers: TrainedTowers, width: int | None) -> None:
    """Raises BuildError if the towers' vectors cannot be cut to so many numbers; None keeps all."""
    most = towers.spec.shape.width
    if width is not None and not 1 <= width <= most:
        raise BuildError(f"vectors of {width} numbers cannot be cut from those of the towers, which have {most}")


def project_ads(folder: Path, texts: Vectors, towers: TrainedTowers, width: int | None, progress: Progress) -> Vectors:
    """Writes the towers and their vectors of all ads; returns those to search, memory-mapped."""
    shape = towers.spec.shape
    check_width(towers, width)
    (folder / TOWERS_FOLDER).mkdir()
    save_towers(folder / TOWERS_FOLDER, towers)
    dimension = shape.dimension if width is None else 1 + width
    ads, events = folder / AD_VECTORS_FILE, folder / EVENT_VECTORS_FILE
    with ads.open("wb") as ad_file, events.open("wb") as event_file:
        for file, columns in ((ad_file, dimension), (event_file, shape.event_width)):
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(texts), columns)}
            np.lib.format.write_array_header_1_0(file, header)
        for start, ids in _batches(folder / ADS_FILE):
            block = np.asarray(texts[start : start + len(ids)])
            ad_file.write(np.ascontiguousarray(towers.ad_vectors(ids, block)[:, :dimension], "<f4").data)
            event_file.write(np.ascontiguousarray(towers.event_vectors(ids, block), "<f4").data)
            progress("towers", start + len(ids), len(texts))
    vectors: Vectors = np.load(ads, mmap_mode="r", allow_pickle=False)
    return vectors


def _batches(catalog: Path) -> Iterator[tuple[int, list[str]]]:
    start = 0
    for batch in iter_ads(catalog, _ROWS):
        yield start, batch.ids
        start += len(batch)
