"""What a caller gives and gets, as frozen values. Knows nothing of the wire.

Texts default to "", times to None and numbers to 0, which all mean "not known". Times carry their time zone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

Item = TypeVar("Item")


class EventType(StrEnum):
    """What a user did. A plain string such as "click" does as well."""

    IMPRESSION = "impression"
    VIEW = "view"
    CLICK = "click"
    CONVERSION = "conversion"
    SEARCH = "search"
    SHORT_VIEW = "short_view"
    HIDE = "hide"


class CounterKind(StrEnum):
    """What a `Counter` counts impressions and clicks of."""

    AD = "ad"
    ADVERTISER = "advertiser"
    CATEGORY = "category"
    USER = "user"
    USER_CATEGORY = "user_category"
    USER_ADVERTISER = "user_advertiser"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did with an ad of the catalog (`ad_id`) or with a text; exactly one of the two is set.

    >>> from adcascade import Event
    >>> Event("click", ad_id="running-3").type
    'click'
    >>> Event("search", text="espresso grinder").text
    'espresso grinder'
    """

    type: EventType | str
    ad_id: str = ""
    text: str = ""
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class User:
    """What is known of the user who asks; `history` is oldest first, at most 1,000 events.

    >>> from adcascade import Event, User
    >>> user = User("u7", interests="trail running", history=[Event("click", ad_id="running-3")])
    >>> len(user.history)
    1
    """

    user_id: str = ""
    interests: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Event] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """Where and when the ads would be shown.

    Attributes:
        country: ISO 3166-1 alpha-2, such as "DE".
        language: BCP 47, such as "en".
        timestamp: When; the server's clock without it.
        utc_offset_minutes: How far the user's clock is ahead of UTC.
    """

    country: str = ""
    language: str = ""
    device: str = ""
    placement: str = ""
    page_text: str = ""
    timestamp: datetime | None = None
    utc_offset_minutes: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counter:
    """A total that is fresher than the one in the model version, and goes before it.

    Attributes:
        id: Of the ad, the advertiser or the category; ignored where the user alone is counted.
        impressions, clicks: Since the beginning, not since the model version.
        first, last: Times of the first and the last impression.
    """

    kind: CounterKind | str
    id: str = ""
    impressions: int = 0
    clicks: int = 0
    first: datetime | None = None
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ad:
    """An ad of the catalog; `bid_micros` is 0 for callers who may not see bids."""

    ad_id: str
    title: str = ""
    body: str = ""
    advertiser: str = ""
    category: str = ""
    keywords: Sequence[str] = ()
    language: str = ""
    landing_url: str = ""
    image_uri: str = ""
    bid_micros: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a call went inside the server that answered, in milliseconds."""

    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Milliseconds of both stages as the gateway saw them, and inside the servers; `ranking` is None if degraded.

    `events_ms` is that of reading the user from the event store, 0 if it was not asked.
    """

    retrieval_ms: float
    ranking_ms: float
    total_ms: float
    retrieval: Timing
    ranking: Timing | None
    events_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An ad, and why it stands where it stands.

    Attributes:
        p_click: Calibrated probability of a click, 0 to 1; None if the ad was not ranked.
        p_conversion: Probability of a conversion given the click; None if not ranked, or never learned.
        source: Candidate source that found it, such as "interests" or "popularity".
        similarity: Inner product with the interest that found it.
        retrieval_score: Retrieval's part in the order; 0 where the index has no towers.
        retrieval_position: Place in the retrieval order, from 0.
    """

    ad: Ad
    p_click: float | None
    p_conversion: float | None
    source: str
    similarity: float
    retrieval_score: float
    retrieval_position: int

    @property
    def ad_id(self) -> str:
        """Id of the ad."""
        return self.ad.ad_id


@dataclass(frozen=True, slots=True)
class Candidate:
    """An ad that retrieval found; `ad` is None unless it was asked for. See the proto for the numbers."""

    ad_id: str
    similarity: float
    score: float
    interest: int
    source: str
    ad: Ad | None


@dataclass(frozen=True, slots=True)
class RankedAd:
    """A candidate with its calibrated probability of a click; `position` is its place in the request, from 0."""

    ad_id: str
    p_click: float
    p_conversion: float | None
    position: int


class Answer(Generic[Item]):
    """What all answers have: `items`, best first, over which one can go at once."""

    __slots__ = ()
    items: tuple[Item, ...]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Item:
        return self.items[position]


@dataclass(frozen=True, slots=True)
class Recommendations(Answer[Recommendation]):
    """The answer of both stages.

    Attributes:
        degraded_reason: Why this is the retrieval order without probabilities: a gRPC status name, "CIRCUIT_OPEN" or
            "INVALID_ANSWER"; "" if ranking answered.
        model_version: "" when degraded.
        request_id: The id in the servers' logs.
        history_missing_reason: Why what the event store knows of the user was not read; as `degraded_reason`.
    """

    items: tuple[Recommendation, ...]
    index_version: str
    model_version: str
    degraded_reason: str
    timings: StageTimings
    request_id: str
    history_missing_reason: str = ""

    @property
    def degraded(self) -> bool:
        """Whether ranking did not answer."""
        return bool(self.degraded_reason)


@dataclass(frozen=True, slots=True)
class Candidates(Answer[Candidate]):
    """The answer of retrieval.

    Attributes:
        unknown_history: Events whose ad is not in this index version; they were skipped.
        skipped_sources: Candidate sources that were late or failed.
    """

    items: tuple[Candidate, ...]
    index_version: str
    unknown_history: int
    skipped_sources: tuple[str, ...]
    timing: Timing
    request_id: str


@dataclass(frozen=True, slots=True)
class Ranking(Answer[RankedAd]):
    """The answer of ranking.

    Attributes:
        unknown_ad_ids: With ``skip_unknown``, the candidates that are not in the server's index version.
        ineligible_ad_ids: Candidates that may not be shown at the context's time; they were left out.
        cached_ads: Candidates whose states the server had at hand.
        retrieval_weight: What the model version says retrieval's score counts beside the log-odds of `p_click` where
            both stages make the order; None if it was not fitted.
    """

    items: tuple[RankedAd, ...]
    model_version: str
    index_version: str
    unknown_ad_ids: tuple[str, ...]
    ineligible_ad_ids: tuple[str, ...]
    cached_ads: int
    timing: Timing
    request_id: str
    retrieval_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Ads(Answer[Ad]):
    """Ads of the catalog in the order of the ids that were asked for, and the ids that the catalog does not have.

    `index_version` is the one that answered last, should it have changed while a long answer came in parts.
    """

    items: tuple[Ad, ...]
    unknown_ad_ids: tuple[str, ...]
    index_version: str
    request_id: str
