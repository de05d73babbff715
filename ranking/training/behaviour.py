"""Training of the behaviour part: minutes on a laptop, since it reads no text. Knows no serving.

A split by time trains each row on its strictly earlier events. Any other split draws folds anew for each epoch: a row
sees only the other folds, so that what it sees never tells its own answer.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adcascade.records.clicks import Integers
from adcascade.records.memory import release_unused
from adcascade.records.packed import blocks, sum_of
from adcascade.training.loop import Loop
from adcascade.training.stage import Plan, StageContext, StageResult
from adcascade.training.workers import Workers
from ranking.data.behaviour_rows import ROWS_PER_PASS, BehaviourRows, behaviour_logits
from ranking.data.dataset import Dataset
from ranking.data.labels import Labels, all_labels
from ranking.data.user_units import UserUnits
from ranking.model.behaviour import BehaviourModel
from ranking.training.line import Line, as_text, fit_line, is_certain, of_text, row_losses
from ranking.training.losses import click_loss, clicked_conversion_loss, conversion_loss
from ranking.training.options import BehaviourOptions, CommonOptions

log = logging.getLogger(__name__)

_EMA_DECAY = 0.998
_STEPS_PER_VALIDATION = 50
# Unless --behaviour-batch says how many rows a step has: the least, the most, and in between steps of a pass.
_LEAST_ROWS, _MOST_ROWS, _STEPS_PER_PASS = 512, 16_384, 400
# Rows that all passes read together, at most, unless that is less than one pass.
_MOST_READ = 16_000_000
# Rows that the effects of places are learned from once more, at most, the newest.
_MOST_REFITTED = 1_000_000
_CONTEXT_RATE = 0.1
# Standard errors: the best of some validations is better than a line by one or so where nothing more is learned.
_CERTAIN = 2.0
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
        is_new: Whether nothing has been learned yet; the model then begins with the CTR of the training part, and
            becomes a logistic regression on the dense features if what it learns beyond one may be chance.

    Raises:
        TrainingError: The loss is not a number.
    """
    if is_new:
        nn.init.constant_(model.wide.bias, math.log(data.prior_ctr / (1 - data.prior_ctr)))
    plan = _plan(options, common, len(data.labels(common).rows), context)
    if not plan.steps and is_new:
        _say_nothing(model)
    fit = _fitted(model, rows, data, options, common, plan, context)
    release_unused()  # the units of a large log are much of the memory
    if is_new and plan.steps and options.line == "auto" and common.group_loss == "none":
        fit = _line_unless_beaten(model, rows, data, fit, context.workers)
    _refit_positions(model, rows, data)
    rows.center_positions(model, data.split.train)
    return fit


def _fitted(
    model: BehaviourModel,
    rows: BehaviourRows,
    data: Dataset,
    options: BehaviourOptions,
    common: CommonOptions,
    plan: Plan,
    context: StageContext,
) -> StageResult:
    """The steps of a plan; nothing of what they read is left."""
    with ids_of(model, rows) as known:
        steps = _Steps(model, known, data, options, common)
        weights = dict(model.named_parameters())
        groups = _groups(model, weights, options.learning_rate)
        loop: Loop[Integers] = Loop(plan, weights, groups, steps.validate, context.watch, context.workers)
        return loop.run(steps.batches, steps.loss)


