"""The calls that a client makes: which method, what it is sent, and how its reply is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from adcascade.client import messages
from adcascade.client.errors import InvalidRequest
from adcascade.client.values import Ad, Ads, Candidates, Context, Counter, Ranking, Recommendations, User
from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2

Value = TypeVar("Value")

NO_SHARES: Mapping[str, float] = MappingProxyType({})

_GATEWAY = "a gateway (adcascade serve, or python -m pipeline)"
_RETRIEVAL = "a retrieval server (adcascade serve, or python -m retrieval)"
_RANKING = "a ranking server (adcascade serve, or python -m ranking)"


@dataclass(frozen=True)
class Method:
    """A method of the wire contract, and the server that offers it."""

    path: str
    reply: type[Message]
    offered_by: str

    @property
    def name(self) -> str:
        """Without its service."""
        return self.path.rpartition("/")[2]


RECOMMEND = Method("/adcascade.v1.RecommendService/Recommend", recommend_pb2.RecommendResponse, _GATEWAY)
RETRIEVE = Method("/adcascade.v1.RetrievalService/Retrieve", retrieval_pb2.RetrieveResponse, _RETRIEVAL)
GET_ADS = Method("/adcascade.v1.RetrievalService/GetAds", retrieval_pb2.GetAdsResponse, _RETRIEVAL)
RANK = Method("/adcascade.v1.RankingService/Rank", ranking_pb2.RankResponse, _RANKING)


@dataclass(frozen=True)
class Call(Generic[Value]):
    """A request, ready to be sent; `read` makes the value of its reply and the request id."""

    method: Method
    request: Message
    read: Callable[[Any, str], Value]


def recommend(
    user: User,
    context: Context | None,
    k: int,
    candidates: int,
    include_history: bool,
    shares: Mapping[str, float],
    counters: Sequence[Counter],
) -> Call[Recommendations]:
    """Both stages. Raises InvalidRequest for a value that has no wire form, as all of these."""
    request = _made(
        lambda: recommend_pb2.RecommendRequest(
            user=messages.user_message(user),
            context=messages.context_message(context),
            k=k,
            candidates=candidates,
            include_history=include_history,
            shares=messages.share_messages(shares),
            counters=map(messages.counter_message, counters),
        )
    )
    return Call(RECOMMEND, request, messages.recommendations)


def retrieve(
    user: User,
    context: Context | None,
    k: int,
    include_history: bool,
    include_ads: bool,
    shares: Mapping[str, float],
) -> Call[Candidates]:
    """Stage one."""
    request = _made(
        lambda: retrieval_pb2.RetrieveRequest(
            user=messages.user_message(user),
            context=messages.context_message(context),
            k=k,
            include_history=include_history,
            include_ads=include_ads,
            shares=messages.share_messages(shares),
        )
    )
    return Call(RETRIEVE, request, messages.candidates)


def rank(
    user: User,
    candidates: Sequence[str | Ad],
    context: Context | None,
    top_n: int,
    skip_unknown: bool,
    counters: Sequence[Counter],
    shown: int,
) -> Call[Ranking]:
    """Stage two."""
    request = _made(
        lambda: ranking_pb2.RankRequest(
            user=messages.user_message(user),
            context=messages.context_message(context),
            candidates=map(messages.candidate_message, candidates),
            top_n=top_n,
            skip_unknown=skip_unknown,
            counters=map(messages.counter_message, counters),
            shown=shown,
        )
    )
    return Call(RANK, request, messages.ranking)


def get_ads(ad_ids: Sequence[str]) -> Call[Ads]:
    """Ads by id; the server answers with as many of the first as fit into a message."""
    request = _made(lambda: retrieval_pb2.GetAdsRequest(ad_ids=ad_ids))
    return Call(GET_ADS, request, messages.ads)


def rest_of(ad_ids: Sequence[str], part: Ads) -> Sequence[str]:
    """The ids that this part of the answer says nothing of yet."""
    return ad_ids[max(1, len(part) + len(part.unknown_ad_ids)) :]


def together(parts: Sequence[Ads]) -> Ads:
    """The parts of an answer as one; at least one part."""
    found = tuple(ad for part in parts for ad in part)
    unknown = tuple(ad_id for part in parts for ad_id in part.unknown_ad_ids)
    return Ads(found, unknown, parts[-1].index_version, parts[-1].request_id)


def _made(make: Callable[[], Message]) -> Message:
    try:
        return make()
    except ValueError as error:  # of protobuf, such as a negative k, or of an enum
        raise InvalidRequest(str(error)) from error
