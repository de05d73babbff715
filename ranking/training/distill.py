"""Learning from a teacher: a better but slower model that reads the same pairs. Knows no serving.

The student learns the teacher's probabilities (soft targets, Hinton et al., arXiv 1503.02531) and, where both read
text, the direction of the teacher's last states (after DistilBERT, arXiv 1910.01108).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranking.artifact import ModelVersion, RankerModel, default_join_layer
from ranking.data.dataset import Dataset
from ranking.data.scorer import Scored
from ranking.data.text_batches import LabelledBatch
from ranking.errors import ModelError
from ranking.evaluation.predict import Predictor
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.training.options import TeacherOptions
from ranking.training.versions import warn_of_rows_it_knows


class DistillationLoss(nn.Module):
    """What a student is taught beside the labels.

    Attributes:
        bridge: brings the student's states to the teacher's width; trained, and thrown away afterwards.
    """

    def __init__(self, teacher: Predictor, width: int, options: TeacherOptions) -> None:
        super().__init__()
        taught = _width(teacher.model)
        self.bridge = nn.Identity() if taught == width else nn.Linear(width, taught, bias=False)
        self._teacher = (teacher,)  # in a tuple, so that it is not trained with the student
        self._options = options

    @property
    def weight(self) -> float:
        """Share of the teacher's probabilities in what is learned; the clicks have the rest."""
        return self._options.weight

    def loss(self, batch: LabelledBatch, student: Scored, impressions: Tensor) -> Tensor:
        """Summed over the impressions of a batch, float32 []; `impressions` [pairs].

        `options.weight` times the cross-entropy of the teacher's probabilities, and `options.state_weight`
        times one minus the cosine of the states.
        """
        teacher = self._teacher[0].score(np.split(batch.rows, np.cumsum(batch.pairs.ads_per_user)[:-1]))
        foretold = F.binary_cross_entropy_with_logits(student.logits, teacher.logits.sigmoid(), reduction="none")
        apart = 1 - F.cosine_similarity(self.bridge(student.states.float()), teacher.states.float())
        each = self._options.weight * foretold + self._options.state_weight * apart
        return (impressions * each).sum()


def make_lessons(
    data: Dataset,
    teacher: ModelVersion,
    model: RankerModel,
    options: TeacherOptions,
    device: torch.device,
    precision: str,
) -> DistillationLoss:
    """Lessons of a model version for `model`, which reads the same log.

    Raises:
        ModelError: The teacher reads no text, so that it has nothing to teach.
    """
    if teacher.model.text_is_untrained:
        raise ModelError(
            f"the teacher {teacher.version} reads no text: its fine-tuning brought too little to be kept. Train it "
            "longer (--epochs), or with --min-text-gain -1 to keep its text whatever it brings"
        )
    warn_of_rows_it_knows(teacher, data)
    predictor = Predictor(data, teacher, device, precision)
    return DistillationLoss(predictor, _width(model), options).to(device)


def _width(model: RankerModel) -> int:
    return int(model.encoder.config.hidden_size)


def keep_layers(model: RankerModel, count: int) -> None:
    """Leaves so many layers of the encoder, the first and the last and others evenly between them.

    Raises:
        ModelError: The encoder has fewer layers, or they are not where BERT-like models have them.
    """
    encoder: Any = getattr(model.encoder.base_model, "encoder", None)
    layers = getattr(encoder, "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"{model.encoder.config.model_type} models have no layers that can be left out")
    if not 1 <= count <= len(layers):
        raise ModelError(f"the base has {len(layers)} layers; {count} of them cannot be kept")
    kept = np.unique(np.linspace(0, len(layers) - 1, count).round().astype(int)) if count > 1 else [len(layers) - 1]
    encoder.layer = nn.ModuleList(layers[place] for place in kept)
    model.encoder.config.num_hidden_layers = count
    if isinstance(model, SharedUserCrossEncoder):
        model.join_layer = default_join_layer(count)
