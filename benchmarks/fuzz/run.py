"""Sends fuzzed requests to running servers, and tells what came of them. Knows no fields of requests."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import grpc
import psutil
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from adcascade.serving.channel import is_serving
from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2
from benchmarks.fuzz.messages import FuzzedRequest, RequestFuzzer, Valid

# What a server may say of a request that nobody should send.
ALLOWED = frozenset(
    {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"}
)
_AT_ONCE, _CHUNK = 4, 200
_TIMEOUT_SECONDS = 30.0
_KEPT_FAILURES = 20
# Requests after which a process is taken to have made what it makes once: threads, buffers, tables.
_SETTLED = 0.2


@dataclass(frozen=True)
class Target:
    """A server under test: a channel to it, and its process if its memory is to be watched."""

    channel: grpc.Channel
    pid: int | None = None


@dataclass(frozen=True)
class Failure:
    """A request that got what no request should get."""

    request: FuzzedRequest
    outcome: str

    def __str__(self) -> str:
        return (
            f"{self.request.method} ({self.request.kind}): {self.outcome}; request {self.request.payload.hex()[:400]}"
        )


@dataclass
class Fuzzed:
    """What came of a run.

    Attributes:
        outcomes: calls by (method, status).
        failures: the first of those that got an outcome which is not in `ALLOWED`, or an answer that is none.
        growth_mib: by which the memory of each watched process grew after a fifth of the calls.
        slowest_seconds: of a call.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    growth_mib: dict[str, float] = field(default_factory=dict)
    slowest_seconds: float = 0.0


def services() -> dict[str, ServiceDescriptor]:
    """Every service of the contract by full name."""
    files = (retrieval_pb2, ranking_pb2, recommend_pb2)
    return {one.full_name: one for file in files for one in file.DESCRIPTOR.services_by_name.values()}


def fuzz(
    targets: Mapping[str, Target],
    calls: int,
    seed: int,
    valid: dict[str, Valid] | None = None,
    texts: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Fuzzed:
    """Sends so many requests to every method of the given services, a few at a time.

    Args:
        targets: By full name of the service.
        valid, texts: see `RequestFuzzer`.

    Raises:
        RuntimeError: A server ended, or no longer says that it is serving.
    """
    methods = [method for name, one in services().items() if name in targets for method in one.methods]
    fuzzer = RequestFuzzer(methods, seed, valid, texts)
    by_name = {f"/{method.containing_service.full_name}/{method.name}": method for method in methods}
    found, settled = Fuzzed(), dict[str, float]()
    waiting = iter(fuzzer.next, None)
    done = 0
    with ThreadPoolExecutor(_AT_ONCE) as clients:
        while done < calls:
            some = list(islice(waiting, min(_CHUNK, calls - done)))
            for request, (outcome, seconds) in zip(
                some, clients.map(lambda one: _send(targets, by_name[one.method], one), some), strict=True
            ):
                _note(found, request, outcome, seconds)
            done += len(some)
            _check_alive(targets)
            if not settled and done >= _SETTLED * calls:
                settled = _memory(targets)
            progress(done, calls)
    found.growth_mib = {name: mib - settled[name] for name, mib in _memory(targets).items()}
    return found


def _send(targets: Mapping[str, Target], method: MethodDescriptor, request: FuzzedRequest) -> tuple[str, float]:
    """The status of a call, or what is wrong with its answer; and its seconds."""
    channel = targets[method.containing_service.full_name].channel
    call: Callable[..., bytes] = channel.unary_unary(request.method)
    started = time.monotonic()
    try:
        answer = call(request.payload, timeout=_TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        return f"{error.code().name}", time.monotonic() - started
    return _of_answer(method, answer), time.monotonic() - started


def _of_answer(method: MethodDescriptor, answer: bytes) -> str:
    try:
        GetMessageClass(method.output_type).FromString(answer)
    except DecodeError:
        return "an answer that cannot be read"
    return "OK"


def _note(found: Fuzzed, request: FuzzedRequest, outcome: str, seconds: float) -> None:
    found.outcomes[request.method, outcome] += 1
    found.slowest_seconds = max(found.slowest_seconds, seconds)
    if outcome not in ALLOWED and len(found.failures) < _KEPT_FAILURES:
        found.failures.append(Failure(request, outcome))


def _check_alive(targets: Mapping[str, Target]) -> None:
    for name, target in targets.items():
        if target.pid is not None and not psutil.pid_exists(target.pid):
            raise RuntimeError(f"the server of {name} ended")
        if not is_serving(target.channel):
            raise RuntimeError(f"the server of {name} no longer says that it is serving")


def _memory(targets: Mapping[str, Target]) -> dict[str, float]:
    """MiB of each watched process."""
    return {
        name: psutil.Process(target.pid).memory_info().rss / 2**20
        for name, target in targets.items()
        if target.pid is not None and target.pid != os.getpid()
    }
