"""The client against real servers: what it sends and brings, and how calls end; blocking and asyncio alike."""

import asyncio
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from functools import partial

import grpc
import pytest
from conftest import serving_server

import adcascade
from adcascade import Ad, AsyncClient, Client, Context, Counter, Event, EventType, User
from adcascade.serving import errors as served
from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2, types_pb2
from adcascade.v1.ranking_pb2_grpc import add_RankingServiceServicer_to_server
from adcascade.v1.recommend_pb2_grpc import RecommendServiceServicer, add_RecommendServiceServicer_to_server
from adcascade.v1.retrieval_pb2_grpc import add_RetrievalServiceServicer_to_server
from adcascade.wire import context_from_wire, counters_from_wire, shares_from_wire, user_from_wire

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
USER = User(
    "u1", "trail running", {"age": "30"}, [Event("click", ad_id="a1", timestamp=NOON), Event("search", text="shoes")]
)


class Scripted(RecommendServiceServicer):
    """Answers in turn what it is given, an error or a reply, and the last one ever after; keeps what it was sent."""

    def __init__(self, *script):
        self.script, self.requests, self.metadata = list(script), [], []
        self.left = threading.Event()

    def _next(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(answer):
            answer = answer(context)
        if isinstance(answer, Exception):
            raise answer
        return answer

    Recommend = Retrieve = Rank = GetAds = EmbedUser = GetIndex = GetModel = _next

    def wait(self, context):
        """Works until the caller has left."""
        context.add_callback(self.left.set)
        self.left.wait(20)
        return recommend_pb2.RecommendResponse()


REGISTER = {
    "RecommendService": add_RecommendServiceServicer_to_server,
    "RetrievalService": add_RetrievalServiceServicer_to_server,
    "RankingService": add_RankingServiceServicer_to_server,
}


@contextmanager
def scripted(*script, service="RecommendService", **settings):
    servicer = Scripted(*script)
    register = partial(REGISTER[service], servicer)
    with serving_server(f"adcascade.v1.{service}", register, **settings) as (server, _):
        yield server.address, servicer


def ask_blocking(address, method, *args, options=None, **call):
    with Client(address, **(options or {})) as client:
        return getattr(client, method)(*args, **call)


def ask_with_asyncio(address, method, *args, options=None, **call):
    async def ask():
        async with AsyncClient(address, **(options or {})) as client:
            return await getattr(client, method)(*args, **call)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_blocking, ask_with_asyncio])
def ask(request):
    return request.param


OK = recommend_pb2.RecommendResponse(index_version="v1")


def test_a_recommend_request_says_what_the_caller_gave(ask):
    context = Context(
        "DE", "de", "phone", "top", "page", NOON.astimezone(timezone(timedelta(hours=2))), 120, {"a": "b"}
    )
    counters = [Counter("user_category", "shoes", 9, 2, NOON, NOON + timedelta(seconds=9))]
    with scripted(OK) as (address, server):
        what = {"k": 7, "candidates": 50, "include_history": True, "shares": {"lexical": 0.25}, "counters": counters}
        ask(address, "recommend", USER, context, **what)
    (request,) = server.requests
    user = user_from_wire(request.user)
    assert (user.user_id, user.interests, user.attributes) == (USER.user_id, USER.interests, USER.attributes)
    assert [(one.type.value, one.ad_id, one.text, one.timestamp) for one in user.history] == [
        ("click", "a1", "", NOON),
        ("search", "", "shoes", None),
    ]
    where = context_from_wire(request.context)
    assert all(getattr(where, name) == getattr(context, name) for name in Context.__dataclass_fields__)
    assert (request.k, request.candidates, request.include_history) == (7, 50, True)
    assert shares_from_wire(request.shares) == {"lexical": 0.25}
    ((kind, name, total),) = counters_from_wire(request.counters)
    assert (kind, name, total.impressions, total.clicks) == ("user_category", "shoes", 9, 2)


@pytest.mark.parametrize("kind", EventType)
def test_every_kind_of_event_reaches_the_server_as_itself(kind):
    with scripted(OK) as (address, server), Client(address) as client:
        client.recommend(User(history=[Event(kind, ad_id="a"), Event(kind.value, text="t")]))
    assert {event.type.value for event in user_from_wire(server.requests[0].user).history} == {kind.value}


