"""RetrievalService through a real server: good answers, bad input, and swapping versions under load."""

import shutil
import threading
from functools import partial

import grpc
import numpy as np
import pytest
from conftest import serving_server

from adcascade.artifacts.hotswap import HotSwap
from adcascade.serving.slices import run_through
from adcascade.v1 import retrieval_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server
from adcascade.vectors.encoder import load_encoder
from adcascade.vectors.errors import BuildError
from adcascade.wire import vectors_to_wire
from index_builder.artifact import load_version, open_store
from index_builder.build import BuildOptions, build
from retrieval.__main__ import RetrieverLoader
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.retriever import Retriever
from retrieval.service import SERVICE_NAME, RetrievalServicer
from retrieval.settings import RetrievalSettings


@pytest.fixture
def index_root(world, tmp_path):
    root = tmp_path / "index"
    shutil.copytree(world.index, root)
    return root


@pytest.fixture
def served(index_root):
    """A stub, and the hot swap behind it."""
    store = open_store(index_root)
    swap = HotSwap(store, RetrieverLoader(store, RetrievalSettings(index=index_root)), poll_seconds=0.05)
    swap.start()
    servicer = RetrievalServicer(swap, batch_vectors=64)
    with serving_server(SERVICE_NAME, partial(add_RetrievalServiceServicer_to_server, servicer)) as (_, channel):
        yield RetrievalServiceStub(channel), swap
    servicer.close()
    swap.close()


@pytest.fixture
def stub(served):
    return served[0]


def click(ad_id):
    return types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id=ad_id)


def status_of(call, *args):
    with pytest.raises(grpc.RpcError) as caught:
        call(*args)
    return caught.value.code(), caught.value.details()


def test_interests_text_finds_its_topic(stub):
    user = types_pb2.UserProfile(interests="espresso grinder beans roast")
    shares = [pb.SourceShare(source="lexical", share=0)]
    reply = stub.Retrieve(pb.RetrieveRequest(user=user, k=10, include_ads=True, shares=shares))
    assert len(reply.candidates) == 10
    assert sum(candidate.ad.category == "coffee" for candidate in reply.candidates) >= 8
    similarities = [candidate.similarity for candidate in reply.candidates]
    assert similarities == sorted(similarities, reverse=True)
    assert {candidate.source for candidate in reply.candidates} == {"interests"}
    assert reply.index_version
    assert reply.timing.compute_ms > 0


def test_history_is_left_out_unless_asked_for(stub):
    user = types_pb2.UserProfile(history=[click("coffee-1"), click("gone")])
    without = stub.Retrieve(pb.RetrieveRequest(user=user, k=5))
    with_it = stub.Retrieve(pb.RetrieveRequest(user=user, k=5, include_history=True))
    assert "coffee-1" not in {candidate.ad_id for candidate in without.candidates}
    assert with_it.candidates[0].ad_id == "coffee-1"
    assert with_it.candidates[0].similarity == pytest.approx(1, abs=1e-5)
    assert without.unknown_history == 1
    assert not without.candidates[0].HasField("ad")


@pytest.mark.parametrize("raw", [False, True])
def test_ready_vectors_are_searched_exactly(stub, index_root, raw):
    store = open_store(index_root)
    loaded = load_version(store, store.current())
    queries = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    reply = stub.Retrieve(pb.RetrieveRequest(vectors=vectors_to_wire(queries, raw=raw), k=6))
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores = unit @ np.asarray(loaded.vectors).T
    best_of_each = {loaded.catalog.ids[row] for interest in scores for row in np.argsort(-interest)[:3]}
    assert {candidate.ad_id for candidate in reply.candidates} >= best_of_each
    row_of = loaded.catalog.row_of
    for candidate in reply.candidates:
        assert candidate.similarity == pytest.approx(scores[candidate.interest, row_of[candidate.ad_id]], abs=1e-5)


def test_embedding_a_user_and_searching_with_it_is_retrieving(stub):
    user = types_pb2.UserProfile(interests="roses", history=[click(f"running-{n}") for n in range(12)])
    embedded = stub.EmbedUser(pb.EmbedUserRequest(user=user))
    assert sum(embedded.weights) == pytest.approx(1)
    direct = stub.Retrieve(pb.RetrieveRequest(user=user, k=5, include_history=True))
    again = stub.Retrieve(pb.RetrieveRequest(vectors=embedded.vectors, k=5))
    assert {c.ad_id for c in again.candidates} >= {direct.candidates[0].ad_id}
    assert again.candidates[0].similarity == pytest.approx(direct.candidates[0].similarity, abs=1e-5)


def test_k_above_the_catalog_returns_all_of_it(stub):
    reply = stub.Retrieve(pb.RetrieveRequest(user=types_pb2.UserProfile(interests="trail"), k=1000))
    assert len({candidate.ad_id for candidate in reply.candidates}) == 60


def test_the_index_describes_itself(stub):
    reply = stub.GetIndex(pb.GetIndexRequest())
    assert (reply.ad_count, reply.dimension, reply.metric, reply.factory) == (60, 64, "inner_product", "Flat")
    assert reply.encoder == "hashing:64"
    assert len(reply.encoder_sha256) == 64
    assert reply.recall == 1.0


