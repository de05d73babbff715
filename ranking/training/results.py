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
    loss_before: float
    loss_kept: float

    def __str__(self) -> str:
        if self.steps == 0:
            return "The text layers were not fine-tuned: the model predicts from counters, past events and interests."
        if self.kept_step == 0:
            return (
                f"Fine-tuning the text for {self.steps} steps hardly lowered the validation loss "
                f"({self.loss_before:.4f}): the model predicts from counters, past events and interests, and leaves "
                "its text layers out. A larger log or more time (--max-minutes, --epochs) may change that."
            )
        return (
            f"Fine-tuning the text lowered the validation loss from {self.loss_before:.4f} to {self.loss_kept:.4f} "
            f"(step {self.kept_step} of {self.steps})."
        )


@dataclass(frozen=True)
class TrainReport:
    """What a training made."""

    version: str
    split: str
    rows: int
    rejected: dict[str, int]
    text_fit: TextFit
    evaluation: Evaluation