def test_a_recommend_reply_is_read_whole(ask):
    ad = types_pb2.Ad(ad_id="a1", title="Shoes", body="b", keywords=["x", "y"], attributes={"size": "L"}, bid_micros=5)
    ad.start_time.FromDatetime(NOON)
    ranked = recommend_pb2.Recommendation(
        ad=ad,
        p_click=0.5,
        p_conversion=0.25,
        source="lexical",
        similarity=0.75,
        retrieval_score=-2,
        retrieval_position=4,
    )
    reply = recommend_pb2.RecommendResponse(
        recommendations=[ranked, recommend_pb2.Recommendation(ad=types_pb2.Ad(ad_id="a2"))],
        index_version="i",
        model_version="m",
        timings=recommend_pb2.StageTimings(
            retrieval_ms=1, ranking_ms=2, total_ms=3, retrieval=types_pb2.Timing(queue_ms=4), ranking=types_pb2.Timing()
        ),
    )
    with scripted(reply) as (address, _):
        answer = ask(address, "recommend", USER, request_id="mine")
    first, second = answer
    assert first == answer[0]
    assert first == adcascade.Recommendation(first.ad, 0.5, 0.25, "lexical", 0.75, -2.0, 4)
    assert first.ad == Ad(
        "a1", "Shoes", "b", keywords=("x", "y"), bid_micros=5, attributes={"size": "L"}, start_time=NOON
    )
    assert (second.ad_id, second.p_click, second.p_conversion) == ("a2", None, None)
    assert (len(answer), answer.index_version, answer.model_version, answer.degraded) == (2, "i", "m", False)
    assert answer.timings.retrieval.queue_ms == 4
    assert answer.timings.ranking == adcascade.Timing()
    assert answer.request_id == "mine"


def test_a_degraded_answer_says_why(ask):
    reply = recommend_pb2.RecommendResponse(degraded=True, degraded_reason="UNAVAILABLE")
    with scripted(reply) as (address, _):
        answer = ask(address, "recommend", USER)
    assert (answer.degraded, answer.degraded_reason, answer.timings.ranking) == (True, "UNAVAILABLE", None)


def test_ads_come_in_as_many_messages_as_they_need(ask):
    def some(ads, unknown):
        found = [types_pb2.Ad(ad_id=ad_id) for ad_id in ads]
        return retrieval_pb2.GetAdsResponse(ads=found, unknown_ad_ids=unknown, index_version="i")

    with scripted(some("ab", "c"), some("d", ""), some("", "e"), service="RetrievalService") as (address, server):
        answer = ask(address, "get_ads", list("abcde"))
    assert [list(request.ad_ids) for request in server.requests] == [list("abcde"), ["d", "e"], ["e"]]
    assert [ad.ad_id for ad in answer] == ["a", "b", "d"]
    assert answer.unknown_ad_ids == ("c", "e")


