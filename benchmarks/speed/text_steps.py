"""Seconds of each step of the text layers, in a process of its own; prints them as JSON.

It runs in the code of any commit that `adcascade bench train --against` names, so it uses nothing of the project but
what has long been there: `load_dataset`, `TrainOptions`, `train` and the progress of its stages.
"""

import contextlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from ranking.data.dataset import load_dataset
from ranking.training.options import TrainOptions
from ranking.training.train import train


def main(ads: Path, clicks: Path, users: Path, steps: int) -> None:
    """Trains so many steps of the text layers after hardly any of the behaviour part; all else is left out."""
    options = TrainOptions.of(
        behaviour_epochs=0,
        behaviour_min_steps=1,
        epochs=10.0,
        patience=10**6,
        validate_every=10**6,
        validation_rows=1,
        calibration_rows=1,
    )
    ended: list[float] = []

    def watch(step: Any) -> None:
        if step.stage == "text":
            ended.append(time.perf_counter())
            if len(ended) > steps:
                raise _EnoughError

    with contextlib.suppress(_EnoughError):
        train(load_dataset(ads, clicks, users, split="time"), options, watch)
    seconds = [after - before for before, after in itertools.pairwise(ended)]
    print(json.dumps({"pairs": options.text.pairs_per_step, "seconds": seconds}))  # noqa: T201


class _EnoughError(Exception):
    """Ends a training whose steps are counted."""


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
