"""A ranking server under hostile calls: costly ones, floods of distinct values, numbers that overflow."""

import tracemalloc
from datetime import UTC, datetime
from functools import partial

import grpc
import numpy as np
import pytest
from conftest import serving_server
from google.protobuf.timestamp_pb2 import Timestamp

from adcascade.artifacts.hotswap import HotSwap
from adcascade.records.ads import Ad
from adcascade.records.hashing import blake2b_bucket, blake2b_hash
from adcascade.records.users import Context, Event, EventType, UserProfile
from adcascade.v1 import ranking_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceStub, add_RankingServiceServicer_to_server
from index_builder.artifact import open_store as open_index_store
from ranking.__main__ import _load_catalog, _load_engine
from ranking.inputs.content import MOST_CHARS
from ranking.inputs.context import context_hashes
from ranking.inputs.prepare import prepare
from ranking.runtime.engine import LIGHT_COST, light_cost
from ranking.runtime.engine_settings import EngineSettings
from ranking.service import SERVICE_NAME, RankingServicer
from ranking.store import open_store


@pytest.fixture(scope="module")
def engine(world):
    store = open_store(world.model)
    return _load_engine(store, EngineSettings("cpu", cache_mib=1, user_cache_mib=1), store.current())


@pytest.fixture(scope="module")
def stub(world, engine):
    engines = HotSwap(open_store(world.model), lambda _: engine)
    index = open_index_store(world.index)
    catalogs = HotSwap(index, partial(_load_catalog, index))
    engines.start()
    catalogs.start()
    servicer = RankingServicer(engines, catalogs, batch_candidates=2000)
    with serving_server(SERVICE_NAME, partial(add_RankingServiceServicer_to_server, servicer)) as (_, channel):
        yield RankingServiceStub(channel)
    servicer.close()
    engines.close()
    catalogs.close()


def query_of(engine, count, title, user=None):
    ads = [Ad(f"x{number}", title=f"{number} {title}") for number in range(count)]
    return engine.readable(prepare(user or UserProfile(), Context(), ads, None, skip_unknown=False).query)


def test_a_query_holds_no_more_text_than_the_model_reads(engine):
    events = tuple(Event(EventType.SEARCH, text="y" * 32_000) for _ in range(200))
    user = UserProfile(interests="x" * 32_000, history=events, attributes={"a": "z" * 30_000})
    query = query_of(engine, 2, "w" * 30_000, user)
    spec = engine.loaded.spec
    assert len(query.user_text) <= 16 * spec.max_user_tokens
    texts = [*query.ad_texts, query.interests, *(event.text for event in query.past)]
    assert max(map(len, texts)) <= max(16 * spec.max_ad_tokens, MOST_CHARS)


def test_the_scores_of_long_texts_are_those_without_the_cut(engine):
    user = UserProfile(interests="marathon " * 3000)
    ads = [Ad("a", title="trail shoes " * 2000), Ad("b", body="espresso beans " * 2000)]
    whole = prepare(user, Context(timestamp=datetime(2024, 1, 1, tzinfo=UTC)), ads, None, skip_unknown=False).query
    np.testing.assert_allclose(
        engine.rank([engine.readable(whole)])[0].p_click, engine.rank([whole])[0].p_click, atol=1e-6
    )


def test_ads_that_nobody_has_met_cost_more_and_only_once(engine):
    fresh = query_of(engine, 1000, "never met " * 20)
    assert engine.cost_of(fresh) > 2 * LIGHT_COST
    known = query_of(engine, 20, "met before")
    before = engine.cost_of(known)
    engine.rank([known])
    assert engine.cost_of(known) < before
    assert engine.cost_of(known) <= LIGHT_COST


def test_a_heavy_query_is_ranked_in_many_slices_and_the_same_way(engine):
    query = query_of(engine, 1000, "sliced " * 30)
    slices = engine.rank_in_slices([query])
    count = 0
    try:
        while True:
            next(slices)
            count += 1
            if count == 3:  # another one goes between
                other = engine.rank([query_of(engine, 5, "between")])[0]
    except StopIteration as done:
        (answer,) = done.value
    assert count > 20
    assert len(other.p_click) == 5
    np.testing.assert_allclose(answer.p_click, engine.rank([query])[0].p_click, atol=1e-5)


def test_a_query_can_be_left_off_and_the_next_one_is_answered(engine):
    slices = engine.rank_in_slices([query_of(engine, 500, "left off " * 30)])
    next(slices)
    next(slices)
    slices.close()
    assert len(engine.rank([query_of(engine, 5, "next")])[0].p_click) == 5


