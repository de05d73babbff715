"""Vector indexes that answer single queries, each searched as deep as it must for the same recall. Compares nothing."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import grpc
import numpy as np

from adcascade.serving.channel import is_serving
from adcascade.v1 import retrieval_pb2, types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import Rows, import_faiss, set_search_parameters
from index_builder.artifact import IndexVersion

OURS, EXACT, SERVER, EMPTY_CALL = "AdCascade, FAISS call", "FAISS, exact", "AdCascade, server", "empty gRPC call"
K = 100
LEAST_RECALL, _NEARLY_ALL = 0.95, 0.99
_EFFORT = "efSearch"
# How deep a graph is searched, from the least that gives a hundred ads.
_EFFORTS = tuple(np.geomspace(K, 2400, 24).astype(int).tolist())

# Searches with one query, and tells the milliseconds and the rows; the second, as deep as it is told.
Search = Callable[[int], tuple[float, Sequence[int]]]
DeepSearch = Callable[[int, int], tuple[float, Sequence[int]]]


@dataclass(frozen=True)
class Contestant:
    """An index that reaches the recall, or the deepest search of one that does not.

    Attributes:
        depths: searches that are more or less deep, each with its recall; they take their turns like `search`, so that
            a plot of them and a table of that come from the same measurement.
    """

    name: str
    search: Search
    recall: float
    effort: str
    mib: float | None = None
    depths: Sequence[tuple[float, Search]] = ()


def _recall(search: Search, truth: Rows) -> float:
    """Of all queries."""
    shares = [len(np.intersect1d(search(row)[1], want)) / K for row, want in enumerate(truth)]
    return statistics.fmean(shares)


def our_index(loaded: IndexVersion, queries: Vectors, truth: Rows) -> Contestant:
    """The index as a build made it, widened if queries that it has not met need more."""
    index, parameters = loaded.faiss_index, dict(loaded.manifest.search_parameters)
    bare = _faiss_search(lambda query: index.search(query, K)[1][0], queries)

    def search_with(row: int, wanted: Mapping[str, int]) -> tuple[float, Sequence[int]]:
        set_search_parameters(index, dict(wanted))  # before the clock starts
        return bare(row)

    depths = _by_effort(lambda row, effort: search_with(row, {_EFFORT: effort}), truth) if _EFFORT in parameters else []
    recall = _recall(lambda row: search_with(row, parameters), truth)
    name = next((name for name in ("nprobe", _EFFORT) if name in parameters), None)
    while recall < LEAST_RECALL and name is not None:
        parameters[name] = int(1.2 * parameters[name]) + 1
        recall = _recall(lambda row: search_with(row, parameters), truth)
    effort = " ".join([loaded.manifest.factory, *(f"{name}={value}" for name, value in parameters.items())])
    searched = {effort: search for effort, _, search in depths}
    own = searched.get(parameters.get(_EFFORT, 0), lambda row: search_with(row, parameters))
    others = [(recall, search) for _, recall, search in depths if search is not own]
    return Contestant(OURS, own, recall, effort, loaded.manifest.index_bytes / 2**20, others)


def exact_index(vectors: Vectors, queries: Vectors) -> Contestant:
    """All vectors, one after the other."""
    faiss = import_faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    search = _faiss_search(lambda query: index.search(query, K)[1][0], queries)
    return Contestant(EXACT, search, 1.0, "all vectors", vectors.nbytes / 2**20)


def _faiss_search(call: Callable[[Vectors], Sequence[int]], queries: Vectors) -> Search:
    def search(row: int) -> tuple[float, Sequence[int]]:
        query = queries[row : row + 1]
        started = time.perf_counter()
        rows = call(query)
        return 1000 * (time.perf_counter() - started), rows

    return search


def deep_enough(name: str, search: DeepSearch, truth: Rows, mib: float) -> Contestant:
    """The least effort that reaches the recall."""
    depths = _by_effort(search, truth)
    chosen = next((place for place, (_, recall, _) in enumerate(depths) if recall >= LEAST_RECALL), len(depths) - 1)
    effort, recall, own = depths[chosen]
    others = [(recall, search) for place, (_, recall, search) in enumerate(depths) if place != chosen]
    return Contestant(name, own, recall, f"ef={effort}", mib, others)


def _by_effort(search: DeepSearch, truth: Rows) -> list[tuple[int, float, Search]]:
    """Effort, recall and search at each, up to where nothing is left to gain."""
    depths: list[tuple[int, float, Search]] = []
    for effort in _EFFORTS:
        at = partial(_at_effort, search, effort)
        depths.append((effort, _recall(at, truth), at))
        if depths[-1][1] >= _NEARLY_ALL:
            break
    return depths


def _at_effort(search: DeepSearch, effort: int, row: int) -> tuple[float, Sequence[int]]:
    return search(row, effort)


def requests_of(queries: Vectors) -> list[retrieval_pb2.RetrieveRequest]:
    """A request for each query."""
    return [
        retrieval_pb2.RetrieveRequest(
            vectors=types_pb2.InterestVectors(dimension=queries.shape[1], raw=query.astype("<f4").tobytes()), k=K
        )
        for query in queries
    ]


def through_server(channel: grpc.Channel, queries: Vectors) -> Contestant:
    """The server that is reached by a channel."""
    retrieve, requests = RetrievalServiceStub(channel).Retrieve, requests_of(queries)

    def search(row: int) -> tuple[float, Sequence[int]]:
        started = time.perf_counter()
        retrieve(requests[row])
        return 1000 * (time.perf_counter() - started), ()

    return Contestant(SERVER, search, np.nan, "")


def empty_call(channel: grpc.Channel) -> Contestant:
    """A call that asks nothing of the server."""

    def search(_: int) -> tuple[float, Sequence[int]]:
        started = time.perf_counter()
        is_serving(channel)
        return 1000 * (time.perf_counter() - started), ()

    return Contestant(EMPTY_CALL, search, np.nan, "")
