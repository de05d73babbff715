"""Keeps the loss curves of a training, and writes them for TensorBoard. Knows no models."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from adcascade.reports.page import never_at_the_cost_of
from adcascade.training.stage import OnProgress, TrainingProgress
from ranking.errors import ModelError
from ranking.evaluation.results import CurvePoint

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class LossCurves:
    """Watches a training, and passes on what it sees.

    Args:
        folder: Where TensorBoard's event files go; None writes none.

    Raises:
        ModelError: TensorBoard is asked for, but not installed.
    """

    def __init__(self, watch: OnProgress, folder: Path | None) -> None:
        self.points: list[CurvePoint] = []
        self._pass_on = watch
        self._writer = _writer(folder) if folder is not None else None

    def __enter__(self) -> "LossCurves":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with never_at_the_cost_of("what was learned stays", "TensorBoard may lack some of its points"):
                self._writer.close()

    def watch(self, step: TrainingProgress) -> None:
        """Told of every step."""
        self._pass_on(step)
        if step.validation_loss is None:
            return
        self.points.append(CurvePoint(step.stage, step.step, step.training_loss, step.validation_loss))
        if self._writer is not None:
            with never_at_the_cost_of("the training goes on", "TensorBoard may lack some of its points"):
                self._writer.add_scalar(f"{step.stage}/training_loss", step.training_loss, step.step)
                self._writer.add_scalar(f"{step.stage}/validation_loss", step.validation_loss, step.step)
                self._writer.add_scalar(f"{step.stage}/learning_rate", step.learning_rate, step.step)


def _writer(folder: Path) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModelError("--tensorboard needs the package tensorboard: pip install 'adcascade[train]'") from error
    return SummaryWriter(str(folder))
