"""What an evaluation of both stages found, as plain values."""

from dataclasses import asdict, dataclass
from typing import Any

from retrieval.evaluation.results import Comparison


def ranking_of(candidates: int) -> str:
    """Name of what ranking makes of so many candidates."""
    return f"ranking of {candidates}"


@dataclass(frozen=True)
class PipelineEvaluation:
    """How well both stages together put on top what users clicked next.

    Attributes:
        comparison: "retrieval", `ranking_of` each number of candidates, and the peers.
        without_candidates: users of whom nothing is known, for whom retrieval finds nothing.
        retrieval_weight: that the order was made with.
    """

    comparison: Comparison
    without_candidates: int
    retrieval_weight: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)
