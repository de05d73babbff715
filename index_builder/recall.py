"""What an index finds of what exact search finds, and how deep it must search for it. Knows vectors only."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from adcascade.vectors.encoder import Vectors
from adcascade.vectors.errors import BuildError
from adcascade.vectors.exact_search import exact_search
from adcascade.vectors.faiss_index import Rows, import_faiss, set_search_parameters

log = logging.getLogger(__name__)

_TIMED_QUERIES, _LEAST_TIMED, _TIMED_SECONDS = 50, 5, 0.02


@dataclass(frozen=True)
class CurvePoint:
    """What search parameters buy: recall, and the milliseconds of one query alone (median)."""

    search_parameters: dict[str, int]
    recall: float
    milliseconds: float


@dataclass(frozen=True)
class Recall:
    """Share of the true k nearest ads that the index finds, the search parameters it takes, and what was tried."""

    recall: float
    k: int
    queries: int
    search_parameters: dict[str, int]
    curve: tuple[CurvePoint, ...] = ()


def draw_queries(count: int, wanted: int, seed: int) -> Rows:
    """Rows of the catalog that serve as queries: at most a tenth of it, sorted; all of a tiny catalog."""
    size = min(wanted, max(count // 10, min(count, 100)))
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False)).astype(np.int64)


def reach_recall(index: Any, vectors: Vectors, query_rows: Rows, k: int, minimum: float) -> Recall:
    """`reach_recall_of` with ads of the catalog as queries, which the index was not trained on.

    An ad does not count as its own neighbour.
    """
    return reach_recall_of(index, vectors, np.ascontiguousarray(vectors[query_rows]), k, minimum, query_rows)


def reach_recall_of(
    index: Any, vectors: Vectors, queries: Vectors, k: int, minimum: float, own_rows: Rows | None = None
) -> Recall:
    """Measures recall@k against exact search and widens the search until it reaches `minimum`.

    Args:
        queries: float32 [queries, dimension].
        own_rows: Row of each query, if these are vectors of the index, to leave out of what they find.

    Raises:
        BuildError: Even the widest search stays below `minimum`.
    """
    own = 0 if own_rows is None else 1
    k = min(k, len(vectors) - own)
    if k < 1 or not len(queries):
        return Recall(1.0, 0, 0, {})

    def others(rows: Rows) -> Rows:
        return rows if own_rows is None else _without_self(rows, own_rows, k)

    faiss = import_faiss()
    if isinstance(faiss.downcast_index(index), faiss.IndexFlat):  # this is exact search
        return Recall(1.0, k, len(queries), {}, (CurvePoint({}, 1.0, _milliseconds(index, queries, k)),))
    truth = others(exact_search(vectors, queries, k + own))
    # Whatever is as near as the k-th true neighbour counts: equal texts are equally good answers.
    lowest = np.array([(vectors[rows] @ query).min() for rows, query in zip(truth, queries, strict=True)])
    lowest -= 1e-6 * np.maximum(1, np.abs(lowest))
    parameters: dict[str, int] = {}
    recall, curve = 0.0, []
    for parameters in _ever_wider(index):
        set_search_parameters(index, parameters)
        found = others(index.search(queries, k + own)[1])
        hits = [
            (vectors[rows] @ query >= low) & (rows >= 0)
            for rows, query, low in zip(found, queries, lowest, strict=True)
        ]
        recall = float(np.mean(hits))
        log.info("recall@%d is %.4f with %s", k, recall, dict(parameters) or "no search parameters")
        curve.append(CurvePoint(dict(parameters), recall, _milliseconds(index, queries, k)))
        if recall >= minimum:
            return Recall(recall, k, len(queries), dict(parameters), tuple(curve))
    raise BuildError(
        f"recall@{k} is {recall:.3f} with the widest search ({dict(parameters) or 'nothing to widen'}), below the "
        f"minimum of {minimum}. Choose another --index (flat is exact) or lower --min-recall; nothing was published"
    )


def _milliseconds(index: Any, queries: Vectors, k: int) -> float:
    """Median of single queries; of few where they are slow."""
    found: list[float] = []
    for query in queries[:_TIMED_QUERIES]:
        started = time.perf_counter()
        index.search(query[None], k)
        found.append(time.perf_counter() - started)
        if len(found) >= _LEAST_TIMED and sum(found) > _TIMED_SECONDS:
            break
    return 1000 * float(np.median(found))


def _without_self(rows: Rows, query_rows: Rows, k: int) -> Rows:
    """Drops each query's own row, or the last result where it was not found; [queries, k]."""
    is_self = rows == query_rows[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    others: Rows = rows[~is_self].reshape(len(rows), k)
    return others


def _ever_wider(index: Any) -> list[dict[str, int]]:
    """Search parameters to try, from narrow to the widest that makes sense."""
    faiss = import_faiss()
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        probes = [min(value, ivf.nlist) for value in _doubling(max(1, ivf.nlist // 64), ivf.nlist)]
        if not isinstance(faiss.downcast_index(index), faiss.IndexRefine):
            return [{"nprobe": value} for value in probes]
        deeper = [{"nprobe": probes[-1], "k_factor_rf": factor} for factor in (16, 64)]
        return [*({"nprobe": value, "k_factor_rf": 4} for value in probes), *deeper]
    if "HNSW" in type(faiss.downcast_index(index)).__name__:
        efforts = np.geomspace(100, 4096, 18).astype(int).tolist()
        return [{"efSearch": value} for value in efforts]
    return [{}]


def _doubling(first: int, last: int) -> list[int]:
    values = [first]
    while values[-1] < last:
        values.append(2 * values[-1])
    return values
