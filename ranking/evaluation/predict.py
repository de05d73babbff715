"""What a trained model says of rows of a log. Knows no labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from adcascade.records.clicks import Integers
from adcascade.records.coded import OfCodes
from ranking.artifact import Ranker
from ranking.data.behaviour_rows import BehaviourRows, known_logits
from ranking.data.dataset import Dataset
from ranking.data.feature_table import RowFeatures
from ranking.data.known_logits import KnownLogits
from ranking.data.scorer import Scored, Scorer, predict_logits
from ranking.data.text_batches import AdTexts, BatchMaker, LabelledBatch, make_blocks
from ranking.runtime.hardware import choose_precision


@dataclass(frozen=True)
class Predicted:
    """Logits of some rows, not calibrated.

    Attributes:
        rows: the rows in the order of the logits.
        logits: of a click, float64 [rows].
        conversion_logits: of a conversion given the click, float64 [rows].
        features: normalised dense features of the rows of the log.
    """

    rows: Integers
    logits: npt.NDArray[np.float64]
    conversion_logits: npt.NDArray[np.float64]
    features: RowFeatures


class Predictor:
    """A trained model over the rows of a log, request by request, as serving would read them."""

    def __init__(
        self,
        data: Dataset,
        ranker: Ranker,
        device: torch.device,
        precision: str,
    ) -> None:
        self.data = data
        self.model = ranker.model.to(device).eval()
        ads = AdTexts(data, ranker.tokenizer, ranker.spec.max_ad_tokens)
        rows = BehaviourRows(data, ads, ranker, device)
        self._features, self._known = rows.dense, KnownLogits(partial(known_logits, ranker, rows))
        self._scorer = Scorer(ranker, device, choose_precision(precision, device), keep=True)
        nowhere = OfCodes(data.log.position, np.zeros(int(data.log.position.max(initial=0)) + 1, np.float32))
        self._maker = BatchMaker(data, ads, rows.dense, self._known, nowhere, ranker, device)

    def predict(self, wanted: Integers) -> Predicted:
        """Scores the wanted rows."""
        blocks = make_blocks(self.data, wanted, max_ads=1000, merge_requests=False)
        found, logits = predict_logits(self._scorer, self._maker, blocks)
        return Predicted(found, logits, self._known.conversion(found).astype(np.float64), self._features)

    def batch(self, blocks: Sequence[Integers]) -> LabelledBatch:
        """Blocks of rows (see `ranking.data.text_batches.make_blocks`) as this model reads them, in their order."""
        return self._maker.batch(blocks)

    @torch.no_grad()
    def score(self, blocks: Sequence[Integers]) -> Scored:
        """What the text layers make of blocks of rows, in their order."""
        return self._scorer.score(self.batch(blocks))


def predict(
    data: Dataset,
    ranker: Ranker,
    wanted: Integers,
    device: torch.device,
    precision: str,
) -> Predicted:
    """Scores the wanted rows; leaves the model on the CPU."""
    predicted = Predictor(data, ranker, device, precision).predict(wanted)
    ranker.model.cpu()
    return predicted
