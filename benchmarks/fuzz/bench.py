"""``adcascade bench fuzz``: all three servers on an owner's own versions, and requests that nobody should send."""

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from adcascade.records.errors import InputError
from adcascade.serving.channel import open_channel
from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2, types_pb2
from benchmarks.fuzz.messages import Valid
from benchmarks.fuzz.run import ALLOWED, Fuzzed, Target, fuzz
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.machine import describe
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from index_builder.artifact import load_version, open_store
from pipeline.processes import ServerProcess

# Caches of the three servers fill during a run: 256 and 64 MiB of states in the ranking server are the largest.
_MOST_GROWTH_MIB = 512.0
_KNOWN_IDS = 200
# Of the gateway: what takes long on a busy machine is no fault that a request has found.
_PATIENT = ("--retrieval-timeout-ms=20000", "--ranking-timeout-ms=20000")
_SERVICES = {"retrieval": "RetrievalService", "ranking": "RankingService", "pipeline": "RecommendService"}


def bench_fuzz(
    index: Path, model: Path, calls: int, seed: int, folder: Path, progress: Progress = lambda *_: None
) -> BenchResult:
    """Fuzzes every method of the three servers.

    Args:
        index, model: Roots of the versions that are served.
        folder: For the servers' logs.

    Raises:
        InputError: There is no index version.
        StartupError: A server does not start.
        RuntimeError: A server ended, or no longer says that it is serving.
    """
    ids = known_ids(index)
    with ExitStack() as stack:
        targets = started(index, model, folder, stack)
        found = fuzz(targets, calls, seed, valid_requests(ids), ids, progress)
    return BenchResult(
        bench="fuzz",
        machine=describe(),
        settings={"calls": calls, "seed": seed},
        entries=_entries(found),
        verdicts=verdicts(found, calls),
        remarks=[str(one) for one in found.failures],
    )


def known_ids(index: Path) -> list[str]:
    """Some ids of ads of the published index version."""
    store = open_store(index)
    version = store.current()
    if version is None:
        raise InputError(f"{index} holds no published index version; run adcascade build first")
    return list(load_version(store, version).catalog.ids[:_KNOWN_IDS])


def started(index: Path, model: Path, folder: Path, stack: ExitStack) -> dict[str, Target]:
    """The three servers with their channels, by full name of the service, until `stack` is closed."""
    flags = {
        "retrieval": ["--index", str(index)],
        "ranking": ["--model", str(model), "--index", str(index)],
    }
    addresses: dict[str, str] = {}
    targets = {}
    for module, service in _SERVICES.items():
        own = flags.get(module) or [*(f"--{name}={address}" for name, address in addresses.items()), *_PATIENT]
        process = ServerProcess.start(module, own, folder)
        stack.callback(process.stop)
        addresses[module] = process.wait_until_serving()
        channel = stack.enter_context(open_channel(addresses[module]))
        targets[f"adcascade.v1.{service}"] = Target(channel, process.process.pid)
    return targets


def valid_requests(ids: list[str]) -> dict[str, Valid]:
    """What makes requests that are in order, of ads with these ids."""

    def user(chance: random.Random) -> types_pb2.UserProfile:
        clicked = [types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id=chance.choice(ids)) for _ in range(3)]
        return types_pb2.UserProfile(user_id="u1", interests="espresso", attributes={"age": "30"}, history=clicked)

    def ranked(chance: random.Random) -> ranking_pb2.RankRequest:
        candidates = [ranking_pb2.RankCandidate(ad_id=one) for one in chance.sample(ids, min(5, len(ids)))]
        inline = types_pb2.Ad(ad_id="inline", title="a red bike", category="sport")
        return ranking_pb2.RankRequest(
            user=user(chance), candidates=[*candidates, ranking_pb2.RankCandidate(ad=inline)]
        )

    return {
        "Retrieve": lambda chance: retrieval_pb2.RetrieveRequest(user=user(chance), k=10),
        "Rank": ranked,
        "Recommend": lambda chance: recommend_pb2.RecommendRequest(user=user(chance), k=3, candidates=10),
        "EmbedUser": lambda chance: retrieval_pb2.EmbedUserRequest(user=user(chance)),
    }


def verdicts(found: Fuzzed, calls: int) -> list[TargetResult]:
    """What must hold of a run."""
    bad = sum(count for (_, outcome), count in found.outcomes.items() if outcome not in ALLOWED)
    most = max(found.growth_mib.values(), default=0.0)
    return [
        TargetResult(
            what=f"{calls:,} fuzzed calls",
            target=f"none but {', '.join(sorted(ALLOWED))}",
            reached=f"{bad:,} others",
            met=not bad,
        ),
        TargetResult(
            what="memory of each server after the first fifth of the calls",
            target=f"grows by at most {_MOST_GROWTH_MIB:.0f} MiB",
            reached=", ".join(f"{name.rsplit('.', 1)[-1]} {mib:+.0f} MiB" for name, mib in found.growth_mib.items()),
            met=most <= _MOST_GROWTH_MIB,
        ),
    ]


def _entries(found: Fuzzed) -> list[Entry]:
    """Calls by method and status; the slowest call of the run stands for all of them."""
    slowest = 1000 * found.slowest_seconds
    by_method: dict[str, Counter[str]] = {}
    for (method, outcome), count in found.outcomes.items():
        by_method.setdefault(method, Counter())[outcome] += count
    return [
        Entry(
            case="outcomes; the slowest call of all",
            contender=method,
            milliseconds=Spread(slowest, slowest, slowest),
            figures={outcome: float(count) for outcome, count in sorted(outcomes.items())},
        )
        for method, outcomes in sorted(by_method.items())
    ]
