"""What texts alone say of clicks, learned in closed form beside the behaviour part. Knows no serving.

A ridge regression on frozen layers, words and keywords, of what the behaviour part leaves unexplained: its weights are
solved for, not trained; what takes time is reading the ads. Its strength, and whether it is kept at all, is chosen on
the validation part, and where few validate on that and what training rows are said without their fold.
"""

import base64
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from adcascade.records.clicks import ClickLog, Integers
from adcascade.records.coded import OfCodes
from adcascade.records.packed import blocks
from adcascade.records.splits import drawn_units
from adcascade.reports.interval import Interval
from adcascade.training.stage import StageContext, TrainingProgress
from ranking.calibration.evidence import (
    click_likelihood,
    common_offset,
    order_likelihood,
    random_effects_weight,
    working_response,
)
from ranking.calibration.ridge import Floats, RidgeFit, Vectors, fit_ridge
from ranking.data.dataset import Dataset
from ranking.data.text_batches import AdTexts, of_like_length
from ranking.inputs.features import REQUEST_ROWS
from ranking.model.batch import TokenIds
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.model.text_prior import NOT_FITTED, TextPrior
from ranking.spec import TextPriorFit
from ranking.training.prior_texts import PriorTexts, reads_keywords

log = logging.getLogger(__name__)

# Each times the summed weight of the rows.
PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
# Layers below the join layer that are read, from the top; the lowest know words, not what they say together.
_LAYERS = 4
# The ads that were shown most, of the newest rows.
_MOST_ADS, _MOST_ROWS = 30_000, 1_000_000
# Rows of the validation part, of users drawn at random.
_MOST_VALID_ROWS = 20_000
_HALF = 0.5  # of the time, for the ads to learn from; the other for those to validate on
_FOLDS, _TEXTS_A_SHARE = 5, 512
_MOST_SCALE = 2.0
# How often an interval, and one that a gain must lie above to be certain, may miss what it is for; by Student's t, for
# of few units the standard error is hardly known.
_MISSED, _MISSED_AT_MOST = 0.05, 0.01
# Of fewer units no half tells anything of the other.
_LEAST_UNITS = 5
# Units of validation rows that are so few that what training rows are said without their fold decides with them.
_FEW_UNITS = 1000


# float64 [rows] of some rows.
LogitsOf = Callable[[Integers], Floats]


@dataclass(frozen=True)
class TrainedPrior:
    """A prior, and what it says of what it has read.

    Attributes:
        of_ads: what it adds for each ad of the log, float32 [ads]; NaN for those that were not read.
        rows: of the training part, whose ads it learned from, [rows], rising.
        cross_fitted: what it would add to each of these as learned without its fold, float32 [rows].
    """

    prior: TextPrior
    of_ads: Vectors
    rows: Integers
    cross_fitted: Vectors


def train_text_prior(
    data: Dataset,
    model: SharedUserCrossEncoder,
    ads: AdTexts,
    pad_id: int,
    known: LogitsOf,
    context: StageContext,
    *,
    training_decides: bool = True,
) -> TrainedPrior | None:
    """A prior of the training part; None where it is not certain to help, or the time is too short.

    Args:
        ads: of the log.
        known: what is known of rows without their texts, at the place where their ads stood.
        context: who watches, and how long ads may be read.
        training_decides: whether training rows may decide with those of the validation part where these are few;
            not where less is known of them than serving will know.
    """
    train, place = data.split.train[-_MOST_ROWS:], ads.places(data.log.ad_id)
    shown = np.bincount(place[train], data.log.impressions[train], minlength=len(ads.texts))
    chosen = np.argsort(-shown, kind="stable")[: min(_MOST_ADS, int((shown > 0).sum()))]
    texts, each = _texts_of(ads, chosen, model, pad_id, context)
    chosen = chosen[: len(texts.vectors)]
    valid = _valid_rows(data, place, chosen, math.inf if context.seconds is None else _HALF * context.seconds / each)
    if len(chosen) < 2 or not len(valid):
        return None
    number = np.full(len(ads.texts), -1)
    number[chosen] = np.arange(len(chosen))
    learned = train[number[place[train]] >= 0]
    ridge, fold, is_by_ad = _solve(data, texts, number[place[learned]], learned, known(learned))
    said = texts.vectors @ ridge.weights
    center = float(np.average(said, weights=shown[chosen]))
    found, new = texts.prior(ridge.weights, center, NOT_FITTED), np.setdiff1d(place[valid], chosen)
    of_ads = np.full(len(ads.texts), np.nan)
    of_ads[chosen] = said - center
    of_ads[new] = ads.of_prior(new, found, model, pad_id)
    of_folds = texts.vectors @ ridge.of_folds.T - center

    def without_fold(rows: Integers) -> Floats:
        read = number[place[rows]]
        return np.asarray(of_folds[read, fold[read] if is_by_ad else fold])

    rows, added = valid, of_ads[place[valid]]
    judged = _units(data, valid)
    with_training = training_decides and judged.count < _FEW_UNITS
    if with_training:
        rows, added = np.r_[valid, learned], np.r_[added, without_fold(learned)]
        judged = _units(data, rows, are_requests=judged.are_requests)
    verdict = _validated(data, known(rows), added, rows, judged)
    if not verdict.is_certain:
        return None
    scale, fit = verdict.scale, texts.fit(ridge, verdict.gain, with_training=with_training)
    cross_fitted = (scale * without_fold(learned)).astype(np.float32)
    if is_by_ad:  # older rows of these ads, too: of a large log nearly all, so that they are looked at by block
        older = data.split.train[: -len(train)]
        of_blocks = [older[some][number[place[older[some]]] >= 0] for some in blocks(len(older))]
        said_of = [(scale * without_fold(rows)).astype(np.float32) for rows in of_blocks]
        learned, cross_fitted = np.concatenate([*of_blocks, learned]), np.concatenate([*said_of, cross_fitted])
    prior = texts.prior(scale * ridge.weights, scale * center, fit)
    return TrainedPrior(prior, (scale * of_ads).astype(np.float32), *_rising(learned, cross_fitted))


