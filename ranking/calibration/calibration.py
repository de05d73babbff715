"""From logits to probabilities that mean what they say. Knows no training and no files."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator
from scipy.special import expit

Logits = npt.NDArray[np.floating[Any]]
Probabilities = npt.NDArray[np.float64]


class Calibration(BaseModel):
    """A rising function of the logit, fitted on rows that were not trained on (see `ranking.calibration.calibrate`).

    Attributes:
        method: "none" is the sigmoid itself; "temperature" scales the logit (Guo et al. 2017), "platt" scales and
            shifts it (Platt 1999); "beta" is a line in ln p and ln(1 - p) (Kull et al. 2017); "isotonic" goes through
            points (Zadrozny and Elkan 2002), with straight lines between them.
        slope, intercept: of temperature and Platt.
        beta: a, b, c of logit = a ln p - b ln(1 - p) + c.
        points: (logit, probability) of isotonic, rising.
        log_loss: cross-validated log loss of each method that was compared, in nats.

    Example:
        >>> import numpy as np
        >>> from ranking.calibration.calibration import Calibration
        >>> logits = np.array([-1.0, 0.0, 1.0])
        >>> Calibration().probability(logits).round(3).tolist()
        [0.269, 0.5, 0.731]
        >>> Calibration(method="platt", slope=0.5, intercept=-1.0).probability(logits).round(3).tolist()
        [0.182, 0.269, 0.378]
    """

    model_config = ConfigDict(frozen=True)

    method: Literal["none", "temperature", "platt", "beta", "isotonic"] = "none"
    slope: float = 1.0
    intercept: float = 0.0
    beta: tuple[float, float, float] = (1.0, 1.0, 0.0)
    points: tuple[tuple[float, float], ...] = ()
    log_loss: dict[str, float] = {}

    @model_validator(mode="after")
    def _rises(self) -> "Calibration":
        steps = np.diff(np.array(self.points, np.float64).reshape(-1, 2), axis=0)
        if self.slope <= 0 or min(self.beta[:2]) < 0 or (steps < 0).any():
            raise ValueError("a calibration that falls would turn the order of the ads around")
        if self.method == "isotonic" and not self.points:
            raise ValueError("an isotonic calibration needs points")
        return self

    def probability(self, logits: Logits) -> Probabilities:
        """Calibrated probabilities, float64, of the shape of `logits`."""
        x = logits.astype(np.float64)
        if self.method == "isotonic":
            places, values = np.array(self.points, np.float64).T
            return np.asarray(np.interp(x, places, values))
        if self.method == "beta":
            a, b, c = self.beta
            x = -a * np.logaddexp(0, -x) + b * np.logaddexp(0, x) + c
            return np.asarray(expit(x))
        return np.asarray(expit(self.slope * x + self.intercept))
