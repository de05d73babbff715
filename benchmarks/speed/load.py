"""``adcascade bench load``: both stages under calls that do not wait for each other.

Asks one call at a time, then raises the rate until calls are shed, notes where the 99th percentile passed a bound,
doubles the last rate that was carried, and goes back.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.speed.against import OURS, Compared, compare, serving_commit
from benchmarks.speed.interleaved_timing import Progress
from benchmarks.speed.machine import describe
from benchmarks.speed.open_loop import DEGRADED, OK, Answered, arrive, one_by_one
from benchmarks.speed.results import BenchResult, Line, Plot, TargetResult
from benchmarks.speed.stages import P99_MS, K, Servers, as_entry, cache_flags, made_versions, of_times, serving_at

_CANDIDATES = (1, 10, 100, 500)
_JUDGED = 100
_ALONE = 200
_RATE = 10.0
_FAST_RATE, _CARRIED_RATE = 30.0, 70.0
_SHED, _RECOVERED = 0.01, 1.25
_STEP = 1.5
_HIGHEST_RATE = 2000.0
# Rates at which another commit is asked, too: from `_RATE` to 17 times as much.
_STEPS_IN_TURNS = 8


@dataclass(frozen=True)
class LoadSettings:
    """How the benchmark is run.

    Attributes:
        ads: in the index.
        seconds: at each rate.
        against: a commit whose servers are asked the same in turns; "" for none.
    """

    ads: int = 1_000_000
    seconds: float = 40.0
    seed: int = 0
    against: str = ""


def bench_load(settings: LoadSettings, folder: Path, kept: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Finds the rate that the servers carry, and the one at which they are still fast, and what they do beyond.

    See `stages.serving` for `folder`, `kept` and what is raised, and `against.serving_commit` for another commit.
    """
    made = made_versions(settings.ads, settings.seed, folder, kept)
    flags = cache_flags(settings.ads)
    with ExitStack() as stack:
        servers = stack.enter_context(serving_at(made.index, made.model, made.users, folder / "logs", flags))
        compared = None
        if settings.against:  # first, while neither side has been asked anything
            others = stack.enter_context(serving_commit(settings.against, made, settings.ads, folder))
            compared = _in_turns(servers, others, settings)
            others.stop()
        found = load_of(servers, settings, progress)
        return found if compared is None else _with(found, compared, settings)


def load_of(servers: Servers, settings: LoadSettings, progress: Progress = lambda *_: None) -> BenchResult:
    """The same of servers that run already. Raises StartupError if they never come to rest."""
    servers.wait_until_idle()
    machine = describe()
    servers.warm_up(_JUDGED)
    alone = one_by_one(servers.asking(_JUDGED), _ALONE)
    explained = servers.where_time_goes(_JUDGED, _ALONE)
    entries = [as_entry(f"one call at a time, {K} of {_JUDGED}", alone)]
    steady = {}
    for candidates in _CANDIDATES:
        steady[candidates] = _measured(servers, candidates, _RATE, settings)
        entries.append(as_entry(f"{_RATE:g} calls a second, {min(K, candidates)} of {candidates}", *steady[candidates]))
        progress(len(entries), 0)
    ladder = [_measured(servers, _JUDGED, _RATE / 2, settings), steady[_JUDGED]]
    while _is_carried(ladder[-1][0]) and ladder[-1][0].rate < _HIGHEST_RATE:
        ladder.append(_measured(servers, _JUDGED, _STEP * ladder[-1][0].rate, settings))
        progress(len(entries) + len(ladder), 0)
    carried = max((found.rate for found, _ in ladder if _is_carried(found)), default=0.0)
    beyond, beyond_cores = _measured(servers, _JUDGED, 2 * (carried or _RATE), settings)
    after, after_cores = _measured(servers, _JUDGED, _RATE, settings)
    climbed = [*ladder[:1], *ladder[2:]]  # what is between them has its entry
    entries += [as_entry(f"{found.rate:.0f} calls a second", found, cores) for found, cores in climbed]
    entries.append(as_entry(f"overload: {beyond.rate:.0f} calls a second", beyond, beyond_cores))
    entries.append(as_entry(f"after it: {after.rate:.0f} calls a second", after, after_cores))
    before = steady[_JUDGED][0]
    fast = next((found.rate for found, _ in reversed(ladder) if _is_fast(found)), 0.0)
    return BenchResult(
        bench="load",
        machine=machine,
        settings=asdict(settings),
        entries=entries,
        verdicts=[
            _of_steady_calls(before, alone),
            *_of_rates(fast, carried),
            _of_overload(beyond),
            _of_recovery(before, after),
        ],
        remarks=[f"one call at a time, {K} of {_JUDGED}, medians: {explained}"],
        plots=[_curve([found for found, _ in ladder])],
    )