def test_a_call_whose_deadline_passes_costs_the_next_one_little(stub):
    ads = [types_pb2.Ad(ad_id=f"x{number}", title=f"{number} " + "late " * 500) for number in range(1000)]
    candidates = [pb.RankCandidate(ad=ad) for ad in ads]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rank(pb.RankRequest(candidates=candidates), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    reply = stub.Rank(pb.RankRequest(candidates=[pb.RankCandidate(ad_id="coffee-1")]), timeout=30)
    assert reply.timing.queue_ms < 3000


def test_floods_of_distinct_values_take_no_more_than_the_caches_may(stub, engine):
    """Attributes, contexts, texts, ids and ads that nobody sent before: some 100 MB of keys."""

    def flood(first, count):
        for number in range(first, first + count):
            wide = f"\U0001f600{number:08d}" + "y" * 7000
            user = types_pb2.UserProfile(
                user_id=f"u{number}" * 20,
                interests=f"i{wide}",
                attributes={f"{number}": wide, wide[:200]: "v"},
                history=[types_pb2.Event(type=types_pb2.EVENT_TYPE_SEARCH, text=f"s{wide}")],
            )
            ad = types_pb2.Ad(ad_id=f"ad{number}" * 20, title=f"t{wide}", advertiser=f"{number}", category=f"c{number}")
            context = types_pb2.Context(page_text=f"p{wide}", device=f"{number}", attributes={"x": f"a{wide}"})
            stub.Rank(pb.RankRequest(user=user, context=context, candidates=[pb.RankCandidate(ad=ad)]))

    flood(0, 300)
    tracemalloc.start()
    try:
        flood(300, 100)
        before = tracemalloc.get_traced_memory()[0]
        flood(400, 500)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 8 * 2**20  # their keys alone: 500 x 6 x 28 KB are 84 MB
    assert len(engine._reader._ads) > 0
    assert engine._reader._ads.used_bytes <= 16 * 2**20


def test_hashes_of_long_texts_are_not_kept():
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2000):
            wide = f"\U0001f600{number}" + "y" * 20_000
            context_hashes(UserProfile(attributes={"a": wide}), Context(attributes={wide: "b"}), None)
            blake2b_bucket(f"\U0001f600{number}" + "y" * 250, 1000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2**20
    assert blake2b_hash("a" * 64) == blake2b_hash("a" * 64) != blake2b_hash("a" * 65)


FIRST, LAST = -62135596800, 253402300799
AD = types_pb2.Ad(ad_id="a", title="an ad")


@pytest.mark.parametrize("offset", [-1440, 0, 1440])
@pytest.mark.parametrize("seconds", [FIRST, 0, LAST])
def test_the_first_and_the_last_moment_are_moments(stub, seconds, offset):
    moment = Timestamp(seconds=seconds)
    events = [
        types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id="coffee-1", timestamp=Timestamp(seconds=one))
        for one in (FIRST, seconds, LAST)
    ]
    request = pb.RankRequest(
        user=types_pb2.UserProfile(user_id="u0", history=events),
        context=types_pb2.Context(timestamp=moment, utc_offset_minutes=offset),
        candidates=[pb.RankCandidate(ad=types_pb2.Ad(ad_id="a", title="x", start_time=Timestamp(seconds=FIRST)))],
    )
    request.counters.add(kind=pb.COUNTER_KIND_AD, id="a", impressions=2**53, clicks=2**53, first=moment, last=moment)
    (ad,) = stub.Rank(request).ads
    assert 0 <= ad.p_click <= 1


BAD_TIMES = [
    Timestamp(seconds=2**63 - 1),
    Timestamp(seconds=-(2**63)),
    Timestamp(seconds=LAST + 1),
    Timestamp(nanos=-1),
    Timestamp(nanos=10**9),
]


@pytest.mark.parametrize("moment", BAD_TIMES)
def test_moments_that_are_none_are_refused_wherever_they_stand(stub, moment):
    event = types_pb2.Event(type=types_pb2.EVENT_TYPE_SEARCH, text="tea", timestamp=moment)
    wrong = [
        pb.RankRequest(user=types_pb2.UserProfile(history=[event])),
        pb.RankRequest(context=types_pb2.Context(timestamp=moment)),
        pb.RankRequest(candidates=[pb.RankCandidate(ad=types_pb2.Ad(ad_id="b", title="x", end_time=moment))]),
        pb.RankRequest(counters=[pb.Counter(kind=pb.COUNTER_KIND_AD, id="a", impressions=1, first=moment)]),
        pb.RankRequest(counters=[pb.Counter(kind=pb.COUNTER_KIND_USER, impressions=1, last=moment)]),
    ]
    for request in wrong:
        request.candidates.add(ad=AD)
        assert status_of(stub, request) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("impressions", "clicks"), [(2**53 + 1, 0), (2**64 - 1, 2**64 - 1), (0, 1), (5, 6), (2**63, 2**63)]
)
def test_counters_that_cannot_be_are_refused(stub, impressions, clicks):
    counter = pb.Counter(kind=pb.COUNTER_KIND_AD, id="a", impressions=impressions, clicks=clicks)
    request = pb.RankRequest(candidates=[pb.RankCandidate(ad=AD)], counters=[counter])
    assert status_of(stub, request) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1e308", "1e-320", "9" * 5000, "0x10", "１２", ""])
def test_attributes_that_look_like_numbers_never_break_a_call(stub, value):
    user = types_pb2.UserProfile(attributes={"a": value})
    context = types_pb2.Context(attributes={"b": value}, device=value[:200])
    (ad,) = stub.Rank(pb.RankRequest(user=user, context=context, candidates=[pb.RankCandidate(ad=AD)])).ads
    assert 0 < ad.p_click < 1


@pytest.mark.parametrize("bid", [-1, -(2**63)])
def test_bids_below_nothing_are_refused_and_the_highest_is_taken(stub, bid):
    ad = types_pb2.Ad(ad_id="a", title="x", bid_micros=bid)
    assert status_of(stub, pb.RankRequest(candidates=[pb.RankCandidate(ad=ad)])) is grpc.StatusCode.INVALID_ARGUMENT
    ad.bid_micros = 2**63 - 1
    assert stub.Rank(pb.RankRequest(candidates=[pb.RankCandidate(ad=ad)], top_n=2**32 - 1)).ads


def status_of(stub, request):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rank(request)
    return caught.value.code()


def test_on_a_cpu_a_thousand_candidates_are_a_heavy_call():
    assert light_cost("cpu") == LIGHT_COST < 1000


@pytest.mark.gpu
def test_on_a_gpu_a_thousand_known_candidates_are_a_light_call():
    assert light_cost("cuda") > 1000
    assert light_cost("auto") == light_cost("cuda")