def test_ids_and_ads_are_ranked_together(ask):
    reply = ranking_pb2.RankResponse(
        ads=[ranking_pb2.RankedAd(ad_id="b", p_click=0.5, candidate=1, p_conversion=0.125)],
        unknown_ad_ids=["a"],
        ineligible_ad_ids=["z"],
        cached_ads=3,
        retrieval_weight=0.0,
    )
    with scripted(reply, service="RankingService") as (address, server):
        answer = ask(address, "rank", USER, ["a", Ad("b", "Title")], top_n=1, skip_unknown=True)
    (request,) = server.requests
    assert [one.ad_id or one.ad.title for one in request.candidates] == ["a", "Title"]
    assert (request.top_n, request.skip_unknown) == (1, True)
    assert answer.items == (adcascade.RankedAd("b", 0.5, 0.125, 1),)
    assert (answer.unknown_ad_ids, answer.ineligible_ad_ids, answer.cached_ads) == (("a",), ("z",), 3)
    assert answer.retrieval_weight == 0.0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"user": User(history=[Event("click", ad_id="a", timestamp=datetime(2026, 1, 1))])}, "no time zone"),
        ({"user": User(history=[Event("bought", ad_id="a")])}, "'bought' is not a valid EventType"),
        ({"user": User(history=[Event("click")])}, "exactly one of ad_id and text"),
        ({"user": User(history=[Event("click", "a", "b")])}, "exactly one of ad_id and text"),
        ({"user": User(interests="\ud800")}, "surrogate"),
        ({"user": USER, "k": -1}, "-1"),
        ({"user": USER, "timeout_seconds": 0}, "timeout_seconds must be a positive number"),
        ({"user": USER, "timeout_seconds": float("nan")}, "timeout_seconds must be a positive number"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is(ask, what, message):
    with pytest.raises(adcascade.InvalidRequest, match=message) as caught:
        ask("localhost:1", "recommend", **what)
    assert caught.value.request_id == ""


CLASSES = [
    (served.InvalidArgument, adcascade.InvalidRequest),
    (served.NotFound, adcascade.NotFound),
    (served.FailedPrecondition, adcascade.FailedPrecondition),
    (served.ResourceExhausted, adcascade.ResourceExhausted),
    (served.Unavailable, adcascade.Unavailable),
    (served.Unauthenticated, adcascade.Unauthenticated),
    (served.PermissionDenied, adcascade.PermissionDenied),
    (served.ServiceError, adcascade.ServerFault),
]


@pytest.mark.parametrize(("raised", "caught"), CLASSES)
def test_each_status_is_an_error_of_its_own_with_message_and_request_id(ask, raised, caught):
    with scripted(raised("this is why")) as (address, _), pytest.raises(caught) as found:
        ask(address, "recommend", USER, request_id="mine", options={"attempts": 1})
    assert (found.value.message, found.value.request_id) == ("this is why", "mine")
    assert found.value.status is raised.status
    assert str(found.value) == "this is why (request mine)"


def test_a_bug_of_the_server_is_a_server_fault(ask):
    with scripted(ZeroDivisionError()) as (address, _), pytest.raises(adcascade.ServerFault, match="internal error"):
        ask(address, "recommend", USER)


def test_a_server_that_has_another_job_says_which_one_to_ask(ask):
    with scripted(ranking_pb2.RankResponse(), service="RankingService") as (address, _):
        with pytest.raises(adcascade.NotOffered) as caught:
            ask(address, "recommend", USER)
        assert caught.value.message == (
            f"the server at {address} does not offer Recommend: ask a gateway (adcascade serve, or python -m pipeline)"
        )
        with pytest.raises(adcascade.NotOffered, match="ask a retrieval server"):
            ask(address, "get_ads", ["a"])


def test_a_request_id_that_the_server_cannot_log_is_replaced_by_its_own(ask):
    with scripted(OK) as (address, _):
        assert ask(address, "recommend", USER, request_id="page 17;x").request_id not in ("page 17;x", "")
        assert len(ask(address, "recommend", USER).request_id) == 32


def test_metadata_of_the_client_and_of_the_call_reach_the_server(ask):
    with scripted(OK) as (address, server):
        ask(address, "recommend", USER, metadata=[("x-page", "7")], options={"metadata": [("x-tenant", "shop")]})
    assert server.metadata[0]["x-page"] == "7"
    assert server.metadata[0]["x-tenant"] == "shop"


def test_a_late_server_is_left_at_the_deadline(ask):
    with scripted(lambda context: server.wait(context)) as (address, server):
        started = time.monotonic()
        with pytest.raises(adcascade.DeadlineExceeded):
            ask(address, "recommend", USER, timeout_seconds=0.4)
        assert 0.3 < time.monotonic() - started < 3
        assert server.left.wait(5)


def test_a_closed_client_says_so_and_ends_its_calls():
    with scripted(lambda context: server.wait(context)) as (address, server):
        client, ended = Client(address), []

        def call():
            with pytest.raises(adcascade.Cancelled) as caught:
                client.recommend(USER, timeout_seconds=20)
            ended.append(caught.value)

        thread = threading.Thread(target=call)
        thread.start()
        while not server.requests:
            time.sleep(0.01)
        client.close()
        thread.join(10)
        assert ended[0].status is grpc.StatusCode.CANCELLED
        with pytest.raises(RuntimeError, match="this client is closed"):
            client.recommend(USER)


def test_closing_an_async_client_ends_its_calls_and_cancelling_a_task_reaches_the_server():
    async def close_meanwhile(address, server):
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.recommend(USER, timeout_seconds=20))
            while not server.requests:
                await asyncio.sleep(0.01)
            await client.close()
            with pytest.raises(adcascade.Cancelled):
                await task
            with pytest.raises(RuntimeError, match="this client is closed"):
                await client.recommend(USER)

    async def cancel(address, server):
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.recommend(USER, timeout_seconds=20))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.left.wait, 5)

    for way in (close_meanwhile, cancel):
        with scripted(lambda context: server.wait(context)) as (address, server):
            asyncio.run(way(address, server))
