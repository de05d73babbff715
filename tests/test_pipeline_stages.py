"""The pipeline when a server behind it is slow, dead, wrong, or back: real servers that do as told."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from conftest import serving_server
from stand_ins import ranking as stand_in_ranking
from stand_ins import retrieval as stand_in_retrieval
from stand_ins.ranking import StandInRanking, ids_of, last_is_best
from stand_ins.retrieval import StandInRetrieval

from adcascade.records.users import UserProfile
from adcascade.serving.channel import is_serving, open_channel
from adcascade.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2, types_pb2
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub, add_RecommendServiceServicer_to_server
from pipeline.breaker import State
from pipeline.client import AdPipeline
from pipeline.processes import ServerProcess
from pipeline.service import SERVICE_NAME, RecommendServicer
from pipeline.settings import GatewaySettings

USER = UserProfile(interests="anything")
REQUEST = recommend_pb2.RecommendRequest(user=types_pb2.UserProfile(interests="anything"), k=3)


@contextmanager
def stages(retrieval=None, ranking=None, **settings):
    """A pipeline of two stand-ins in this process."""
    retrieval, ranking = retrieval or StandInRetrieval(), ranking or StandInRanking()
    with ExitStack() as stack:
        addresses = [
            stack.enter_context(serving_server(module.NAME, module.register(servicer)))[0].address
            for module, servicer in ((stand_in_retrieval, retrieval), (stand_in_ranking, ranking))
        ]
        yield stack.enter_context(AdPipeline(*addresses, **settings))


def ids(answer):
    return [item.ad.ad_id for item in answer.items]


def test_ranking_is_asked_by_id_and_only_the_texts_that_are_shown_travel():
    retrieval, ranking = StandInRetrieval(), StandInRanking()
    with stages(retrieval, ranking) as pipeline:
        answer = pipeline.recommend(USER, k=3, candidates=500)
    assert ids(answer) == ["ad-499", "ad-498", "ad-497"]
    assert [item.ad.title for item in answer.items] == ["title of ad-499", "title of ad-498", "title of ad-497"]
    retrieve, get_ads = retrieval.requests
    assert not retrieve.include_ads
    assert list(get_ads.ad_ids) == ids(answer)
    (rank,) = ranking.requests
    assert all(one.WhichOneof("candidate") == "ad_id" for one in rank.candidates)


def test_ads_that_rankings_index_lacks_are_sent_to_it_with_their_texts():
    def knows_even_ones(request, context):
        known = [n for n, one in enumerate(request.candidates) if one.HasField("ad") or int(one.ad_id[3:]) % 2 == 0]
        ads = [
            ranking_pb2.RankedAd(ad_id=ids_of(request)[n], p_click=int(ids_of(request)[n][3:]) / 100, candidate=n)
            for n in known
        ]
        unknown = [ad_id for n, ad_id in enumerate(ids_of(request)) if n not in known]
        return ranking_pb2.RankResponse(ads=ads, unknown_ad_ids=unknown, model_version="made-up")

    ranking = StandInRanking(knows_even_ones)
    with stages(ranking=ranking) as pipeline:
        answer = pipeline.recommend(USER, k=4, candidates=20)
    assert ids(answer) == ["ad-19", "ad-18", "ad-17", "ad-16"]
    assert answer.degraded_reason == ""
    assert [ad.ad.title for ad in ranking.requests[1].candidates[:2]] == ["title of ad-1", "title of ad-3"]


def test_all_candidates_are_scored_in_the_same_company():
    """Ads that ranking knows stand beside those that it was sent, and their scores of that company count."""

    def counts_company(request, context):
        known = [n for n, one in enumerate(request.candidates) if one.HasField("ad") or int(one.ad_id[3:]) % 2 == 0]
        ads = [ranking_pb2.RankedAd(ad_id=ids_of(request)[n], p_click=len(known) / 100, candidate=n) for n in known]
        unknown = [ad_id for n, ad_id in enumerate(ids_of(request)) if n not in known]
        return ranking_pb2.RankResponse(ads=ads, unknown_ad_ids=unknown, model_version="made-up")

    ranking = StandInRanking(counts_company)
    with stages(ranking=ranking) as pipeline:
        answer = pipeline.recommend(USER, k=20, candidates=20)
    assert {item.p_click for item in answer.items} == {0.2}
    assert sorted(ids_of(ranking.requests[1])) == sorted(ids_of(ranking.requests[0]))


def test_a_ranking_server_without_an_index_is_sent_all_texts():
    def only_inline(request, context):
        if not request.candidates[0].HasField("ad"):
            raise FailedPrecondition("start it with --index")
        return last_is_best(request)

    with stages(ranking=StandInRanking(only_inline)) as pipeline:
        answers = [pipeline.recommend(USER, k=2, candidates=30) for _ in range(8)]
        assert pipeline.ranking.breaker.state is State.CLOSED
    assert all(ids(answer) == ["ad-29", "ad-28"] and not answer.degraded_reason for answer in answers)


def test_an_ad_that_is_gone_when_it_is_shown_makes_room_for_the_next():
    with stages(StandInRetrieval(gone=["ad-9", "ad-7"])) as pipeline:
        assert ids(pipeline.recommend(USER, k=3, candidates=10)) == ["ad-8", "ad-6", "ad-5"]
        assert len(pipeline.recommend(USER, k=10, candidates=10).items) == 8


def test_no_candidates_are_an_empty_answer_and_nobody_is_asked_to_rank_them():
    ranking = StandInRanking()
    retrieval = StandInRetrieval(answer=lambda request: retrieval_pb2.RetrieveResponse(index_version="made-up"))
    with stages(retrieval, ranking) as pipeline:
        answer = pipeline.recommend(USER)
    assert (answer.items, answer.degraded_reason, answer.index_version) == ([], "", "made-up")
    assert ranking.requests == []


def changed(**fields):
    """An answer whose first ad is not as it should be."""

    def answer(request, context):
        reply = last_is_best(request)
        for name, value in fields.items():
            setattr(reply.ads[0], name, value)
        return reply

    return answer


def too_few(request, context):
    reply = last_is_best(request)
    del reply.ads[5:]
    return reply


def twice(request, context):
    reply = last_is_best(request)
    reply.ads.append(reply.ads[0])
    return reply


def invented(request, context):
    return ranking_pb2.RankResponse(ads=last_is_best(request).ads, unknown_ad_ids=["nobody"])


def weighing(weight):
    """An answer whose model version says this weight of retrieval's score."""

    def answer(request, context):
        reply = last_is_best(request)
        reply.retrieval_weight = weight
        return reply

    return answer


