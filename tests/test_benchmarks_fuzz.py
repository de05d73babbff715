"""Requests that nobody should send are answered or refused by all three servers, and nothing else comes of them."""

from collections import Counter
from contextlib import ExitStack

import grpc
import pytest

from adcascade.v1 import ranking_pb2_grpc
from benchmarks.fuzz.bench import known_ids, started, valid_requests, verdicts
from benchmarks.fuzz.messages import KINDS, RequestFuzzer
from benchmarks.fuzz.run import ALLOWED, Fuzzed, Target, fuzz, services
from tests.conftest import World, serving_server

CALLS = 2000


def every_method():
    return [method for service in services().values() for method in service.methods]


def drawn(seed: int, count: int = 300):
    fuzzer = RequestFuzzer(every_method(), seed, valid_requests(["a", "b", "c"]), ["a"])
    return [fuzzer.next() for _ in range(count)]


def test_the_same_seed_makes_the_same_requests_and_another_makes_others():
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_every_method_is_sent_every_kind_of_request():
    found = Counter((one.method, one.kind) for one in drawn(0, 600))
    assert len(found) == len(every_method()) * len(KINDS)


@pytest.mark.slow
def test_all_three_servers_answer_or_refuse_whatever_they_are_sent(world: World, tower_index, tmp_path):
    ids = known_ids(tower_index)
    with ExitStack() as stack:
        targets = started(tower_index, world.model, tmp_path, stack)
        found = fuzz(targets, CALLS, seed=0, valid=valid_requests(ids), texts=ids)
    assert not found.failures, "\n".join(map(str, found.failures))
    assert all(one.met for one in verdicts(found, CALLS)), found
    assert sum(found.outcomes.values()) == CALLS
    statuses = {outcome for _, outcome in found.outcomes}
    assert {"OK", "INVALID_ARGUMENT"} <= statuses <= ALLOWED


class Broken(ranking_pb2_grpc.RankingServiceServicer):
    def Rank(self, request, context):  # noqa: N802
        if request.candidates:
            raise ZeroDivisionError("a bug")
        raise ValueError("another")


def test_a_bug_in_a_server_is_found():
    with serving_server(
        "adcascade.v1.RankingService",
        lambda server: ranking_pb2_grpc.add_RankingServiceServicer_to_server(Broken(), server),
    ) as (_, channel):
        found = fuzz({"adcascade.v1.RankingService": Target(channel)}, 60, seed=0, valid=valid_requests(["a", "b"]))
    assert found.failures
    assert {one.outcome for one in found.failures} == {"INTERNAL"}
    assert not verdicts(found, 60)[0].met


def test_a_server_that_is_gone_ends_the_run():
    with (
        grpc.insecure_channel("localhost:1") as nobody,
        pytest.raises(RuntimeError, match="no longer says that it is serving"),
    ):
        fuzz({"adcascade.v1.RankingService": Target(nobody)}, 4, seed=0)


def test_a_run_without_a_bad_answer_meets_its_targets():
    assert all(one.met for one in verdicts(Fuzzed(outcomes=Counter({("/a/B", "OK"): 3})), 3))
