"""The FAISS index of an index version: which kind, how it is trained and filled, and what recall it reaches.

Knows vectors only. On a host with a GPU, training and adding run there and the index comes back in CPU form.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index_builder.encoder import Vectors
from index_builder.errors import BuildError

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
SearchParameters = Mapping[str, int]

KINDS = ("auto", "flat", "hnsw", "hnsw8", "ivf", "compact")
_FLAT_LIMIT = 100_000
_TRAIN_PER_LIST = 64
_TIMED_QUERIES = 50
_LINKING_EFFORT = 80
_CHUNK_ROWS = 65_536


def import_faiss() -> Any:
    """The faiss module. Raises BuildError that names the extra to install."""
    try:
        import faiss
    except ImportError as error:
        raise BuildError(
            "FAISS is not installed: pip install 'adcascade[cpu]', or 'adcascade[gpu]' on a machine with CUDA"
        ) from error
    return faiss


def factory_strings(kind: str, count: int, dimension: int, *, is_unit: bool) -> list[str]:
    """FAISS factory strings to try in this order until one reaches the recall, for `count` vectors.

    ``auto`` is exact search up to 100,000 ads, where it is fast enough and has no recall to lose. Beyond, for unit
    vectors, it is ``hnsw8``: a graph (Malkov and Yashunin, arXiv 1603.09320) of eight-bit vectors, faster than one of
    whole vectors and a third of its size. A graph finds too little where many vectors are equal, or by inner products
    with vectors of different length (`is_unit` is False): there it is ``compact``, inverted lists of four-bit codes
    that are scanned in registers (André et al., arXiv 1704.07355), the best of which are compared again by eight-bit
    vectors. Where FAISS has a GPU, which knows neither, it is IVF.

    Args:
        kind: one of `KINDS`, or a factory string itself.
    """
    kinds = [kind]
    if kind == "auto" and count <= _FLAT_LIMIT:
        kinds = ["flat"]
    elif kind == "auto" and _gpu_count(import_faiss()):
        kinds = ["ivf"]
    elif kind == "auto":
        kinds = ["hnsw8", "compact"] if is_unit else ["compact"]
    lists = max(1, min(int(4 * math.sqrt(count)), count // 44))  # FAISS wants 39 training points a list
    codes = dimension // 2 if dimension % 2 == 0 else dimension
    known = {
        "flat": "Flat",
        "hnsw": "HNSW32",
        "hnsw8": "HNSW24,SQ8",
        "ivf": f"IVF{lists},Flat",
        "compact": f"IVF{lists},PQ{codes}x4fs,Refine(SQ8)",
    }
    return [known.get(one, one) for one in kinds]


def check_kind(kind: str, dimension: int) -> None:
    """Raises BuildError if FAISS is missing or refuses the factory string, before hours go into embedding."""
    for factory in factory_strings(kind, 1, dimension, is_unit=True):
        new_index(dimension, factory)


def new_index(dimension: int, factory: str) -> Any:
    """An empty inner-product index. Raises BuildError if FAISS is missing or refuses the factory string."""
    faiss = import_faiss()
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise BuildError(
            f"FAISS knows no index {factory!r} of {dimension} dimensions: {_last_line(error)}. "
            f"Choose --index from {', '.join(KINDS)}, or another factory string"
        ) from error
    if isinstance(index, faiss.IndexHNSWSQ):  # fewer links are chosen with more care
        index.hnsw.efConstruction = _LINKING_EFFORT
    return index


def _last_line(error: RuntimeError) -> str:
    """What FAISS says, without its source lines."""
    return str(error).strip().splitlines()[-1]


def build_index(vectors: Vectors, factory: str, held_out: Rows, seed: int, progress: Callable[[int], None]) -> Any:
    """Trains and fills an inner-product index.

    Args:
        vectors: float32 [ads, dimension]; may be memory-mapped.
        factory: FAISS factory string.
        held_out: Rows that must not be trained on.
        seed: For the choice of training rows.
        progress: Told how many vectors are in the index.

    Raises:
        BuildError: FAISS refuses the factory string or the training.
    """
    faiss = import_faiss()
    index = new_index(vectors.shape[1], factory)
    try:
        index = _to_gpu(faiss, index)
        if not index.is_trained:
            index.train(_training_vectors(faiss, index, vectors, held_out, seed))
        for start in range(0, len(vectors), _CHUNK_ROWS):
            index.add(np.ascontiguousarray(vectors[start : start + _CHUNK_ROWS]))
            progress(min(start + _CHUNK_ROWS, len(vectors)))
    except RuntimeError as error:
        raise BuildError(
            f"FAISS cannot build {factory!r} for {len(vectors)} vectors: {_last_line(error)}. "
            f"Choose --index from {', '.join(KINDS)}, or another factory string"
        ) from error
    return _to_cpu(faiss, index)


def _training_vectors(faiss: Any, index: Any, vectors: Vectors, held_out: Rows, seed: int) -> Vectors:
    """A sample that k-means can use, without the held-out rows (which stay in if nothing else is left)."""
    rows = np.setdiff1d(np.arange(len(vectors)), held_out)
    rows = rows if len(rows) >= 0.5 * len(vectors) else np.arange(len(vectors))
    ivf = faiss.try_extract_index_ivf(index)
    wanted = max(10_000, _TRAIN_PER_LIST * (ivf.nlist if ivf is not None else 256))
    if len(rows) > wanted:
        rows = np.sort(np.random.default_rng(seed).choice(rows, wanted, replace=False))
    return np.ascontiguousarray(vectors[rows])


def _to_gpu(faiss: Any, index: Any) -> Any:
    if not _gpu_count(faiss):
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError:
        log.warning("FAISS has no GPU form of this index; training and adding run on the CPU")
        return index


def _to_cpu(faiss: Any, index: Any) -> Any:
    return faiss.index_gpu_to_cpu(index) if _gpu_count(faiss) and "Gpu" in type(index).__name__ else index


def _gpu_count(faiss: Any) -> int:
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def set_search_parameters(index: Any, parameters: SearchParameters) -> None:
    """Sets nprobe, efSearch and the like. Raises BuildError if the index has no such parameter."""
    space = import_faiss().ParameterSpace()
    for name, value in parameters.items():
        try:
            space.set_index_parameter(index, name, value)
        except RuntimeError as error:
            raise BuildError(f"this index has no search parameter {name!r}") from error


def exact_search(vectors: Vectors, queries: Vectors, k: int) -> Rows:
    """Rows of the k largest inner products for each query, by brute force in chunks; int64 [queries, k]."""
    faiss = import_faiss()
    best: list[tuple[Vectors, Rows]] = []
    for start in range(0, len(vectors), _CHUNK_ROWS):
        chunk = np.ascontiguousarray(vectors[start : start + _CHUNK_ROWS])
        similarity, rows = faiss.knn(queries, chunk, min(k, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
        best.append((similarity, rows + start))
    similarity = np.concatenate([part[0] for part in best], axis=1)
    found = np.concatenate([part[1] for part in best], axis=1)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    nearest: Rows = np.take_along_axis(found, order, axis=1)
    return nearest


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
    """Median of single queries."""
    found = []
    for row in range(min(len(queries), _TIMED_QUERIES)):
        started = time.perf_counter()
        index.search(queries[row : row + 1], k)
        found.append(1000 * (time.perf_counter() - started))
    return float(np.median(found))


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


def write_index(index: Any, path: Path) -> None:
    """Writes the index through Python's own file, so that a full disk raises OSError and not a FAISS error."""
    faiss = import_faiss()
    failure: list[OSError] = []
    with path.open("wb") as file:

        def write(data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                failure.append(error)
                return 0

        try:
            writer = faiss.PyCallbackIOWriter(write)
            faiss.write_index(index, faiss.BufferedIOWriter(writer))
        except RuntimeError as error:
            raise (failure[0] if failure else error) from None
        if failure:
            raise failure[0]


def read_index(path: Path, parameters: SearchParameters) -> Any:
    """Reads an index and sets its search parameters. Raises BuildError if FAISS cannot read it."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise BuildError(f"FAISS cannot read {path}: {_last_line(error)}") from error
    set_search_parameters(index, parameters)
    return index