GARBAGE = {
    "nothing": lambda request, context: ranking_pb2.RankResponse(),
    "too few": too_few,
    "one twice": twice,
    "an id of its own": changed(ad_id="ad-1000"),
    "another place": changed(candidate=3),
    "a place that is not there": changed(candidate=4_000_000_000),
    "NaN": changed(p_click=float("nan")),
    "infinity": changed(p_click=float("inf")),
    "minus one": changed(p_click=-1.0),
    "more than one": changed(p_click=1.5),
    "conversion NaN": changed(p_conversion=float("nan")),
    "an unknown id that nobody asked for": invented,
    "a weight that is no number": weighing(float("nan")),
    "a weight below 0": weighing(-1.0),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_ranking_that_answers_what_cannot_be_degrades_and_in_the_end_is_not_asked(what):
    reasons = []
    with stages(ranking=StandInRanking(GARBAGE[what]), on_degraded=reasons.append) as pipeline:
        for _ in range(6):
            assert ids(pipeline.recommend(USER, k=3, candidates=10)) == ["ad-0", "ad-1", "ad-2"]
    assert reasons == [*["INVALID_ANSWER"] * 5, "CIRCUIT_OPEN"]


@pytest.mark.parametrize(
    "candidates",
    [
        [retrieval_pb2.Candidate(ad_id="ad-0")] * 2,
        [retrieval_pb2.Candidate()],
        [retrieval_pb2.Candidate(ad_id="ad-0", score=float("nan"))],
        [retrieval_pb2.Candidate(ad_id=f"ad-{n}") for n in range(11)],
    ],
)
def test_a_retrieval_that_answers_what_cannot_be_is_unavailable(candidates):
    answer = retrieval_pb2.RetrieveResponse(candidates=candidates)
    with (
        stages(StandInRetrieval(answer=lambda request: answer)) as pipeline,
        pytest.raises(Unavailable, match="retrieval answered what cannot be"),
    ):
        pipeline.recommend(USER, k=3, candidates=10)


def test_a_ranking_whose_reply_cannot_be_read_degrades():
    def register(server):
        handler = grpc.unary_unary_rpc_method_handler(
            lambda request, context: b"\xff\xff", ranking_pb2.RankRequest.FromString, lambda reply: reply
        )
        server.add_registered_method_handlers(stand_in_ranking.NAME, {"Rank": handler})

    with (
        serving_server(stand_in_retrieval.NAME, stand_in_retrieval.register(StandInRetrieval())) as (retrieval, _),
        serving_server(stand_in_ranking.NAME, register) as (ranking, _),
        AdPipeline(retrieval.address, ranking.address) as pipeline,
    ):
        assert [pipeline.recommend(USER).degraded_reason for _ in range(6)] == ["INTERNAL"] * 5 + ["CIRCUIT_OPEN"]


def test_who_closes_the_connections_ends_the_calls_on_them():
    begun, release = threading.Event(), threading.Event()

    def hold(request):
        begun.set()
        release.wait(20)
        return retrieval_pb2.RetrieveResponse()

    with stages(StandInRetrieval(answer=hold)) as pipeline, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(pipeline.recommend, USER, timeout_seconds=60)
        assert begun.wait(20)
        pipeline.close()
        with pytest.raises(Cancelled, match="the connection was closed"):
            asking.result(20)
        with pytest.raises(Cancelled, match="the connection was closed"):
            pipeline.recommend(USER)
        release.set()


def test_a_late_ranking_takes_its_own_time_and_then_none():
    release = threading.Event()

    def late(request, context):
        release.wait(20)
        return last_is_best(request)

    reasons, seconds = [], []
    ranking = StandInRanking(late)
    with stages(ranking=ranking, on_degraded=reasons.append, ranking_timeout_seconds=0.6) as pipeline:
        for _ in range(10):
            started = time.monotonic()
            assert len(pipeline.recommend(USER, k=3, timeout_seconds=30).items) == 3
            seconds.append(time.monotonic() - started)
        release.set()
    assert reasons[:5] == ["DEADLINE_EXCEEDED"] * 5
    assert reasons.count("CIRCUIT_OPEN") >= 3  # its health is good, so a trial may be among the rest
    assert max(seconds) < 5
    assert len(ranking.requests) <= 7


def hurried(pipeline):
    """Why ranking did not answer a caller in a hurry; "" too if even retrieval, on a busy machine, was not in time."""
    try:
        return pipeline.recommend(USER, timeout_seconds=0.4).degraded_reason
    except (DeadlineExceeded, Unavailable):
        return ""


def test_callers_in_a_hurry_do_not_keep_others_from_ranking():
    def late(request, context):
        time.sleep(0.6)
        return last_is_best(request)

    with stages(ranking=StandInRanking(late), ranking_timeout_seconds=20) as pipeline:
        reasons = []
        wait_until(lambda: reasons.append(hurried(pipeline)) or reasons.count("DEADLINE_EXCEEDED") >= 8)
        assert pipeline.recommend(USER, timeout_seconds=60).degraded_reason == ""
    assert set(reasons) <= {"DEADLINE_EXCEEDED", ""}


@pytest.mark.parametrize("error", [ResourceExhausted, NotFound])
def test_what_a_request_brings_upon_itself_does_not_keep_others_from_ranking(error):
    def answer(request, context):
        raise error("told to")

    with stages(ranking=StandInRanking(answer)) as pipeline:
        assert [pipeline.recommend(USER).degraded_reason for _ in range(8)] == [error.status.name] * 8
        assert pipeline.ranking.breaker.state is State.CLOSED


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "INTERNAL"), (Unavailable, "UNAVAILABLE")])
def test_a_ranking_that_fails_is_not_asked_until_it_is_well_and_then_is(error, status):
    broken = threading.Event()
    broken.set()

    def answer(request, context):
        if broken.is_set():
            raise error("told to")
        return last_is_best(request)

    with stages(ranking=StandInRanking(answer)) as pipeline:
        reasons = [pipeline.recommend(USER).degraded_reason for _ in range(8)]
        assert reasons == [*[status] * 5, *["CIRCUIT_OPEN"] * 3]
        broken.clear()
        end = time.monotonic() + 20
        while pipeline.recommend(USER).degraded_reason:
            assert time.monotonic() < end
            time.sleep(0.05)


