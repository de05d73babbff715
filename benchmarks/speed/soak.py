"""``adcascade bench soak``: both stages at one rate for minutes on end. Does memory grow?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from adcascade.v1 import recommend_pb2
from benchmarks.speed.interleaved_timing import Progress
from benchmarks.speed.machine import describe
from benchmarks.speed.open_loop import Answered, Start, arrive
from benchmarks.speed.results import BenchResult, Line, Plot, TargetResult
from benchmarks.speed.stages import K, Servers, as_entry, of_times, serving, time_spent

_CANDIDATES = 100
_WINDOWS = 60
_FLAT = 1.05


@dataclass(frozen=True)
class SoakSettings:
    """How the benchmark is run: `rate` calls a second for `minutes`."""

    ads: int = 1_000_000
    rate: float = 10.0
    minutes: float = 10.0
    seed: int = 0


def bench_soak(settings: SoakSettings, folder: Path, kept: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Watches memory and times at one rate; see `stages.serving` for `folder`, `kept` and what is raised."""
    with serving(settings.ads, settings.seed, folder, kept) as servers:
        return soak_of(servers, settings, progress)


def soak_of(servers: Servers, settings: SoakSettings, progress: Progress = lambda *_: None) -> BenchResult:
    """The same of servers that run already. Raises StartupError if they never come to rest."""
    servers.wait_until_idle()
    machine = describe()
    servers.warm_up(_CANDIDATES)
    memory: list[dict[str, float]] = []
    windows: list[Answered] = []
    timings: list[recommend_pb2.StageTimings] = []
    start = _noting(servers.asking(_CANDIDATES), timings)
    seconds = 60 * settings.minutes / _WINDOWS
    for number in range(_WINDOWS):
        windows.append(arrive(start, settings.rate, seconds, seed=number))
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
        entries=[as_entry(f"{settings.rate:g} calls a second for {settings.minutes:g} minutes", whole)],
        verdicts=[_flat(memory), _nothing_refused(whole), _of_all_calls(settings, whole, windows)],
        remarks=[_of_the_slowest(timings)] if timings else [],
        plots=[
            Plot(x_label="minutes", y_label="MiB of each server, without mapped files", lines=lines),
            Plot(x_label="minutes", y_label="milliseconds", lines=times),
        ],
    )


def _noting(start: Start, timings: list[recommend_pb2.StageTimings]) -> Start:
    """The same calls; of those that are answered, the servers' own times are added to `timings`."""

    def end(future: Any) -> None:
        if future.code() is grpc.StatusCode.OK:
            timings.append(future.result().timings)

    def noted() -> Any:
        future = start()
        future.add_done_callback(end)
        return future

    return noted


def _of_the_slowest(timings: Sequence[recommend_pb2.StageTimings]) -> str:
    slowest = sorted(timings, key=lambda one: one.total_ms)[-max(1, len(timings) // 100) :]
    return f"the slowest hundredth of the calls, medians: {time_spent(slowest)}"


def _flat(memory: Sequence[dict[str, float]]) -> TargetResult:
    """Whether no server grew from the second fifth of the time to the last."""
    fifth = len(memory) // 5

    def mean(name: str, part: slice) -> float:
        return float(np.mean([one[name] for one in memory[part]]))

    growth = {name: mean(name, slice(-fifth, None)) / mean(name, slice(fifth, 2 * fifth)) for name in memory[0]}
    return TargetResult(
        what="memory of each server without mapped files, last fifth of the time over the second",
        target=f"at most {_FLAT:.2f}",
        reached=", ".join(f"{name} {times:.3f}" for name, times in growth.items()),
        met=max(growth.values()) <= _FLAT,
    )


def _nothing_refused(found: Answered) -> TargetResult:
    return TargetResult(
        what="calls without an answer", target="none", reached=f"{found.refused:.2%}", met=found.refused == 0
    )


def _of_all_calls(settings: SoakSettings, whole: Answered, windows: Sequence[Answered]) -> TargetResult:
    tails = [one.percentile(99) for one in windows]
    what = f"Recommend, {K} of {_CANDIDATES}, {settings.rate:g} calls a second for {settings.minutes:g} minutes"
    why = (
        f"p99 of the {len(tails)} stretches of which this is made has a median of {np.median(tails):.0f} ms and a "
        f"maximum of {max(tails):.0f} ms: some calls stall"
    )
    return of_times(what, whole, why)