def _rising(rows: Integers, values: npt.NDArray[np.float32]) -> tuple[Integers, npt.NDArray[np.float32]]:
    """Both in the order of the rows, which they mostly have."""
    if (rows[1:] > rows[:-1]).all():
        return rows, values
    order = np.argsort(rows)
    return rows[order], values[order]


def _texts_of(
    ads: AdTexts, chosen: Integers, model: SharedUserCrossEncoder, pad_id: int, context: StageContext
) -> tuple[PriorTexts, float]:
    """What is read of the first of some ads, as far as the time goes, and the seconds that one took."""
    keywords = [one.keywords for one in ads.parts(chosen)]
    apart = reads_keywords(keywords)
    tokens = ads.prior_tokens(chosen, reads_keywords=apart)
    layers, each = _read(model, tokens, pad_id, context)
    return PriorTexts.of(layers, tokens[: len(layers)], keywords[: len(layers)] if apart else None), each


def _valid_rows(data: Dataset, place: OfCodes[np.int32], read: Integers, most_ads: float) -> Integers:
    """Rows of the validation part that a prior is judged by: as many as bring so many ads that are not read yet."""
    rows = drawn_units(data.log, data.split.valid, _MOST_VALID_ROWS)
    new = len(np.setdiff1d(place[rows], read))
    if new <= most_ads:
        return rows
    log.warning("there is no time to read the ads of %d validation rows: fewer judge the prior of texts", len(rows))
    return drawn_units(data.log, rows, int(len(rows) * most_ads / new))


def prior_as_text(trained: TrainedPrior | None) -> str:
    """For the other processes of a training; "" for none."""
    if trained is None:
        return ""
    said = {"of_ads": trained.of_ads, "rows": trained.rows, "cross_fitted": trained.cross_fitted}
    tensors = trained.prior.tensors | {name: torch.from_numpy(values) for name, values in said.items()}
    return f"{trained.prior.fit.model_dump_json()}\n{base64.b64encode(save(tensors)).decode()}"


def prior_of_text(text: str) -> TrainedPrior | None:
    """What `prior_as_text` made a text of."""
    if not text:
        return None
    fit, _, encoded = text.partition("\n")
    tensors = load(base64.b64decode(encoded))
    said = [tensors.pop(name).numpy() for name in ("of_ads", "rows", "cross_fitted")]
    return TrainedPrior(TextPrior(**tensors, fit=TextPriorFit.model_validate_json(fit)), *said)


def _device(model: SharedUserCrossEncoder) -> torch.device:
    return next(model.parameters()).device


def _read(
    model: SharedUserCrossEncoder, tokens: list[TokenIds], pad_id: int, context: StageContext
) -> tuple[Vectors, float]:
    """Unit means of each text's layers, float32 [texts, layers, hidden], and the seconds that a text took.

    Half of the time is for these; when it is over, the texts read so far must do.
    """
    started = time.monotonic()
    ends = math.inf if context.seconds is None else started + _HALF * context.seconds
    device, layers = _device(model), min(_LAYERS, model.join_layer + 1)
    read: list[Vectors] = [np.empty((0, layers, int(model.encoder.config.hidden_size)), np.float32)]
    done = 0
    for start in range(0, len(tokens), _TEXTS_A_SHARE):
        some = tokens[start : start + _TEXTS_A_SHARE]
        read.append(of_like_length(some, pad_id, device, lambda rows: model.layer_means(rows, layers)))
        done = start + len(some)
        context.watch(TrainingProgress("prior", done, done / len(tokens), math.nan, math.nan, None, math.nan))
        if done < len(tokens) and time.monotonic() >= ends:
            log.warning("texts of the %d most shown of %d ads alone tell the prior", done, len(tokens))
            break
    return np.concatenate(read), (time.monotonic() - started) / max(1, done)