def nobody_listens_on():
    with serving_server("none", lambda _: None) as (server, _):
        return server.address


def test_a_dead_retrieval_fails_at_once_and_says_which():
    with (
        serving_server(stand_in_ranking.NAME, stand_in_ranking.register(StandInRanking())) as (ranking, _),
        AdPipeline(nobody_listens_on(), ranking.address) as pipeline,
    ):
        for _ in range(5):
            with pytest.raises(Unavailable, match="Is the retrieval server running"):
                pipeline.recommend(USER)
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(Unavailable, match="retrieval failed several calls in a row and is not asked"):
                pipeline.recommend(USER)
        assert time.monotonic() - started < 5


def test_a_retrieval_that_outlasts_its_own_time_is_unavailable_though_the_caller_has_time():
    release = threading.Event()

    def late(request):
        release.wait(20)
        return retrieval_pb2.RetrieveResponse()

    with stages(StandInRetrieval(answer=late), retrieval_timeout_seconds=0.3) as pipeline:
        with pytest.raises(Unavailable, match=r"retrieval did not answer within 0\.3 s"):
            pipeline.recommend(USER, timeout_seconds=30)
        release.set()


@contextmanager
def gateway(pipeline, **settings):
    servicer = RecommendServicer(pipeline, GatewaySettings(**settings))
    with serving_server(SERVICE_NAME, partial(add_RecommendServiceServicer_to_server, servicer)) as (_, channel):
        yield RecommendServiceStub(channel)


