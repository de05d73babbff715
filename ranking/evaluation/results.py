"""What training and evaluation find, as frozen values. Light: knows no models and no printing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adcascade.reports.interval import Interval

# Name of the trained model among its peers.
RANKER, TEACHER = "ranker", "teacher"


@dataclass(frozen=True)
class Slice:
    """The ranker on a part of the test rows; AUC is NaN where only one class is present."""

    name: str
    label: str
    impressions: int
    clicks: int
    predicted_ctr: float
    auc: float
    log_loss: float
    best_peer_auc: float


@dataclass(frozen=True)
class Curves:
    """Points to plot, of one model; x and y each.

    Attributes:
        roc: false and true positive rate.
        reliability: predicted and actual CTR of 15 bins of equal mass.
        gain: share of the impressions with the highest p_click, and share of all clicks among them.
    """

    roc: tuple[tuple[float, float], ...]
    reliability: tuple[tuple[float, float], ...]
    gain: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class WorstError:
    """A test row that the ranker was most wrong about."""

    user_id: str
    user_text: str
    ad_id: str
    ad_text: str
    p_click: float
    clicks: int
    impressions: int


@dataclass(frozen=True)
class Evaluation:
    """A ranker and its peers on one part of a log.

    Attributes:
        metrics: model name -> metric name (see `ranking.evaluation.metrics.METRICS`) -> value with its 95 % interval;
            the ranker comes first.
        differences: peer -> metric -> the ranker's value minus the peer's, with the interval of the difference.
        impressions, clicks: of the rows evaluated.
        threshold: what `at_threshold` calls a click from.
        threshold_note: how it was chosen.
        at_threshold: precision, recall, F1 and accuracy of the ranker there.
        units: what a bootstrap draws: "users", "requests" where no row names a user, or both.
        calibration_noise: the calibration error (ECE) that chance alone would give a ranker that is exactly right.
        curves: of each model.
        milliseconds: in which the ranker and its teacher read a request (see `ranking.evaluation.speed`); empty without
            a teacher.
        baselines_note: what is to be said of the rows that the peers were fitted on; "" if these are all.
    """

    metrics: "dict[str, dict[str, Interval]]"
    differences: "dict[str, dict[str, Interval]]"
    impressions: int
    clicks: int
    threshold: float
    threshold_note: str
    at_threshold: dict[str, float]
    units: str
    calibration_noise: float
    slices: tuple[Slice, ...]
    curves: dict[str, Curves]
    worst_errors: tuple[WorstError, ...]
    milliseconds: dict[str, float]
    baselines_note: str = ""

    @property
    def predicted_over_actual(self) -> float:
        """Sum of the ranker's p_click over clicks, 1 for a calibrated model."""
        return self.metrics[RANKER]["predicted_over_actual"].value


@dataclass(frozen=True)
class TextFit:
    """What fine-tuning the text layers brought: the validation log loss before it and at the step that was kept.

    Attributes:
        reads_text: whether the model reads text at all; after a warm start it may without a step that was kept.
        planned: steps that were to be made at most.
        by_clock: whether --max-minutes ended it before.
        prior_ads: how many texts the prior of texts was learned from; 0 without one.
        prior_gain: what it adds to the log-likelihood of a request (an ad, where requests show one) of the rows that
            decided, see `ranking.spec.TextPriorFit`; None without one.
        prior_with_training: whether training rows decided with those of the validation part.
    """

    reads_text: bool
    steps: int
    kept_step: int
    validation_rows: int
    loss_before: float
    loss_kept: float
    planned: int
    by_clock: bool
    prior_ads: int = 0
    prior_gain: "Interval | None" = None
    prior_with_training: bool = False


@dataclass(frozen=True)
class CurvePoint:
    """Training and validation loss at one validation of a stage; the training loss is NaN before the first step."""

    stage: str
    step: int
    training_loss: float
    validation_loss: float


@dataclass(frozen=True)
class TrainReport:
    """What a training made.

    Attributes:
        minutes: all of it took, without the evaluation.
        stages: stage -> how far it came, in words.
        cut_short: stages that --max-minutes ended.
    """

    version: str
    split: str
    seed: int
    rows: int
    rejected: dict[str, int]
    minutes: float
    stages: dict[str, str]
    cut_short: tuple[str, ...]
    text_fit: TextFit
    losses: tuple[CurvePoint, ...]
    calibration: dict[str, float]
    evaluation: Evaluation
