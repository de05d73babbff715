"""The costliest calls that servers take, and floods of values that nobody sent before; in a process of its own.

``python -m benchmarks.speed.hostile METHOD HOST:PORT CALLS_AT_ONCE`` sends the costliest until standard input ends.
"""

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2, types_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceStub
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub

TIMEOUT_SECONDS = 10.0
_TEXT_CHARS, _TEXTS, _ADS, _K = 32_000, 250, 1000, 1000
# Of a number that stands in every text of a ready-made message.
_DIGITS = 20
_SERVICES = {
    "Retrieve": "adcascade.v1.RetrievalService",
    "Rank": "adcascade.v1.RankingService",
    "Recommend": "adcascade.v1.RecommendService",
}
_WORDS = "running shoes espresso grinder garden spade marathon compost "

# A method of a stub: called with a request, or started with `future`.
Method = Any


def text_of(number: str, chars: int = _TEXT_CHARS) -> str:
    """A text of so many characters that has not been sent before."""
    return (f"{number} " + _WORDS * (chars // len(_WORDS) + 1))[:chars]


def costly_user(number: str) -> types_pb2.UserProfile:
    """A user of 250 long searches: as much text as a message holds."""
    search = types_pb2.EVENT_TYPE_SEARCH
    events = [types_pb2.Event(type=search, text=text_of(f"{number} {place}")) for place in range(_TEXTS)]
    return types_pb2.UserProfile(user_id=number, history=events)


def costly_retrieve(number: str) -> retrieval_pb2.RetrieveRequest:
    """Everything that may be asked of retrieval at once."""
    return retrieval_pb2.RetrieveRequest(user=costly_user(number), k=_K)


def costly_rank(number: str) -> ranking_pb2.RankRequest:
    """A thousand ads that nobody has met, with as much text as a message holds."""
    ads = [types_pb2.Ad(ad_id=f"x{place}", title=text_of(f"{number} {place}", 7000)) for place in range(_ADS)]
    return ranking_pb2.RankRequest(candidates=[ranking_pb2.RankCandidate(ad=ad) for ad in ads])


def costly_recommend(number: str) -> recommend_pb2.RecommendRequest:
    """The costly user, and as many candidates as may be asked for."""
    return recommend_pb2.RecommendRequest(user=costly_user(number), k=_K, candidates=_K)


def method_of(name: str, channel: grpc.Channel) -> Method:
    """`Retrieve`, `Rank` or `Recommend` of whoever answers at the channel."""
    found = {
        "Retrieve": RetrievalServiceStub(channel).Retrieve,
        "Rank": RankingServiceStub(channel).Rank,
        "Recommend": RecommendServiceStub(channel).Recommend,
    }
    return found[name]


COSTLY: dict[str, Callable[[str], Any]] = {
    "Retrieve": costly_retrieve,
    "Rank": costly_rank,
    "Recommend": costly_recommend,
}


def channel_to(address: str) -> grpc.Channel:
    """A connection that no other client shares."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(address, options=[*options, ("grpc.max_receive_message_length", -1)])


def ready_made(name: str) -> Callable[[str], bytes]:
    """Makes costly requests as they go over the wire, from numbers of `_DIGITS` digits: next to no work for the sender.

    An attacker has a machine of their own, whose processors the servers need not share.
    """
    blank = "0" * _DIGITS
    message = COSTLY[name](blank).SerializeToString()
    return lambda number: message.replace(blank.encode(), number.encode())


def attack(name: str, address: str, calls_at_once: int, stop: threading.Event) -> None:
    """Keeps so many of the costliest calls under way, each as soon as the one before has ended."""
    numbers: Iterator[int] = itertools.count(os.getpid() * 10**8)
    message = ready_made(name)

    def keep_calling(method: Method) -> None:
        while not stop.is_set():
            try:
                method(message(f"{next(numbers):0{_DIGITS}d}"), timeout=TIMEOUT_SECONDS)
            except grpc.RpcError:
                stop.wait(0.05)  # refused, or late: an attacker tries again

    with channel_to(address) as channel:
        method: Method = channel.unary_unary(f"/{_SERVICES[name]}/{name}")
        threads = [threading.Thread(target=keep_calling, args=(method,)) for _ in range(calls_at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def floods() -> dict[str, tuple[str, Callable[[str], Any]]]:
    """What a cache might be keyed by: name to the stage that is asked, and a request of a value never sent before."""

    def retrieve(**user: Any) -> retrieval_pb2.RetrieveRequest:
        return retrieval_pb2.RetrieveRequest(user=types_pb2.UserProfile(**user), k=1)

    def rank(ad: types_pb2.Ad | None = None, context: Any = None, **user: Any) -> ranking_pb2.RankRequest:
        candidate = ranking_pb2.RankCandidate(ad=ad or types_pb2.Ad(ad_id="a", title="an ad"))
        return ranking_pb2.RankRequest(user=types_pb2.UserProfile(**user), context=context, candidates=[candidate])

    def searched(number: str) -> list[types_pb2.Event]:
        return [types_pb2.Event(type=types_pb2.EVENT_TYPE_SEARCH, text=_wide(number))]

    def clicked(number: str) -> list[types_pb2.Event]:
        ids = [f"{place} {number}"[:250] for place in range(200)]
        return [types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id=ad_id) for ad_id in ids]

    return {
        "interests of Retrieve": ("retrieval", lambda number: retrieve(interests=_wide(number))),
        "searches of Retrieve": ("retrieval", lambda number: retrieve(history=searched(number))),
        "attributes of Retrieve": (
            "retrieval",
            lambda number: retrieve(interests="x", attributes={"a": _wide(number)}),
        ),
        "attributes of Rank": ("ranking", lambda number: rank(attributes={"a": _wide(number)})),
        "names of attributes of Rank": ("ranking", lambda number: rank(attributes={_wide(number): "a"})),
        "contexts of Rank": ("ranking", lambda number: rank(context=types_pb2.Context(page_text=_wide(number)))),
        "searches of Rank": ("ranking", lambda number: rank(history=searched(number))),
        "ad ids of Rank": (
            "ranking",
            lambda number: rank(types_pb2.Ad(ad_id=_wide(number)[:256], title="an ad"), user_id=_wide(number)[:256]),
        ),
        "histories of Rank": ("ranking", lambda number: rank(history=clicked(number))),
        "ads of Rank": ("ranking", lambda number: rank(types_pb2.Ad(ad_id="a", title=_wide(number)))),
    }


def _wide(number: str) -> str:
    """32,000 characters that take four bytes each."""
    return (f"\U0001f600{number}" + "running shoes " * 3000)[:_TEXT_CHARS]


def main() -> None:
    """See the module."""
    name, address, calls_at_once = sys.argv[1:]
    stop = threading.Event()

    def stop_at_end_of_input() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    attack(name, address, int(calls_at_once), stop)


if __name__ == "__main__":
    main()