VECTOR = types_pb2.InterestVectors(dimension=64, values=[1.0] * 64)
USER = types_pb2.UserProfile(interests="x")
BAD_REQUESTS = {
    "k of 0": (pb.RetrieveRequest(user=USER, k=0), "k must be 1 to 1000, not 0"),
    "k of 10,000": (pb.RetrieveRequest(user=USER, k=10_000), "k must be 1 to 1000, not 10000"),
    "no query": (pb.RetrieveRequest(k=5), "set user, or vectors"),
    "empty user": (pb.RetrieveRequest(user=types_pb2.UserProfile(), k=5), "the user is empty"),
    "wrong dimension": (
        pb.RetrieveRequest(vectors=types_pb2.InterestVectors(dimension=3, values=[1, 2, 3]), k=5),
        "dimension 3; this index has 64",
    ),
    "NaN": (
        pb.RetrieveRequest(vectors=types_pb2.InterestVectors(dimension=64, values=[float("nan")] * 64), k=5),
        "NaN, infinity",
    ),
    "1 MB text": (
        pb.RetrieveRequest(user=types_pb2.UserProfile(interests="x" * 1_000_000), k=5),
        "interests has 1000000 characters; the limit is 32768",
    ),
    "only unknown ads": (
        pb.RetrieveRequest(user=types_pb2.UserProfile(history=[click("nobody")]), k=5),
        "none of the 1 ads of the history is in this index version",
    ),
    "too long a history": (
        pb.RetrieveRequest(user=types_pb2.UserProfile(history=[click("coffee-1")] * 1001), k=5),
        "1001 events; the limit is 1000",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_invalid_and_say_what_to_do(stub, name):
    request, message = BAD_REQUESTS[name]
    code, details = status_of(stub.Retrieve, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details
    assert len(stub.Retrieve(pb.RetrieveRequest(vectors=VECTOR, k=3)).candidates) == 3


def test_concurrent_queries_get_their_own_answers(stub):
    def ask(topic, replies, place):
        words = {"coffee": "espresso beans", "garden": "roses soil", "running": "trail stride"}[topic]
        user = types_pb2.UserProfile(interests=words)
        replies[place] = (topic, stub.Retrieve(pb.RetrieveRequest(user=user, k=3 + place % 5, include_ads=True)))

    topics = ["coffee", "garden", "running"] * 10
    replies = [None] * len(topics)
    threads = [threading.Thread(target=ask, args=(topic, replies, place)) for place, topic in enumerate(topics)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, (topic, reply) in enumerate(replies):
        assert len(reply.candidates) == 3 + place % 5
        assert reply.candidates[0].ad.category == topic


def test_a_new_version_takes_over_without_dropping_a_call(served, index_root, world):
    stub, _ = served
    first = stub.GetIndex(pb.GetIndexRequest()).index_version
    versions, failures, stop = set(), [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            try:
                versions.add(stub.Retrieve(pb.RetrieveRequest(user=USER, k=5), timeout=10).index_version)
            except grpc.RpcError as error:
                failures.append(error)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    report = build(world.ads, index_root, load_encoder("hashing:64"), BuildOptions())
    for _ in range(200):
        if report.version in versions:
            break
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert versions == {first, report.version}


def test_a_damaged_new_version_leaves_the_old_one_answering(served, index_root, world):
    stub, swap = served
    first = stub.GetIndex(pb.GetIndexRequest()).index_version
    report = build(world.ads, index_root, load_encoder("hashing:64"), BuildOptions(publish=False))
    faiss_file = open_store(index_root).path(report.version) / "index.faiss"
    content = bytearray(faiss_file.read_bytes())
    content[len(content) // 2] ^= 1
    faiss_file.write_bytes(content)
    (index_root / "CURRENT").write_text(f'{{"published": ["{report.version}", "{first}"]}}')
    swap.refresh()
    assert stub.GetIndex(pb.GetIndexRequest()).index_version == first


def test_an_encoder_that_did_not_make_the_index_is_refused_by_name(index_root):
    store = open_store(index_root)
    loaded = load_version(store, store.current())
    with pytest.raises(BuildError, match=r"was made by the encoder 'hashing:64' .* but 'hashing:128' has"):
        Retriever(AdIndex(loaded), load_encoder("hashing:128"), InterestSettings(), 10)


def test_the_text_cache_is_bounded(index_root):
    store = open_store(index_root)
    retriever = Retriever(
        AdIndex(load_version(store, store.current())),
        load_encoder("hashing:64"),
        InterestSettings(),
        text_cache_bytes=3000,
    )
    for number in range(10):
        run_through(retriever.texts.of([f"text {number} {'x' * 5000}", "always"]))
    assert retriever.texts.kept.used_bytes <= 3000
    assert retriever.texts.kept.get("always") is not None
    assert retriever.texts.kept.get(f"text 9 {'x' * 5000}") is not None
    assert retriever.texts.kept.get(f"text 0 {'x' * 5000}") is None
