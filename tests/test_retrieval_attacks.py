"""A retrieval server under hostile calls: costly ones, floods of distinct values, numbers that overflow."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import numpy as np
import pytest
from conftest import serving_server
from google.protobuf.timestamp_pb2 import Timestamp

from adcascade.artifacts.hotswap import HotSwap
from adcascade.records.users import Context, Event, EventType, UserProfile
from adcascade.serving.slices import run_through
from adcascade.v1 import retrieval_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server
from adcascade.vectors.encoder import load_encoder
from adcascade.wire import vectors_to_wire
from index_builder.artifact import load_version, open_store
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.query import Query
from retrieval.retriever import LIGHT_COST, Retriever
from retrieval.service import SERVICE_NAME, RetrievalServicer

CACHE_BYTES = 64 * 1024
SEARCH = types_pb2.EVENT_TYPE_SEARCH


class SlowEncoder:
    """The hashing encoder, a while for each text; notes what it was given."""

    seconds = 0.005

    def __init__(self):
        inner = load_encoder("hashing:64")
        self.name, self.sha256, self.dimension, self.max_chars = inner.name, inner.sha256, 64, inner.max_chars
        self._inner, self.texts, self.sizes = inner, [], []

    def encode(self, texts):
        self.texts += texts
        self.sizes.append(sum(map(len, texts)))
        time.sleep(self.seconds * len(texts))
        return self._inner.encode([text[:100] for text in texts])


def make_retriever(root, encoder, cache_bytes=CACHE_BYTES):
    store = open_store(root)
    index = AdIndex(load_version(store, store.current()), "cpu")
    return Retriever(index, encoder, InterestSettings(), cache_bytes)


@pytest.fixture(params=["text", "towers"])
def served(request, world):
    """A stub, the encoder and the retriever behind it."""
    root = world.index if request.param == "text" else request.getfixturevalue("tower_index")
    encoder = SlowEncoder()
    retriever = make_retriever(root, encoder)
    swap = HotSwap(open_store(root), lambda _: retriever, release=Retriever.close)
    swap.start()
    servicer = RetrievalServicer(swap, batch_vectors=256)
    with serving_server(SERVICE_NAME, partial(add_RetrievalServiceServicer_to_server, servicer)) as (_, channel):
        yield RetrievalServiceStub(channel), encoder, retriever
    servicer.close()
    swap.close()


@pytest.fixture
def stub(served):
    return served[0]


def searches(count, chars=20_000, name="x"):
    return [types_pb2.Event(type=SEARCH, text=(f"{name}{n} " + "trail shoes " * 3000)[:chars]) for n in range(count)]


def test_a_heavy_call_lets_others_go_first_and_stops_at_its_deadline(served):
    stub, encoder, _ = served
    encoder.seconds = 0.05  # all texts that are read take two seconds and more
    heavy = pb.RetrieveRequest(user=types_pb2.UserProfile(history=searches(250)), k=5)
    late = stub.Retrieve.future(heavy, timeout=1.0)
    while not encoder.texts:
        time.sleep(0.005)
    stub.Retrieve(pb.RetrieveRequest(user=types_pb2.UserProfile(interests="espresso"), k=5), timeout=10)
    assert not late.done()  # the light call did not wait for it
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.3)
    stopped = len(encoder.texts)
    time.sleep(0.3)
    assert len(encoder.texts) == stopped < 35


class LayeredEncoder(SlowEncoder):
    """One that can be paused, six times in each text."""

    layers = 0

    def encode_in_slices(self, texts):
        for _ in range(6):
            self.layers += 1
            yield
        return self.encode(texts)


def test_long_texts_are_read_a_layer_at_a_time_and_short_ones_at_once(world):
    encoder = LayeredEncoder()
    retriever = make_retriever(world.index, encoder)
    try:
        for text, layers in (("espresso", 0), ("trail shoes " * 3000, 6)):
            encoder.layers = 0
            slices = retriever.answer_in_slices([Query(UserProfile(interests=text), None, 5)])
            (answer,) = run_through(slices)
            assert len(answer.candidates) == 5
            assert encoder.layers == layers
    finally:
        retriever.close()


def test_a_call_reads_no_text_longer_than_the_encoder_does_and_few_at_once(served):
    stub, encoder, _ = served
    user = types_pb2.UserProfile(history=searches(6, chars=32_000), interests="y" * 32_000)
    stub.Retrieve(pb.RetrieveRequest(user=user, k=5))
    assert len(encoder.texts) == 7
    assert max(map(len, encoder.texts)) <= encoder.max_chars
    assert max(encoder.sizes) <= encoder.max_chars  # a slice is one long text


def test_events_that_are_too_old_to_count_are_not_read(served):
    stub, encoder, _ = served
    user = types_pb2.UserProfile(history=searches(1000, chars=20))
    assert stub.Retrieve(pb.RetrieveRequest(user=user, k=5)).candidates
    assert len(encoder.texts) <= 200
    assert "x999 trail shoes tra" in encoder.texts


def test_a_search_behind_many_ads_that_are_not_known_is_read(stub):
    events = [*searches(1), *(types_pb2.Event(type=SEARCH, ad_id=f"gone {number}") for number in range(300))]
    reply = stub.Retrieve(pb.RetrieveRequest(user=types_pb2.UserProfile(history=events), k=5))
    assert reply.candidates
    assert reply.unknown_history == 300


def test_many_heavy_calls_of_one_client_are_refused_and_normal_ones_go_on(stub):
    def ask(number):
        user = types_pb2.UserProfile(history=searches(150, chars=9000, name=f"n{number} "))
        try:
            stub.Retrieve(pb.RetrieveRequest(user=user, k=5), timeout=3)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(ask, number) for number in range(30)]
        for _ in range(5):
            stub.Retrieve(pb.RetrieveRequest(user=types_pb2.UserProfile(interests="tea"), k=5), timeout=10)
        codes = {answer.result() for answer in answers}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_what_a_query_costs_grows_with_what_must_be_read(world):
    retriever = make_retriever(world.index, load_encoder("hashing:64"))

    def cost(*texts, **changes):
        events = tuple(Event(EventType.SEARCH, text=text) for text in texts)
        return retriever.cost_of(Query(UserProfile(interests="tea", history=events), None, 10, **changes))

    assert cost() <= 2
    assert cost("trail shoes") <= LIGHT_COST
    assert cost(*[f"{number} shoes" for number in range(5)]) <= LIGHT_COST
    assert cost(*[f"{number} {'shoes ' * 500}" for number in range(20)]) > 10 * LIGHT_COST
    assert cost(exclude=frozenset(map(str, range(1000)))) > cost()
    vectors = np.ones((16, 64), np.float32)
    assert retriever.cost_of(Query(None, vectors, 10)) == 16
    text = "running " * 1000
    before = cost(text)
    retriever.answer([Query(retriever.readable(UserProfile(history=(Event(EventType.SEARCH, text=text),))), None, 1)])
    assert (
        retriever.cost_of(
            Query(retriever.readable(UserProfile(history=(Event(EventType.SEARCH, text=text),))), None, 1)
        )
        < before / 10
    )  # it is known by now
    retriever.close()


def test_a_flood_of_distinct_texts_takes_no_more_than_the_cache_may(served):
    stub, encoder, retriever = served
    for number in range(150):
        user = types_pb2.UserProfile(
            interests=f"\U0001f600{number} " + "y" * 30_000, history=searches(2, 40, str(number))
        )
        stub.Retrieve(pb.RetrieveRequest(user=user, k=1))
    assert len(encoder.texts) == 450
    assert 0.5 * CACHE_BYTES < retriever.texts.kept.used_bytes <= CACHE_BYTES


def test_kept_vectors_do_not_hold_the_batch_that_they_were_made_in(world):
    retriever = make_retriever(world.index, load_encoder("hashing:64"))
    events = tuple(Event(EventType.SEARCH, text=f"text {number}") for number in range(20))
    retriever.answer([Query(UserProfile(history=events), None, 1, context=Context())])
    assert retriever.texts.kept.get("text 3").base is None
    retriever.close()


NAN, INFINITY, HUGE, TINY = float("nan"), float("inf"), 3e38, 1e-45
EDGES = [NAN, INFINITY, -INFINITY, HUGE, -HUGE, TINY]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("value", EDGES)
def test_vectors_that_overflow_are_refused(stub, value, raw):
    dimension = stub.GetIndex(pb.GetIndexRequest()).dimension
    vectors = np.full((1, dimension), value, np.float32)
    one = np.zeros((1, dimension), np.float32)
    one[0, 1] = value
    for wrong in (vectors, one, np.vstack([np.ones_like(one), one])):
        request = pb.RetrieveRequest(vectors=vectors_to_wire(wrong, raw=raw), k=3)
        assert status_of(stub.Retrieve, request) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("length", [1e-17, 1e17])
def test_vectors_of_any_other_length_find_finite_scores(stub, length):
    dimension = stub.GetIndex(pb.GetIndexRequest()).dimension
    vectors = np.full((2, dimension), length / np.sqrt(dimension), np.float32)
    found = stub.Retrieve(pb.RetrieveRequest(vectors=vectors_to_wire(vectors), k=3)).candidates
    assert len(found) == 3
    assert all(np.isfinite([one.similarity, one.score]).all() for one in found)


@pytest.mark.parametrize("share", [NAN, INFINITY, -INFINITY, HUGE, -TINY, 1.5, -0.5])
def test_shares_that_are_no_shares_are_refused(stub, share):
    request = pb.RetrieveRequest(user=types_pb2.UserProfile(interests="tea"), k=3)
    request.shares.add(source="lexical", share=share)
    assert status_of(stub.Retrieve, request) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("share", [0.0, -0.0, TINY, 1.0])
def test_shares_at_the_edge_are_taken(stub, share):
    request = pb.RetrieveRequest(user=types_pb2.UserProfile(interests="tea"), k=3)
    request.shares.add(source="lexical", share=share)
    assert len(stub.Retrieve(request).candidates) == 3


FIRST, LAST = -62135596800, 253402300799
BAD_TIMES = [
    Timestamp(seconds=2**63 - 1),
    Timestamp(seconds=-(2**63)),
    Timestamp(seconds=LAST + 1),
    Timestamp(seconds=FIRST - 1),
    Timestamp(nanos=-1),
    Timestamp(nanos=2**31 - 1),
]


@pytest.mark.parametrize("moment", BAD_TIMES)
def test_moments_that_are_none_are_refused_wherever_they_stand(stub, moment):
    event = types_pb2.Event(type=SEARCH, text="tea", timestamp=moment)
    user = types_pb2.UserProfile(history=[event])
    where = types_pb2.Context(timestamp=moment)
    for call, request in (
        (stub.Retrieve, pb.RetrieveRequest(user=user, k=1)),
        (stub.Retrieve, pb.RetrieveRequest(user=types_pb2.UserProfile(interests="tea"), context=where, k=1)),
        (stub.EmbedUser, pb.EmbedUserRequest(user=user)),
        (stub.EmbedUser, pb.EmbedUserRequest(user=types_pb2.UserProfile(interests="tea"), context=where)),
    ):
        assert status_of(call, request) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("offset", [-1440, 0, 1440])
@pytest.mark.parametrize("seconds", [FIRST, LAST])
def test_the_first_and_the_last_moment_are_moments(stub, seconds, offset):
    context = types_pb2.Context(timestamp=Timestamp(seconds=seconds), utc_offset_minutes=offset)
    times = [FIRST, seconds, LAST, FIRST, 0]  # not even in order
    events = [types_pb2.Event(type=SEARCH, text="tea", timestamp=Timestamp(seconds=one)) for one in times]
    reply = stub.EmbedUser(pb.EmbedUserRequest(user=types_pb2.UserProfile(history=events), context=context))
    assert np.isfinite([*reply.vectors.values, *reply.weights]).all()
    assert 0 <= sum(reply.weights) <= 1.001
    assert stub.Retrieve(
        pb.RetrieveRequest(user=types_pb2.UserProfile(history=events), context=context, k=3)
    ).candidates


def test_events_of_a_lifetime_apart_are_all_heard(stub):
    """An old event counts next to nothing, which is not nothing."""
    hide = types_pb2.Event(type=types_pb2.EVENT_TYPE_HIDE, ad_id="coffee-1", timestamp=Timestamp(seconds=LAST))
    search = types_pb2.Event(type=SEARCH, text="tea", timestamp=Timestamp(seconds=FIRST))
    user = types_pb2.UserProfile(history=[search, hide])
    assert stub.Retrieve(pb.RetrieveRequest(user=user, k=3)).candidates


@pytest.mark.parametrize("k", [0, 1001, 2**32 - 1])
def test_counts_that_are_out_of_range_are_refused(stub, k):
    request = pb.RetrieveRequest(user=types_pb2.UserProfile(interests="tea"), k=k)
    assert status_of(stub.Retrieve, request) is grpc.StatusCode.INVALID_ARGUMENT


def status_of(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value.code()
