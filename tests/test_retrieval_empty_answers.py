"""An empty answer is an answer: who has met every ad gets none, from every source, and nobody gets an error."""

from contextlib import contextmanager
from functools import partial

import grpc
import pytest
from conftest import TOPICS, serving_server

from adcascade.artifacts.hotswap import HotSwap
from adcascade.v1 import retrieval_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server
from index_builder.artifact import open_store
from retrieval.__main__ import RetrieverLoader
from retrieval.service import SERVICE_NAME, RetrievalServicer
from retrieval.settings import RetrievalSettings
from retrieval.sources import SOURCES

ALL_ADS = [f"{topic}-{number}" for topic in TOPICS for number in range(20)]
KINDS = [types_pb2.EVENT_TYPE_IMPRESSION, types_pb2.EVENT_TYPE_CLICK, types_pb2.EVENT_TYPE_HIDE]


@contextmanager
def retrieval_of(root, **settings):
    store = open_store(root)
    swap = HotSwap(store, RetrieverLoader(store, RetrievalSettings(index=root, source_timeout_ms=5000, **settings)))
    swap.start()
    servicer = RetrievalServicer(swap, batch_vectors=64, max_message_mib=1)
    with serving_server(SERVICE_NAME, partial(add_RetrievalServiceServicer_to_server, servicer)) as (_, channel):
        yield RetrievalServiceStub(channel)
    servicer.close()
    swap.close()


@pytest.fixture(scope="module", params=["without towers", "with towers"])
def stub(request, world):
    root = world.index if request.param == "without towers" else request.getfixturevalue("tower_index")
    with retrieval_of(root) as found:
        yield found


def who_met(ad_ids, kind, **user):
    events = [types_pb2.Event(type=kind, ad_id=ad_id) for ad_id in ad_ids]
    return types_pb2.UserProfile(history=events, **user)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 20, 1000])
def test_who_has_met_every_ad_gets_an_empty_answer(stub, kind, k):
    for user in (who_met(ALL_ADS, kind), who_met(ALL_ADS, kind, interests="trail espresso roses")):
        assert list(stub.Retrieve(pb.RetrieveRequest(user=user, k=k)).candidates) == []


@pytest.mark.parametrize("source", SOURCES)
def test_no_source_brings_an_ad_that_the_user_has_met(stub, source):
    shares = [pb.SourceShare(source=source, share=1.0)]
    request = pb.RetrieveRequest(user=who_met(ALL_ADS, KINDS[1], interests="trail espresso roses"), k=20, shares=shares)
    assert list(stub.Retrieve(request).candidates) == []
    request.user.CopyFrom(who_met(ALL_ADS[1:], KINDS[1], interests="trail espresso roses"))
    assert [one.ad_id for one in stub.Retrieve(request).candidates] == ALL_ADS[:1]


def test_beside_others_in_a_batch_who_has_met_every_ad_gets_an_empty_answer_and_they_get_theirs(stub):
    users = [who_met(ALL_ADS, KINDS[0]), who_met(ALL_ADS[:5], KINDS[1])] * 8
    calls = [stub.Retrieve.future(pb.RetrieveRequest(user=user, k=10)) for user in users]
    assert [len(call.result().candidates) for call in calls] == [0, 10] * 8


def test_include_history_brings_them_all_the_same(stub):
    request = pb.RetrieveRequest(user=who_met(ALL_ADS, KINDS[1]), k=1000, include_history=True)
    assert sorted(one.ad_id for one in stub.Retrieve(request).candidates) == sorted(ALL_ADS)


def test_without_towers_nothing_liked_and_ads_left_is_still_refused(world):
    with retrieval_of(world.index) as stub, pytest.raises(grpc.RpcError, match="nothing the user liked"):
        stub.Retrieve(pb.RetrieveRequest(user=who_met(ALL_ADS[1:], KINDS[0]), k=5))


def test_embedding_who_has_met_every_ad_and_liked_none_is_refused(world):
    with retrieval_of(world.index) as stub, pytest.raises(grpc.RpcError, match="nothing the user liked"):
        stub.EmbedUser(pb.EmbedUserRequest(user=who_met(ALL_ADS, KINDS[0])))


def test_the_ads_of_an_answer_are_told_by_id(stub):
    reply = stub.GetAds(pb.GetAdsRequest(ad_ids=["coffee-3", "nobody", "garden-1", "coffee-3"]))
    assert [ad.ad_id for ad in reply.ads] == ["coffee-3", "garden-1", "coffee-3"]
    assert list(reply.unknown_ad_ids) == ["nobody"]
    assert reply.ads[0].body == "all about coffee"
    assert reply.index_version == stub.GetIndex(pb.GetIndexRequest()).index_version


def test_ads_that_do_not_fit_are_left_for_the_next_request(stub):
    wanted, got = [*ALL_ADS, "nobody"], []
    while wanted:
        reply = stub.GetAds(pb.GetAdsRequest(ad_ids=wanted, max_bytes=500))
        looked_at = len(reply.ads) + len(reply.unknown_ad_ids)
        assert 1 <= looked_at <= 10
        got += [ad.ad_id for ad in reply.ads]
        wanted = wanted[looked_at:]
    assert got == ALL_ADS
    assert len(stub.GetAds(pb.GetAdsRequest(ad_ids=ALL_ADS, max_bytes=1)).ads) == 1


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "0 ad_ids; a request names 1 to 1000"),
        (["a"] * 1001, "1001 ad_ids"),
        (["a", "x" * 300], "ad_ids[1] has 300 characters; the limit is 256"),
    ],
)
def test_impossible_lists_of_ids_are_refused(stub, ids, message):
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetAds(pb.GetAdsRequest(ad_ids=ids))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()
