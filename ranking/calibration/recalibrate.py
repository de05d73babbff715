"""A model version with its calibration fitted anew. Knows no serving."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from adcascade.artifacts.store import VersionStore
from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from ranking.artifact import ModelVersion, save_derived
from ranking.calibration.calibrate import fit_calibration
from ranking.calibration.calibration import Calibration
from ranking.data.dataset import Dataset
from ranking.evaluation.predict import predict
from ranking.runtime.hardware import choose_device
from ranking.training.versions import load_from


@dataclass(frozen=True)
class Recalibration:
    """A new version made from `source` with its calibration, fitted on so many fresh `rows`.

    `before` and `after` are predicted over actual clicks on those rows.
    """

    version: str
    source: str
    rows: int
    calibration: Calibration
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "version": self.version,
            "source": self.source,
            "rows": self.rows,
            "calibration": self.calibration.model_dump(mode="json"),
            "predicted_over_actual": {"before": self.before, "after": self.after},
        }


def recalibrate(store: VersionStore, version: str, data: Dataset, *, publish: bool = True) -> Recalibration:
    """Fits the calibration of a version on the fresh rows of a log, and commits the result as a new version.

    Rows are scored as a server would score them: with the version's counters, and the users' strictly earlier events.

    Args:
        version: "" for the published one.
        data: A log; rows not known to be newer than the version's counters are histories alone: they may be counted.
            Of a version that knows no times, all rows are taken for fresh.

    Raises:
        InputError: No row is fresh, or the fresh ones hold no click or nothing but clicks.
        ArtifactError: The version is damaged or not there, or the root cannot be written.
    """
    loaded = load_from(store, version)
    rows, logits = _logits(loaded, replace(data, counters=loaded.counters), _fresh(data, loaded))
    clicks, impressions = data.log.clicks[rows], data.log.impressions[rows]
    calibration = fit_calibration(logits, clicks, impressions)
    # What retrieval's score counts beside log-odds was fitted on those of the old calibration.
    update = {"calibration": calibration, "metrics": {}, "order": None, **_no_longer_known(loaded)}
    spec = loaded.spec.model_copy(update=update)
    made = save_derived(store, loaded, spec, publish=publish)

    def ratio(fitted: Calibration) -> float:
        return float((fitted.probability(logits) * impressions).sum() / clicks.sum())

    before, after = ratio(loaded.spec.calibration), ratio(calibration)
    return Recalibration(made, loaded.version, len(rows), calibration, before, after)


def _fresh(data: Dataset, loaded: ModelVersion) -> Integers:
    end, log = loaded.counters.end, data.log
    rows = np.arange(len(log)) if end is None else np.flatnonzero(log.time > end * 1e6)
    if not len(rows):
        at = datetime.fromtimestamp(end or 0, UTC)
        raise InputError(
            f"no row of the log is known to be newer than {at:%Y-%m-%d %H:%M:%S} UTC, where the counters of "
            f"version {loaded.version} end: rows that it has counted cannot calibrate it"
        )
    if int(log.clicks[rows].sum()) in (0, int(log.impressions[rows].sum())):
        raise InputError("the log needs impressions with a click and impressions without one to calibrate on")
    return rows


def _no_longer_known(loaded: ModelVersion) -> dict[str, object]:
    """Without times nobody can tell whether the rows that calibrate are rows that a split would test."""
    return {"training_sha256": ""} if loaded.counters.end is None else {}


def _logits(loaded: ModelVersion, data: Dataset, wanted: Integers) -> tuple[Integers, np.ndarray]:
    predicted = predict(data, loaded, wanted, choose_device("auto"), "auto")
    return predicted.rows, predicted.logits
