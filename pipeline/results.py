"""What evaluating both stages together found, as plain values. Light: loads no model library."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ranking.artifact import Metric

POPULARITY, RETRIEVAL, BOTH_STAGES = "ad popularity", "retrieval", "retrieval and ranking"
ORDERS = (POPULARITY, RETRIEVAL, BOTH_STAGES)


@dataclass(frozen=True)
class PipelineEvaluation:
    """How many of the clicks of the test part each order of ads would have put on top.

    Attributes:
        users, clicks: of the test part; a click is a user and an ad that they had not met before.
        without_candidates: users of whom nothing is known, for whom retrieval finds nothing.
        candidates: how many ads retrieval brought and ranking scored.
        click_share: order (see `ORDERS`) -> n -> share of the clicks that fall on its first n ads.
        hit_rate: the same -> share of the users who clicked one of its first n ads, or more.
        ranking_gain: n -> click share of both stages minus that of retrieval alone.
    """

    users: int
    clicks: int
    without_candidates: int
    candidates: int
    click_share: "dict[str, dict[int, Metric]]"
    hit_rate: "dict[str, dict[int, Metric]]"
    ranking_gain: "dict[int, Metric]"

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""

        def plain(metrics: "dict[int, Metric]") -> dict[str, Any]:
            return {str(top): metric.model_dump(mode="json") for top, metric in metrics.items()}

        return {
            "users": self.users,
            "clicks": self.clicks,
            "without_candidates": self.without_candidates,
            "candidates": self.candidates,
            "click_share": {order: plain(shares) for order, shares in self.click_share.items()},
            "hit_rate": {order: plain(rates) for order, rates in self.hit_rate.items()},
            "ranking_gain": plain(self.ranking_gain),
        }
