"""What retrieval is asked, and what it answers: values. Knows no index and no wire."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from adcascade.records.ads import Ad
from adcascade.records.users import Context, UserProfile
from adcascade.vectors.encoder import Vectors
from retrieval.interests import Interests

MAX_K = 1000


@dataclass(frozen=True)
class Query:
    """What is asked: a user, or unit vectors.

    Attributes:
        user: Who asks; None if `vectors` are given.
        vectors: Ready interests, float32 [vectors, dimension].
        k: How many candidates; 0 for the interests alone.
        exclude: Ids that must not come back.
        with_ads: Also return the ads' texts.
        shares: Candidate source to the share of the candidates that it brings first, in place of the default.
        context: Where and when the ads would be shown: ads are looked for that may be shown then, or now if it says no
            time.
        at_any_time: Look for all ads, whenever they may be shown.
        cost: See `Retriever.cost_of`.
    """

    user: UserProfile | None
    vectors: Vectors | None
    k: int
    exclude: frozenset[str] = frozenset()
    with_ads: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    context: Context = field(default_factory=Context)
    at_any_time: bool = False
    cost: int = 1


class Candidate(NamedTuple):
    """An ad that was found, and the source that brought it.

    Attributes:
        similarity: inner product with the nearest interest.
        score: with towers, the logarithm of how likely the user is to click the ad of this place next, but for a
            constant: similarity and what neighbours add to it, the highest for the first candidate and so on, since
            sources may put an ad higher or lower than its own would. 0 without towers, whose similarities mean no
            such thing.
        interest: number of the nearest.
    """

    ad_id: str
    similarity: float
    score: float
    interest: int
    source: str
    ad: Ad | None


@dataclass(frozen=True)
class Retrieved:
    """The answer to a query; `skipped` sources were late or failed."""

    candidates: list[Candidate]
    skipped: list[str]
    interests: Interests
    index_version: str
    encode_ms: float
    search_ms: float
