"""What an evaluation of both stages found, as plain values."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from adcascade.reports.interval import Interval
from retrieval.evaluation.results import Comparison

# What is taken for shown together; see `evaluate_shown.evaluate_shown`.
Together = Literal["auto", "requests", "days", "none"]
# By what ads that were shown together are ordered.
RETRIEVAL_SCORE, P_CLICK, AS_SERVED = ORDERS = ("retrieval's score", "p_click", "both as served")


def ranking_of(candidates: int) -> str:
    """Name of what ranking makes of so many candidates."""
    return f"ranking of {candidates}"


@dataclass(frozen=True)
class ShownEvaluation:
    """How well ads that were shown together are ordered by whether they were clicked.

    Attributes:
        together: "request" or "day".
        lists: so many of these, of which some ads were clicked and some not.
        ads: in one of them, in the mean.
        retrieval_weight: of the order "both as served".
        ndcg: nDCG@10 of each of `ORDERS`, in the mean of the lists.
        gain: the same of each but the first, minus that of the first.
    """

    together: str
    lists: int
    ads: float
    retrieval_weight: float
    ndcg: dict[str, Interval]
    gain: dict[str, Interval]


@dataclass(frozen=True)
class PipelineEvaluation:
    """How well both stages together put on top what users clicked next.

    Attributes:
        comparison: "retrieval", `ranking_of` each number of candidates, and the peers.
        without_candidates: users of whom nothing is known, for whom retrieval finds nothing.
        retrieval_weight: that the order was made with.
        shown: the same of ads that were shown together; None where that is not known.
    """

    comparison: Comparison
    without_candidates: int
    retrieval_weight: float
    shown: ShownEvaluation | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)
