"""Clients that open calls and connections and send nothing: what others notice of them, and whether health does."""

import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.speed.attack_base import (
    P99_TIMES,
    TIMEOUT_SECONDS,
    AttackSettings,
    Part,
    address_of,
    normal_calls,
)
from benchmarks.speed.hostile import channel_to
from benchmarks.speed.open_loop import OK, Answered, Start, arrive, one_by_one
from benchmarks.speed.results import Entry, TargetResult
from benchmarks.speed.stages import Servers, as_entry

_METHOD = "/adcascade.v1.RecommendService/Recommend"
_WARM_UP = 20
_STOP_SECONDS = 20.0


@contextmanager
def held(address: str, connections: int, calls: int) -> Iterator[None]:
    """So many calls without a message on each of so many connections, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.silent", address, _METHOD, str(connections), str(calls)]
    attacker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert attacker.stdin is not None
    assert attacker.stdout is not None
    try:
        if not attacker.stdout.readline():
            raise RuntimeError(f"the attacker ended with exit code {attacker.wait()}")
        yield
    finally:
        attacker.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            attacker.wait(_STOP_SECONDS)
        attacker.kill()
        attacker.wait()


class _Probes(threading.Thread):
    """Health checks, each on a connection of its own as probes make them, until told to stop."""

    def __init__(self, address: str, rate: float) -> None:
        super().__init__(daemon=True)
        self._address, self._rate = address, rate
        self._over = threading.Event()
        self._milliseconds: list[float] = []
        self._outcomes: Counter[str] = Counter()

    def run(self) -> None:
        while not self._over.wait(1 / self._rate):
            started = time.perf_counter()
            outcome = self._probe()
            self._outcomes[outcome] += 1
            if outcome == OK:
                self._milliseconds.append(1000 * (time.perf_counter() - started))

    def _probe(self) -> str:
        with channel_to(self._address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)  # type: ignore[attr-defined]
            except grpc.RpcError as error:
                return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
        return OK if reply.status == health_pb2.HealthCheckResponse.SERVING else "NOT_SERVING"

    def stop(self, seconds: float) -> Answered:
        """What became of them."""
        self._over.set()
        self.join()
        return Answered(self._rate, seconds, self._milliseconds, dict(self._outcomes))


def idle_streams(servers: Servers, settings: AttackSettings) -> Part:
    """What is opened and never used at the gateway, while another client calls it and looks at its health."""
    address = address_of(servers, "pipeline")
    silent, idle = settings.silent_calls, settings.idle_connections
    cases = {
        f"{silent:,} calls without a message on one connection": (1, silent),
        f"{2 * silent:,} calls without a message on {silent:,} connections": (silent, 2),
        f"{idle:,} connections without a call": (idle, 0),
    }
    with channel_to(address) as channel:
        start = normal_calls(servers, "Recommend", channel)
        one_by_one(start, _WARM_UP)
        alone = _both(start, address, settings)
        entries, verdicts = _entries("alone", *alone), []
        for what, (connections, calls) in cases.items():
            with held(address, connections, calls):
                beside = _both(start, address, settings)
            entries += _entries(f"beside {what}", *beside)
            verdicts += [
                _verdict(f"another client's Recommend beside {what}", alone[0], beside[0]),
                _verdict(f"health checks on new connections beside {what}", alone[1], beside[1]),
            ]
    return Part(entries, verdicts)


def _both(start: Start, address: str, settings: AttackSettings) -> tuple[Answered, Answered]:
    """Normal calls, and health checks at the same time."""
    probes = _Probes(address, settings.rate)
    probes.start()
    found = arrive(start, settings.rate, settings.seconds, settings.seed)
    return found, probes.stop(found.seconds)


def _entries(case: str, normal: Answered, health: Answered) -> list[Entry]:
    return [as_entry(f"idle streams: Recommend {case}", normal), as_entry(f"idle streams: health {case}", health)]


def _verdict(what: str, alone: Answered, beside: Answered) -> TargetResult:
    before, after = alone.percentile(99), beside.percentile(99)
    return TargetResult(
        what=what,
        target=f"none refused, p99 at most {P99_TIMES:g} times that without",
        reached=f"{beside.refused:.0%} refused, p50 {beside.percentile(50):.0f} ms, p99 {after:.0f} ms "
        f"({after / before:.1f} times; {before:.0f} ms without)",
        met=not beside.refused and after <= P99_TIMES * before,
    )
