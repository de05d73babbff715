"""``adcascade bench load`` and ``bench soak``: both stages under calls that do not wait for each other.

Three real server processes answer `Recommend` over an index of made-up ads, with a ranker trained on MovieLens. Users
have pasts of different lengths, and come for a visit of several calls; so of ten calls one is of a user, and mostly of
ads, that the servers have not met. `load` asks one call at a time, then raises the rate until calls are shed, notes
where the 99th percentile passed a bound, doubles the last rate that was carried, and goes back; `soak` stays at one
rate and watches memory.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.speed.arrivals import DEGRADED, OK, Answered, Start, arrive, one_by_one
from benchmarks.speed.catalog import made_index
from benchmarks.speed.contest import Progress, Spread
from benchmarks.speed.machine import describe
from benchmarks.speed.memory import resident_mib
from benchmarks.speed.models import kept_ranker, movielens_files
from benchmarks.speed.results import BenchResult, Entry, Line, Plot, Verdict
from benchmarks.speed.texts import real_ads
from benchmarks.speed.vectors import made_vectors
from index_builder.encoder import load_bulk_encoder
from pipeline.processes import ServerProcess, running
from protos import recommend_pb2
from protos.convert import user_to_wire
from protos.recommend_pb2_grpc import RecommendServiceStub
from records.users import Event, EventType, UserProfile
from serving.channel import open_channel

_K, _USERS = 10, 2000
# So many users are there at a time, and each leaves after so many calls.
_PRESENT, _VISIT = 20, 10
_HISTORIES = (3, 10, 30, 60)
_RATE, _P50, _P99 = 10.0, 50.0, 150.0
_SHED = 0.01
_CANDIDATES = (1, 10, 100, 500)
_ALONE = 200
_TIMEOUT_SECONDS = 5.0
# Servers read ahead what fits; less than this of a core, for so long, is nothing.
_IDLE_CORES, _IDLE_SECONDS, _IDLE_WITHIN_SECONDS = 0.05, 2.0, 600.0
# In which everybody who is there calls twice, untimed: a change of what is asked is not what is measured.
_WARM_UP_CALLS = 2 * _PRESENT
_STEP = 1.5
_HIGHEST_RATE = 2000.0
_FLAT = 1.05
_WINDOWS = 60


@dataclass(frozen=True)
class LoadSettings:
    """How the benchmark is run.

    Attributes:
        ads: in the index.
        seconds: at each rate.
    """

    ads: int = 1_000_000
    seconds: float = 40.0
    seed: int = 0


@dataclass(frozen=True)
class SoakSettings:
    """How the benchmark is run: `rate` calls a second for `minutes`."""

    ads: int = 1_000_000
    rate: float = _RATE
    minutes: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Servers:
    """Three servers, and what they are asked.

    Attributes:
        requests: one of each user.
        calls: counts on from one measurement to the next, so that none meets the users of the one before.
    """

    processes: Sequence[ServerProcess]
    recommend: RecommendServiceStub
    requests: Sequence[recommend_pb2.RecommendRequest]
    calls: "count[int]" = field(default_factory=count)

    def asking(self, candidates: int) -> Start:
        """Calls for `_K` of so many candidates, by the users who are there, in turns."""

        def start() -> Any:
            request = recommend_pb2.RecommendRequest()
            request.CopyFrom(self.requests[user_of_call(next(self.calls)) % len(self.requests)])
            request.k, request.candidates = min(_K, candidates), candidates
            return self.recommend.Recommend.future(request, timeout=_TIMEOUT_SECONDS)

        return start

    def mib(self) -> dict[str, float]:
        """Memory of each server."""
        return {one.name: resident_mib(psutil.Process(one.process.pid)) for one in self.processes}

    def wait_until_idle(self) -> None:
        """Raises TimeoutError if they go on working without being asked."""
        end = time.monotonic() + _IDLE_WITHIN_SECONDS
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(_IDLE_SECONDS)
            if self.cpu_seconds() - before < _IDLE_CORES * _IDLE_SECONDS:
                return
        raise TimeoutError(f"the servers are busy, though nobody asks them, for {_IDLE_WITHIN_SECONDS:g} seconds")

    def cpu_seconds(self) -> float:
        """Of all servers since they began."""
        times = [psutil.Process(one.process.pid).cpu_times() for one in self.processes]
        return float(sum(one.user + one.system for one in times))


def bench_load(settings: LoadSettings, folder: Path, kept: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Finds the rate that the servers carry, and the one at which they are still fast, and what they do beyond.

    Args:
        folder: For what is made on the way.
        kept: For vectors, index and ranker, which are used again by the next run.

    Raises:
        InputError: MovieLens-100k, whose texts are read, is not installed.
        StartupError: A server does not start.
        TimeoutError: The servers never come to rest.
    """
    with _serving(settings.ads, settings.seed, folder, kept) as servers:
        return load_of(servers, settings, progress)


