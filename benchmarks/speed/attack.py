"""``adcascade bench attack``: what hostile clients, and servers that fail, cost the others.

Each part attacks in one way, and says what it measured as entries and verdicts; `PARTS` names them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import grpc
import numpy as np
import psutil

from adcascade.records.errors import InputError
from benchmarks.speed.attack_base import (
    P99_TIMES,
    SERVER_OF,
    TIMEOUT_SECONDS,
    AttackSettings,
    Part,
    address_of,
    normal_calls,
)
from benchmarks.speed.hostile import COSTLY, channel_to, floods, method_of
from benchmarks.speed.idle import idle_streams
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.machine import describe
from benchmarks.speed.memory import own_mib
from benchmarks.speed.open_loop import Answered, Start, arrive, one_by_one
from benchmarks.speed.outages import dead_servers, stopped_ranking
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from benchmarks.speed.stages import Servers, as_entry, published, serving, serving_own

_WARM_UP, _AFTER_DEADLINES = 20, 10
_LATE_MS, _DEADLINE_SECONDS = 100.0, 0.3
# What a process may still grow by once its caches are full: what allocators keep, in MiB.
_FULL_GROWTH_MIB = 32.0


def bench_attack(
    settings: AttackSettings,
    folder: Path,
    kept: Path,
    progress: Progress = lambda *_: None,
    own: tuple[Path, Path] | None = None,
) -> BenchResult:
    """Attacks three servers in every way that is asked for.

    Args:
        own: Roots of an index and of a model to serve instead of made-up ones; see `stages.serving_own`.

    See `stages.serving` for `folder`, `kept` and what else is raised. Raises InputError for a part that there is not.
    """
    _check_parts(settings.parts)
    if own is not None:
        settings = replace(settings, ads=published(own[0]).manifest.ad_count)
        running = serving_own(*own, settings.seed, folder)
    else:
        running = serving(settings.ads, settings.seed, folder, kept)
    with running as servers:
        return attack_of(servers, settings, progress)


def attack_of(servers: Servers, settings: AttackSettings, progress: Progress = lambda *_: None) -> BenchResult:
    """The same of servers that run already. Raises StartupError if they never come to rest."""
    _check_parts(settings.parts)
    servers.wait_until_idle()
    machine = describe()
    parts = []
    names = settings.parts or tuple(PARTS)
    for name in names:
        parts.append(PARTS[name](servers, settings))
        progress(len(parts), len(names))
    return BenchResult(
        bench="attack",
        machine=machine,
        settings=asdict(settings) | {"parts": ", ".join(names)},
        entries=[entry for part in parts for entry in part.entries],
        verdicts=[verdict for part in parts for verdict in part.verdicts],
    )


def _check_parts(names: Sequence[str]) -> None:
    for name in names:
        if name not in PARTS:
            raise InputError(f"there is no attack {name!r}; choose of {', '.join(PARTS)}")


@contextmanager
def attacked(method: str, address: str, calls_at_once: int) -> Iterator[None]:
    """The costliest calls of a method, from a process of their own, until the block ends.

    It gives way to the servers, whose processors an attacker on another machine would not take.
    """
    command = [sys.executable, "-m", "benchmarks.speed.hostile", method, address, str(calls_at_once)]
    attacker = subprocess.Popen(["nice", "-n", "19", *command], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert attacker.stdin is not None
    try:
        time.sleep(2)  # so that its calls are under way
        if attacker.poll() is not None:
            raise RuntimeError(f"the attacker ended with exit code {attacker.returncode}")
        yield
    finally:
        attacker.stdin.close()
        attacker.wait()


def heaviest_calls(servers: Servers, settings: AttackSettings) -> Part:
    """One client sends the costliest calls; another one sends normal ones, and waits how much longer?"""
    entries, verdicts = [], []
    for method in COSTLY:
        address = address_of(servers, SERVER_OF[method])
        with channel_to(address) as channel:
            start = normal_calls(servers, method, channel)
            one_by_one(start, _WARM_UP)
            alone = arrive(start, settings.rate, settings.seconds, settings.seed)
            with attacked(method, address, settings.calls_at_once):
                beside = arrive(start, settings.rate, settings.seconds, settings.seed)
            entries += [
                as_entry(f"normal {method}, {settings.rate:g} a second", alone),
                as_entry(f"the same while another client sends the heaviest {method}", beside),
            ]
            verdicts.append(_of_neighbour(method, alone, beside))
            verdicts.append(_of_deadlines(method, channel, start))
    return Part(entries, verdicts)


def _of_neighbour(method: str, alone: Answered, beside: Answered) -> TargetResult:
    before, after = alone.percentile(99), beside.percentile(99)
    return TargetResult(
        what=f"p99 of another client's normal {method} while one sends the heaviest",
        target=f"at most {P99_TIMES:g} times that without it, none refused",
        reached=f"{after / before:.1f} times ({after:.0f} ms, {before:.0f} ms without), {beside.refused:.0%} refused",
        met=after <= P99_TIMES * before and not beside.refused,
    )


def _of_deadlines(method: str, channel: grpc.Channel, start: Start) -> TargetResult:
    """Of heavy calls whose deadline passed: how much longer the next call takes than without one."""
    usual = one_by_one(start, _AFTER_DEADLINES)
    taken: list[float] = []
    for number in range(_AFTER_DEADLINES):
        heavy = method_of(method, channel).future(
            COSTLY[method](f"late {os.getpid()} {number}"), timeout=_DEADLINE_SECONDS
        )
        heavy.exception()  # waits until it is late
        taken.append(one_by_one(start, 1).percentile(50))  # infinity if it got no answer
    more = np.array(taken) - np.median(usual.milliseconds)
    return TargetResult(
        what=f"a call right after a heavy {method} whose deadline of {_DEADLINE_SECONDS:g} s passed",
        target=f"takes at most {_LATE_MS:g} ms more",
        reached=f"{np.median(more):.0f} ms more (median of {len(more)}; the worst {more.max():.0f} ms)",
        met=bool(np.median(more) <= _LATE_MS),
    )


def cache_floods(servers: Servers, settings: AttackSettings) -> Part:
    """Values that nobody sent before, of every kind that a cache might be keyed by."""
    entries, verdicts = [], []
    for what, (server, request) in floods().items():
        process = psutil.Process(servers.process(server).process.pid)
        name = "Retrieve" if server == "retrieval" else "Rank"
        grown = [own_mib(process)]
        milliseconds: list[float] = []
        with channel_to(address_of(servers, server)) as channel:
            call = method_of(name, channel)
            for part in range(3):  # caches fill in the first, and are full in the last
                for number in range(part * settings.flood_calls // 3, (part + 1) * settings.flood_calls // 3):
                    started = time.perf_counter()
                    call(request(f"{os.getpid()} {number} "), timeout=TIMEOUT_SECONDS)
                    milliseconds.append(1000 * (time.perf_counter() - started))
                grown.append(own_mib(process))
        figures = {f"MiB after {share}": mib for share, mib in zip(("none", "1/3", "2/3", "all"), grown, strict=True)}
        entries.append(
            Entry(case=f"flood: {what}", contender="AdCascade", milliseconds=Spread.of(milliseconds), figures=figures)
        )
        verdicts.append(
            TargetResult(
                what=f"memory of {server} under {settings.flood_calls:,} distinct {what}",
                target=f"grows by at most {_FULL_GROWTH_MIB:g} MiB in the last third",
                reached=f"{grown[3] - grown[2]:+.0f} MiB (in all {grown[3] - grown[0]:+.0f} MiB)",
                met=grown[3] - grown[2] <= _FULL_GROWTH_MIB,
            )
        )
    return Part(entries, verdicts)


# What may be asked for by name; each takes the servers and the settings, and leaves the servers running.
PARTS: dict[str, Callable[[Servers, AttackSettings], Part]] = {
    "heaviest-calls": heaviest_calls,
    "cache-floods": cache_floods,
    "idle-streams": idle_streams,
    "stopped-ranking": stopped_ranking,
    "dead-ranking": dead_servers,
}
