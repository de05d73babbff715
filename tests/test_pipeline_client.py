"""Both stages as one call, over real servers: the ranked answer, the deadline, and the fallback."""

import json
import time
from contextlib import contextmanager
from functools import partial

import grpc
import numpy as np
import pytest
from conftest import serving_server
from scipy.special import logit

from adcascade.artifacts.hotswap import HotSwap
from adcascade.records.errors import InputError
from adcascade.records.users import Context, Event, EventType, UserProfile
from adcascade.serving.channel import open_channel
from adcascade.serving.errors import InvalidArgument, NotFound, ServiceError, Unavailable
from adcascade.v1 import ranking_pb2, recommend_pb2, types_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceServicer, add_RankingServiceServicer_to_server
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub, add_RecommendServiceServicer_to_server
from adcascade.v1.retrieval_pb2 import RetrieveRequest, SourceShare
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import open_store as open_index_store
from index_builder.build import BuildOptions, build
from pipeline.client import AdPipeline
from pipeline.service import SERVICE_NAME, RecommendServicer
from pipeline.settings import GatewaySettings
from ranking.__main__ import _load_catalog, _load_engine
from ranking.runtime.engine_settings import EngineSettings
from ranking.service import SERVICE_NAME as RANKING
from ranking.service import RankingServicer
from ranking.store import open_store as open_model_store
from retrieval.__main__ import RetrieverLoader
from retrieval.service import SERVICE_NAME as RETRIEVAL
from retrieval.service import RetrievalServicer
from retrieval.settings import RetrievalSettings

USER = UserProfile("u0", history=tuple(Event(EventType.CLICK, ad_id=f"running-{number}") for number in range(8)))


@pytest.fixture(scope="module")
def retrieval_address(world):
    with retrieval_on(world.index) as address:
        yield address


@contextmanager
def retrieval_on(root):
    store = open_index_store(root)
    swap = HotSwap(store, RetrieverLoader(store, RetrievalSettings(index=root)))
    swap.start()
    servicer = RetrievalServicer(swap, batch_vectors=64)
    with serving_server(RETRIEVAL, partial(add_RetrievalServiceServicer_to_server, servicer)) as (server, _):
        yield server.address
    servicer.close()
    swap.close()


@pytest.fixture(scope="module")
def ranking_address(world):
    with ranking_on(world.model, world.index) as address:
        yield address


class TroubledRanking(RankingServiceServicer):
    """A ranking server that is late, or fails."""

    def __init__(self, seconds=0.0, error=None):
        self.seconds, self.error = seconds, error

    def Rank(self, request, context):  # noqa: N802
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return ranking_pb2.RankResponse()

    def GetModel(self, request, context):  # noqa: N802
        raise NotImplementedError


@contextmanager
def troubled_ranking(**trouble):
    register = partial(add_RankingServiceServicer_to_server, TroubledRanking(**trouble))
    with serving_server(RANKING, register) as (server, _):
        yield server.address


def nobody_listens_on() -> str:
    with serving_server("none", lambda _: None) as (server, _):
        return server.address


@contextmanager
def ranking_on(model_root, index_root=None):
    model = open_model_store(model_root)
    engines = HotSwap(model, partial(_load_engine, model, EngineSettings("cpu")))
    engines.start()
    catalogs = None
    if index_root is not None:
        index = open_index_store(index_root)
        catalogs = HotSwap(index, partial(_load_catalog, index))
        catalogs.start()
    servicer = RankingServicer(engines, catalogs, batch_candidates=500)
    with serving_server(RANKING, partial(add_RankingServiceServicer_to_server, servicer)) as (server, _):
        yield server.address
    servicer.close()
    engines.close()
    if catalogs is not None:
        catalogs.close()


