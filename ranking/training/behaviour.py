"""Training of the behaviour part: minutes on a laptop, since it reads no text. Knows no serving.

A split by time trains each row on its strictly earlier events. Any other split draws folds anew for each epoch: a row
sees only the other folds, so that what it sees never tells its own answer.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adcascade.records.history import Window, merged
from adcascade.training.loop import Loop
from adcascade.training.stage import Plan, StageContext, StageResult
from ranking.data.behaviour_rows import CELLS_PER_WINDOW, BehaviourRows, behaviour_logits
from ranking.data.dataset import Dataset
from ranking.data.labels import Labels, all_labels
from ranking.model.behaviour import BehaviourModel
from ranking.training.losses import click_loss, clicked_conversion_loss, conversion_loss
from ranking.training.options import BehaviourOptions, CommonOptions

_EMA_DECAY = 0.998
_STEPS_PER_VALIDATION = 50
_CONTEXT_RATE = 0.1
_POSITION_PRIOR = 0.5  # a place that was hardly seen is taken for an average one


def train_behaviour(
    model: BehaviourModel,
    rows: BehaviourRows,
    data: Dataset,
    options: BehaviourOptions,
    common: CommonOptions,
    context: StageContext,
    *,
    is_new: bool = True,
) -> StageResult:
    """Trains `model` in place; keeps the (averaged) weights that are best on the validation part.

    Args:
        is_new: Whether nothing has been learned yet; the model then begins with the CTR of the training part.

    Raises:
        TrainingError: The loss is not a number.
    """
    labels, everything = data.labels(common), all_labels(data.log, data.groups)
    validation = list(merged(rows.windows(data.split.valid), CELLS_PER_WINDOW))
    if is_new:
        nn.init.constant_(model.wide.bias, math.log(data.prior_ctr / (1 - data.prior_ctr)))
    conversion_weight = common.conversion_weight if data.log.conversions[data.split.train].any() else 0.0
    seen = rows

    def batches(epoch: int) -> Iterator[list[Window]]:
        nonlocal seen
        generator = np.random.default_rng([common.seed, epoch])
        seen = rows.with_history_of(data.redrawn_history(generator))
        return _batches(seen.windows(labels.rows), options.batch, generator)

    def loss(batch: list[Window]) -> tuple[Tensor, float]:
        model.train()
        losses = [_loss(model, seen, window, labels, common, conversion_weight) for window in batch]
        return torch.stack(losses).sum(), float(sum(labels.impressions[window.rows].sum() for window in batch))

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        losses = [_loss(model, rows, window, everything, common, 0.0) for window in validation]
        return float(torch.stack(losses).sum()) / int(data.log.impressions[data.split.valid].sum())

    plan = _plan(options, common, len(labels.rows), context)
    weights = dict(model.named_parameters())
    # Attributes of a user almost tell who it is: learned fast, they are learned by heart.
    slow = set(model.context.parameters())
    groups = [
        {
            "params": [weight for weight in weights.values() if weight not in slow],
            "lr": options.learning_rate,
        },
        {"params": list(slow), "lr": _CONTEXT_RATE * options.learning_rate},
    ]
    if not plan.steps and is_new:
        _say_nothing(model)
    loop: Loop[list[Window]] = Loop(plan, weights, groups, validate, context.watch, context.workers)
    fit = loop.run(batches, loss)
    _refit_positions(model, rows, data)
    rows.center_positions(model, data.split.train)
    return fit


def _plan(options: BehaviourOptions, common: CommonOptions, rows: int, context: StageContext) -> Plan:
    steps = math.ceil(options.epochs * rows / options.batch / context.workers.count)
    per_epoch = math.ceil(rows / options.batch / context.workers.count)
    return Plan(
        stage="behaviour",
        steps=max(options.min_steps, steps) if options.epochs else 0,
        seconds=context.seconds,
        validate_every=max(_STEPS_PER_VALIDATION, per_epoch),
        patience=common.patience,
        weight_decay=common.weight_decay,
        seed=common.seed,
        ema_decay=_EMA_DECAY,
        checkpoint=context.checkpoint,
        identity=context.identity,
        too_fast="lower --behaviour-learning-rate",
    )


@torch.no_grad()
def _say_nothing(model: BehaviourModel) -> None:
    """Leaves the CTR of the training part alone: what is not trained is to be no noise."""
    last: Any = model.deep[-1]
    for weight in (model.wide.weight, last.weight, last.bias):
        nn.init.zeros_(weight)


def _refit_positions(model: BehaviourModel, rows: BehaviourRows, data: Dataset) -> None:
    """Learns the effects of places again, everything else being given and without its dropout.

    The noise that dropout adds to a logit makes every effect look smaller (log-odds do not collapse, Gail et al. 1984).
    """
    part = data.split.train[data.log.position[data.split.train] > 0]
    if not len(part):
        return
    known = behaviour_logits(model, rows, part).click.to(torch.float64)
    clicks, impressions = (
        torch.from_numpy(column[part]).double() for column in (data.log.clicks, data.log.impressions)
    )
    positions = torch.from_numpy(data.log.position[part]).clamp(max=model.positions.num_embeddings - 1)
    effects = model.positions.weight.detach().cpu().double()[:, 0].requires_grad_()
    scale, shift = (start(1, dtype=torch.float64, requires_grad=True) for start in (torch.ones, torch.zeros))
    optimizer = torch.optim.LBFGS([effects, scale, shift], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = click_loss(scale * known + shift + effects[positions], clicks, impressions) / impressions.sum()
        value = value + _POSITION_PRIOR * effects.square().sum() / impressions.sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.positions.weight[1:, 0] = effects[1:].to(model.positions.weight)


def _loss(
    model: BehaviourModel,
    rows: BehaviourRows,
    window: Window,
    labels: Labels,
    common: CommonOptions,
    conversion_weight: float,
) -> Tensor:
    """Summed loss of the rows of a window, at the places where their ads stood."""
    scored = rows.score(model, window)
    clicked = scored.click + rows.of_position(model, window.rows)
    loss = labels.loss(clicked, window.rows, common)
    if conversion_weight:
        names = ("conversions", "clicks", "impressions")
        conversions, clicks, impressions = labels.tensors(window.rows, clicked.device, *names)
        if common.conversions_over == "clicks":
            of_conversions = clicked_conversion_loss(scored.conversion, conversions, clicks)
        else:
            of_conversions = conversion_loss(clicked, scored.conversion, conversions, impressions)
        loss = loss + conversion_weight * of_conversions
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