def load_of(servers: Servers, settings: LoadSettings, progress: Progress = lambda *_: None) -> BenchResult:
    """The same of servers that run already."""
    servers.wait_until_idle()
    machine = describe()
    one_by_one(servers.asking(100), _WARM_UP_CALLS)
    alone = one_by_one(servers.asking(100), _ALONE)
    entries = [_entry(f"one call at a time, {_K} of 100", alone)]
    steady = {}
    for candidates in _CANDIDATES:
        steady[candidates] = _measured(servers, candidates, _RATE, settings)
        entries.append(_entry(f"{_RATE:g} calls a second, {min(_K, candidates)} of {candidates}", *steady[candidates]))
        progress(len(entries), 0)
    ladder = [steady[100]]
    while _is_carried(ladder[-1][0]) and ladder[-1][0].rate < _HIGHEST_RATE:
        ladder.append(_measured(servers, 100, _STEP * ladder[-1][0].rate, settings))
        progress(len(entries) + len(ladder), 0)
    carried = max((found.rate for found, _ in ladder if _is_carried(found)), default=_RATE)
    beyond, beyond_cores = _measured(servers, 100, 2 * carried, settings)
    after, after_cores = _measured(servers, 100, _RATE, settings)
    entries += [_entry(f"{found.rate:.0f} calls a second", found, cores) for found, cores in ladder[1:]]
    entries.append(_entry(f"overload: {beyond.rate:.0f} calls a second", beyond, beyond_cores))
    entries.append(_entry(f"after it: {after.rate:.0f} calls a second", after, after_cores))
    fast = next((found.rate for found, _ in reversed(ladder) if _is_fast(found)), 0.0)
    return BenchResult(
        bench="load",
        machine=machine,
        settings=asdict(settings),
        entries=entries,
        verdicts=[_of_ten_calls(ladder[0][0], alone), *_of_more_calls(fast, carried, beyond, after)],
        plots=[_curve([found for found, _ in ladder])],
    )