def test_recommendations_are_ranked_by_p_click(retrieval_address, ranking_address):
    with AdPipeline(retrieval_address, ranking_address) as pipeline:
        answer = pipeline.recommend(USER, k=5, candidates=40)
    assert len(answer.items) == 5
    probabilities = [item.p_click for item in answer.items]
    assert probabilities == sorted(probabilities, reverse=True)
    assert answer.items[0].ad.category == "running"
    assert not {item.ad.ad_id for item in answer.items} & {event.ad_id for event in USER.history}
    assert answer.degraded_reason == ""
    assert answer.index_version
    assert answer.model_version
    assert answer.total_ms >= answer.retrieval_ms + answer.ranking_ms - 1


def test_with_towers_the_order_counts_how_likely_retrieval_finds_an_ad(tower_index, ranking_address):
    with retrieval_on(tower_index) as retrieval, AdPipeline(retrieval, ranking_address) as pipeline:
        both, ranked, retrieved = (
            pipeline.recommend(USER, k=20, candidates=40, retrieval_weight=weight).items for weight in (3.0, 0.0, 1e9)
        )
    values = [np.log(item.p_click / (1 - item.p_click)) + 3 * item.retrieval_score for item in both]
    assert values == sorted(values, reverse=True)
    assert [item.p_click for item in ranked] == sorted((item.p_click for item in ranked), reverse=True)
    scores = [item.retrieval_score for item in retrieved]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(item.ad.ad_id for item in items) for items in (both, ranked, retrieved)}) == 3
    known = {item.ad.ad_id: item.p_click for item in ranked}
    assert all(item.p_click == known.get(item.ad.ad_id, item.p_click) for item in both)


def test_both_stages_are_told_where_the_ads_are_shown(tower_index, ranking_address):
    with retrieval_on(tower_index) as retrieval, AdPipeline(retrieval, ranking_address) as pipeline:
        here, anywhere = (
            {item.ad.ad_id: item for item in pipeline.recommend(USER, context, k=20).items}
            for context in (Context(device="phone"), None)
        )
    both = here.keys() & anywhere.keys()
    assert any(here[ad].similarity != pytest.approx(anywhere[ad].similarity, abs=1e-4) for ad in both)
    assert any(here[ad].p_click != pytest.approx(anywhere[ad].p_click, abs=1e-6) for ad in both)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight):
    with AdPipeline("localhost:1", "localhost:1") as pipeline, pytest.raises(InputError, match="retrieval_weight"):
        pipeline.recommend(USER, retrieval_weight=weight)


def test_when_ranking_is_down_the_retrieval_order_comes_back_marked_and_counted(retrieval_address):
    reasons = []
    with AdPipeline(retrieval_address, nobody_listens_on(), on_degraded=reasons.append) as pipeline:
        answer = pipeline.recommend(USER, k=5)
    assert reasons == ["UNAVAILABLE"]
    assert answer.degraded_reason == "UNAVAILABLE"
    assert [item.retrieval_position for item in answer.items] == [0, 1, 2, 3, 4]
    assert [item.p_click for item in answer.items] == [None] * 5
    assert answer.model_version == ""


def test_when_ranking_is_late_the_answer_still_keeps_the_deadline(retrieval_address):
    with troubled_ranking(seconds=3) as address, AdPipeline(retrieval_address, address) as pipeline:
        started = time.monotonic()
        answer = pipeline.recommend(USER, k=3, timeout_seconds=0.8)
        assert time.monotonic() - started < 1.5
    assert answer.degraded_reason == "DEADLINE_EXCEEDED"
    assert len(answer.items) == 3


def test_a_failing_ranking_degrades_but_a_wrong_request_does_not(retrieval_address):
    with troubled_ranking(error=RuntimeError("boom")) as address, AdPipeline(retrieval_address, address) as pipeline:
        assert pipeline.recommend(USER, k=3).degraded_reason == "INTERNAL"
    with (
        troubled_ranking(error=InvalidArgument("no such thing")) as address,
        AdPipeline(retrieval_address, address) as pipeline,
        pytest.raises(InvalidArgument, match="ranking answered INVALID_ARGUMENT: no such thing"),
    ):
        pipeline.recommend(USER, k=3)
    with troubled_ranking(error=NotFound("gone")) as address, AdPipeline(retrieval_address, address) as pipeline:
        assert pipeline.recommend(USER, k=3).degraded_reason == "NOT_FOUND"


