"""A ridge regression on frozen layers: what a base model knows of an ad's text before any training. A baseline.

An ad is the means of its tokens' states above several layers, each of unit length, side by side: layers differ in what
they know of a text (Tenney et al., arXiv 1905.05950). Log-odds and vectors are both centred within each request, so
that only what was shown together is compared (fixed effects). Knows no users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adcascade.records.clicks import Integers
from adcascade.vectors.encoder import EMBEDDED
from ranking.artifact import load_base
from ranking.calibration.ridge import Floats, Vectors, fit_ridge
from ranking.data.dataset import Dataset
from ranking.data.text_batches import of_like_length
from ranking.model.batch import TokenRows, tokenize
from ranking.model.shape import ModelShape
from ranking.model.shared_user import SHARED_USER, SharedUserCrossEncoder

# The lowest layer that is read; those below know words, not what they say together.
FIRST_LAYER = 2
# Each times the summed impressions; one is chosen by folds of requests.
PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_FOLDS = 5


@dataclass(frozen=True)
class TextRidge:
    """What texts add to the logit of a click.

    Attributes:
        weights: of each number in the vector of a text, float64 [width].
        penalty: which of `PENALTIES` was chosen.
    """

    weights: Floats
    penalty: float

    def logits(self, vectors: Vectors) -> Floats:
        """What each text adds, float64 [texts]; `vectors` are those of `frozen_layers`."""
        added: Floats = vectors @ self.weights
        return added


def frozen_layers(texts: Sequence[str], *, max_tokens: int = 64) -> Vectors:
    """Unit means of the states above layers `FIRST_LAYER` to the last of MiniLM, side by side.

    Returns:
        float32 [texts, layers x hidden].
    """
    model, tokenizer = load_base(EMBEDDED, SHARED_USER, 0, ModelShape(id_buckets=2))
    tokens, pad_id = tokenize(tokenizer, texts, max_tokens), int(tokenizer.pad_token_id or 0)
    return of_like_length(tokens, pad_id, torch.device("cpu"), partial(layer_means, model.encoder.eval()))


@torch.inference_mode()
def layer_means(encoder: nn.Module, rows: TokenRows) -> Tensor:
    """The same of tokens and any BERT-like encoder, float32 [rows, layers x hidden]."""
    states = encoder(input_ids=rows.ids, attention_mask=rows.mask.long(), output_hidden_states=True).hidden_states
    means = (SharedUserCrossEncoder.mean_state(hidden, rows.mask) for hidden in states[FIRST_LAYER:])
    return torch.cat([F.normalize(mean.float(), dim=1) for mean in means], dim=1)


def ad_layers(data: Dataset, *, max_tokens: int = 64) -> tuple[Vectors, Integers]:
    """`frozen_layers` of each ad of the log, and the place of each row's ad among them, int64 [rows]."""
    ads = data.log.ad_id.sorted
    texts = [data.ad_text(ad_id) for ad_id in ads.names.to_pylist()]
    return frozen_layers(texts, max_tokens=max_tokens), ads.codes.astype(np.int64)


def text_ridge_logits(data: Dataset, vectors: Vectors, place: Integers, rows: Integers) -> Floats:
    """What the text of every row's ad adds, learned from `rows`, float64 [log rows].

    Args:
        vectors, place: What `ad_layers` returned.
    """
    log = data.log.take(rows)
    ridge = fit_text_ridge(vectors, place[rows], log.clicks, log.impressions, data.groups[rows])
    return ridge.logits(vectors)[place]


def fit_text_ridge(
    vectors: Vectors, ads: Integers, clicks: Integers, impressions: Integers, requests: Integers
) -> TextRidge:
    """Fits what texts add to the logit of a click.

        y = log((clicks + 1/2) / (impressions - clicks + 1/2))   minus its mean in the request, weighted by n
        x = vector of the row's text                             minus its mean in the request, weighted by n
        n = impressions, or 0 where a request has no click or nothing else
        weights = argmin  sum n (y - x weights)^2 + penalty (sum n) |weights|^2

    Of single impressions y has but two values, so that this is a linear regression on clicks, up to a factor. Rows
    that stand alone in their request are compared with each other, within a fold. The penalty is the one whose weights,
    fitted without the requests of a fold, lose least on that fold. Where no row tells anything the weights are zero.

    Args:
        vectors: of texts, float32 [texts, width].
        ads: place of each row's ad in `vectors`, int64 [rows].
        clicks, impressions: of each row, int64 [rows].
        requests: number of each row's request, int64 [rows].
    """
    groups, weight = _comparable(clicks, impressions, requests)
    log_odds = np.log((clicks + 0.5) / (impressions - clicks + 0.5))
    _, request = np.unique(requests, return_inverse=True)
    fold = np.random.default_rng(0).permutation(int(request.max()) + 1)[request] % _FOLDS
    ridge = fit_ridge(vectors, ads, groups, log_odds, weight, fold, PENALTIES)
    return TextRidge(ridge.weights, ridge.penalty)


def _comparable(clicks: Integers, impressions: Integers, requests: Integers) -> tuple[Integers, Floats]:
    """With which rows each is compared, int64 [rows], and `n` of `fit_text_ridge`, float64 [rows]."""
    alone = np.bincount(requests)[requests] < 2
    groups = np.where(alone, int(requests.max()) + 1, requests)
    clicked = np.bincount(groups, clicks)[groups]
    tells = (clicked > 0) & (clicked < np.bincount(groups, impressions)[groups])
    return groups, np.where(tells, impressions, 0.0)