def _solve(
    data: Dataset, texts: PriorTexts, number: Integers, rows: Integers, known: Floats
) -> tuple[RidgeFit, Integers, bool]:
    """The ridge regression on some rows; the fold of each ad, or of each row where requests stay together; and which.

    Args:
        number: place of each row's ad in `texts`, [rows].
    """
    clicks, requests = data.log.take(rows), np.unique(data.groups[rows], return_inverse=True)[1]
    groups = _compared(requests)
    target, weight = working_response(known, clicks.clicks, clicks.impressions, groups)
    weight = random_effects_weight(target, weight, number, groups)
    # What is asked is what texts say of ads that nobody has seen: rows of an ad stay together, unless requests do.
    once = len(np.unique(requests * len(texts.vectors) + number)) < REQUEST_ROWS * len(np.unique(number))
    of_unit = np.random.default_rng(0).permutation(int(requests.max()) + 1 if once else len(texts.vectors)) % _FOLDS
    fold = of_unit[requests if once else number]
    ridge = fit_ridge(texts.vectors, number, groups, target, weight, fold, PENALTIES, texts.scales())
    return ridge, fold if once else of_unit, not once


def _compared(requests: Integers) -> Integers:
    """With which others each row is compared: those of its request, or all where requests show one ad."""
    several = len(requests) >= REQUEST_ROWS * (int(requests.max()) + 1)
    alone = np.bincount(requests)[requests] < 2
    return np.where(alone, int(requests.max()) + 1, requests) if several else np.zeros_like(requests)


@dataclass(frozen=True)
class _Verdict:
    """What some rows say of a prior.

    Attributes:
        scale: how strongly to add its logits.
        gain: in the mean for a unit of rows.
        is_certain: that it gains.
    """

    scale: float
    gain: Interval
    is_certain: bool


@dataclass(frozen=True)
class _Units:
    """What of some rows is judged as one.

    Attributes:
        of_rows: the request of each row, from 0, or its ad where requests show one; int64 [rows].
        are_requests: which of these.
    """

    of_rows: Integers
    are_requests: bool

    @property
    def count(self) -> int:
        """How many."""
        return int(self.of_rows.max()) + 1


def _units(data: Dataset, rows: Integers, *, are_requests: bool | None = None) -> _Units:
    """Those of some rows; requests, if these show several ads in the mean, where that is not said."""
    requests = np.unique(data.groups[rows], return_inverse=True)[1]
    if are_requests is None:
        are_requests = len(rows) >= REQUEST_ROWS * (int(requests.max()) + 1)
    if are_requests:
        return _Units(requests, are_requests=True)
    return _Units(np.unique(data.log.ad_id.codes[rows], return_inverse=True)[1], are_requests=False)


def _validated(data: Dataset, known: Floats, added: Floats, rows: Integers, judged: _Units) -> _Verdict:
    """What some rows, which it has not learned from, say of a prior.

    Each half of the units is measured at the strength that was chosen on the other half. Where requests show one ad,
    ads are compared with each other, so that what all of them have in common is nobody's gain; and they are counted as
    `random_effects_weight` says, or the few that were shown most would decide alone.
    """
    clicks = data.log.take(rows)
    unit, several = judged.of_rows, judged.are_requests
    counted = np.ones(len(rows)) if several else _counted(known, clicks, unit)

    def likelihood(scale: float, units: npt.NDArray[np.bool_]) -> Floats:
        """Of all units, with an offset that suits some of them."""
        logits = known + scale * added
        if several:
            return order_likelihood(logits, clicks, unit)
        offset = common_offset(logits, clicks, counted * units[unit])
        return click_likelihood(logits + offset, clicks, unit, counted)

    def best(units: npt.NDArray[np.bool_]) -> float:
        def loss(scale: float) -> float:
            return -float(likelihood(scale, units)[units].sum())

        return float(minimize_scalar(loss, bounds=(0, _MOST_SCALE), method="bounded").x)

    def gain(units: npt.NDArray[np.bool_]) -> Floats:
        return likelihood(best(units), units) - likelihood(0.0, units)

    half = np.random.default_rng(0).permutation(judged.count) % 2 == 0
    if len(half) < _LEAST_UNITS:
        return _Verdict(0.0, Interval(0.0, -math.inf, math.inf), is_certain=False)
    gains = np.where(half, gain(~half), gain(half))
    mean, error = float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))
    misses = student.ppf([1 - _MISSED / 2, 1 - _MISSED_AT_MOST / 2], len(gains) - 1) * error
    interval = Interval(mean, mean - float(misses[0]), mean + float(misses[0]))
    return _Verdict(best(np.ones_like(half)), interval, mean > float(misses[1]))


def _counted(known: Floats, clicks: ClickLog, unit: Integers) -> Floats:
    """How many times each row is counted: what its ad's own effect leaves of its weight, float64 [rows]."""
    together = np.zeros_like(unit)
    target, weight = working_response(known, clicks.clicks, clicks.impressions, together)
    return random_effects_weight(target, weight, unit, together) / np.maximum(weight, 1e-12)
