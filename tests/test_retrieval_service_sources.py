"""Candidate sources over the wire, of an index version with towers."""

from functools import partial

import grpc
import pytest
from conftest import serving_server

from adcascade.artifacts.hotswap import HotSwap
from adcascade.v1 import retrieval_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server
from index_builder.artifact import open_store
from retrieval.__main__ import RetrieverLoader
from retrieval.service import SERVICE_NAME, RetrievalServicer
from retrieval.settings import RetrievalSettings
from retrieval.sources import LEXICAL, SourcePool


class Broken:
    def find(self, asked):
        raise RuntimeError("the disk is gone")


@pytest.fixture
def served(tower_index):
    """A stub, and the hot swap behind it."""
    store = open_store(tower_index)
    settings = RetrievalSettings(index=tower_index, source_timeout_ms=5000)
    swap = HotSwap(store, RetrieverLoader(store, settings))
    swap.start()
    servicer = RetrievalServicer(swap, batch_vectors=64)
    with serving_server(SERVICE_NAME, partial(add_RetrievalServiceServicer_to_server, servicer)) as (_, channel):
        yield RetrievalServiceStub(channel), swap
    servicer.close()
    swap.close()


def request(**shares):
    clicks = [types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id=f"running-{number}") for number in range(6)]
    return pb.RetrieveRequest(
        user=types_pb2.UserProfile(interests="compost spade", history=clicks),
        k=20,
        shares=[pb.SourceShare(source=name, share=share) for name, share in shares.items()],
    )


def test_where_ads_are_shown_moves_the_interests(served):
    stub, _ = served
    user, phone = request().user, types_pb2.Context(device="phone")
    embedded = [
        stub.EmbedUser(pb.EmbedUserRequest(user=user, context=context)).vectors.values
        for context in (types_pb2.Context(), phone, types_pb2.Context(device="never seen"))
    ]
    assert embedded[0] != embedded[1]
    assert embedded[0] == pytest.approx(embedded[2])
    found = [
        [one.similarity for one in stub.Retrieve(pb.RetrieveRequest(user=user, k=20, context=context)).candidates]
        for context in (types_pb2.Context(), phone)
    ]
    assert found[0] != found[1]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Retrieve(pb.RetrieveRequest(user=user, k=20, context=types_pb2.Context(device="x" * 257)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_shares_of_the_request_take_the_place_of_the_settings(served):
    stub, _ = served
    sources = [one.source for one in stub.Retrieve(request(lexical=0.5)).candidates]
    assert sources.count("lexical") >= 5
    answer = stub.Retrieve(request(lexical=0.0))
    assert {one.source for one in answer.candidates} <= {"interests", "neighbours", "fresh"}
    assert not answer.skipped_sources
    assert all(one.score != 0 for one in answer.candidates)


@pytest.mark.parametrize(
    ("shares", "said"),
    [({"words": 0.5}, "no candidate source"), ({"lexical": 2.0}, "0 to 1"), ({"lexical": -0.1}, "0 to 1")],
)
def test_shares_that_are_none_are_invalid(served, shares, said):
    with pytest.raises(grpc.RpcError) as caught:
        served[0].Retrieve(request(**shares))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in caught.value.details()


def test_a_source_that_is_down_is_named_in_the_answer(served):
    stub, swap = served
    with swap.lease() as retriever:
        retriever._pool.close()
        retriever._pool = SourcePool({LEXICAL: Broken()}, 5.0, lambda *_: None)
    answer = stub.Retrieve(request(lexical=0.5))
    assert len(answer.candidates) == 20
    assert list(answer.skipped_sources) == ["lexical"]
