"""The learning rate of a step, and the running average of weights. Knows no loop."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adcascade.training.stage import Plan

# Where the rate begins that rises over a share of the stage.
_RISE_FROM = 0.05


def rate_factor(plan: Plan, step: int, done: float) -> float:
    """What the highest learning rate is multiplied by: a linear warmup times half a cosine, which stays above a floor.

    Args:
        step: How many steps were made.
        done: Share of the stage that is done, 0 to 1, by steps or by the clock.
    """
    if plan.warmup_share is not None:
        rise = _RISE_FROM + done / plan.warmup_share
    else:
        rise = (step + 1) / max(1, min(plan.warmup_steps, plan.steps // 10))
    return min(1.0, rise) * max(plan.lowest_rate, 0.5 * (1 + math.cos(math.pi * done)))


def running_average(weights: Iterable[nn.Parameter], decay: float) -> AveragedModel:
    """An exponential moving average that begins with the weights as they are now.

    The decay after `n` steps is min(decay, (1 + n) / (10 + n)), so that early weights are soon forgotten.
    """

    def update(averages: list[Tensor], now: list[Tensor], steps: Tensor | int) -> None:
        made = int(steps)  # the first call, which copies, is that below
        mix = get_ema_multi_avg_fn(min(decay, (1 + made) / (10 + made)))  # type: ignore[no-untyped-call]
        mix(averages, now, steps)

    trained = nn.ParameterList(weights)
    average = AveragedModel(trained, multi_avg_fn=update)  # type: ignore[arg-type]
    average.update_parameters(trained)
    return average


@torch.no_grad()
def restore_average(average: AveragedModel, values: Iterable[Tensor], steps: int) -> None:
    """Puts a running average back to where it was after so many steps."""
    for mean, value in zip(average.module.parameters(), values, strict=True):
        mean.copy_(value)
    average.n_averaged.fill_(steps + 1)
