"""A model version with its calibration fitted anew. Knows no serving."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from artifacts.store import VersionStore
from ranking.artifact import ModelVersion, save_version
from ranking.calibration import Calibration
from ranking.engine import choose_device
from ranking.training.calibrate import fit_calibration
from ranking.training.dataset import Dataset
from ranking.training.predict import predict
from ranking.training.versions import load_from
from records.clicks import Integers
from records.errors import InputError


@dataclass(frozen=True)
class Recalibration:
    """A new version with its calibration; `before` and `after` are predicted over actual clicks on the fresh rows."""

    version: str
    source: str
    calibration: Calibration
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "version": self.version,
            "source": self.source,
            "calibration": self.calibration.model_dump(mode="json"),
            "predicted_over_actual": {"before": self.before, "after": self.after},
        }


def recalibrate(store: VersionStore, version: str, data: Dataset, *, publish: bool = True) -> Recalibration:
    """Fits the calibration of a version on every row of a fresh log, and commits the result as a new version.

    Args:
        version: "" for the published one.
        data: A fresh log; each row looks back on strictly earlier ones.

    Raises:
        InputError: The log holds no click, or nothing but clicks.
        ArtifactError: The version is damaged or not there, or the root cannot be written.
    """
    if int(data.log.clicks.sum()) in (0, int(data.log.impressions.sum())):
        raise InputError("the log needs impressions with a click and impressions without one to calibrate on")
    loaded = load_from(store, version)
    rows, logits = _logits(loaded, data)
    clicks, impressions = data.log.clicks[rows], data.log.impressions[rows]
    calibration = fit_calibration(logits, clicks, impressions)
    spec = loaded.spec.model_copy(update={"calibration": calibration, "training_sha256": ""})
    with store.begin() as draft:
        save_version(store, draft, spec, loaded.model, loaded.tokenizer, loaded.counters)
    if publish:
        store.publish(draft.version)

    def ratio(fitted: Calibration) -> float:
        return float((fitted.probability(logits) * impressions).sum() / clicks.sum())

    return Recalibration(draft.version, loaded.version, calibration, ratio(loaded.spec.calibration), ratio(calibration))


def _logits(loaded: ModelVersion, data: Dataset) -> tuple[Integers, np.ndarray]:
    wanted = np.arange(len(data.log))
    predicted = predict(data, loaded.model, loaded.tokenizer, loaded.spec, wanted, choose_device("auto"), "auto")
    return predicted.rows, predicted.logits