def test_without_retrieval_there_is_an_error(ranking_address):
    with AdPipeline(nobody_listens_on(), ranking_address) as pipeline, pytest.raises(Unavailable, match="retrieval"):
        pipeline.recommend(USER)


def test_an_empty_user_is_told_so(retrieval_address, ranking_address):
    with (
        AdPipeline(retrieval_address, ranking_address) as pipeline,
        pytest.raises(ServiceError, match="the user is empty"),
    ):
        pipeline.recommend(UserProfile())


@pytest.mark.parametrize(("k", "candidates"), [(0, 100), (10_000, 10_000), (20, 10), (10, 5000)])
def test_impossible_sizes_are_refused(k, candidates):
    with AdPipeline("127.0.0.1:1", "127.0.0.1:1") as pipeline, pytest.raises(InputError, match="must be"):
        pipeline.recommend(USER, k=k, candidates=candidates)


@contextmanager
def gateway(retrieval, ranking, **settings):
    with AdPipeline(retrieval, ranking) as pipeline:
        servicer = RecommendServicer(pipeline, GatewaySettings(candidates=30, **settings))
        with serving_server(SERVICE_NAME, partial(add_RecommendServiceServicer_to_server, servicer)) as (_, channel):
            yield RecommendServiceStub(channel)


def test_the_gateway_answers_like_the_client_and_passes_the_request_id(retrieval_address, ranking_address):
    user = types_pb2.UserProfile(user_id="u0", interests="trail stride")
    with gateway(retrieval_address, ranking_address) as stub:
        request = recommend_pb2.RecommendRequest(user=user, k=4)
        reply = stub.Recommend(request, metadata=(("x-request-id", "my-id-1"),))
    assert len(reply.recommendations) == 4
    assert reply.request_id == "my-id-1"
    assert not reply.degraded
    assert reply.recommendations[0].ad.title
    assert all(item.HasField("p_click") for item in reply.recommendations)
    assert reply.timings.total_ms > 0
    assert reply.timings.HasField("ranking")


def test_the_gateway_marks_a_degraded_answer_and_keeps_the_callers_deadline(retrieval_address):
    user = types_pb2.UserProfile(interests="trail")
    with troubled_ranking(seconds=3) as address, gateway(retrieval_address, address) as stub:
        reply = stub.Recommend(recommend_pb2.RecommendRequest(user=user, k=2), timeout=1.0)
    assert reply.degraded
    assert reply.degraded_reason == "DEADLINE_EXCEEDED"
    assert not reply.recommendations[0].HasField("p_click")


