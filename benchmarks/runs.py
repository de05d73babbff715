"""What every check is run with, and what several of them do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adcascade.terminal.console import Console
from adcascade.terminal.progress import working
from ranking.data.dataset import Dataset
from ranking.evaluation.predict import Predicted, predict
from ranking.runtime.hardware import choose_device
from ranking.training.train import Trained

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What the checks are run with."""

    seeds: int
    folder: Path
    upworthy: Path | None
    impressions: Path | None
    console: Console
    posts: Path | None = None

    def for_each_seed(self, check: str, measure: Callable[[int], T]) -> tuple[list[T], float]:
        """What `measure` finds for each seed, and the minutes that all of them took."""
        return self.for_each(self.seeds, f"{check}, seed", measure)

    def for_each(self, count: int, what: str, measure: Callable[[int], T]) -> tuple[list[T], float]:
        """What `measure` finds for each number below `count`, and the minutes that all of them took."""
        found, minutes = [], []
        for number in range(count):
            started = time.monotonic()
            with working(f"{what} {number}", self.console):
                found.append(measure(number))
            minutes.append((time.monotonic() - started) / 60)
            self.console.print(f"{what} {number}: {minutes[-1]:.1f} minutes", highlight=False)
        return found, sum(minutes)


def predicted(data: Dataset, trained: Trained) -> Predicted:
    """Logits of the test part."""
    device = choose_device("auto")
    return predict(data, trained, data.split.test, device, "auto")
