"""What training and evaluation find, as frozen values. Light: knows no models and no printing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ranking.artifact import Metric

# Name of the trained model among the baselines.
RANKER = "ranker"


@dataclass(frozen=True)
class Evaluation:
    """Metrics by model and name on one part of a log.

    Attributes:
        metrics: model name -> metric name ("auc", "log_loss") -> value with its 95 % interval.
        impressions, clicks: of the rows evaluated.
        predicted_over_actual: sum of p_click over clicks, 1 for a calibrated model.
    """

    metrics: "dict[str, dict[str, Metric]]"
    impressions: int
    clicks: int
    predicted_over_actual: float


@dataclass(frozen=True)
class TextFit:
    """What fine-tuning the text layers brought: the validation log loss before it and at the step that was kept."""

    steps: int
    kept_step: int
    validation_rows: int
    loss_before: float
    loss_kept: float


@dataclass(frozen=True)
class TrainReport:
    """What a training made."""

    version: str
    split: str
    rows: int
    rejected: dict[str, int]
    text_fit: TextFit
    evaluation: Evaluation
