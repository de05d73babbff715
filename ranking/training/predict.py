"""What a trained model says of rows of a log. Knows no labels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from ranking.artifact import CtrSpec, RankerModel
from ranking.engine import choose_precision
from ranking.features import Features
from ranking.training.batches import AdTexts, BatchMaker, make_blocks
from ranking.training.dataset import Dataset
from ranking.training.rows import BehaviourRows, behaviour_logits
from ranking.training.scorer import Scorer, predict_logits
from records.clicks import Integers


@dataclass(frozen=True)
class Predicted:
    """Logits of some rows, not calibrated.

    Attributes:
        rows: the rows in the order of the logits.
        logits: of a click, float64 [rows].
        conversion_logits: of a conversion given the click, float64 [rows].
        features: normalised dense features of every row of the log, float32 [log rows, features].
    """

    rows: Integers
    logits: npt.NDArray[np.float64]
    conversion_logits: npt.NDArray[np.float64]
    features: Features


def predict(
    data: Dataset,
    model: RankerModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: CtrSpec,
    wanted: Integers,
    device: torch.device,
    precision: str,
) -> Predicted:
    """Scores the wanted rows request by request, as serving would; leaves the model on the CPU."""
    ads = AdTexts(data, tokenizer, spec.max_ad_tokens)
    model.to(device)
    rows = BehaviourRows(data, ads, model.text, tokenizer, spec, device)
    known = behaviour_logits(model.behaviour, rows, np.arange(len(data.log)))
    click = known.click.numpy()
    scorer = Scorer(model, spec, device, choose_precision(precision, device), keep=True)
    maker = BatchMaker(data, ads, rows.dense, click, np.zeros_like(click), tokenizer, spec, device)
    blocks = make_blocks(data, wanted, max_ads=1000, merge_requests=False)
    found, logits = predict_logits(scorer, model, maker, blocks)
    model.cpu()
    return Predicted(found, logits, known.conversion.numpy()[found].astype(np.float64), rows.dense)
