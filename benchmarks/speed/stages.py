"""Both stages and what stands before them, as three processes that answer `Recommend` over made-up ads."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from adcascade.records.errors import InputError
from adcascade.records.users import UserProfile
from adcascade.serving.channel import open_channel
from adcascade.serving.errors import StartupError
from adcascade.v1 import recommend_pb2
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub
from adcascade.vectors.bulk_encoder import load_bulk_encoder
from adcascade.wire import user_to_wire
from benchmarks.speed.catalog import made_index
from benchmarks.speed.interleaved_timing import Spread
from benchmarks.speed.memory import own_mib
from benchmarks.speed.models import kept_ranker, movielens_files
from benchmarks.speed.open_loop import Answered, Start, one_by_one
from benchmarks.speed.results import Entry, TargetResult
from benchmarks.speed.synthetic_users import PRESENT, made_users, user_of_call
from benchmarks.speed.texts import real_ads
from benchmarks.speed.vectors import made_vectors
from index_builder.artifact import IndexVersion, load_version, open_store
from pipeline.processes import ServerProcess, running

K = 10
_P50_MS, P99_MS = 50.0, 150.0
_TIMEOUT_SECONDS = 5.0
# Ads whose titles made-up users are interested in.
_SOME_ADS = 200
# What ranking keeps of an ad of 22 tokens, what it has room for by default, and what a benchmark gives it at most.
_AD_STATE_KIB, _CACHE_MIB, _MOST_CACHE_MIB = 40, 256, 1024
# Servers read ahead what fits; less than this of a core, for so long, is nothing.
_IDLE_CORES, _IDLE_SECONDS, _IDLE_WITHIN_SECONDS = 0.05, 2.0, 600.0


@dataclass(frozen=True)
class Servers:
    """Three servers, and what they are asked.

    Attributes:
        flags: of each server, by name.
        logs: folder of their logs.
        requests: one of each user.
        calls: counts on from one measurement to the next, so that none meets the users of the one before.
        code: a checkout that they are of, in place of this program.
    """

    processes: list[ServerProcess]
    flags: Mapping[str, Sequence[str]]
    logs: Path
    recommend: RecommendServiceStub
    requests: Sequence[recommend_pb2.RecommendRequest]
    calls: "count[int]" = field(default_factory=count)
    code: Path | None = None

    def process(self, name: str) -> ServerProcess:
        """The server of that name."""
        return next(one for one in self.processes if one.name == name)

    def start_again(self, name: str) -> ServerProcess:
        """Starts a server that has ended, on the port that it had; it is not healthy yet."""
        ended = self.process(name)
        port = ended.address.rpartition(":")[2]
        started = ServerProcess.start(name, [*self.flags[name], "--port", port], self.logs, code=self.code)
        self.processes[self.processes.index(ended)] = started
        return started

    def stop(self) -> None:
        """Stops all of them."""
        for one in self.processes:
            one.stop()

    def asking(self, candidates: int) -> Start:
        """Calls for `K` of so many candidates, by the users who are there, in turns."""

        def start() -> Any:
            request = recommend_pb2.RecommendRequest()
            request.CopyFrom(self.requests[user_of_call(next(self.calls)) % len(self.requests)])
            request.k, request.candidates = min(K, candidates), candidates
            return self.recommend.Recommend.future(request, timeout=_TIMEOUT_SECONDS)

        return start

    def where_time_goes(self, candidates: int, calls: int) -> str:
        """Of so many calls, one after the other; see `time_spent`."""
        start = self.asking(candidates)
        return time_spent([start().result().timings for _ in range(calls)])

    def mib(self) -> dict[str, float]:
        """Memory of each server, without the files that it has mapped."""
        return {one.name: own_mib(psutil.Process(one.process.pid)) for one in self.processes}

    def wait_until_idle(self) -> None:
        """Returns when they have read ahead. Raises StartupError if they go on working without being asked."""
        end = time.monotonic() + _IDLE_WITHIN_SECONDS
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(_IDLE_SECONDS)
            if self.cpu_seconds() - before < _IDLE_CORES * _IDLE_SECONDS:
                return
        raise StartupError(f"the servers are busy, though nobody asks them, for {_IDLE_WITHIN_SECONDS:g} seconds")

    def warm_up(self, candidates: int) -> None:
        """Everybody who is there calls twice: a change of what is asked is not what is measured."""
        one_by_one(self.asking(candidates), 2 * PRESENT)

    def cpu_seconds(self) -> float:
        """Of all servers since they began."""
        return sum(self.cpu_seconds_of_each().values())

    def cpu_seconds_of_each(self) -> dict[str, float]:
        """Of each server since it began, by name."""
        times = {one.name: psutil.Process(one.process.pid).cpu_times() for one in self.processes}
        return {name: float(one.user + one.system) for name, one in times.items()}


@contextmanager
def serving(ads: int, seed: int, folder: Path, kept: Path) -> Iterator[Servers]:
    """Three servers of so many made-up ads and a ranker trained on MovieLens, until the block ends.

    Args:
        folder: For what is made on the way.
        kept: For vectors, index and ranker, which are used again by the next run.

    Raises:
        InputError: MovieLens-100k, whose texts are read, is not installed.
        StartupError: A server does not start; later, that the servers never come to rest.
    """
    made = made_versions(ads, seed, folder, kept)
    with serving_at(made.index, made.model, made.users, folder / "logs", cache_flags(ads)) as servers:
        yield servers


@dataclass(frozen=True)
class Made:
    """Roots of an index of made-up ads and of a ranker, and users who ask."""

    index: Path
    model: Path
    users: Sequence[UserProfile]


def made_versions(ads: int, seed: int, folder: Path, kept: Path) -> Made:
    """What `serving` serves, made or kept by an earlier run; see there."""
    files = movielens_files(folder)
    sources, encoder = real_ads(files.ads), load_bulk_encoder()
    vectors = made_vectors(kept, sources, ads, encoder, seed)
    root, loaded = made_index(kept, sources, vectors, encoder, seed)
    model, _ = kept_ranker(kept, files, seed=seed)
    return Made(root, model, made_users(loaded.catalog.ids, [ad.category for ad in sources], seed))


def cache_flags(ads: int) -> list[str]:
    """Of the ranking server: room for the states of all ads, where a gibibyte is enough."""
    wanted = ads * _AD_STATE_KIB // 1024
    return ["--cache-mib", str(wanted)] if _CACHE_MIB < wanted <= _MOST_CACHE_MIB else []


def published(index: Path) -> IndexVersion:
    """The index version that is published. Raises InputError if there is none, ArtifactError if it is damaged."""
    store = open_store(index)
    version = store.current()
    if version is None:
        raise InputError(f"{index} holds no published index version; run adcascade build first")
    return load_version(store, version)


@contextmanager
def serving_own(index: Path, model: Path, seed: int, folder: Path) -> Iterator[Servers]:
    """Three servers of an owner's published versions, asked by made-up users, until the block ends.

    See `published` for what is raised. Raises StartupError if a server does not start.
    """
    catalog = published(index).catalog
    titles = [ad.title for ad in catalog.find(catalog.ids[:_SOME_ADS]).values()]
    users = made_users(catalog.ids, titles, seed)
    with serving_at(index, model, users, folder / "logs") as servers:
        yield servers


@contextmanager
def serving_at(
    index: Path,
    model: Path,
    users: Sequence[UserProfile],
    logs: Path,
    ranking_flags: Sequence[str] = (),
    code: Path | None = None,
) -> Iterator[Servers]:
    """Three servers of an index and a model, asked by these users; `code` is another checkout that they are of."""
    index, model = index.resolve(), model.resolve()
    requests = [recommend_pb2.RecommendRequest(user=user_to_wire(user)) for user in users]
    of_ranking = ["--model", str(model), "--index", str(index), *ranking_flags]
    stages = [("retrieval", ["--index", str(index)]), ("ranking", of_ranking)]
    with ExitStack() as stack:
        servers = stack.enter_context(running(stages, logs, code=code))
        retrieval, ranking = (one.wait_until_serving() for one in servers)
        before = ("pipeline", ["--retrieval", retrieval, "--ranking", ranking])
        (gateway,) = stack.enter_context(running([before], logs, code=code))
        channel = stack.enter_context(open_channel(gateway.wait_until_serving()))
        stub, flags = RecommendServiceStub(channel), dict([*stages, before])
        found = Servers([*servers, gateway], flags, logs, stub, requests, code=code)
        stack.callback(found.stop)  # those that were started again, too
        yield found


def time_spent(timings: Sequence[recommend_pb2.StageTimings]) -> str:
    """What the servers say of calls, at least one: milliseconds of each stage, medians."""

    def median(part: Callable[[recommend_pb2.StageTimings], float]) -> str:
        return f"{statistics.median(map(part, timings)):.1f} ms"

    return (
        f"retrieval {median(lambda one: one.retrieval_ms)}, of them in its server reading the user "
        f"{median(lambda one: one.retrieval.tokenize_ms)}, searching and merging "
        f"{median(lambda one: one.retrieval.compute_ms)}; ranking {median(lambda one: one.ranking_ms)}, of them in "
        f"its server waiting {median(lambda one: one.ranking.queue_ms)}, tokenizing "
        f"{median(lambda one: one.ranking.tokenize_ms)}, computing {median(lambda one: one.ranking.compute_ms)}; "
        f"all of Recommend {median(lambda one: one.total_ms)}"
    )


def as_entry(case: str, found: Answered, cores: float | None = None) -> Entry:
    """Times and outcomes of calls beside each other; `cores` is how many the servers kept busy."""
    figures = {name: found.percentile(q) for name, q in (("p99", 99), ("p99.9", 99.9))}
    figures["answered a second"] = len(found.milliseconds) / found.seconds
    figures["refused %"] = 100 * found.refused
    figures["shed %"] = 100 * found.shed
    if cores is not None:
        figures["cores busy"] = cores
    outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(found.outcomes.items()))
    ends = found.milliseconds or [float("inf")]
    return Entry(
        case=case,
        contender="AdCascade",
        milliseconds=Spread(found.percentile(50), min(ends), max(ends)),
        figures=figures,
        note=outcomes,
    )


def of_times(what: str, found: Answered, why: str) -> TargetResult:
    """Whether calls are answered as fast as they should be; `why` is said of those that are not."""
    p50, p99 = found.percentile(50), found.percentile(99)
    return TargetResult(
        what=what,
        target=f"p50 under {_P50_MS:g} ms, p99 under {P99_MS:g} ms",
        reached=f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        met=p50 < _P50_MS and p99 < P99_MS,
        why=why,
    )
