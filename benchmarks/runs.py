"""What every check is run with, and what several of them do."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ranking.engine import choose_device
from ranking.training.dataset import Dataset
from ranking.training.predict import Predicted, predict
from ranking.training.train import Trained


@dataclass(frozen=True)
class Run:
    """What the checks are run with."""

    seeds: int
    folder: Path
    upworthy: Path | None
    console: Console


def predicted(data: Dataset, trained: Trained) -> Predicted:
    """Logits of the test part."""
    device = choose_device("auto")
    return predict(data, trained.model, trained.tokenizer, trained.spec, data.parts[2], device, "auto")
