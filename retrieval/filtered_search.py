"""Search of a FAISS index among some of its rows, as good as among all of them. Knows vectors and rows alone.

Kinds of indexes differ in what they need for that: exact ones skip rows; a graph and inverted lists skip them, too, but
must look as much deeper as there are fewer rows to find; what knows no such thing is asked for more. Where few rows are
left, or where a search would miss or missed some, the rows are compared with one by one.
"""

from typing import Any

import numpy as np

from adcascade.catalog.schedule import Eligibility
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import CHUNK_ROWS, Rows, import_faiss
from adcascade.vectors.vector_file import StoredVectors

# So many rows are compared with in a few milliseconds, and found exactly.
EXACT_ROWS = 50_000
# How many more than needed on average an index is asked for that cannot skip rows, and how many times as many at most.
_MARGIN, _AT_LEAST, _MOST = 1.25, 32, 2.0
# A graph finds as much among some rows as among all if it looks this much deeper than in proportion (measured).
_GRAPH = 2.0


class FilteredSearch:
    """Searches one index. Belongs to one thread at a time.

    Args:
        index: of FAISS, on the CPU or a GPU.
        vectors: what it was filled with, float32 [rows, dimension].
    """

    def __init__(self, index: Any, vectors: StoredVectors) -> None:
        self._index = index
        self._vectors = vectors
        self._few: tuple[Eligibility, Vectors] | None = None  # of the eligible rows, where they are few

    def search(self, queries: Vectors, k: int, eligible: Eligibility) -> tuple[Vectors, Rows]:
        """The `k` nearest eligible rows of each query, best first.

        Returns:
            Similarities float32 and rows int64, both [queries, min(k, eligible rows)]; row -1 where an approximate
            index that searches all rows found fewer.
        """
        k = min(k, eligible.count)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        if eligible.is_everything:
            similarities, rows = self._index.search(queries, k)
            return similarities, rows
        if eligible.count <= EXACT_ROWS:
            return self._exact(queries, k, eligible)
        similarities, rows = self._by_index(queries, k, eligible)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            similarities[short], rows[short] = self._exact(queries[short], k, eligible)
        return similarities, rows

    def _exact(self, queries: Vectors, k: int, eligible: Eligibility) -> tuple[Vectors, Rows]:
        """By comparing with each eligible row, a chunk of them at a time."""
        faiss, found = import_faiss(), []
        for start in range(0, eligible.count, CHUNK_ROWS):
            rows = eligible.rows[start : start + CHUNK_ROWS]
            block = self._block(rows, eligible)
            similarities, places = faiss.knn(queries, block, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
            found.append((similarities, rows[places]))
        similarities, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarities, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def _block(self, rows: Rows, eligible: Eligibility) -> Vectors:
        """Vectors of these rows; those of few eligible ones are kept for the next search."""
        if self._few is not None and self._few[0] is eligible:
            return self._few[1]
        block = np.ascontiguousarray(self._vectors[rows], np.float32)
        if len(rows) == eligible.count:
            self._few = eligible, block
        return block

    def _by_index(self, queries: Vectors, k: int, eligible: Eligibility) -> tuple[Vectors, Rows]:
        bitmap = eligible.bitmap  # FAISS keeps a pointer to it
        selector = import_faiss().IDSelectorBitmap(bitmap)
        parameters = _parameters(self._index, selector, k, deeper=eligible.ads / eligible.count)
        if parameters is not None:
            similarities, rows = self._index.search(queries, k, params=parameters)
            return similarities, rows
        if eligible.ads > _MOST * eligible.count:
            return self._exact(queries, k, eligible)
        more = min(eligible.ads, int(_MARGIN * k * eligible.ads / eligible.count) + _AT_LEAST)
        similarities, rows = self._index.search(queries, more)
        return _leave_out(similarities, rows, k, eligible)


def _leave_out(similarities: Vectors, rows: Rows, k: int, eligible: Eligibility) -> tuple[Vectors, Rows]:
    """The first `k` eligible of each query's rows, -1 where there are fewer."""
    assert eligible.allowed is not None
    allowed = (rows >= 0) & eligible.allowed[rows]
    order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(allowed, order, axis=1)
    found = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
    return np.take_along_axis(similarities, order, axis=1), found


def _parameters(index: Any, selector: Any, k: int, deeper: float) -> Any:
    """Search parameters that skip rows and look `deeper` times as deep as usual; None if this kind knows none."""
    faiss = import_faiss()
    if isinstance(index, faiss.IndexFlat):
        return faiss.SearchParameters(sel=selector)
    if isinstance(index, faiss.IndexHNSW):
        depth = max(index.hnsw.efSearch, k)
        return faiss.SearchParametersHNSW(sel=selector, efSearch=int(_GRAPH * depth * deeper))
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, int(index.nprobe * deeper) + 1)
        return faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(faiss.downcast_index(index.base_index), selector, k, deeper)
        if base is not None:
            return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), selector, k, deeper)
        if inner is not None:
            return faiss.SearchParametersPreTransform(index_params=inner)
    return None
