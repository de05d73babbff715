"""``adcascade bench retrieve``: a hundred of many ads, against vector indexes that one could take instead.

Vectors are those of made-up ads by a real encoder. Each index searches as deep as it must for the recall that is asked
of all, one query at a time, with one thread where it lets one choose. Peers run in processes of their own, and their
time is that of their own call; the server is asked over gRPC with a ready vector.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np

from adcascade.records.errors import InputError
from adcascade.serving.channel import is_serving
from adcascade.v1 import retrieval_pb2, types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub
from adcascade.vectors.bulk_encoder import load_bulk_encoder
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.exact_search import exact_search
from adcascade.vectors.faiss_index import Rows, import_faiss, set_search_parameters
from benchmarks.speed.catalog import made_index
from benchmarks.speed.interleaved_timing import Progress, Turns
from benchmarks.speed.machine import describe
from benchmarks.speed.models import movielens_files
from benchmarks.speed.peers import PeerMissing, search_peer
from benchmarks.speed.results import BenchResult, Entry, Line, Plot, TargetResult
from benchmarks.speed.servers import served
from benchmarks.speed.texts import real_ads
from benchmarks.speed.vectors import made_vectors
from index_builder.artifact import IndexVersion

OURS, EXACT, SERVER, EMPTY_CALL = "AdCascade, FAISS call", "FAISS, exact", "AdCascade, server", "empty gRPC call"
PEERS = ("hnswlib", "usearch", "milvus-lite")
_K, _QUERIES = 100, 200
_LEAST_RECALL, _NEARLY_ALL = 0.95, 0.99
_EFFORT = "efSearch"
# How deep a graph is searched, from the least that gives a hundred ads.
_EFFORTS = tuple(np.geomspace(_K, 2400, 24).astype(int).tolist())
_MEMORY_SHARE, _SERVER_TIMES = 1 / 3, 1.3
_QUERY_SEED = 10**6

# Searches with one query, and tells the milliseconds and the rows; the second, as deep as it is told.
Search = Callable[[int], tuple[float, Sequence[int]]]
DeepSearch = Callable[[int, int], tuple[float, Sequence[int]]]


@dataclass(frozen=True)
class RetrieveSettings:
    """How the benchmark is run; `rounds` is the queries that each contender answers."""

    ads: int = 1_000_000
    peers: tuple[str, ...] = PEERS
    rounds: int = 100
    seed: int = 0


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


def bench_retrieve(
    settings: RetrieveSettings, folder: Path, kept: Path, progress: Progress = lambda *_: None
) -> BenchResult:
    """Times single queries.

    Args:
        folder: For what is made on the way.
        kept: For vectors and index, which are used again by the next run.

    Raises:
        InputError: MovieLens-100k, whose texts are read, is not installed, or there is no such peer.
        StartupError: The retrieval server does not start.
    """
    if unknown := set(settings.peers) - set(PEERS):
        raise InputError(f"there is no peer {', '.join(sorted(unknown))}; choose of {', '.join(PEERS)}")
    sources = real_ads(movielens_files(folder).ads)
    encoder = load_bulk_encoder()
    vectors = made_vectors(kept, sources, settings.ads, encoder, settings.seed, progress)
    queries = np.array(made_vectors(kept, sources, _QUERIES, encoder, _QUERY_SEED + settings.seed))
    root, loaded = made_index(kept, sources, vectors, encoder, settings.seed)
    truth = exact_search(vectors, queries, _K)
    np.save(folder / "queries.npy", queries)
    missing = {name: "not asked for (--peers)" for name in PEERS if name not in settings.peers}
    peers: dict[str, str] = {}
    with ExitStack() as stack:
        contestants = [_ours(loaded, queries, truth), _exact(vectors, queries)]
        for name in settings.peers:
            try:
                path = Path(str(vectors.filename))  # type: ignore[attr-defined]
                peer = stack.enter_context(
                    search_peer(name, path, vectors.shape, folder / "queries.npy", folder / f"{name}.log")
                )
                contestants.append(_deep_enough(name, peer.search, truth, peer.mib))
                peers[name] = peer.version
            except PeerMissing as why:
                missing[name] = str(why)
        channel = stack.enter_context(served("retrieval", ["--index", str(root)], folder))
        contestants += [_through_server(channel, queries), _empty_call(channel)]
        machine = describe()
        turns = _ask_in_turns(contestants, settings.rounds, progress)
        explained = _where_time_goes(channel, queries)
    return BenchResult(
        bench="retrieve",
        machine=machine,
        settings={**asdict(settings), "peers": ", ".join(settings.peers)},
        entries=[_entry(one, turns, settings.ads) for one in contestants],
        verdicts=_verdicts(contestants, turns, explained),
        floors={EMPTY_CALL: turns.milliseconds(EMPTY_CALL).median},
        peers=peers,
        missing=missing,
        plots=_curves(contestants, turns),
    )


def _recall(search: Search, truth: Rows) -> float:
    """Of all queries."""
    shares = [len(np.intersect1d(search(row)[1], want)) / _K for row, want in enumerate(truth)]
    return statistics.fmean(shares)


def _ours(loaded: IndexVersion, queries: Vectors, truth: Rows) -> Contestant:
    """The index as a build made it, widened if queries that it has not met need more."""
    index, parameters = loaded.faiss_index, dict(loaded.manifest.search_parameters)
    bare = _faiss_search(lambda query: index.search(query, _K)[1][0], queries)

    def search_with(row: int, wanted: Mapping[str, int]) -> tuple[float, Sequence[int]]:
        set_search_parameters(index, dict(wanted))  # before the clock starts
        return bare(row)

    depths = _by_effort(lambda row, effort: search_with(row, {_EFFORT: effort}), truth) if _EFFORT in parameters else []
    recall = _recall(lambda row: search_with(row, parameters), truth)
    name = next((name for name in ("nprobe", _EFFORT) if name in parameters), None)
    while recall < _LEAST_RECALL and name is not None:
        parameters[name] = int(1.2 * parameters[name]) + 1
        recall = _recall(lambda row: search_with(row, parameters), truth)
    effort = " ".join([loaded.manifest.factory, *(f"{name}={value}" for name, value in parameters.items())])
    searched = {effort: search for effort, _, search in depths}
    own = searched.get(parameters.get(_EFFORT, 0), lambda row: search_with(row, parameters))
    others = [(recall, search) for _, recall, search in depths if search is not own]
    return Contestant(OURS, own, recall, effort, loaded.manifest.index_bytes / 2**20, others)


def _exact(vectors: Vectors, queries: Vectors) -> Contestant:
    faiss = import_faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    search = _faiss_search(lambda query: index.search(query, _K)[1][0], queries)
    return Contestant(EXACT, search, 1.0, "all vectors", vectors.nbytes / 2**20)


def _faiss_search(call: Callable[[Vectors], Sequence[int]], queries: Vectors) -> Search:
    def search(row: int) -> tuple[float, Sequence[int]]:
        query = queries[row : row + 1]
        started = time.perf_counter()
        rows = call(query)
        return 1000 * (time.perf_counter() - started), rows

    return search


def _deep_enough(name: str, search: DeepSearch, truth: Rows, mib: float) -> Contestant:
    """The least effort that reaches the recall."""
    depths = _by_effort(search, truth)
    chosen = next((place for place, (_, recall, _) in enumerate(depths) if recall >= _LEAST_RECALL), len(depths) - 1)
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


def _requests(queries: Vectors) -> list[retrieval_pb2.RetrieveRequest]:
    return [
        retrieval_pb2.RetrieveRequest(
            vectors=types_pb2.InterestVectors(dimension=queries.shape[1], raw=query.astype("<f4").tobytes()), k=_K
        )
        for query in queries
    ]


def _through_server(channel: grpc.Channel, queries: Vectors) -> Contestant:
    retrieve, requests = RetrievalServiceStub(channel).Retrieve, _requests(queries)

    def search(row: int) -> tuple[float, Sequence[int]]:
        started = time.perf_counter()
        retrieve(requests[row])
        return 1000 * (time.perf_counter() - started), ()

    return Contestant(SERVER, search, np.nan, "")


def _where_time_goes(channel: grpc.Channel, queries: Vectors) -> str:
    """What the server says of its own time, medians, after the timed calls."""
    retrieve = RetrievalServiceStub(channel).Retrieve
    timings = [retrieve(request).timing for request in _requests(queries)]
    computing, waiting = (
        statistics.median(values) for values in zip(*((one.compute_ms, one.queue_ms) for one in timings), strict=True)
    )
    return (
        f"in the server searching and merging take {computing:.2f} ms, waiting {waiting:.2f} ms; the rest is Python's "
        f"part of the call, and {_K} candidates on the wire"
    )


def _empty_call(channel: grpc.Channel) -> Contestant:
    def search(_: int) -> tuple[float, Sequence[int]]:
        started = time.perf_counter()
        is_serving(channel)
        return 1000 * (time.perf_counter() - started), ()

    return Contestant(EMPTY_CALL, search, np.nan, "")


def _ask_in_turns(contestants: Sequence[Contestant], rounds: int, progress: Progress) -> Turns:
    """Each contestant answers each query, at each of its depths; the order turns from query to query."""
    searches = {one.name: one.search for one in contestants}
    searches |= {_depth(one, place): at for one in contestants for place, (_, at) in enumerate(one.depths)}
    names = list(searches)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            seconds[name].append(searches[name](number % _QUERIES)[0] / 1000)
        progress(number + 1, rounds)
    return Turns(seconds)


def _entry(one: Contestant, turns: Turns, ads: int) -> Entry:
    figures = {} if np.isnan(one.recall) else {f"recall@{_K}": one.recall}
    if one.mib is not None:
        figures["MiB"] = one.mib
    return Entry(
        case=f"{_K} of {ads:,} ads",
        contender=one.name,
        milliseconds=turns.milliseconds(one.name),
        times_faster=None if np.isnan(one.recall) or one.name == EXACT else turns.times_faster(one.name, EXACT),
        figures=figures,
        note=one.effort,
    )


def _verdicts(contestants: Sequence[Contestant], turns: Turns, explained: str) -> list[TargetResult]:
    by_name = {one.name: one for one in contestants}
    ours, own = by_name[OURS], turns.milliseconds(OURS).median
    verdicts = []
    for name in PEERS:
        if name not in by_name:
            continue
        peer, milliseconds = by_name[name], turns.milliseconds(name).median
        verdicts.append(
            TargetResult(
                what=f"{OURS} against {name}",
                target=f"faster at a recall of {_LEAST_RECALL}",
                reached=f"{milliseconds / own:.2f} times as fast ({own:.2f} ms at a recall of {ours.recall:.3f}, "
                f"{milliseconds:.2f} ms at {peer.recall:.3f})",
                met=own < milliseconds and ours.recall >= _LEAST_RECALL,
                why=f"searched as deep as {ours.effort}, {name} {peer.effort}; --index hnsw keeps float32 vectors",
            )
        )
        assert ours.mib is not None
        assert peer.mib is not None
        verdicts.append(
            TargetResult(
                what=f"memory against {name}",
                target="at most a third",
                reached=f"{ours.mib / peer.mib:.2f} ({ours.mib:,.0f} MiB, {peer.mib:,.0f} MiB)",
                met=ours.mib <= _MEMORY_SHARE * peer.mib,
            )
        )
    bound = own + turns.milliseconds(EMPTY_CALL).median
    served = turns.milliseconds(SERVER).median
    verdicts.append(
        TargetResult(
            what="server p50 against the bare FAISS call and an empty gRPC call",
            target=f"at most {_SERVER_TIMES} times",
            reached=f"{served / bound:.2f} times ({served:.2f} ms, {bound:.2f} ms)",
            met=served <= _SERVER_TIMES * bound,
            why=explained,
        )
    )
    return verdicts


def _depth(one: Contestant, place: int) -> str:
    return f"{one.name}, depth {place}"


def _curves(contestants: Sequence[Contestant], turns: Turns) -> list[Plot]:
    """What more recall costs each that can be searched more or less deeply; what its table has is one of the points."""
    lines = []
    for one in contestants:
        if one.depths:
            points = [
                (recall, turns.milliseconds(_depth(one, place)).median) for place, (recall, _) in enumerate(one.depths)
            ]
            points = sorted([*points, (one.recall, turns.milliseconds(one.name).median)])
            lines.append(Line(name=one.name, x=[x for x, _ in points], y=[y for _, y in points]))
    return [Plot(x_label=f"recall@{_K}", y_label="milliseconds a query", lines=lines)] if lines else []
