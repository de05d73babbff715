"""``adcascade bench gateway``: what the gateway adds to the calls that it makes.

Of each `Recommend` the gateway tells how long it took in all and how long both stages took, as it saw them. What is
left are reading and writing messages, checking answers, putting candidates in order, and fetching the ads that are
shown; the last is timed alone by the same call to retrieval, and taken off.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
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
        progress(1, 3)
        cores = _cpu_ms(servers)
        replies = [servers.asking(_CANDIDATES)().result() for _ in range(settings.calls)]
        cpu_ms = (_cpu_ms(servers) - cores) / settings.calls
        progress(2, 3)
        with channel_to(address_of(servers, "retrieval")) as channel:
            fetching = _fetching(channel, replies)
        progress(3, 3)
    return _result(replies, fetching, cpu_ms, settings, machine)


def _cpu_ms(servers: Servers) -> float:
    """Processor time of the gateway since it began."""
    times = psutil.Process(servers.process("pipeline").process.pid).cpu_times()
    return 1000 * float(times.user + times.system)


def _fetching(channel: grpc.Channel, replies: Sequence[recommend_pb2.RecommendResponse]) -> list[float]:
    """Milliseconds of fetching the ads of each answer, as the gateway does."""
    retrieval, found = RetrievalServiceStub(channel), []
    for reply in replies:
        request = retrieval_pb2.GetAdsRequest(ad_ids=[one.ad.ad_id for one in reply.recommendations])
        started = time.perf_counter()
        retrieval.GetAds(request, timeout=5)
        found.append(1000 * (time.perf_counter() - started))
    return found


def _result(
    replies: Sequence[recommend_pb2.RecommendResponse],
    fetching: Sequence[float],
    cpu_ms: float,
    settings: GatewayBenchSettings,
    machine: Machine,
) -> BenchResult:
    timings = [reply.timings for reply in replies]
    outside = [one.total_ms - one.retrieval_ms - one.ranking_ms for one in timings]
    own = statistics.median(outside) - statistics.median(fetching)
    parts = {
        "all of Recommend": [one.total_ms for one in timings],
        "outside the calls to both stages": outside,
        "fetching the ads, timed alone": list(fetching),
    }
    return BenchResult(
        bench="gateway",
        machine=machine,
        settings=asdict(settings),
        entries=[
            Entry(
                case=name,
                contender="AdCascade",
                milliseconds=Spread(statistics.median(found), min(found), max(found)),
                figures={"processor ms a call": cpu_ms} if number == 0 else {},
            )
            for number, (name, found) in enumerate(parts.items())
        ],
        verdicts=[
            TargetResult(
                what="the gateway's own work for a Recommend, 10 of 100 candidates",
                target=f"at most {_MOST_MS:g} ms outside the calls that it makes",
                reached=f"{own:.2f} ms (medians: {statistics.median(outside):.2f} outside both stages, of them "
                f"{statistics.median(fetching):.2f} fetching the ads); {cpu_ms:.2f} ms of processor time in all",
                met=own <= _MOST_MS,
            )
        ],
        remarks=[time_spent(timings)],
    )
