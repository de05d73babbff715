"""A model against simple baselines on the same rows, with confidence intervals. Knows no serving."""

from collections.abc import Mapping

import numpy as np
import torch

from ranking.engine import choose_device, choose_precision
from ranking.features import FEATURES, Features
from ranking.training.dataset import AdTexts, BatchMaker, Dataset, make_blocks
from ranking.training.metrics import Probabilities, with_intervals
from ranking.training.results import RANKER, Evaluation
from ranking.training.train import Scorer, Trained, fit_logistic, predict_logits
from records.clicks import Integers

POPULARITY, CLICK_RATES = "ad popularity", "logistic regression on past click rates"

# What each baseline is a logistic regression on, fitted on the training part.
BASELINES: Mapping[str, tuple[str, ...]] = {
    POPULARITY: ("ad_impressions_log",),
    CLICK_RATES: ("ad_ctr_logit", "user_ctr_logit"),
}


def evaluate(data: Dataset, trained: Trained, *, device: str = "auto", precision: str = "auto") -> Evaluation:
    """Scores the test part request by request, as serving would, and compares with the baselines.

    The ranker and the baselines see the same counters, made for each row from strictly earlier rows.
    """
    rows, p_click, features = _predict(data, trained, choose_device(device), precision)
    predictions = {RANKER: p_click, **baselines(data, features, rows)}
    clicks, impressions = data.log.clicks[rows], data.log.impressions[rows]
    users = data.log.user_id[rows]
    groups = np.where(users != "", users, data.log.request_id[rows]).astype(str)
    metrics = with_intervals(predictions, clicks, impressions, groups)
    ratio = float((p_click * impressions).sum() / max(1, clicks.sum()))
    return Evaluation(metrics, int(impressions.sum()), int(clicks.sum()), ratio)


def _predict(
    data: Dataset, trained: Trained, device: torch.device, precision: str
) -> tuple[Integers, Probabilities, Features]:
    """Rows of the test part, their calibrated p_click, and the normalised features of the whole log."""
    model, tokenizer, spec = trained.model, trained.tokenizer, trained.spec
    ads = AdTexts(data, tokenizer, spec.max_ad_tokens)
    vectors = ads.vectors(model.text, int(tokenizer.pad_token_id or 0))
    features = spec.normalise(data.features(vectors, spec.prior_ctr))
    model.to(device)
    scorer = Scorer(model, spec, device, choose_precision(precision, device), keep=True)
    maker = BatchMaker(data, ads, features, tokenizer, spec, device)
    blocks = make_blocks(data.log, data.parts[2], max_ads=1000, merge_requests=False)
    rows, logits = predict_logits(scorer, model, maker, blocks)
    model.cpu()
    return rows, spec.calibration.p_click(logits), features


def baselines(data: Dataset, features: Features, rows: Integers) -> dict[str, Probabilities]:
    """p_click of each baseline for the given rows; the CTR of the training part where that holds one class only."""
    training = data.parts[0]
    clicks, impressions = data.log.clicks[training], data.log.impressions[training]
    predictions: dict[str, Probabilities] = {}
    for name, wanted in BASELINES.items():
        columns = [FEATURES.index(feature) for feature in wanted]
        fitted = fit_logistic(features[training][:, columns], clicks, impressions)
        predictions[name] = (
            np.full(len(rows), data.prior_ctr)
            if fitted is None
            else fitted.predict_proba(features[rows][:, columns])[:, 1]
        )
    return predictions
