"""An epoch of the behaviour part on a log of many users with a few rows each: in batches of users, and one by one.

One by one is how serving scores: a user's impressions beside that user's events, users put together as blocks of one
large mask. It stands here to be compared with; both say the same (``tests/test_ranking_user_batches.py``).
"""

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import block_diag
from torch import Tensor

from adcascade.records.clicks import Integers
from adcascade.records.datasets.movielens import DatasetFiles
from adcascade.records.history import Window
from adcascade.training.loop import Loop
from adcascade.training.stage import Plan, StageContext
from adcascade.vectors.encoder import EMBEDDED
from benchmarks.speed.interleaved_timing import Progress
from ranking.data.behaviour_rows import BehaviourRows
from ranking.data.dataset import Dataset, load_dataset
from ranking.model.behaviour import BehaviourModel
from ranking.runtime.hardware import choose_device
from ranking.training.begin import begin
from ranking.training.behaviour import train_behaviour
from ranking.training.options import TrainOptions

# Of (impression, event) pairs in one pass over users one by one, and rows of a step.
_CELLS, _ROWS_PER_STEP = 65_536, 512


@dataclass(frozen=True)
class BehaviourSpeed:
    """Seconds of an epoch, of each round.

    Attributes:
        rows: how many each has learned from in a round, users one by one and in batches.
        one_by_one, in_batches: seconds of the rounds, taken in turns.
    """

    rows: tuple[int, int]
    one_by_one: tuple[float, ...]
    in_batches: tuple[float, ...]

    @property
    def times_faster(self) -> float:
        """Rows a second in batches over those one by one, the median of the rounds."""
        first, second = self.rows
        rounds = zip(self.one_by_one, self.in_batches, strict=True)
        return statistics.median((second / fast) / (first / slow) for slow, fast in rounds)


def behaviour_speed(
    files: DatasetFiles,
    *,
    rows_one_by_one: int = 20_000,
    rounds: int = 3,
    seed: int = 0,
    base: str = EMBEDDED,
    progress: Progress = lambda *_: None,
) -> BehaviourSpeed:
    """Times an epoch in batches, and in turn with it `rows_one_by_one` of its rows with users one by one."""
    data = load_dataset(files.ads, files.clicks, files.users)
    options = TrainOptions.of(base=base, behaviour_epochs=1, behaviour_min_steps=0, seed=seed)
    device = choose_device("auto")
    start = begin(data, options, device)
    model, rows = start.ranker.model.behaviour.to(device), start.rows
    part = data.split.train[:rows_one_by_one]
    slow, fast = list[float](), list[float]()
    for number in range(rounds):
        slow.append(_one_by_one(model, rows, data, options, part))
        fast.append(train_behaviour(model, rows, data, options.behaviour, options.common, _UNWATCHED).seconds)
        progress(number + 1, rounds)
    return BehaviourSpeed((len(part), len(data.split.train)), tuple(slow), tuple(fast))


_UNWATCHED = StageContext(lambda _: None)


def _one_by_one(
    model: BehaviourModel, rows: BehaviourRows, data: Dataset, options: TrainOptions, part: Integers
) -> float:
    """Seconds of an epoch over some rows, users one by one."""
    labels = replace(data.labels(options.common), rows=part)

    def batches(epoch: int) -> Iterator[list[Window]]:
        windows, batch = rows.windows(part), list[Window]()
        for place in np.random.default_rng(epoch).permutation(len(windows)):
            batch.append(windows[place])
            if sum(len(window.rows) for window in batch) >= _ROWS_PER_STEP:
                yield list(_merged(batch, _CELLS))
                batch = []
        if batch:
            yield list(_merged(batch, _CELLS))

    def loss(batch: list[Window]) -> tuple[Tensor, float]:
        model.train()
        found = []
        for window in batch:
            click = rows.score(model, window).click + rows.of_position(model, window.rows)
            found.append(labels.loss(click, window.rows, options.common))
        return torch.stack(found).sum(), float(sum(labels.impressions[window.rows].sum() for window in batch))

    weights = dict(model.named_parameters())
    groups = [{"params": list(weights.values()), "lr": options.behaviour.learning_rate}]
    steps = sum(1 for _ in batches(0))
    plan = Plan("behaviour", steps, None, options.common.weight_decay, options.common.seed, ema_decay=0.998)
    loop: Loop[list[Window]] = Loop(plan, weights, groups, None, lambda _: None)
    started = time.perf_counter()
    loop.run(batches, loss)
    return time.perf_counter() - started


def _merged(windows: Iterable[Window], max_cells: int) -> Iterator[Window]:
    """The same windows, neighbours put together while rows x events stays within `max_cells`; no row sees more."""
    waiting: list[Window] = []
    rows = events = 0
    for window in windows:
        rows, events = rows + len(window.rows), events + len(window.events)
        if waiting and rows * events > max_cells:
            yield _together(waiting)
            waiting, rows, events = [], len(window.rows), len(window.events)
        waiting.append(window)
    if waiting:
        yield _together(waiting)


def _together(windows: list[Window]) -> Window:
    rows, events = ([getattr(window, name) for window in windows] for name in ("rows", "events"))
    return Window(np.concatenate(rows), np.concatenate(events), block_diag(*(window.visible for window in windows)))
