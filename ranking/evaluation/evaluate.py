"""A model against its peers on the same rows, with confidence intervals. Knows no serving."""

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import roc_curve

from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from ranking.artifact import ModelVersion, Ranker
from ranking.data.dataset import Dataset
from ranking.evaluation.baselines import baselines, fitted_note
from ranking.evaluation.bootstrap import with_intervals
from ranking.evaluation.metrics import (
    Sample,
    at_threshold,
    auc,
    calibration_noise,
    log_loss,
    reliability,
    top_share,
    unrolled,
)
from ranking.evaluation.predict import Predictor
from ranking.evaluation.results import RANKER, TEACHER, Curves, Evaluation, Slice, WorstError
from ranking.evaluation.slices import slices
from ranking.evaluation.speed import milliseconds_per_request
from ranking.runtime.hardware import choose_device

_CURVE_POINTS = 100
_SURPRISES = 10


def evaluate(
    data: Dataset,
    ranker: Ranker,
    *,
    device: str = "auto",
    precision: str = "auto",
    which_baselines: str = "fast",
    threshold: float | None = None,
    teacher: ModelVersion | None = None,
) -> Evaluation:
    """Scores the test part request by request, as serving would, and compares with the peers.

    The ranker and its peers see the same counters, made for each row from what it may look back on.

    Args:
        which_baselines: See `ranking.evaluation.baselines.baselines`.
        threshold: From which p_click on precision, recall and accuracy call a click; None for that from which on as
            large a share of the impressions is called as was clicked in the training part: of a log with a CTR of 2 %,
            a threshold of a half would call none.
        teacher: Compared, too, and how fast both are.

    Raises:
        ModelError: The device is not there.
        InputError: The test part has no rows.
    """
    if not len(data.split.test):
        raise InputError("there is nothing to evaluate: the test part of the log has no rows")
    predictor = Predictor(data, ranker, choose_device(device), precision)
    predicted = predictor.predict(data.split.test)
    rows, p_click = predicted.rows, ranker.spec.calibration.probability(predicted.logits)
    predictions, milliseconds = {RANKER: p_click}, {}
    if teacher is not None:
        slower = Predictor(data, teacher, choose_device(device), precision)
        predictions[TEACHER] = teacher.spec.calibration.probability(slower.predict(data.split.test).logits)
        milliseconds = milliseconds_per_request({RANKER: predictor, TEACHER: slower})
    ranker.model.cpu()
    predictions |= baselines(data, predicted.features, ranker.spec.features, rows, which=which_baselines)
    samples = {name: _sample(data, rows, values) for name, values in predictions.items()}
    intervals, own = with_intervals(samples), samples[RANKER]
    if threshold is None:
        threshold, note = top_share(own, data.prior_ctr), f"the highest {data.prior_ctr:.2%}, the CTR of training"
    else:
        note = "as asked for"
    return Evaluation(
        metrics=intervals.metrics,
        differences=intervals.differences,
        impressions=int(own.impressions.sum()),
        clicks=int(own.clicks.sum()),
        threshold=threshold,
        threshold_note=note,
        at_threshold=at_threshold(own, threshold),
        units=_units(data, rows),
        calibration_noise=calibration_noise(own),
        slices=tuple(_slices(data, rows, samples)),
        curves={name: _curves(sample) for name, sample in samples.items()},
        worst_errors=tuple(_surprises(data, rows, own)),
        milliseconds=milliseconds,
        baselines_note="" if which_baselines == "none" else fitted_note(data),
    )


def _units(data: Dataset, rows: Integers) -> str:
    """What `Sample.units` are."""
    named = data.log.user_id[rows].known
    if named.all():
        return "users"
    return "users, and requests of nobody" if named.any() else "requests"


def _sample(data: Dataset, rows: Integers, p_click: np.ndarray) -> Sample:
    users, requests = data.log.user_id[rows].sorted, data.log.request_id[rows].sorted
    units = np.where(users.known, users.codes, len(users.names) + requests.codes)
    return Sample(
        p_click,
        data.log.clicks[rows],
        data.log.impressions[rows],
        np.unique(units, return_inverse=True)[1],
        requests.codes.astype(np.int64),
    )


def _slices(data: Dataset, rows: Integers, samples: Mapping[str, Sample]) -> list[Slice]:
    ranker = samples[RANKER]
    others = [sample for name, sample in samples.items() if name != RANKER]
    found = []
    for name, labels in slices(data, rows):
        for label in np.unique(labels).tolist():
            part = labels == label
            clicks, impressions = ranker.clicks[part], ranker.impressions[part]
            p_click = ranker.p_click[part]
            peer_aucs = [auc(peer.p_click[part], clicks, impressions) for peer in others]
            found.append(
                Slice(
                    name=name,
                    label=label.strip(),
                    impressions=int(impressions.sum()),
                    clicks=int(clicks.sum()),
                    predicted_ctr=float(np.average(p_click, weights=impressions)),
                    auc=auc(p_click, clicks, impressions),
                    log_loss=log_loss(p_click, clicks, impressions),
                    best_peer_auc=max(peer_aucs, default=np.nan),
                )
            )
    return found


def _curves(sample: Sample) -> Curves:
    predicted, actual, _ = reliability(sample, np.ones(len(sample.p_click)))
    impressions, clicks = _cumulative(sample)
    return Curves(
        roc=_roc(sample),
        reliability=_points(predicted, actual),
        gain=_thinned(impressions / max(1, impressions[-1]), clicks / max(1, clicks[-1])),
    )


def _cumulative(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Impressions and clicks of the rows from each score on, highest first; a straight line runs through equal ones."""
    level = np.unique(-sample.p_click, return_inverse=True)[1]
    impressions, clicks = (np.bincount(level, column) for column in (sample.impressions, sample.clicks))
    return np.r_[0, np.cumsum(impressions)], np.r_[0, np.cumsum(clicks)]


def _roc(sample: Sample) -> tuple[tuple[float, float], ...]:
    """No points if only one class is present."""
    labels, counts, scores = unrolled(sample.p_click, sample.clicks, sample.impressions)
    if not counts[labels == 1].any() or not counts[labels == 0].any():
        return ()
    false, true, _ = roc_curve(labels, scores, sample_weight=counts)
    return _thinned(false, true)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], ...]:
    places = np.linspace(0, 1, _CURVE_POINTS + 1)
    return ((0.0, 0.0), *_points(places, np.interp(places, x, y)))


def _points(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple(zip(np.round(x, 6).tolist(), np.round(y, 6).tolist(), strict=True))


def _surprises(data: Dataset, rows: Integers, sample: Sample) -> list[WorstError]:
    """The rows with the greatest loss an impression, one of each ad."""
    p_click = np.clip(sample.p_click, 1e-7, 1 - 1e-7)
    ctr = sample.clicks / sample.impressions
    loss = -(ctr * np.log(p_click) + (1 - ctr) * np.log(1 - p_click))
    found: dict[str, WorstError] = {}
    for place in np.argsort(-loss, kind="stable"):
        row, ad_id = int(rows[place]), str(data.log.ad_id[rows[place]])
        if ad_id not in found:
            found[ad_id] = WorstError(
                user_id=str(data.log.user_id[row]),
                user_text=data.user_text(row),
                ad_id=ad_id,
                ad_text=data.ad_text(ad_id),
                p_click=float(sample.p_click[place]),
                clicks=int(sample.clicks[place]),
                impressions=int(sample.impressions[place]),
            )
        if len(found) == _SURPRISES:
            break
    return list(found.values())
