"""Whether what runs the text layers says what torch says in float32. Knows no files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.clicks import Integers
from ranking.artifact import Ranker
from ranking.data.dataset import Dataset
from ranking.data.text_batches import make_blocks
from ranking.errors import ModelError
from ranking.evaluation.metrics import auc
from ranking.evaluation.predict import Predictor
from ranking.model.batch import PairBatch, TokenRows
from ranking.model.passes import AdPass
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.runtime.backends import TextBackend, TorchBackend
from ranking.spec import ExportParity

# Of a logit, in float32: a thousandth moves a probability by at most 0.00025.
TOLERANCE = 1e-3
_LEAST_CORRELATION, _MOST_AUC_LOST = 0.99, 0.002
_LOG_ROWS, _ADS_PER_USER = 2000, 100
_MADE_UP_USERS, _MADE_UP_ADS = 4, 64

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """Pairs of user and ad to compare on.

    Attributes:
        batches: the pairs as the model reads them.
        behaviour: logits that the text adds to, float32 [pairs].
        clicks, impressions: what happened, int64 [pairs]; None for made-up pairs.
    """

    batches: Sequence[PairBatch]
    behaviour: Logits
    clicks: Integers | None = None
    impressions: Integers | None = None


def batches_of_log(data: Dataset, rows: Integers, count: int, ranker: Ranker) -> Pairs:
    """About `count` of these rows of a log, drawn by blocks of one user, as the model reads them in float32."""
    predictor = Predictor(data, ranker, torch.device("cpu"), "float32")
    blocks = make_blocks(data, rows, max_ads=_ADS_PER_USER, merge_requests=True)
    order = np.random.default_rng(0).permutation(len(blocks))
    ends = np.cumsum([len(blocks[place]) for place in order])
    drawn = [predictor.batch([blocks[place]]) for place in order[: int(np.searchsorted(ends, count)) + 1]]
    found = np.concatenate([one.rows for one in drawn])
    return Pairs(
        [one.pairs for one in drawn],
        np.concatenate([one.behaviour.numpy() for one in drawn]),
        data.log.clicks[found],
        data.log.impressions[found],
    )


def pairs_of_log(data: Dataset, ranker: Ranker) -> Pairs:
    """Pairs of the newest part of the log that has any: the one held out for the test, if there is one."""
    rows = next((part for part in reversed(data.split) if len(part)), data.split.train)
    return batches_of_log(data, rows, _LOG_ROWS, ranker)


def made_up_pairs(model: SharedUserCrossEncoder, features: int) -> Pairs:
    """Random tokens, for want of a log."""
    generator = torch.Generator().manual_seed(0)
    longest = int(model.encoder.config.max_position_embeddings) // 4

    def rows(count: int) -> TokenRows:
        ids = torch.randint(int(model.encoder.config.vocab_size), (count, longest), generator=generator)
        return TokenRows(ids, torch.randint(1, longest + 1, (count,), generator=generator))

    users, ads = rows(_MADE_UP_USERS), rows(_MADE_UP_ADS)
    dense = torch.randn(_MADE_UP_ADS, features, generator=generator)
    batches = [PairBatch(users.take([row]), ads, (_MADE_UP_ADS,), dense) for row in range(_MADE_UP_USERS)]
    return Pairs(batches, np.zeros(_MADE_UP_USERS * _MADE_UP_ADS, np.float32))


@torch.inference_mode()
def logits_of(backend: TextBackend, passes: AdPass, batches: Sequence[PairBatch]) -> Logits:
    """What the text adds to each pair, float32 [pairs]; batches of one user each."""
    found: list[Tensor] = []
    for batch in batches:
        (kept,) = backend.ads([batch.ads])
        mask = torch.arange(kept.shape[1]) < batch.ads.lengths[:, None] + passes.rows(0)
        found.append(backend.join(backend.users(batch.users)[0], kept, mask, batch.dense))
    return torch.cat(found).numpy()


class Parity:
    """Compares backends with torch in float32 on the same pairs."""

    def __init__(self, model: SharedUserCrossEncoder, pairs: Pairs) -> None:
        self._passes = AdPass(model)
        self._pairs = pairs
        exact = TorchBackend(model, torch.device("cpu"), bfloat16=False)
        self._want = logits_of(exact, self._passes, pairs.batches)

    def of(self, backend: TextBackend) -> ExportParity:
        """How near a backend is."""
        got, own = logits_of(backend, self._passes, self._pairs.batches), self._auc(self._want)
        found = self._auc(got)
        return ExportParity(
            pairs=len(got),
            largest_difference=float(np.abs(got - self._want).max()),
            correlation=float(np.corrcoef(got, self._want)[0, 1]),
            auc=found,
            auc_difference=None if found is None or own is None else found - own,
        )

    def _auc(self, added: Logits) -> float | None:
        """None for made-up pairs, or where all were clicked or none."""
        pairs = self._pairs
        if pairs.clicks is None or pairs.impressions is None:
            return None
        if int(pairs.clicks.sum()) in (0, int(pairs.impressions.sum())):
            return None
        return float(auc((pairs.behaviour + added).astype(np.float64), pairs.clicks, pairs.impressions))


def check_exact(name: str, parity: ExportParity, tolerance: float = TOLERANCE) -> None:
    """Raises ModelError if logits in float32 differ by more than `tolerance`."""
    if parity.largest_difference > tolerance:
        raise ModelError(f"{name} is not the model: a logit differs by {parity.largest_difference:.4f}")


def check_near(name: str, parity: ExportParity) -> None:
    """Raises ModelError if fewer bits cost quality: scores in another order, or a lower AUC."""
    if parity.correlation < _LEAST_CORRELATION:
        raise ModelError(
            f"{name} is too far from the model: its logits correlate with those in float32 by "
            f"{parity.correlation:.4f}, and should by {_LEAST_CORRELATION}"
        )
    if parity.auc_difference is not None and parity.auc_difference < -_MOST_AUC_LOST:
        raise ModelError(
            f"{name} is too far from the model: its AUC is lower by {-parity.auc_difference:.4f}, and may be by "
            f"{_MOST_AUC_LOST}"
        )
