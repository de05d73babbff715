"""A model against simple baselines on the same rows, with confidence intervals. Knows no serving."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ranking.artifact import CtrSpec, RankerModel
from ranking.engine import choose_device, choose_precision
from ranking.features import Features
from ranking.training.baselines import baselines
from ranking.training.behaviour import BehaviourRows, behaviour_logits
from ranking.training.dataset import AdTexts, BatchMaker, Dataset, make_blocks
from ranking.training.metrics import Probabilities, with_intervals
from ranking.training.results import RANKER, Evaluation
from ranking.training.train import Scorer, predict_logits
from records.clicks import Integers


def evaluate(
    data: Dataset,
    model: RankerModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: CtrSpec,
    *,
    device: str = "auto",
    precision: str = "auto",
) -> Evaluation:
    """Scores the test part request by request, as serving would, and compares with the baselines.

    The ranker and the baselines see the same counters, made for each row from what it may look back on.
    """
    rows, p_click, features = _predict(data, model, tokenizer, spec, choose_device(device), precision)
    predictions = {RANKER: p_click, **baselines(data, features, rows)}
    clicks, impressions = data.log.clicks[rows], data.log.impressions[rows]
    users = data.log.user_id[rows]
    groups = np.where(users != "", users, data.log.request_id[rows]).astype(str)
    metrics = with_intervals(predictions, clicks, impressions, groups)
    ratio = float((p_click * impressions).sum() / max(1, clicks.sum()))
    return Evaluation(metrics, int(impressions.sum()), int(clicks.sum()), ratio)


def _predict(
    data: Dataset,
    model: RankerModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: CtrSpec,
    device: torch.device,
    precision: str,
) -> tuple[Integers, Probabilities, Features]:
    """Rows of the test part, their calibrated p_click, and the normalised features of the whole log."""
    ads = AdTexts(data, tokenizer, spec.max_ad_tokens)
    model.to(device)
    rows = BehaviourRows(data, ads, model.text, tokenizer, spec, device)
    known = behaviour_logits(model.behaviour, rows, np.arange(len(data.log))).click.numpy()
    scorer = Scorer(model, spec, device, choose_precision(precision, device), keep=True)
    maker = BatchMaker(data, ads, rows.dense, known, tokenizer, spec, device)
    blocks = make_blocks(data, data.parts[2], max_ads=1000, merge_requests=False)
    tested, logits = predict_logits(scorer, model, maker, blocks)
    model.cpu()
    return tested, spec.calibration.p_click(logits), rows.dense