@pytest.mark.parametrize("held", ["retrieval", "ranking"])
def test_cancelling_a_recommend_cancels_the_call_under_it(held):
    begun, left, release = threading.Event(), threading.Event(), threading.Event()

    def hold(request, context):
        context.add_callback(left.set)
        begun.set()
        release.wait(30)
        return last_is_best(request)

    class Held(StandInRetrieval):
        def Retrieve(self, request, context):  # noqa: N802
            return hold(ranking_pb2.RankRequest(), context)

    stand_ins = {"retrieval": Held()} if held == "retrieval" else {"ranking": StandInRanking(hold)}
    with stages(**stand_ins) as pipeline, gateway(pipeline) as stub:
        call = stub.Recommend.future(REQUEST, timeout=60)
        assert begun.wait(20)
        assert not left.is_set()
        call.cancel()
        assert left.wait(10)
        release.set()
        assert pipeline.ranking.breaker.state is State.CLOSED


def test_after_the_caller_left_no_second_call_is_made():
    ranking, begun, release = StandInRanking(), threading.Event(), threading.Event()

    def held(request):
        begun.set()
        release.wait(20)
        return retrieval_pb2.RetrieveResponse(candidates=[retrieval_pb2.Candidate(ad_id="ad-0")])

    with stages(StandInRetrieval(answer=held), ranking) as pipeline, gateway(pipeline) as stub:
        call = stub.Recommend.future(REQUEST, timeout=60)
        assert begun.wait(20)
        call.cancel()
        release.set()
        time.sleep(0.3)
    assert ranking.requests == []


