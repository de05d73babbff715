"""What an evaluation of retrieval found, as plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adcascade.reports.interval import Interval

RETRIEVAL, ZERO_SHOT = "retrieval", "zero-shot text"
RECALLS = (10, 50, 100, 500)
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500)
METRICS = (*(f"recall@{k}" for k in RECALLS), "ndcg@10", "mrr", "hit@10")


@dataclass(frozen=True)
class Slice:
    """Some of the users, or of their clicks: recall@k of each method, a mean over users.

    Attributes:
        lead: other method -> retrieval's recall@k minus that of the method, paired over users.
    """

    name: str
    users: int
    clicks: int
    recall: Mapping[str, Interval]
    lead: Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """How well each method finds the ads that users clicked next, among all ads of the catalog.

    Attributes:
        users, clicks: of the test part; a click is a user and an ad that they had not met before.
        metrics: method -> metric of `METRICS` -> mean over users.
        lead: one of ours -> other method -> metric -> ours minus that of the method, paired over users.
        coverage: method -> share of the catalog that is in the first 100 of at least one user.
        popularity_lift: method -> how many times more clicks than the mean ad the ads in the first 100 have.
    """

    users: int
    clicks: int
    metrics: Mapping[str, Mapping[str, Interval]]
    lead: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    coverage: Mapping[str, float]
    popularity_lift: Mapping[str, float]

    def best_other(self, metric: str) -> str | None:
        """The best method that is not ours."""
        others = [name for name in self.metrics if name not in self.lead]
        return max(others, key=lambda name: self.metrics[name][metric].value, default=None)


@dataclass(frozen=True)
class RetrievalEvaluation:
    """Retrieval beside its peers, in all and by parts.

    Attributes:
        known_events: as if only so many of each user's newest clicks were known ("all": all of them).
        by_events: users by how many events they have.
        by_ads: clicks by how many clicks their ads have in the training part, and of ads that it has never seen.
        curves: method -> [(k, recall@k)].
        k: of the parts' recall: 100, or 10 of a small catalog, whose first 100 hold nearly everything.
    """

    comparison: Comparison
    known_events: list[Slice]
    by_events: list[Slice]
    by_ads: list[Slice]
    curves: Mapping[str, list[tuple[int, float]]]
    k: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)