def _measured(servers: Servers, candidates: int, rate: float, settings: LoadSettings) -> tuple[Answered, float]:
    """What became of the calls, and how many cores the servers kept busy."""
    servers.warm_up(candidates)
    before = servers.cpu_seconds()
    found = arrive(servers.asking(candidates), rate, settings.seconds, settings.seed)
    return found, (servers.cpu_seconds() - before) / found.seconds


def _is_carried(found: Answered) -> bool:
    return found.shed <= _SHED


def _is_fast(found: Answered) -> bool:
    return _is_carried(found) and found.percentile(99) <= P99_MS


def _of_steady_calls(found: Answered, alone: Answered) -> TargetResult:
    why = (
        f"one call at a time takes p50 {alone.percentile(50):.0f} ms, p99 {alone.percentile(99):.0f} ms: those of new "
        "users, whose candidates are mostly new to the ranker; the rest is calls that wait for such a one"
    )
    return of_times(f"Recommend, {K} of {_JUDGED} candidates, {_RATE:g} calls a second", found, why)


def _of_rates(fast: float, carried: float) -> list[TargetResult]:
    return [
        TargetResult(
            what=what,
            target=f"at least {target:g} calls a second",
            reached=f"{rate:.0f} calls a second",
            met=rate >= target,
            why="the plot and the file of this run have the rates beyond",
        )
        for what, rate, target in (
            (f"highest rate with a p99 of at most {P99_MS:g} ms", fast, _FAST_RATE),
            (f"highest rate of which at most {_SHED:.0%} is shed", carried, _CARRIED_RATE),
        )
    ]


def _in_turns(servers: Servers, others: Servers, settings: LoadSettings) -> Compared:
    """What our servers and those of another commit did in turns."""
    rates = [_RATE * _STEP**step for step in range(_STEPS_IN_TURNS)]

    def ask(side: Servers, rate: float) -> tuple[Answered, float]:
        return _measured(side, _JUDGED, rate, settings)

    for side in (servers, others):
        side.wait_until_idle()
    return compare({OURS: servers, _theirs(settings): others}, _JUDGED, rates, ask, _is_carried)


def _theirs(settings: LoadSettings) -> str:
    return f"commit {settings.against}"


def _with(found: BenchResult, compared: Compared, settings: LoadSettings) -> BenchResult:
    """The result with what was found of both sides in turns."""
    theirs = _theirs(settings)
    said = {
        side: f"{statistics.median(compared.totals(side)):.1f} ms of processor time a call, a p99 of at most "
        f"{P99_MS:g} ms up to {_highest(steps, _is_fast):.0f} calls a second, at most {_SHED:.0%} shed up to "
        f"{_highest(steps, _is_carried):.0f}"
        for side, steps in compared.ladder.items()
    }
    remark = (
        f"in turns with {theirs}: {compared.ratio:.2f} of its processor time a call "
        f"(here {said[OURS]}; there {said[theirs]})"
    )
    return found.model_copy(
        update={"entries": [*found.entries, *compared.entries()], "remarks": [*found.remarks, remark]}
    )


def _highest(steps: Sequence[tuple[Answered, float]], is_good: Callable[[Answered], bool]) -> float:
    """The highest rate that was good; 0 if none was."""
    return max((found.rate for found, _ in steps if is_good(found)), default=0.0)


def _of_overload(found: Answered) -> TargetResult:
    return TargetResult(
        what=f"at twice the rate that is carried ({found.rate:.0f} calls a second)",
        target="sheds, and answers what it accepts",
        reached=f"{found.refused:.0%} refused, {found.shed - found.refused:.0%} answered without ranking, "
        f"p99 {found.percentile(99):.0f} ms of {len(found.milliseconds):,} answers",
        met=found.shed > _SHED and found.refused < 1 and found.outcomes.keys() <= {OK, DEGRADED, "RESOURCE_EXHAUSTED"},
        why=", ".join(f"{count:,} {name}" for name, count in sorted(found.outcomes.items())),
    )


def _of_recovery(before: Answered, after: Answered) -> TargetResult:
    p99, usual = after.percentile(99), before.percentile(99)
    return TargetResult(
        what="right after it",
        target=f"sheds nothing, p99 at most {_RECOVERED:g} times that before",
        reached=f"{after.shed:.0%} shed, p99 {p99:.0f} ms, before {usual:.0f} ms",
        met=not after.shed and p99 <= _RECOVERED * usual,
    )


def _curve(ladder: Sequence[Answered]) -> Plot:
    rates = [found.rate for found in ladder]
    lines = [Line(name=f"p{q:g}", x=rates, y=[found.percentile(q) for found in ladder]) for q in (50.0, 99.0, 99.9)]
    return Plot(x_label="calls a second", y_label="milliseconds", lines=lines, logarithmic=True)