def test_counters_and_shares_pass_through_recommend():
    retrieval, ranking = StandInRetrieval(), StandInRanking()
    counter = ranking_pb2.Counter(kind=ranking_pb2.COUNTER_KIND_AD, id="ad-1", impressions=100, clicks=40)
    share = retrieval_pb2.SourceShare(source="lexical", share=0.25)
    request = recommend_pb2.RecommendRequest(user=REQUEST.user, k=3, counters=[counter], shares=[share])
    with stages(retrieval, ranking) as pipeline, gateway(pipeline) as stub:
        stub.Recommend(request)
    assert list(retrieval.requests[0].shares) == [share]
    assert list(ranking.requests[0].counters) == [counter]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shares": [retrieval_pb2.SourceShare(source="lexical")] * 2}, "shares name a candidate source twice"),
        ({"counters": [ranking_pb2.Counter(kind=1, id="a", clicks=2)]}, "counters[0]: 2 clicks on 0 impressions"),
        ({"counters": [ranking_pb2.Counter(id="a")]}, "counters[0].kind is not set"),
        ({"counters": [ranking_pb2.Counter(kind=1, id="a")] * 4001}, "4001 counters; the limit is 4000"),
    ],
)
def test_wrong_counters_and_shares_are_refused_whether_or_not_ranking_is_there(fields, message):
    with (
        serving_server(stand_in_retrieval.NAME, stand_in_retrieval.register(StandInRetrieval())) as (retrieval, _),
        AdPipeline(retrieval.address, nobody_listens_on()) as pipeline,
        gateway(pipeline) as stub,
        pytest.raises(grpc.RpcError) as caught,
    ):
        stub.Recommend(recommend_pb2.RecommendRequest(user=REQUEST.user, k=3, **fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()


class LongTexts(StandInRetrieval):
    """Ads of 30,000 characters each, as many to a message as were asked for."""

    def GetAds(self, request, context):  # noqa: N802
        ads = [types_pb2.Ad(ad_id=ad_id, body="x" * 30_000) for ad_id in request.ad_ids]
        return retrieval_pb2.GetAdsResponse(ads=ads[: max(1, request.max_bytes // 30_100)])


def test_a_thousand_candidates_with_long_texts_are_ranked_within_the_default_limits():
    with stages(LongTexts()) as pipeline, gateway(pipeline) as stub:
        reply = stub.Recommend(recommend_pb2.RecommendRequest(user=REQUEST.user, k=100, candidates=1000), timeout=60)
    assert len(reply.recommendations) == 100
    assert not reply.degraded


def test_long_texts_reach_a_ranking_without_an_index_in_parts():
    def only_inline(request, context):
        if not request.candidates[0].HasField("ad"):
            raise FailedPrecondition("start it with --index")
        return last_is_best(request)

    ranking = StandInRanking(only_inline)
    with stages(LongTexts(), ranking) as pipeline:
        answer = pipeline.recommend(USER, k=2, candidates=1000, timeout_seconds=60)
    assert answer.degraded_reason == ""
    assert sum(len(request.candidates) for request in ranking.requests[1:]) == 1000
    assert len(ranking.requests) > 4


def test_what_cannot_fit_is_resource_exhausted_and_says_what_to_do():
    with stages(LongTexts()) as pipeline, gateway(pipeline) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Recommend(recommend_pb2.RecommendRequest(user=REQUEST.user, k=500, candidates=500), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ask for fewer, or raise max_message_mib of this server and of the caller" in caught.value.details()


def test_a_client_in_python_takes_as_much_as_it_asks_for():
    with stages(LongTexts()) as pipeline:
        assert len(pipeline.recommend(USER, k=500, candidates=500, timeout_seconds=60).items) == 500
        with pytest.raises(ResourceExhausted, match="ask for fewer"):
            pipeline.recommend(USER, k=500, candidates=500, timeout_seconds=60, max_ads_bytes=1_000_000)


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """Starts stand-ins and gateways as processes of their own; all end with the test."""
    root = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root.parent), str(root)]))
    with ExitStack() as stack:

        def start(module, *flags):
            server = ServerProcess.start(module, flags, tmp_path)
            stack.callback(server.stop)
            stack.callback(server.process.send_signal, signal.SIGCONT)
            return server

        yield start


def port_of(address):
    return address.rpartition(":")[2]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopped_ranking_neither_delays_nor_refuses_calls_and_is_used_again_when_it_goes_on(processes):
    retrieval, ranking = processes("stand_ins.retrieval"), processes("stand_ins.ranking")
    addresses = [server.wait_until_serving() for server in (retrieval, ranking)]
    gateway_of = processes("pipeline", "--retrieval", addresses[0], "--ranking", addresses[1])
    with open_channel(gateway_of.wait_until_serving()) as channel:
        stub = RecommendServiceStub(channel)
        wait_until(lambda: not stub.Recommend(REQUEST, timeout=30).degraded)
        ranking.process.send_signal(signal.SIGSTOP)
        calls = []
        for _ in range(16 * 5):
            calls.append((time.monotonic(), stub.Recommend.future(REQUEST, timeout=30)))
            time.sleep(1 / 16)
        assert {call.result().degraded_reason for _, call in calls} <= {"DEADLINE_EXCEEDED", "CIRCUIT_OPEN"}
        started = time.monotonic()
        reasons = [stub.Recommend(REQUEST, timeout=30).degraded_reason for _ in range(20)]
        assert reasons == ["CIRCUIT_OPEN"] * 20
        assert time.monotonic() - started < 5  # 100 s if each waited for five
        assert is_serving(channel)  # degraded, but it answers
        ranking.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not stub.Recommend(REQUEST, timeout=30).degraded)


def test_callers_in_a_hurry_do_not_wait_for_a_ranking_that_stands_still(processes):
    retrieval, ranking = processes("stand_ins.retrieval"), processes("stand_ins.ranking")
    addresses = [server.wait_until_serving() for server in (retrieval, ranking)]
    with AdPipeline(*addresses) as pipeline:
        wait_until(lambda: not pipeline.recommend(USER).degraded_reason)
        ranking.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: hurried(pipeline) == "CIRCUIT_OPEN")
        assert pipeline.ranking.breaker.state is not State.CLOSED


