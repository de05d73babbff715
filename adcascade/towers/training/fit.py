"""What a step teaches both towers, and how they are trained with it. Knows no files and no metrics."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adcascade.records.clicks import Integers
from adcascade.records.users import EVENT_WEIGHT, EventType
from adcascade.towers.findings import Passes
from adcascade.towers.model import EVENT_TYPES, Towers, TowerShape
from adcascade.towers.training.batches import AdSample, AdSampler, Catalog, Step, steps, targets_of, user_events
from adcascade.towers.training.loss import softmax_loss
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.sequences import Sequences
from adcascade.training.loop import Loop
from adcascade.training.stage import Plan, StageContext
from adcascade.vectors.errors import BuildError

_ALONE = StageContext(lambda _: None)

_KEEP_ATTRIBUTES, _KEEP_CONTEXT = 0.5, 0.75
# Shares: of the training over which the learning rate rises, and of the highest rate that it does not fall below.
_WARMUP, _LOWEST_RATE = 0.1, 0.02
# How many times faster than matrices single numbers are learned.
_NUMBERS_RATE = 30.0
# What a shorter vector (Matryoshka) counts beside the whole one, and the shortest.
_SHORT_WEIGHT, SHORTEST = 0.3, 16
# How many ads are looked through for hard negatives, for each one that is wanted.
_LOOKED_THROUGH = 16
# Types that no training log has, and which type they are read as.
_READ_AS = {
    EventType.VIEW: EventType.CLICK,
    EventType.CONVERSION: EventType.CLICK,
    EventType.SEARCH: EventType.CLICK,
    EventType.SHORT_VIEW: EventType.IMPRESSION,
    EventType.HIDE: EventType.IMPRESSION,
}


def short_widths(width: int) -> tuple[int, ...]:
    """Widths that a vector may be cut to, from the widest: halves, down to `SHORTEST`."""
    widths = []
    while width // 2 >= SHORTEST:
        width //= 2
        widths.append(width)
    return tuple(widths)


@dataclass(frozen=True)
class Fitted:
    """Trained towers, and how far the training came."""

    towers: Towers
    passes: Passes


def fit_towers(
    sequences: Sequences,
    catalog: Catalog,
    attributes: Tensor,
    shape: TowerShape,
    options: TowerOptions,
    context: StageContext = _ALONE,
    stage: str = "train",
) -> Fitted:
    """Trains both towers from nothing, or goes on where a killed training of the same stage was.

    Args:
        sequences: Events to learn from.
        attributes: Of each user of `sequences`, see `batches.attributes_of`.
        context: Who watches, and where the checkpoint lies.
        stage: Its name, for those who watch.

    Raises:
        BuildError: There is nothing to learn from.
        TrainingError: The loss is not a number.
    """
    torch.manual_seed(options.seed)
    towers = Towers(shape, options.dropout, options.event_dropout)
    clicks = _clicks(sequences, len(catalog))
    if not clicks.any() and not options.impression_weight:
        raise BuildError("no click of the training part came after anything that it could be foretold from")
    _begin_with_popularity(towers, catalog, clicks)
    sampler = AdSampler(clicks, options)
    steps_of_pass = math.ceil(len(sequences.users) / options.users_per_step)

    def batches(epoch: int) -> Iterator[Step]:
        return steps(sequences, attributes, options, np.random.default_rng([options.seed, epoch]))

    def loss(step: Step) -> tuple[Tensor, float]:
        generator = np.random.default_rng(int(torch.randint(2**62, ())))  # torch's own is seeded anew for every step
        return _loss(towers, catalog, step, sampler, options, generator), 1.0  # a mean over moments already

    plan = _plan(towers, options, options.epochs * steps_of_pass, stage, context)
    loop: Loop[Step] = Loop(
        plan, dict(towers.named_parameters()), _groups(towers, options), None, context.watch, context.workers
    )
    towers.train()
    result = loop.run(batches, loss)
    _adopt_unseen_types(towers, sequences)
    made = result.steps // steps_of_pass
    passes = Passes(made=made, planned=options.epochs, steps=result.steps, seconds=result.seconds)
    return Fitted(towers.eval(), passes)


def _plan(towers: Towers, options: TowerOptions, steps: int, stage: str, context: StageContext) -> Plan:
    return Plan(
        stage=stage,
        steps=steps,
        seconds=context.seconds,
        weight_decay=options.weight_decay,
        seed=options.seed,
        warmup_share=_WARMUP,
        lowest_rate=_LOWEST_RATE,
        checkpoint=context.checkpoint,
        identity=f"{context.identity} {towers.sha256}",
        too_fast="lower --learning-rate",
    )


def _clicks(sequences: Sequences, ads: int) -> Integers:
    clicked = sequences.types != EVENT_TYPES.index(EventType.IMPRESSION)
    return np.bincount(sequences.ads[clicked], minlength=ads)


def _begin_with_popularity(towers: Towers, catalog: Catalog, clicks: Integers) -> None:
    """Biases begin where a model that knows popularity alone would end."""
    popularity = torch.from_numpy(np.log(clicks + 0.5)).float()
    known = catalog.buckets > 0
    with torch.no_grad():
        towers.ads.text.bias[0] = popularity[known].mean()
        towers.ads.residual.weight[catalog.buckets[known], 0] = popularity[known] - popularity[known].mean()


def _groups(towers: Towers, options: TowerOptions) -> list[dict[str, Any]]:
    """Residuals, tables and biases do not decay, or a rare ad would lose what it has learned; single numbers are many
    times faster, since they have far to go."""
    decaying = [weight for module in towers.modules() if isinstance(module, nn.Linear) for weight in [module.weight]]
    numbers = [towers.users.weight, towers.users.forgetting]
    others = [one for one in towers.parameters() if not any(one is other for other in (*decaying, *numbers))]
    rate = options.learning_rate
    return [
        {"params": decaying, "weight_decay": options.weight_decay, "lr": rate},
        {"params": others, "weight_decay": 0.0, "lr": rate},
        {"params": numbers, "weight_decay": 0.0, "lr": _NUMBERS_RATE * rate},
    ]


def _loss(
    towers: Towers,
    catalog: Catalog,
    step: Step,
    sampler: AdSampler,
    options: TowerOptions,
    generator: np.random.Generator,
) -> Tensor:
    dropped = torch.rand(len(catalog)) < options.residual_dropout
    # What is rare among attributes names a user; half of the time events must do without them.
    attributes = step.attributes * (torch.rand(len(step.attributes), 1) < _KEEP_ATTRIBUTES)
    states = towers.users(user_events(towers.ads, catalog, step.events, attributes, dropped))
    interests = states[torch.from_numpy(step.user), torch.from_numpy(step.place)]
    if step.contexts.shape[1]:  # some requests say nothing of theirs
        contexts = step.contexts * (torch.rand(len(interests), 1) < _KEEP_CONTEXT)
        interests = towers.users.in_context(interests, contexts)
    sample = sampler.draw(step, generator)
    if not sampler.takes_all and options.hard_negatives:
        sample = _with_hard_negatives(towers, catalog, interests, sample, options.hard_negatives, generator)
    rows = torch.from_numpy(sample.ads)
    vectors = towers.ads.vectors(catalog.texts[rows], catalog.buckets[rows].masked_fill(dropped[rows], 0))
    targets, seen = targets_of(step, sample.ads)
    loss = softmax_loss(interests, vectors, targets, seen, sample.log_q)
    widths = short_widths(towers.shape.width)
    if widths:
        short = 1 + int(generator.choice(widths))
        loss = loss + _SHORT_WEIGHT * softmax_loss(
            interests[:, :short], vectors[:, :short], targets, seen, sample.log_q
        )
    return loss


@torch.no_grad()
def _with_hard_negatives(
    towers: Towers, catalog: Catalog, interests: Tensor, sample: AdSample, wanted: int, generator: np.random.Generator
) -> AdSample:
    """The sample and the ads nearest to these users, of some drawn evenly; such an ad stands for itself alone."""
    assert sample.log_q is not None
    pool = np.unique(generator.integers(0, len(catalog), _LOOKED_THROUGH * wanted))
    pool = np.setdiff1d(pool, sample.ads, assume_unique=True)
    rows = torch.from_numpy(pool)
    nearest = interests @ towers.ads.vectors(catalog.texts[rows], catalog.buckets[rows]).T
    hard = pool[nearest.amax(dim=0).topk(min(wanted, len(pool))).indices.numpy()]
    ads = np.concatenate([sample.ads, hard])
    order = np.argsort(ads)
    return AdSample(ads[order], torch.cat([sample.log_q, torch.zeros(len(hard))])[torch.from_numpy(order)])


@torch.no_grad()
def _adopt_unseen_types(towers: Towers, sequences: Sequences) -> None:
    """Types that the log lacks are read as the nearest that it has, and count in proportion to a click."""
    seen = set(np.unique(sequences.types).tolist())
    users = towers.users
    click = users.weight[EVENT_TYPES.index(EventType.CLICK)].clone()
    for kind, stand_in in _READ_AS.items():
        place = EVENT_TYPES.index(kind)
        if place not in seen:
            users.types.weight[place] = users.types.weight[EVENT_TYPES.index(stand_in)]
            users.weight[place] = EVENT_WEIGHT[kind] * click.abs()