def bench_soak(settings: SoakSettings, folder: Path, kept: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Watches memory and times at one rate; see `bench_load` for the arguments and errors."""
    with _serving(settings.ads, settings.seed, folder, kept) as servers:
        return soak_of(servers, settings, progress)


def soak_of(servers: Servers, settings: SoakSettings, progress: Progress = lambda *_: None) -> BenchResult:
    """The same of servers that run already."""
    servers.wait_until_idle()
    machine = describe()
    one_by_one(servers.asking(100), _WARM_UP_CALLS)
    memory: list[dict[str, float]] = []
    windows: list[Answered] = []
    seconds = 60 * settings.minutes / _WINDOWS
    for number in range(_WINDOWS):
        windows.append(arrive(servers.asking(100), settings.rate, seconds, seed=number))
        memory.append(servers.mib())
        progress(number + 1, _WINDOWS)
    minutes = [settings.minutes * (number + 1) / _WINDOWS for number in range(_WINDOWS)]
    lines = [Line(name=name, x=minutes, y=[one[name] for one in memory]) for name in memory[0]]
    whole = Answered(
        settings.rate,
        sum(one.seconds for one in windows),
        [took for one in windows for took in one.milliseconds],
        {name: sum(one.outcomes.get(name, 0) for one in windows) for one in windows for name in one.outcomes},
    )
    times = [
        Line(name=name, x=minutes, y=[one.percentile(q) for one in windows]) for name, q in (("p50", 50), ("p99", 99))
    ]
    return BenchResult(
        bench="soak",
        machine=machine,
        settings=asdict(settings),
        entries=[_entry(f"{settings.rate:g} calls a second for {settings.minutes:g} minutes", whole)],
        verdicts=[_flat(memory), _nothing_refused(whole)],
        plots=[
            Plot(x_label="minutes", y_label="MiB of each server", lines=lines),
            Plot(x_label="minutes", y_label="milliseconds", lines=times),
        ],
    )


def user_of_call(number: int) -> int:
    """Who makes a call: the users who are there take turns, and each time some of them make place for new ones."""
    turn, place = divmod(number, _PRESENT)
    return (turn + place % _VISIT) // _VISIT * _PRESENT + place


@contextmanager
def _serving(ads: int, seed: int, folder: Path, kept: Path) -> Iterator[Servers]:
    files = movielens_files(folder)
    sources, encoder = real_ads(files.ads), load_bulk_encoder()
    vectors = made_vectors(kept, sources, ads, encoder, seed)
    root, loaded = made_index(kept, sources, vectors, encoder, seed)
    model, _ = kept_ranker(kept, files, seed=seed)
    users = made_users(loaded.catalog.ids, [ad.category for ad in sources], seed)
    del vectors, loaded
    with serving_at(root, model, users, folder / "logs") as servers:
        yield servers


@contextmanager
def serving_at(index: Path, model: Path, users: Sequence[UserProfile], logs: Path) -> Iterator[Servers]:
    """Three servers of an index and a model, asked by these users."""
    requests = [recommend_pb2.RecommendRequest(user=user_to_wire(user)) for user in users]
    stages = [("retrieval", ["--index", str(index)]), ("ranking", ["--model", str(model), "--index", str(index)])]
    with ExitStack() as stack:
        servers = stack.enter_context(running(stages, logs))
        retrieval, ranking = (one.wait_until_serving() for one in servers)
        flags = ["--retrieval", retrieval, "--ranking", ranking]
        (gateway,) = stack.enter_context(running([("pipeline", flags)], logs))
        channel = stack.enter_context(open_channel(gateway.wait_until_serving()))
        yield Servers([*servers, gateway], RecommendServiceStub(channel), requests)


def made_users(ad_ids: Sequence[str], interests: Sequence[str], seed: int = 0) -> list[UserProfile]:
    """With pasts of different lengths, of ads that they clicked; half of them say what they like, too.

    An ad is clicked in inverse proportion to its rank (Zipf's law): of a million, half the clicks go to a thousand.
    """
    random = np.random.default_rng(seed)
    return [
        UserProfile(
            user_id=f"user-{number}",
            interests=str(random.choice(interests)) if random.random() < 0.5 else "",
            attributes={"age": "33", "occupation": "writer"},
            history=tuple(
                Event(EventType.CLICK, ad_ids[int(len(ad_ids) ** share) - 1])
                for share in random.random(_HISTORIES[number % len(_HISTORIES)])
            ),
        )
        for number in range(_USERS)
    ]


def _measured(servers: Servers, candidates: int, rate: float, settings: LoadSettings) -> tuple[Answered, float]:
    """What became of the calls, and how many cores the servers kept busy."""
    one_by_one(servers.asking(candidates), _WARM_UP_CALLS)
    before = servers.cpu_seconds()
    found = arrive(servers.asking(candidates), rate, settings.seconds, settings.seed)
    return found, (servers.cpu_seconds() - before) / found.seconds


def _is_carried(found: Answered) -> bool:
    return found.shed <= _SHED


def _is_fast(found: Answered) -> bool:
    return _is_carried(found) and found.percentile(99) <= _P99


def _entry(case: str, found: Answered, cores: float | None = None) -> Entry:
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


def _of_ten_calls(found: Answered, alone: Answered) -> Verdict:
    p50, p99 = found.percentile(50), found.percentile(99)
    return Verdict(
        what=f"Recommend, {_K} of 100 candidates, {_RATE:g} calls a second",
        target=f"p50 under {_P50:g} ms, p99 under {_P99:g} ms",
        reached=f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        met=p50 < _P50 and p99 < _P99,
        why=f"one call at a time takes p50 {alone.percentile(50):.0f} ms, p99 {alone.percentile(99):.0f} ms: those of "
        "new users, whose candidates are mostly new to the ranker; the rest is calls that wait for such a one",
    )


def _of_more_calls(fast: float, carried: float, beyond: Answered, after: Answered) -> list[Verdict]:
    return [
        Verdict(
            what=f"highest rate with a p99 of at most {_P99:g} ms",
            target=f"at least {_RATE:g} calls a second",
            reached=f"{fast:.0f} calls a second (without shedding more than {_SHED:.0%}: {carried:.0f})",
            met=fast >= _RATE,
            why="see the line above",
        ),
        Verdict(
            what=f"at twice the rate that is carried ({beyond.rate:.0f} calls a second)",
            target="sheds, and answers what it accepts",
            reached=f"{beyond.refused:.0%} refused, {beyond.shed - beyond.refused:.0%} answered without ranking, "
            f"p99 {beyond.percentile(99):.0f} ms of {len(beyond.milliseconds):,} answers",
            met=beyond.shed > _SHED
            and beyond.refused < 1
            and beyond.outcomes.keys() <= {OK, DEGRADED, "RESOURCE_EXHAUSTED"},
            why=", ".join(f"{count:,} {name}" for name, count in sorted(beyond.outcomes.items())),
        ),
        Verdict(
            what="right after it",
            target=f"p99 under {_P99:g} ms again",
            reached=f"p99 {after.percentile(99):.0f} ms",
            met=after.percentile(99) < _P99 and not after.shed,
            why="see the first line",
        ),
    ]


def _curve(ladder: Sequence[Answered]) -> Plot:
    rates = [found.rate for found in ladder]
    lines = [Line(name=f"p{q:g}", x=rates, y=[found.percentile(q) for found in ladder]) for q in (50.0, 99.0, 99.9)]
    return Plot(x_label="calls a second", y_label="milliseconds", lines=lines, logarithmic=True)


def _flat(memory: Sequence[dict[str, float]]) -> Verdict:
    """Whether no server grew from the second fifth of the time to the last."""
    fifth = len(memory) // 5

    def mean(name: str, part: slice) -> float:
        return float(np.mean([one[name] for one in memory[part]]))

    growth = {name: mean(name, slice(-fifth, None)) / mean(name, slice(fifth, 2 * fifth)) for name in memory[0]}
    return Verdict(
        what="memory of each server, last fifth of the time over the second",
        target=f"at most {_FLAT:.2f}",
        reached=", ".join(f"{name} {times:.3f}" for name, times in growth.items()),
        met=max(growth.values()) <= _FLAT,
    )


def _nothing_refused(found: Answered) -> Verdict:
    return Verdict(
        what="calls without an answer", target="none", reached=f"{found.refused:.2%}", met=found.refused == 0
    )