def test_the_gateways_health_says_whether_it_can_answer(processes, free_port):
    ranking = nobody_listens_on()
    gateway_of = processes("pipeline", "--retrieval", f"127.0.0.1:{free_port}", "--ranking", ranking)
    wait_until(lambda: gateway_of.address)
    with open_channel(gateway_of.address) as channel:
        stub = RecommendServiceStub(channel)
        for _ in range(20):
            assert not is_serving(channel)
            time.sleep(0.05)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(REQUEST, timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        retrieval = processes("stand_ins.retrieval", "--port", str(free_port))
        wait_until(lambda: is_serving(channel))
        assert stub.Recommend(REQUEST, timeout=30).degraded
        retrieval.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not is_serving(channel))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(REQUEST, timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "retrieval" in caught.value.details()
        retrieval.process.send_signal(signal.SIGCONT)
        wait_until(lambda: is_serving(channel) and is_serving(channel, SERVICE_NAME))
        wait_until(lambda: recommends(stub))


def recommends(stub):
    try:
        return len(stub.Recommend(REQUEST, timeout=30).recommendations) == 3
    except grpc.RpcError:
        return False


@pytest.mark.slow
def test_after_a_long_outage_the_gateway_ranks_again_within_seconds(processes):
    retrieval, ranking = processes("stand_ins.retrieval"), processes("stand_ins.ranking")
    addresses = [server.wait_until_serving() for server in (retrieval, ranking)]
    gateway_of = processes("pipeline", "--retrieval", addresses[0], "--ranking", addresses[1])
    with open_channel(gateway_of.wait_until_serving()) as channel:
        stub = RecommendServiceStub(channel)
        wait_until(lambda: not stub.Recommend(REQUEST, timeout=30).degraded)
        ranking.stop()
        end = time.monotonic() + 18  # gRPC's own next attempts would be at about 16 s and 26 s
        while time.monotonic() < end:
            assert stub.Recommend(REQUEST, timeout=30).degraded
            time.sleep(0.1)
        processes("stand_ins.ranking", "--port", port_of(addresses[1])).wait_until_serving()
        back = time.monotonic()
        while stub.Recommend(REQUEST, timeout=30).degraded:
            assert time.monotonic() < back + 6  # gRPC's own bound would be minutes
            time.sleep(0.05)
