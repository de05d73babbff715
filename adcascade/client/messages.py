"""Between the client's values and the messages of `adcascade.v1`. Leaves judging them to the servers."""

from collections.abc import Mapping
from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from adcascade.client.errors import InvalidRequest
from adcascade.client.values import (
    Ad,
    Ads,
    Candidate,
    Candidates,
    Context,
    Counter,
    CounterKind,
    Event,
    EventType,
    RankedAd,
    Ranking,
    Recommendation,
    Recommendations,
    StageTimings,
    Timing,
    User,
)
from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2, types_pb2

# Kinds of events and of counters have the same names on the wire.
_EVENT_TYPES = {kind: types_pb2.EventType.Value(f"EVENT_TYPE_{kind.name}") for kind in EventType}
_COUNTER_KINDS = {kind: ranking_pb2.CounterKind.Value(f"COUNTER_KIND_{kind.name}") for kind in CounterKind}


def user_message(user: User) -> types_pb2.UserProfile:
    """The wire form of a user. Raises InvalidRequest for an event or a time that has none."""
    return types_pb2.UserProfile(
        user_id=user.user_id,
        interests=user.interests,
        attributes=dict(user.attributes),
        history=[_event_message(event) for event in user.history],
    )


def _event_message(event: Event) -> types_pb2.Event:
    if bool(event.ad_id) == bool(event.text):
        raise InvalidRequest(f"an event ({event.type}) needs exactly one of ad_id and text")
    kind, timestamp = _EVENT_TYPES[EventType(event.type)], _time_message(event.timestamp)
    if event.ad_id:
        return types_pb2.Event(type=kind, ad_id=event.ad_id, timestamp=timestamp)
    return types_pb2.Event(type=kind, text=event.text, timestamp=timestamp)


def context_message(context: Context | None) -> types_pb2.Context | None:
    """The wire form of a context; None stays unset. Raises InvalidRequest for a time that has none."""
    if context is None:
        return None
    return types_pb2.Context(
        country=context.country,
        language=context.language,
        device=context.device,
        placement=context.placement,
        page_text=context.page_text,
        timestamp=_time_message(context.timestamp),
        utc_offset_minutes=context.utc_offset_minutes,
        attributes=dict(context.attributes),
    )


def counter_message(counter: Counter) -> ranking_pb2.Counter:
    """The wire form of a counter. Raises InvalidRequest for a time that has none."""
    return ranking_pb2.Counter(
        kind=_COUNTER_KINDS[CounterKind(counter.kind)],
        id=counter.id,
        impressions=counter.impressions,
        clicks=counter.clicks,
        first=_time_message(counter.first),
        last=_time_message(counter.last),
    )


def share_messages(shares: Mapping[str, float]) -> list[retrieval_pb2.SourceShare]:
    """The wire form of shares by candidate source."""
    return [retrieval_pb2.SourceShare(source=source, share=share) for source, share in shares.items()]


def candidate_message(candidate: str | Ad) -> ranking_pb2.RankCandidate:
    """The wire form of an ad to rank: its id, or itself."""
    if isinstance(candidate, Ad):
        return ranking_pb2.RankCandidate(ad=_ad_message(candidate))
    return ranking_pb2.RankCandidate(ad_id=candidate)


def _ad_message(ad: Ad) -> types_pb2.Ad:
    return types_pb2.Ad(
        ad_id=ad.ad_id,
        title=ad.title,
        body=ad.body,
        advertiser=ad.advertiser,
        category=ad.category,
        keywords=ad.keywords,
        language=ad.language,
        landing_url=ad.landing_url,
        image_uri=ad.image_uri,
        bid_micros=ad.bid_micros,
        attributes=dict(ad.attributes),
        start_time=_time_message(ad.start_time),
        end_time=_time_message(ad.end_time),
    )


def _time_message(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    if at.utcoffset() is None:  # which would be read as UTC, and mostly is not
        raise InvalidRequest(f"{at.isoformat()} has no time zone: use datetime.now(UTC), or give it its tzinfo")
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def recommendations(reply: recommend_pb2.RecommendResponse, request_id: str) -> Recommendations:
    """The value of a reply to Recommend."""
    timings = reply.timings
    return Recommendations(
        items=tuple(map(_recommendation, reply.recommendations)),
        index_version=reply.index_version,
        model_version=reply.model_version,
        degraded_reason=reply.degraded_reason,
        timings=StageTimings(
            timings.retrieval_ms,
            timings.ranking_ms,
            timings.total_ms,
            _timing(timings.retrieval),
            _timing(timings.ranking) if timings.HasField("ranking") else None,
            timings.events_ms,
        ),
        request_id=request_id,
        history_missing_reason=reply.history_missing_reason,
    )


def _recommendation(item: recommend_pb2.Recommendation) -> Recommendation:
    return Recommendation(
        ad=_ad(item.ad),
        p_click=item.p_click if item.HasField("p_click") else None,
        p_conversion=item.p_conversion if item.HasField("p_conversion") else None,
        source=item.source,
        similarity=item.similarity,
        retrieval_score=item.retrieval_score,
        retrieval_position=item.retrieval_position,
    )


def candidates(reply: retrieval_pb2.RetrieveResponse, request_id: str) -> Candidates:
    """The value of a reply to Retrieve."""
    return Candidates(
        items=tuple(
            Candidate(
                item.ad_id,
                item.similarity,
                item.score,
                item.interest,
                item.source,
                _ad(item.ad) if item.HasField("ad") else None,
            )
            for item in reply.candidates
        ),
        index_version=reply.index_version,
        unknown_history=reply.unknown_history,
        skipped_sources=tuple(reply.skipped_sources),
        timing=_timing(reply.timing),
        request_id=request_id,
    )


def ranking(reply: ranking_pb2.RankResponse, request_id: str) -> Ranking:
    """The value of a reply to Rank."""
    return Ranking(
        items=tuple(
            RankedAd(
                item.ad_id,
                item.p_click,
                item.p_conversion if item.HasField("p_conversion") else None,
                item.candidate,
            )
            for item in reply.ads
        ),
        model_version=reply.model_version,
        index_version=reply.index_version,
        unknown_ad_ids=tuple(reply.unknown_ad_ids),
        ineligible_ad_ids=tuple(reply.ineligible_ad_ids),
        cached_ads=reply.cached_ads,
        timing=_timing(reply.timing),
        request_id=request_id,
        retrieval_weight=reply.retrieval_weight if reply.HasField("retrieval_weight") else None,
    )


def ads(reply: retrieval_pb2.GetAdsResponse, request_id: str) -> Ads:
    """The value of a reply to GetAds, which may be the first part of the answer alone."""
    return Ads(tuple(map(_ad, reply.ads)), tuple(reply.unknown_ad_ids), reply.index_version, request_id)


def _ad(message: types_pb2.Ad) -> Ad:
    return Ad(
        ad_id=message.ad_id,
        title=message.title,
        body=message.body,
        advertiser=message.advertiser,
        category=message.category,
        keywords=tuple(message.keywords),
        language=message.language,
        landing_url=message.landing_url,
        image_uri=message.image_uri,
        bid_micros=message.bid_micros,
        attributes=dict(message.attributes),
        start_time=_time(message, "start_time", message.start_time),
        end_time=_time(message, "end_time", message.end_time),
    )


def _time(message: Message, name: str, value: Timestamp) -> datetime | None:
    return value.ToDatetime(UTC) if message.HasField(name) else None


def _timing(message: types_pb2.Timing) -> Timing:
    return Timing(message.queue_ms, message.tokenize_ms, message.compute_ms)
