"""Answers that are kept across a visit: those of the same question, of one index version, among the same ads."""

import json
import shutil
import weakref
from datetime import UTC, datetime, timedelta
from functools import partial

import grpc
import numpy as np
import pytest
from conftest import serving_server

from adcascade.artifacts.hotswap import HotSwap
from adcascade.catalog.schedule import Eligibility
from adcascade.v1 import retrieval_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import open_store
from index_builder.build import BuildOptions, build
from retrieval.__main__ import RetrieverLoader
from retrieval.answer_cache import AnswerCache
from retrieval.service import SERVICE_NAME, RetrievalServicer
from retrieval.settings import RetrievalSettings

OVER = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    """The made-up platform's index, every second ad of which is over."""
    folder = tmp_path_factory.mktemp("some-over")
    ads = [json.loads(line) for line in world.ads.read_text().splitlines()]
    ends = [{"end_time": OVER.isoformat()} if number % 2 else {} for number in range(len(ads))]
    (folder / "ads.jsonl").write_text("".join(json.dumps(ad | end) + "\n" for ad, end in zip(ads, ends, strict=True)))
    build(folder / "ads.jsonl", folder / "index", load_encoder("hashing:64"), BuildOptions())
    return folder


@pytest.fixture
def root(built, tmp_path):
    shutil.copytree(built / "index", tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def serve(root, request):
    """Starts a server with some settings: a stub, and the hot swap behind it."""

    def start(**settings):
        store = open_store(root)
        settings = RetrievalSettings(index=root, source_timeout_ms=10_000, **settings)
        swap = HotSwap(store, RetrieverLoader(store, settings), poll_seconds=3600)
        swap.start()
        servicer = RetrievalServicer(swap, batch_vectors=64)
        server = serving_server(SERVICE_NAME, partial(add_RetrievalServiceServicer_to_server, servicer))
        channel = server.__enter__()[1]
        request.addfinalizer(lambda: (server.__exit__(None, None, None), servicer.close(), swap.close()))
        return RetrievalServiceStub(channel), swap

    return start


def asked(k=10, at=None, history=("coffee-1", "running-2"), **more):
    events = [types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id=ad_id) for ad_id in history]
    user = types_pb2.UserProfile(user_id="u", interests="espresso", attributes={"a": "1", "b": "2"}, history=events)
    request = pb.RetrieveRequest(user=user, k=k, **more)
    if at is not None:
        request.context.timestamp.FromDatetime(at)
    return request


def answer(reply):
    """All but how long it took."""
    copied = pb.RetrieveResponse()
    copied.CopyFrom(reply)
    copied.ClearField("timing")
    return copied


def was_kept(reply):
    return reply.timing.compute_ms == 0


def kept_by(swap):
    with swap.lease() as retriever:
        return len(retriever.answers)


@pytest.mark.parametrize("at", [None, OVER - DAY, OVER + DAY])
def test_a_question_that_comes_again_gets_the_same_answer_without_work(serve, at):
    stub, swap = serve()
    first, again = stub.Retrieve(asked(at=at)), stub.Retrieve(asked(at=at))
    assert not was_kept(first)
    assert was_kept(again)
    assert len(first.candidates) == 10
    assert answer(again) == answer(first)
    assert kept_by(swap) == 1


def test_the_moment_counts_by_the_ads_that_may_be_shown_alone(serve):
    stub, _ = serve()
    before = stub.Retrieve(asked(at=OVER - DAY))
    assert was_kept(stub.Retrieve(asked(at=OVER - 2 * DAY)))
    after = stub.Retrieve(asked(at=OVER + DAY))
    assert not was_kept(after)
    assert answer(after) != answer(before)
    assert was_kept(stub.Retrieve(asked(at=OVER + 2 * DAY)))


@pytest.mark.parametrize(
    "other",
    [
        {"k": 9},
        {"history": ("coffee-1", "running-2", "coffee-2")},
        {"history": ("running-2", "coffee-1")},
        {"include_history": True},
        {"shares": [pb.SourceShare(source="lexical", share=0.5)]},
        {"context": types_pb2.Context(device="phone")},
    ],
)
def test_another_question_is_answered_anew(serve, other):
    stub, _ = serve()
    stub.Retrieve(asked())
    reply = stub.Retrieve(asked(**other))
    assert not was_kept(reply)
    assert answer(reply) == answer(serve(answer_cache_mib=0)[0].Retrieve(asked(**other)))


def test_a_new_index_version_answers_anew(serve, root, built):
    stub, swap = serve()
    first = stub.Retrieve(asked())
    ads = (built / "ads.jsonl").read_text().replace("espresso", "tea")
    (root.parent / "ads.jsonl").write_text(ads)
    report = build(root.parent / "ads.jsonl", root, load_encoder("hashing:64"), BuildOptions())
    swap.refresh()
    reply = stub.Retrieve(asked())
    assert not was_kept(reply)
    assert reply.index_version == report.version != first.index_version


def test_answers_without_a_source_or_with_texts_are_not_kept(serve):
    stub, swap = serve()
    with swap.lease() as retriever:
        retriever._pool._sources["lexical"].find = None  # it fails
    for request in (asked(), asked(include_ads=True)):
        replies = [stub.Retrieve(request) for _ in range(2)]
        assert not any(map(was_kept, replies))
        assert [list(reply.skipped_sources) for reply in replies] == [["lexical"]] * 2
    assert kept_by(swap) == 0


def test_a_bad_moment_is_refused_though_the_rest_was_asked_before(serve):
    stub, _ = serve()
    stub.Retrieve(asked())
    request = asked()
    request.context.timestamp.seconds = 10**15
    with pytest.raises(grpc.RpcError) as caught:
        stub.Retrieve(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_kept_is_bounded(serve):
    stub, swap = serve(answer_cache_mib=0)
    assert not was_kept(stub.Retrieve(asked()))
    assert not was_kept(stub.Retrieve(asked()))
    assert kept_by(swap) == 0
    cache, everything = AnswerCache(10_000), Eligibility(None, 1)
    for number in range(100):
        cache.put(b"%d" % number, everything, b"x" * 1000)
    assert len(cache) == 6
    assert cache.get(b"99", everything) == b"x" * 1000
    assert cache.get(b"99", Eligibility(None, 1)) is None
    assert cache.get(b"0", everything) is None
    cache.put(b"x" * 100_000, everything, b"x")
    assert cache.get(b"x" * 100_000, everything) is None


def test_answers_do_not_keep_what_may_be_shown_alive():
    """It is as large as the catalog, and there is one for each moment that a caller asks about."""
    cache, eligible = AnswerCache(10_000), Eligibility(np.ones(1000, bool), 1000)
    held = weakref.ref(eligible)
    cache.put(b"question", eligible, b"answer")
    assert cache.get(b"question", eligible) == b"answer"
    del eligible
    assert held() is None
    assert cache.get(b"question", Eligibility(np.ones(1000, bool), 1000)) is None
