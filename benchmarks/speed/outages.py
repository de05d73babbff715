"""Servers behind the gateway that stand still or are gone: what its callers notice, and how soon it asks again."""

import signal
import time
from collections import Counter
from collections.abc import Callable

import grpc

from benchmarks.speed.attack_base import TIMEOUT_SECONDS, AttackSettings, Part, address_of, normal_call, normal_calls
from benchmarks.speed.hostile import channel_to, method_of
from benchmarks.speed.interleaved_timing import Spread
from benchmarks.speed.open_loop import DEGRADED, OK, Answered, arrive, one_by_one
from benchmarks.speed.results import Entry, TargetResult
from benchmarks.speed.stages import Servers, as_entry

_WARM_UP = 20
# How soon a healthy server is used again, and how long it is waited for.
_BACK_SECONDS, _BACK_WITHIN_SECONDS = 2.0, 180.0
# What callers wait at most: half of them, and nearly all, who wait for ranking's own limit in the gateway.
_P50_MS, _P99_MS = 100.0, 1200.0
_AT_ONCE_MS = 1000.0
_LOOK_SECONDS = 0.02


def stopped_ranking(servers: Servers, settings: AttackSettings) -> Part:
    """Ranking stands still (SIGSTOP), and goes on: the gateway answers in the retrieval order meanwhile."""
    process = servers.process("ranking").process
    with channel_to(address_of(servers, "pipeline")) as channel:
        start = normal_calls(servers, "Recommend", channel)
        one_by_one(start, _WARM_UP)
        process.send_signal(signal.SIGSTOP)
        try:
            found = arrive(start, settings.outage_rate, settings.seconds, settings.seed)
        finally:
            process.send_signal(signal.SIGCONT)
        seconds = _seconds_until(OK, _outcome_of(servers, channel))
    case = f"ranking stopped: Recommend, {settings.outage_rate:g} a second"
    return Part(
        [as_entry(case, found)],
        [_of_callers(case, found), _of_return("ranking goes on: seconds until the first ranked answer", seconds)],
    )


def dead_servers(servers: Servers, settings: AttackSettings) -> Part:
    """Ranking is killed, and started again on its port after a while; then the same of retrieval."""
    with channel_to(address_of(servers, "pipeline")) as channel:
        parts = [_ranking_gone(servers, settings, channel), _retrieval_gone(servers, settings, channel)]
    return Part([one for part in parts for one in part.entries], [one for part in parts for one in part.verdicts])


def _ranking_gone(servers: Servers, settings: AttackSettings, channel: grpc.Channel) -> Part:
    start = normal_calls(servers, "Recommend", channel)
    one_by_one(start, _WARM_UP)
    servers.process("ranking").kill()
    found = arrive(start, settings.outage_rate, settings.outage_seconds, settings.seed)
    servers.start_again("ranking").wait_until_serving()
    seconds = _seconds_until(OK, _outcome_of(servers, channel))
    case = f"ranking gone for {settings.outage_seconds:g} s: Recommend, {settings.outage_rate:g} a second"
    what = f"ranking healthy again after {settings.outage_seconds:g} s: seconds until the first ranked answer"
    return Part([as_entry(case, found)], [_of_callers(case, found), _of_return(what, seconds)])


def _retrieval_gone(servers: Servers, settings: AttackSettings, channel: grpc.Channel) -> Part:
    outcome = _outcome_of(servers, channel)
    servers.process("retrieval").kill()
    milliseconds: list[float] = []
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + settings.outage_seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        outcomes[outcome()] += 1
        milliseconds.append(1000 * (time.perf_counter() - started))
        time.sleep(1 / settings.outage_rate)
    servers.start_again("retrieval").wait_until_serving()
    seconds = _seconds_until(OK, outcome)
    case = f"retrieval gone for {settings.outage_seconds:g} s: Recommend"
    note = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))
    waited = Spread.of(milliseconds)
    at_once = TargetResult(
        what=case,
        target=f"UNAVAILABLE at once: all within {_AT_ONCE_MS:g} ms",
        reached=f"{note}; median {waited.median:.0f} ms, slowest {waited.high:.0f} ms",
        met=set(outcomes) == {"UNAVAILABLE"} and waited.high <= _AT_ONCE_MS,
    )
    what = f"retrieval healthy again after {settings.outage_seconds:g} s: seconds until the first answer"
    entry = Entry(case=case, contender="AdCascade", milliseconds=waited, note=note)
    return Part([entry], [at_once, _of_return(what, seconds)])


def _outcome_of(servers: Servers, channel: grpc.Channel) -> Callable[[], str]:
    """Makes a call, and says how it ended: OK, DEGRADED, or the name of a gRPC status."""
    call, request = method_of("Recommend", channel), normal_call(servers, "Recommend", 0)

    def outcome() -> str:
        try:
            return DEGRADED if call(request, timeout=TIMEOUT_SECONDS).degraded_reason else OK
        except grpc.RpcError as error:
            return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"

    return outcome


def _seconds_until(wanted: str, outcome: Callable[[], str]) -> float:
    """Until a call ends as wanted; infinity if none does."""
    started = time.monotonic()
    while time.monotonic() < started + _BACK_WITHIN_SECONDS:
        if outcome() == wanted:
            return time.monotonic() - started
        time.sleep(_LOOK_SECONDS)
    return float("inf")


def _of_callers(what: str, found: Answered) -> TargetResult:
    p50, p99 = found.percentile(50), found.percentile(99)
    degraded = found.outcomes.get(DEGRADED, 0)
    return TargetResult(
        what=what,
        target=f"none refused, p50 at most {_P50_MS:g} ms, p99 at most {_P99_MS:,.0f} ms",
        reached=f"{found.refused:.0%} refused, {degraded:,} of {sum(found.outcomes.values()):,} in the retrieval "
        f"order, p50 {p50:.0f} ms, p99 {p99:,.0f} ms",
        met=not found.refused and p50 <= _P50_MS and p99 <= _P99_MS,
    )


def _of_return(what: str, seconds: float) -> TargetResult:
    return TargetResult(
        what=what, target=f"at most {_BACK_SECONDS:g} s", reached=f"{seconds:.2f} s", met=seconds <= _BACK_SECONDS
    )