class _Steps:
    """What the loop asks for: batches of units of users, their losses, and the loss of the validation part."""

    def __init__(
        self,
        model: BehaviourModel,
        rows: BehaviourRows,
        data: Dataset,
        options: BehaviourOptions,
        common: CommonOptions,
    ) -> None:
        self._model, self._rows, self._data, self._options, self._common = model, rows, data, options, common
        self._labels, self._all = data.labels(common), all_labels(data.log, data.groups, data.split.valid)
        has_conversions = sum_of(data.log.conversions, data.split.train) > 0
        self._conversion_weight = common.conversion_weight if has_conversions else 0.0
        self._seen, self._units = rows, rows.units(self._labels.rows)
        self._validation = rows.units(data.split.valid)

    def batches(self, epoch: int) -> Iterator[Integers]:
        """Units of an epoch, which sees other folds than the one before."""
        generator = np.random.default_rng([self._common.seed, epoch])
        seen = self._rows.with_history_of(self._data.redrawn_history(generator))
        if seen is not self._seen:
            self._seen, self._units = seen, seen.units(self._labels.rows)
        return self._units.in_random_order(generator, rows_per_step(self._options, len(self._labels.rows)))

    def loss(self, chosen: Integers) -> tuple[Tensor, float]:
        """Summed loss of some units, and their impressions."""
        self._model.train()
        rows, value = self._of(self._seen, self._units, chosen, self._labels, self._conversion_weight)
        return value, float(self._labels.impressions[rows].sum())

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of an impression of the validation part."""
        self._model.eval()
        losses = [
            self._of(self._rows, self._validation, chosen, self._all, 0.0)[1]
            for chosen in self._validation.by_size(ROWS_PER_PASS)
        ]
        return float(torch.stack(losses).sum()) / int(self._data.log.impressions[self._data.split.valid].sum())

    def _of(
        self, seen: BehaviourRows, units: UserUnits, chosen: Integers, labels: Labels, conversion_weight: float
    ) -> tuple[Integers, Tensor]:
        """The rows of some units, and their summed loss at the places where their ads stood."""
        rows, batch = seen.batch(units, chosen)
        scored = self._model.of_users(batch)
        clicked = scored.click + seen.of_position(self._model, rows)
        loss = labels.loss(clicked, rows, self._common)
        if conversion_weight:
            names = ("conversions", "clicks", "impressions")
            conversions, clicks, impressions = labels.tensors(rows, clicked.device, *names)
            if self._common.conversions_over == "clicks":
                of_conversions = clicked_conversion_loss(scored.conversion, conversions, clicks)
            else:
                of_conversions = conversion_loss(clicked, scored.conversion, conversions, impressions)
            loss = loss + conversion_weight * of_conversions
        return rows, loss


@contextmanager
def ids_of(model: BehaviourModel, rows: BehaviourRows) -> Iterator[BehaviourRows]:
    """While it is open, `model` learns the ids of these rows' ads alone, and the rows that it yields have these.

    There are several times as many buckets as ads, so that few ads share one; a step over all of them would spend most
    of its time on buckets that no row of the log reads.
    """
    every, buckets = model.ids, rows.texts.buckets
    # Bucket 0, of texts that are no ads, stays 0.
    found, numbers = np.unique(np.r_[0, buckets.cpu().numpy()], return_inverse=True)
    used = torch.from_numpy(found).to(buckets.device)
    model.ids = nn.Embedding(len(found), every.embedding_dim, _weight=every.weight.detach()[used])
    try:
        yield rows.with_buckets(torch.from_numpy(numbers[1:]).to(buckets.device))
    finally:
        with torch.no_grad():
            every.weight[used] = model.ids.weight
        model.ids = every


def _groups(model: BehaviourModel, weights: dict[str, nn.Parameter], learning_rate: float) -> list[dict[str, object]]:
    # Attributes of a user almost tell who it is: learned fast, they are learned by heart.
    slow = set(model.context.parameters())
    return [
        {"params": [weight for weight in weights.values() if weight not in slow], "lr": learning_rate, "fused": True},
        {"params": list(slow), "lr": _CONTEXT_RATE * learning_rate, "fused": True},
    ]


def rows_per_step(options: BehaviourOptions, rows: int) -> int:
    """Of one process, in a training of so many rows."""
    return options.batch or min(_MOST_ROWS, max(_LEAST_ROWS, math.ceil(rows / _STEPS_PER_PASS)))


def _plan(options: BehaviourOptions, common: CommonOptions, rows: int, context: StageContext) -> Plan:
    per_step = rows_per_step(options, rows) * context.workers.count
    epochs = min(options.epochs, max(1.0, _MOST_READ / max(1, rows)))
    steps, per_epoch = math.ceil(epochs * rows / per_step), math.ceil(rows / per_step)
    return Plan(
        stage="behaviour",
        steps=max(options.min_steps, steps) if options.epochs else 0,
        seconds=context.seconds,
        validate_every=max(_STEPS_PER_VALIDATION, min(per_epoch, _STEPS_PER_PASS)),
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


def _line_unless_beaten(
    model: BehaviourModel, rows: BehaviourRows, data: Dataset, fit: StageResult, workers: Workers
) -> StageResult:
    """Puts a line (see `ranking.training.line`) in the place of a network that foretells clicks no better, for certain.

    Not where the log has places on the page, which no line knows: it would learn of an ad what was its place's.
    """
    if (data.log.position > 0).any():
        return fit
    device = model.wide.weight.device
    line = of_text(workers.share(lambda: as_text(fit_line(data, rows.dense, rows.features)), device))
    if line is None:
        return fit
    valid = data.split.valid
    network = row_losses(behaviour_logits(model, rows, valid).click.double().numpy(), data, valid)
    simple = row_losses(line.logits(rows.dense[valid]), data, valid)
    if workers.agree(float(is_certain(simple - network, data.groups[valid], _CERTAIN)), device):
        return fit
    log.info("what the network learned beyond a logistic regression on the counters may be chance, and is left out")
    _say(model, line)
    loss = float(simple.sum() / data.log.impressions[valid].sum())
    return replace(fit, kept_step=0, loss_kept=loss, note="a logistic regression on the counters took its place")


@torch.no_grad()
def _say(model: BehaviourModel, line: Line) -> None:
    """Makes the click's logit that of the line alone."""
    last: Any = model.deep[-1]
    for weight in (model.wide.weight, last.weight[0], last.bias[0]):
        weight.zero_()
    model.wide.weight[0, : len(line.weights)] = torch.tensor(line.weights)
    model.wide.bias.fill_(line.intercept)


def _newest_with_a_place(data: Dataset) -> Integers:
    """The newest training rows whose place on the page is known, as many as are read, [rows]."""
    train, found, count = data.split.train, [data.split.train[:0]], 0
    for some in reversed([*blocks(len(train))]):
        rows = train[some]
        found.insert(0, rows[data.log.position[rows] > 0])
        count += len(found[0])
        if count >= _MOST_REFITTED:
            break
    return np.concatenate(found)[-_MOST_REFITTED:]


def _refit_positions(model: BehaviourModel, rows: BehaviourRows, data: Dataset) -> None:
    """Learns the effects of places again, everything else being given and without its dropout.

    The noise that dropout adds to a logit makes every effect look smaller (log-odds do not collapse, Gail et al. 1984).
    """
    part = _newest_with_a_place(data)
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