def test_the_gateway_passes_on_what_is_wrong_with_a_request(retrieval_address, ranking_address):
    with gateway(retrieval_address, ranking_address) as stub:
        for request, message in (
            (recommend_pb2.RecommendRequest(user=types_pb2.UserProfile(interests="x"), k=0), "k must be 1 to 1000"),
            (recommend_pb2.RecommendRequest(user=types_pb2.UserProfile(), k=5), "the user is empty"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Recommend(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert message in caught.value.details()


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory):
    """Root of an index version of ads whose texts do not fit into a message together."""
    folder = tmp_path_factory.mktemp("long-texts")
    ads = [
        {
            "ad_id": f"long-{n}",
            "title": f"{n} beans",
            "body": f"{n} roast " + f"kind{n} " * (29_900 // len(f"kind{n} ")),
        }
        for n in range(290)
    ]
    (folder / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in ads))
    build(folder / "ads.jsonl", folder / "index", load_encoder("hashing:64"), BuildOptions())
    return folder / "index"


@pytest.mark.parametrize("index", ["ranking reads the index", "ranking has no index", "ranking has another index"])
def test_texts_of_thirty_thousand_characters_are_ranked_within_the_default_limits(long_texts, world, index):
    ranking_index = {"ranking reads the index": long_texts, "ranking has another index": world.index}.get(index)
    user = types_pb2.UserProfile(interests="beans roast")
    request = recommend_pb2.RecommendRequest(user=user, k=10, candidates=290)
    with (
        retrieval_on(long_texts) as retrieval,
        ranking_on(world.model, ranking_index) as ranking,
        gateway(retrieval, ranking, timeout_seconds=120) as stub,
    ):
        reply = stub.Recommend(request, timeout=120)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(recommend_pb2.RecommendRequest(user=user, k=290, candidates=290), timeout=120)
    assert len(reply.recommendations) == 10
    assert reply.degraded_reason == ""
    assert all(len(item.ad.body) > 29_000 and item.HasField("p_click") for item in reply.recommendations)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ask for fewer, or raise max_message_mib" in caught.value.details()


def test_a_retrieval_whose_texts_do_not_fit_says_what_to_do(long_texts):
    with retrieval_on(long_texts) as address, open_channel(address, max_message_mib=512) as channel:
        stub = RetrievalServiceStub(channel)
        request = RetrieveRequest(user=types_pb2.UserProfile(interests="beans"), k=290, include_ads=True)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Retrieve(request, timeout=60)
        request.include_ads = False
        assert len(stub.Retrieve(request, timeout=60).candidates) == 290
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than 8 MiB: ask for fewer candidates, or for ids alone" in caught.value.details()


def test_counters_of_a_request_move_its_scores(retrieval_address, ranking_address):
    user, counter = types_pb2.UserProfile(user_id="u0", interests="trail stride"), ranking_pb2.COUNTER_KIND_AD
    counter_overrides = [ranking_pb2.Counter(kind=counter, id="running-1", impressions=300, clicks=290)]
    with gateway(retrieval_address, ranking_address) as stub:
        asked = [
            recommend_pb2.RecommendRequest(user=user, k=60, candidates=60, counters=counters)
            for counters in ([], counter_overrides)
        ]
        before, after = (
            {item.ad.ad_id: item.p_click for item in stub.Recommend(request, timeout=60).recommendations}
            for request in asked
        )
    moved = {ad: abs(logit(after[ad]) - logit(before[ad])) for ad in before}
    assert max(moved, key=moved.__getitem__) == "running-1"
    assert moved["running-1"] > 5 * np.median(list(moved.values()))  # the others stand beside it


def test_shares_of_a_request_choose_its_sources(retrieval_address, ranking_address):
    user = types_pb2.UserProfile(interests="espresso beans")
    with gateway(retrieval_address, ranking_address) as stub:
        without, words = (
            stub.Recommend(recommend_pb2.RecommendRequest(user=user, k=10, candidates=10, shares=[share]), timeout=60)
            for share in (SourceShare(source="lexical", share=0), SourceShare(source="lexical", share=1))
        )
        wrong = recommend_pb2.RecommendRequest(user=user, k=5, shares=[SourceShare(source="moon", share=1)])
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(wrong)
    assert "lexical" not in {item.source for item in without.recommendations}
    assert "lexical" in {item.source for item in words.recommendations}
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "there is no candidate source 'moon'" in caught.value.details()


def test_who_has_met_every_ad_gets_an_empty_answer(retrieval_address, ranking_address, world):
    ids = [json.loads(line)["ad_id"] for line in world.ads.read_text().splitlines()]
    with gateway(retrieval_address, ranking_address) as stub:
        for kind in (types_pb2.EVENT_TYPE_IMPRESSION, types_pb2.EVENT_TYPE_CLICK):
            user = types_pb2.UserProfile(history=[types_pb2.Event(type=kind, ad_id=ad_id) for ad_id in ids])
            reply = stub.Recommend(recommend_pb2.RecommendRequest(user=user, k=10))
            assert (list(reply.recommendations), reply.degraded) == ([], False)
            assert reply.index_version
        everything = stub.Recommend(recommend_pb2.RecommendRequest(user=user, k=1000, include_history=True))
        assert len(everything.recommendations) == 60
