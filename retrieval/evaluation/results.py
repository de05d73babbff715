"""What an evaluation of retrieval found, as plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from index_builder.training.ranks import Interval

RETRIEVAL, ZERO_SHOT = "retrieval", "zero-shot text"
RECALLS = (10, 50, 100, 500)
METRICS = (*(f"recall@{k}" for k in RECALLS), "ndcg@10", "mrr")


@dataclass(frozen=True)
class Slice:
    """Some of the users: recall@100 of each method."""

    name: str
    users: int
    recall: Mapping[str, Interval]


@dataclass(frozen=True)
class RetrievalEvaluation:
    """How well each method finds the ads that users clicked next, among all ads of the catalog.

    Attributes:
        users, clicks: of the test part; a click is a user and an ad that they had not met before.
        metrics: method -> metric of `METRICS` -> mean over users.
        lead: other method -> k -> recall@k of retrieval minus that of the method, paired over users.
        coverage: method -> share of the catalog that is in the first 100 of at least one user.
        popularity_lift: method -> how many times more clicks than the mean ad the ads in the first 100 have.
        known_events: as if only so many of each user's newest events were known ("all": all of them).
        by_events: users by how many events they have.
    """

    users: int
    clicks: int
    metrics: Mapping[str, Mapping[str, Interval]]
    lead: Mapping[str, Mapping[int, Interval]]
    coverage: Mapping[str, float]
    popularity_lift: Mapping[str, float]
    known_events: list[Slice]
    by_events: list[Slice]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)
