"""``adcascade bench gateway``: what the gateway adds to the calls that it makes.

Of each `Recommend` the gateway tells how long it took in all, and how long its calls of both stages took. What is left
are making requests, checking and reading answers, putting candidates in order, fetching the ads that are shown, and
making the reply. After each `Recommend` its ads are fetched once more by the same call to retrieval, which is timed
alone and taken off. gRPC's own work on the call that comes in is in what the caller sees, and in the processor time.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from adcascade.v1 import recommend_pb2, retrieval_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub
from benchmarks.speed.attack_base import address_of
from benchmarks.speed.hostile import channel_to
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.machine import Machine, describe
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from benchmarks.speed.stages import Servers, serving, serving_own, time_spent

_MOST_MS = 1.0
_CANDIDATES = 100


@dataclass(frozen=True)
class GatewayBenchSettings:
    """How many ads are searched, and how many calls are timed, one after the other."""

    ads: int = 20_000
    calls: int = 400
    seed: int = 0


@dataclass(frozen=True)
class _Call:
    """A `Recommend`: what the gateway tells of it, and milliseconds as its caller saw it and of its ads alone."""

    timings: recommend_pb2.StageTimings
    seen_ms: float
    fetching_ms: float

    @property
    def outside_ms(self) -> float:
        return self.timings.total_ms - self.timings.retrieval_ms - self.timings.ranking_ms


def bench_gateway(
    settings: GatewayBenchSettings,
    folder: Path,
    kept: Path,
    progress: Progress = lambda *_: None,
    own: tuple[Path, Path] | None = None,
) -> BenchResult:
    """Runs it; see `attack.bench_attack` for the arguments."""
    running = (
        serving(settings.ads, settings.seed, folder, kept) if own is None else serving_own(*own, settings.seed, folder)
    )
    with running as servers:
        servers.wait_until_idle()
        servers.warm_up(_CANDIDATES)
        machine = describe()
        progress(1, 2)
        cores = _cpu_ms(servers)
        with channel_to(address_of(servers, "retrieval")) as channel:
            calls = [_call(servers, RetrievalServiceStub(channel)) for _ in range(settings.calls)]
        cpu_ms = (_cpu_ms(servers) - cores) / settings.calls
        progress(2, 2)
    return _result(calls, cpu_ms, settings, machine)


def _cpu_ms(servers: Servers) -> float:
    """Processor time of the gateway since it began."""
    times = psutil.Process(servers.process("pipeline").process.pid).cpu_times()
    return 1000 * float(times.user + times.system)


def _call(servers: Servers, retrieval: RetrievalServiceStub) -> _Call:
    """One `Recommend`, and then its ads alone."""
    start = servers.asking(_CANDIDATES)
    started = time.perf_counter()
    reply = start().result()
    answered = time.perf_counter()
    request = retrieval_pb2.GetAdsRequest(ad_ids=[one.ad.ad_id for one in reply.recommendations])
    asked = time.perf_counter()
    retrieval.GetAds(request, timeout=5)
    return _Call(reply.timings, 1000 * (answered - started), 1000 * (time.perf_counter() - asked))


def _result(calls: Sequence[_Call], cpu_ms: float, settings: GatewayBenchSettings, machine: Machine) -> BenchResult:
    parts = {
        "all of Recommend, as its caller sees it": [one.seen_ms for one in calls],
        "all of Recommend": [one.timings.total_ms for one in calls],
        "outside the calls to both stages": [one.outside_ms for one in calls],
        "fetching the ads, timed alone": [one.fetching_ms for one in calls],
    }
    own = statistics.median(one.outside_ms - one.fetching_ms for one in calls)
    outside, fetching = (statistics.median(parts[name]) for name in list(parts)[2:])
    return BenchResult(
        bench="gateway",
        machine=machine,
        settings=asdict(settings),
        entries=[
            Entry(
                case=name,
                contender="AdCascade",
                milliseconds=Spread.of(found),
                figures={"processor ms a call": cpu_ms} if number == 0 else {},
            )
            for number, (name, found) in enumerate(parts.items())
        ],
        verdicts=[
            TargetResult(
                what="the gateway's own work for a Recommend, 10 of 100 candidates",
                target=f"at most {_MOST_MS:g} ms outside the calls that it makes",
                reached=f"{own:.2f} ms (medians: {outside:.2f} outside both stages, {fetching:.2f} for fetching the "
                f"ads alone); {cpu_ms:.2f} ms of processor time in all",
                met=own <= _MOST_MS,
            )
        ],
        remarks=[time_spent([one.timings for one in calls])],
    )
