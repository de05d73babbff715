"""Exact search by brute force: what an index is compared with. Knows vectors only."""

import numpy as np

from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import CHUNK_ROWS, Rows, import_faiss


def exact_search(vectors: Vectors, queries: Vectors, k: int) -> Rows:
    """Rows of the k largest inner products for each query, by brute force in chunks; int64 [queries, k]."""
    faiss = import_faiss()
    best: list[tuple[Vectors, Rows]] = []
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = np.ascontiguousarray(vectors[start : start + CHUNK_ROWS])
        similarity, rows = faiss.knn(queries, chunk, min(k, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
        best.append((similarity, rows + start))
    similarity = np.concatenate([part[0] for part in best], axis=1)
    found = np.concatenate([part[1] for part in best], axis=1)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    nearest: Rows = np.take_along_axis(found, order, axis=1)
    return nearest
