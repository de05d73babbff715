"""What a ranker has to beat, on the same rows and the same past. Knows no serving."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from adcascade.records.clicks import Integers
from adcascade.records.coded import CodedColumn
from adcascade.records.errors import InputError
from adcascade.records.hashing import blake2b_bucket
from adcascade.vectors.encoder import TextEncoder, load_encoder
from ranking.data.dataset import Dataset
from ranking.data.feature_table import RowFeatures
from ranking.data.labels import labelled, labelled_rows
from ranking.evaluation.metrics import Probabilities
from ranking.evaluation.text_ridge import ad_layers, text_ridge_logits
from ranking.inputs.context import CONTEXT_BUCKETS, context_buckets
from ranking.inputs.features import Features, reads_content
from ranking.inputs.text import HISTORY_EVENTS
from ranking.model.trees import fit_booster

log = logging.getLogger(__name__)

POPULARITY, CLICK_RATES = "ad popularity", "logistic regression on past click rates"
WHICH = ("none", "fast", "all")
IDS, TREES = "logistic regression on ids", "LightGBM on all features"
ALL_FEATURES = "logistic regression on all features"
# Where some of these compare texts: without them.
COUNTER_TREES, COUNTERS = "LightGBM on counters alone", "logistic regression on counters alone"
BI_ENCODER, ZERO_SHOT, FROZEN_LAYERS = "bi-encoder", "zero-shot text", "ridge on frozen layers"

# The first two are logistic regressions on these features.
_ON_FEATURES: Mapping[str, tuple[str, ...]] = {
    POPULARITY: ("ad_impressions_log",),
    CLICK_RATES: ("ad_ctr_logit", "user_ctr_logit"),
}
_ID_BUCKETS = 2**20
# Training rows that peers are fitted on at most, the newest.
_MOST_FITTED = 1_000_000


def fit_logistic(
    features: Features | csr_matrix, clicks: Integers, impressions: Integers, strength: float = 1.0
) -> LogisticRegression | None:
    """Logistic regression of clicks on features [rows, features]; None if the rows hold one class only.

    Args:
        strength: Inverse of the regularisation (scikit-learn's C).
    """
    if not clicks.any() or not (impressions - clicks).any():
        return None
    place, labels, weights = labelled(clicks, impressions)
    return LogisticRegression(C=strength, max_iter=1000).fit(features[place], labels, sample_weight=weights)


def baselines(
    data: Dataset, features: RowFeatures, names: Sequence[str], rows: Integers, *, which: str = "fast"
) -> dict[str, Probabilities]:
    """p_click of each peer for the given rows.

    Args:
        features: Normalised dense features of the rows of the log, the same that the ranker reads. Where some of them
            compare texts, there are peers on all of them and peers on the others alone.
        names: Of these features; a peer that needs another one is left out.
        which: "none"; "fast": popularity, logistic regressions and LightGBM; "all": those that read text, too.

    Raises:
        InputError: `which` is none of these.
    """
    if which not in WHICH:
        raise InputError(f"there are no peers {which!r}; choose one of {', '.join(WHICH)}")
    if which == "none":
        return {}
    train = fitted_rows(data)
    known, asked = features[train], features[rows]
    predictions = {}
    for name, wanted in _ON_FEATURES.items():
        if set(wanted) <= set(names):
            columns = [names.index(feature) for feature in wanted]
            predictions[name] = _logistic(data, known[:, columns], asked[:, columns], train)
    predictions[IDS] = _logistic(data, *_one_hot(data, train, rows), train, strength=0.1)
    predictions[ALL_FEATURES] = _logistic(data, known, asked, train, strength=0.01)
    counters = [place for place, name in enumerate(names) if not reads_content(name)]
    of_trees: dict[str, RowFeatures] = {TREES: features}
    if len(counters) < len(names):
        predictions[COUNTERS] = _logistic(data, known[:, counters], asked[:, counters], train, strength=0.01)
        of_trees[COUNTER_TREES] = _Columns(features, counters)
    del known
    for name, table in of_trees.items():
        trees = _trees(data, table, table[rows], train)
        if trees is not None:
            predictions[name] = trees
    if which == "all":
        predictions |= {name: _on_one_column(data, read, rows) for name, read in _text_columns(data).items()}
    return predictions


class _Columns:
    """Some columns of a table of features."""

    def __init__(self, features: RowFeatures, columns: Sequence[int]) -> None:
        self._features, self._columns = features, np.array(columns, np.int64)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, rows: Integers, /) -> Features:
        return self._features[rows][:, self._columns]


def fitted_rows(data: Dataset) -> Integers:
    """The rows of the training part that peers are fitted on: all, or the newest ones of a large log."""
    return data.split.train[-_MOST_FITTED:]


def fitted_note(data: Dataset) -> str:
    """What is to be said where these are not all; "" where they are."""
    fitted, rows = len(fitted_rows(data)), len(data.split.train)
    return "" if fitted == rows else f"The baselines are fitted on the newest {fitted:,} of {rows:,} training rows."


_Column = Callable[[Integers], npt.NDArray[np.float32]]


def _text_columns(data: Dataset) -> dict[str, _Column]:
    """What each baseline that reads text makes of some rows, float32 [rows]."""
    encoder = load_encoder()
    ads = cache(partial(_ad_vectors, data, encoder))  # both read the same ones
    return {
        BI_ENCODER: partial(_liked_cosine, data, ads),
        ZERO_SHOT: partial(_text_cosine, data, encoder, ads),
        FROZEN_LAYERS: partial(_text_ridge, data),
    }


def _on_one_column(data: Dataset, read: _Column, rows: Integers) -> Probabilities:
    """What `read` says as probabilities, by a logistic regression on the validation part."""
    valid = data.split.valid
    column = read(np.concatenate([valid, rows]))[:, None]
    return _logistic(data, column[: len(valid)], column[len(valid) :], valid)


def _logistic(
    data: Dataset,
    known: Features | csr_matrix,
    asked: Features | csr_matrix,
    fitted_on: Integers,
    strength: float = 1.0,
) -> Probabilities:
    """p_click of the rows `asked`; the CTR of the training part where the rows to fit on hold one class only.

    Args:
        known: features of the rows `fitted_on`.
    """
    fitted = fit_logistic(known, data.log.clicks[fitted_on], data.log.impressions[fitted_on], strength)
    if fitted is None:
        return np.full(asked.shape[0], data.prior_ctr)
    p_click: Probabilities = fitted.predict_proba(asked)[:, 1]
    return p_click


def _one_hot(data: Dataset, known: Integers, asked: Integers) -> tuple[csr_matrix, csr_matrix]:
    """User, ad, category, attributes and context of some rows and of others as ones among hashed columns.

    Columns that none of the first rows has are left out.
    """
    both = np.concatenate([known, asked])
    ids = np.stack([_id_buckets(key, data.keys[key][both]) for key in ("ad", "category", "user")], axis=1)
    hashes, kind = data.context_kinds
    buckets = context_buckets(hashes)
    words = buckets[:, buckets.any(axis=0)][kind[both]]
    columns = np.concatenate([ids, np.where(words > 0, _ID_BUCKETS + words, 0)], axis=1).astype(np.int32)
    rows = np.repeat(np.arange(len(columns), dtype=np.int32), columns.shape[1])
    matrix = csr_matrix((np.ones(columns.size), (rows, columns.ravel())), (len(columns), _ID_BUCKETS + CONTEXT_BUCKETS))
    used = np.unique(matrix[: len(known)].indices)
    matrix = matrix[:, used[used > 0]]
    return matrix[: len(known)], matrix[len(known) :]


def _id_buckets(key: str, names: CodedColumn) -> Integers:
    def bucket(name: str) -> int:
        return blake2b_bucket(f"{key}={name}", _ID_BUCKETS)

    return names.of_names(bucket, bucket(""), np.int64)


def _trees(data: Dataset, features: RowFeatures, asked: Features, fitted_on: Integers) -> Probabilities | None:
    """Gradient-boosted trees (Ke et al. 2017), stopped early on the validation part; None if not installed."""
    train, valid = (labelled_rows(data.log, features, part) for part in (fitted_on, data.split.valid))
    try:
        model = fit_booster(train, valid)
    except ImportError as error:
        log.warning("the baseline of boosted trees is left out: %s", error)
        return None
    return None if model is None else np.asarray(model.predict(asked), np.float64)


_AdVectors = Callable[[], tuple[npt.NDArray[np.float32], Integers]]


def _liked_cosine(data: Dataset, ads: _AdVectors, rows: Integers) -> npt.NDArray[np.float32]:
    """Cosine of the ad with the mean of the ads that the user liked before, 0 without any."""
    vectors, place = ads()
    cosine = np.zeros(len(data.log), np.float32)
    for window in data.past.windows(rows, HISTORY_EVENTS):
        liked = window.visible * (data.events.clicks[window.events] > 0)
        interest = liked @ vectors[place[window.events]]
        interest /= np.maximum(np.linalg.norm(interest, axis=1, keepdims=True), 1e-9)
        cosine[window.rows] = (interest * vectors[place[window.rows]]).sum(axis=1)
    return cosine[rows]


def _text_cosine(data: Dataset, encoder: TextEncoder, ads: _AdVectors, rows: Integers) -> npt.NDArray[np.float32]:
    """Cosine of the ad with the text that the ranker reads of the user at the first of these rows, without training."""
    vectors, place = ads()
    _, first, user = np.unique(data.log.user_id[rows].codes, return_index=True, return_inverse=True)
    users = encoder.encode(data.user_texts(rows[first]))
    cosine: npt.NDArray[np.float32] = (users[user] * vectors[place[rows]]).sum(axis=1)
    return cosine


def _ad_vectors(data: Dataset, encoder: TextEncoder) -> tuple[npt.NDArray[np.float32], Integers]:
    """Unit vector of each ad of `data.events`, and the place of the ad of each of these among them."""
    ads = data.events.ad_id.sorted
    return encoder.encode([data.ad_text(ad_id) for ad_id in ads.names.to_pylist()]), ads.codes.astype(np.int64)


def _text_ridge(data: Dataset, rows: Integers) -> npt.NDArray[np.float32]:
    """What the text of the ad adds to the logit of a click, learned from the training part without any fine-tuning."""
    logits = text_ridge_logits(data, *ad_layers(data), fitted_rows(data))[rows]
    return logits.astype(np.float32)
