"""``adcascade bench retrieve``: a hundred of many ads, against vector indexes that one could take instead.

Vectors are those of made-up ads by a real encoder. Each index searches as deep as it must for the recall that is asked
of all, one query at a time, with one thread where it lets one choose. Peers run in processes of their own, and their
time is that of their own call; the server is asked over gRPC with a ready vector.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np

from adcascade.records.errors import InputError
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub
from adcascade.vectors.bulk_encoder import load_bulk_encoder
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.exact_search import exact_search
from benchmarks.speed.catalog import made_index
from benchmarks.speed.contestants import (
    EMPTY_CALL,
    EXACT,
    LEAST_RECALL,
    OURS,
    SERVER,
    Contestant,
    K,
    deep_enough,
    empty_call,
    exact_index,
    our_index,
    requests_of,
    through_server,
)
from benchmarks.speed.interleaved_timing import Progress, Turns
from benchmarks.speed.machine import describe
from benchmarks.speed.models import movielens_files
from benchmarks.speed.peers import PeerMissing, search_peer
from benchmarks.speed.results import BenchResult, Entry, Line, Plot, TargetResult
from benchmarks.speed.servers import served
from benchmarks.speed.texts import real_ads
from benchmarks.speed.vectors import made_vectors

PEERS = ("hnswlib", "usearch", "milvus-lite")
_QUERIES = 200
_MEMORY_SHARE, _SERVER_TIMES = 1 / 3, 1.3
_QUERY_SEED = 10**6


@dataclass(frozen=True)
class RetrieveSettings:
    """How the benchmark is run; `rounds` is the queries that each contender answers."""

    ads: int = 1_000_000
    peers: tuple[str, ...] = PEERS
    rounds: int = 100
    seed: int = 0


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
    truth = exact_search(vectors, queries, K)
    np.save(folder / "queries.npy", queries)
    missing = {name: "not asked for (--peers)" for name in PEERS if name not in settings.peers}
    peers: dict[str, str] = {}
    with ExitStack() as stack:
        contestants = [our_index(loaded, queries, truth), exact_index(vectors, queries)]
        for name in settings.peers:
            try:
                path = Path(str(vectors.filename))  # type: ignore[attr-defined]
                peer = stack.enter_context(
                    search_peer(name, path, vectors.shape, folder / "queries.npy", folder / f"{name}.log")
                )
                contestants.append(deep_enough(name, peer.search, truth, peer.mib))
                peers[name] = peer.version
            except PeerMissing as why:
                missing[name] = str(why)
        channel = stack.enter_context(served("retrieval", ["--index", str(root)], folder))
        contestants += [through_server(channel, queries), empty_call(channel)]
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


def _where_time_goes(channel: grpc.Channel, queries: Vectors) -> str:
    """What the server says of its own time, medians, after the timed calls."""
    retrieve = RetrievalServiceStub(channel).Retrieve
    timings = [retrieve(request).timing for request in requests_of(queries)]
    computing, waiting = (
        statistics.median(values) for values in zip(*((one.compute_ms, one.queue_ms) for one in timings), strict=True)
    )
    return (
        f"in the server searching and merging take {computing:.2f} ms, waiting {waiting:.2f} ms; the rest is Python's "
        f"part of the call, and {K} candidates on the wire"
    )


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
    figures = {} if np.isnan(one.recall) else {f"recall@{K}": one.recall}
    if one.mib is not None:
        figures["MiB"] = one.mib
    return Entry(
        case=f"{K} of {ads:,} ads",
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
                target=f"faster at a recall of {LEAST_RECALL}",
                reached=f"{milliseconds / own:.2f} times as fast ({own:.2f} ms at a recall of {ours.recall:.3f}, "
                f"{milliseconds:.2f} ms at {peer.recall:.3f})",
                met=own < milliseconds and ours.recall >= LEAST_RECALL,
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
    return [Plot(x_label=f"recall@{K}", y_label="milliseconds a query", lines=lines)] if lines else []
