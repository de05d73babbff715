"""Training of the behaviour part: minutes on a laptop, since it reads no text. Knows no serving.

A split by time trains each row on its strictly earlier events. Any other split draws folds anew for each epoch: a row
sees only the other folds, so that what it sees never tells its own answer.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ranking.behaviour import BehaviourModel
from ranking.training.dataset import Dataset
from ranking.training.labels import Labels, all_labels
from ranking.training.loop import Fit, Loop, Plan, Watch
from ranking.training.losses import conversion_loss
from ranking.training.options import TrainOptions
from ranking.training.rows import CELLS_PER_WINDOW, BehaviourRows
from ranking.training.workers import Workers
from records.history import Window, merged

_AVERAGE_DECAY = 0.998
_STEPS_PER_VALIDATION = 50
_CONTEXT_RATE = 0.1


def train_behaviour(
    model: BehaviourModel,
    rows: BehaviourRows,
    data: Dataset,
    options: TrainOptions,
    watch: Watch,
    *,
    is_new: bool = True,
    checkpoint: Path | None = None,
    workers: Workers = Workers(),  # noqa: B008 (a frozen value)
) -> Fit:
    """Trains `model` in place; keeps the (averaged) weights that are best on the validation part.

    Args:
        is_new: Whether nothing has been learned yet; the model then begins with the CTR of the training part.

    Raises:
        ModelError: The loss is not a number.
    """
    labels, everything = data.labels(options), all_labels(data.log, data.groups)
    validation = list(merged(rows.windows(data.parts[1]), CELLS_PER_WINDOW))
    if is_new:
        nn.init.constant_(model.wide.bias, math.log(data.prior_ctr / (1 - data.prior_ctr)))
    conversion_weight = options.conversion_weight if data.log.conversions[data.parts[0]].any() else 0.0
    seen = rows

    def batches(epoch: int) -> Iterator[list[Window]]:
        nonlocal seen
        generator = np.random.default_rng([options.seed, epoch])
        seen = rows.looking_back_on(data.redrawn_past(generator))
        return _batches(seen.windows(labels.rows), options.behaviour_batch, generator)

    def loss(batch: list[Window]) -> tuple[Tensor, float]:
        model.train()
        losses = [_loss(model, seen, window, labels, options, conversion_weight) for window in batch]
        return torch.stack(losses).sum(), float(sum(labels.impressions[window.rows].sum() for window in batch))

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        losses = [_loss(model, rows, window, everything, TrainOptions(), 0.0) for window in validation]
        return float(torch.stack(losses).sum()) / int(data.log.impressions[data.parts[1]].sum())

    steps = math.ceil(options.behaviour_epochs * len(labels.rows) / options.behaviour_batch / workers.count)
    per_epoch = math.ceil(len(labels.rows) / options.behaviour_batch / workers.count)
    plan = Plan(
        stage="behaviour",
        steps=max(options.behaviour_min_steps, steps) if options.behaviour_epochs else 0,
        seconds=options.behaviour_share * options.max_minutes * 60 if options.max_minutes is not None else None,
        validate_every=max(_STEPS_PER_VALIDATION, per_epoch),
        patience=options.patience,
        weight_decay=options.weight_decay,
        seed=options.seed,
        average_decay=_AVERAGE_DECAY,
        checkpoint=checkpoint,
        too_fast="lower --behaviour-learning-rate",
    )
    weights = dict(model.named_parameters())
    # Attributes of a user almost tell who it is: learned fast, they are learned by heart.
    slow = set(model.context.parameters())
    groups = [
        {
            "params": [weight for weight in weights.values() if weight not in slow],
            "lr": options.behaviour_learning_rate,
        },
        {"params": list(slow), "lr": _CONTEXT_RATE * options.behaviour_learning_rate},
    ]
    loop: Loop[list[Window]] = Loop(plan, weights, groups, validate, watch, workers)
    fit = loop.run(batches, loss)
    rows.center_positions(model, data.parts[0])
    return fit


def _loss(
    model: BehaviourModel,
    rows: BehaviourRows,
    window: Window,
    labels: Labels,
    options: TrainOptions,
    conversion_weight: float,
) -> Tensor:
    """Summed loss of the rows of a window, at the places where their ads stood."""
    scored = rows.score(model, window)
    clicked = scored.click + rows.of_position(model, window.rows)
    loss = labels.loss(clicked, window.rows, options)
    if conversion_weight:
        conversions, impressions = labels.tensors(window.rows, clicked.device, "conversions", "impressions")
        loss = loss + conversion_weight * conversion_loss(clicked, scored.conversion, conversions, impressions)
    return loss


def _batches(windows: list[Window], rows_per_batch: int, generator: np.random.Generator) -> Iterator[list[Window]]:
    """Windows in random order, in batches of about so many rows."""
    batch: list[Window] = []
    for place in generator.permutation(len(windows)):
        batch.append(windows[place])
        if sum(len(window.rows) for window in batch) >= rows_per_batch:
            yield list(merged(batch, CELLS_PER_WINDOW))
            batch = []
    if batch:
        yield list(merged(batch, CELLS_PER_WINDOW))
