"""The training loop: takes up where it was killed, keeps the best, accumulates, and stops in time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from adcascade.training.checkpoint import Checkpoint
from adcascade.training.errors import TrainingError
from adcascade.training.loop import Loop
from adcascade.training.schedule import rate_factor, running_average
from adcascade.training.stage import Plan

PLAN = Plan("test", 40, None, validate_every=5, patience=3, weight_decay=0.01, seed=3)
INPUTS = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS @ torch.tensor([1.0, -2.0, 0.5]) + 0.3


class KilledError(Exception):
    pass


def fit(plan, *, kill_at=None, rate=0.05, seen=None, validates=True):
    """Trains a noisy linear model; returns its weights, the fit, and what the loop told."""
    torch.manual_seed(0)
    model, told = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 1)), []

    def watch(step):
        told.append(step)
        if kill_at is not None and step.step == kill_at:
            raise KilledError

    def batches(epoch):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
        return order.split(8)

    def loss(rows):
        model.train()
        if seen is not None:
            seen.append(rows.tolist())
        return (model(INPUTS[rows])[:, 0] - TARGETS[rows]).square().sum(), float(len(rows))

    def validate():
        model.eval()
        with torch.no_grad():
            return float((model(INPUTS)[:, 0] - TARGETS).square().mean())

    weights = dict(model.named_parameters())
    groups = [{"params": list(weights.values()), "lr": rate}]
    loop = Loop(plan, weights, groups, validate if validates else None, watch)
    found = loop.run(batches, loss)
    return {name: weight.detach().clone() for name, weight in weights.items()}, found, told


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("kill_at", [1, 7, 8, 13, 39])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, kill_at, ema_decay):
    plan = replace(PLAN, ema_decay=ema_decay)
    want, want_fit, _ = fit(plan)
    kept = replace(plan, checkpoint=tmp_path / "run" / "test.safetensors", checkpoint_every=4)
    with pytest.raises(KilledError):
        fit(kept, kill_at=kill_at)
    weights, found, told = fit(kept)
    last_checkpoint = 4 * ((kill_at - 1) // 4)  # a step is told before it is kept
    assert told[0].step == (last_checkpoint + 1 if last_checkpoint else 0)
    assert found == want_fit
    for name, weight in weights.items():
        assert torch.equal(weight, want[name]), name


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("kill_at", [3, 8, 39])
def test_a_killed_run_without_validation_goes_on_to_the_same_weights(tmp_path, kill_at, ema_decay):
    plan = replace(PLAN, ema_decay=ema_decay)
    want, want_fit, _ = fit(plan, validates=False)
    kept = replace(plan, checkpoint=tmp_path / "test.safetensors", checkpoint_every=4)
    with pytest.raises(KilledError):
        fit(kept, kill_at=kill_at, validates=False)
    seen = []
    weights, found, _ = fit(kept, validates=False, seen=seen)
    assert len(seen) == 40 - 4 * ((kill_at - 1) // 4)
    assert found.steps == want_fit.steps == 40
    assert all(torch.equal(weight, want[name]) for name, weight in weights.items())


def test_without_validation_a_stage_goes_to_its_end_and_keeps_its_last_weights():
    # A rate at which the validation loss rises again: with validation an earlier step is kept.
    plan = replace(PLAN, steps=60, patience=2)
    weights, found, told = fit(plan, rate=0.4, validates=False)
    assert (found.steps, found.kept_step, found.by_clock) == (60, 60, False)
    assert math.isnan(found.loss_before)
    assert math.isnan(found.loss_kept)
    assert {step.validation_loss for step in told} == {None}
    assert all(math.isfinite(step.training_loss) for step in told[1:])
    best, of_best, _ = fit(plan, rate=0.4)
    assert of_best.kept_step < 60
    assert not torch.equal(weights["1.weight"], best["1.weight"])


def test_without_validation_a_running_average_is_kept_if_there_is_one():
    averaged, _, _ = fit(replace(PLAN, ema_decay=0.9), validates=False)
    last, _, _ = fit(PLAN, validates=False)
    assert not torch.equal(averaged["1.weight"], last["1.weight"])


def test_the_running_average_begins_with_the_weights_and_soon_forgets_them():
    weight, steps = nn.Parameter(torch.tensor([1.0, -2.0])), [torch.tensor([3.0, 0.0]), torch.tensor([4.0, 5.0])]
    average = running_average([weight], 0.25)
    want = weight.detach().clone()
    for number, now in enumerate(steps, start=1):
        weight.data.copy_(now)
        average.update_parameters(nn.ParameterList([weight]))
        decay = min(0.25, (1 + number) / (10 + number))  # 2/11, then 3/12
        want = decay * want + (1 - decay) * now
    torch.testing.assert_close(next(iter(average.module.parameters())).detach(), want)


def test_the_learning_rate_rises_over_steps_or_a_share_and_falls_to_its_floor():
    by_steps = replace(PLAN, steps=1000)
    assert [rate_factor(by_steps, step, 0.0) for step in (0, 24, 49, 50)] == pytest.approx([0.02, 0.5, 1, 1])
    assert rate_factor(replace(PLAN, steps=40), 1, 0.0) == pytest.approx(0.5)  # of a tenth, which is 4 steps
    by_share = replace(by_steps, warmup_share=0.1, lowest_rate=0.05)
    assert rate_factor(by_share, 0, 0.0) == pytest.approx(0.05)
    half_risen = 0.5 * (1 + math.cos(math.pi * 0.045))
    assert rate_factor(by_share, 999, 0.045) == pytest.approx(0.5 * half_risen)  # whatever the step
    assert [rate_factor(by_share, 0, done) for done in (0.5, 0.99, 1.0)] == pytest.approx([0.5, 0.05, 0.05])
    told = fit(replace(by_share, steps=40))[2]
    rates = [step.learning_rate for step in told[1:]]
    assert rates == pytest.approx([0.05 * rate_factor(by_share, step, step / 40) for step in range(40)])


def test_a_finished_stage_is_not_trained_again(tmp_path):
    plan = replace(PLAN, checkpoint=tmp_path / "test.safetensors")
    want, want_fit, _ = fit(plan)
    seen = []
    weights, found, _ = fit(plan, seen=seen)
    assert seen == []
    assert found == want_fit
    assert all(torch.equal(weight, want[name]) for name, weight in weights.items())


def test_the_weights_kept_are_those_of_the_lowest_validation_loss():
    _, found, told = fit(replace(PLAN, steps=60, patience=100), rate=0.4)
    losses = {step.step: step.validation_loss for step in told if step.validation_loss is not None}
    assert found.loss_kept == min(losses.values()) == losses[found.kept_step]
    assert found.loss_before == losses[0]


def test_training_stops_when_patience_ends():
    _, found, told = fit(replace(PLAN, steps=10_000, patience=2), rate=1e-9)
    assert found.steps < 200
    assert told[-1].done == 1.0


def test_no_steps_train_nothing():
    before, found, told = fit(replace(PLAN, steps=0))
    assert (found.steps, found.kept_step) == (0, 0)
    assert found.loss_before == found.loss_kept
    assert [step.step for step in told] == [0]
    assert math.isnan(told[0].training_loss)
    assert before


def test_accumulated_batches_make_one_step():
    seen = []
    _, found, _ = fit(replace(PLAN, steps=6, accumulate=4), seen=seen)
    assert found.steps == 6
    assert len(seen) == 24
    assert sorted(row for rows in seen[:8] for row in rows) == list(range(64))  # an epoch has every row once


def test_a_time_limit_ends_the_stage():
    _, found, _ = fit(replace(PLAN, steps=10**9, seconds=0.3, patience=10**9))
    assert 0 < found.steps < 10**6


def test_no_time_trains_nothing():
    _, found, told = fit(replace(PLAN, seconds=0.0))
    assert (found.steps, told[-1].done) == (0, 1.0)


def test_a_loss_that_is_not_a_number_is_an_error():
    with pytest.raises(TrainingError, match="not a number; slow down"):
        fit(replace(PLAN, too_fast="slow down"), rate=1e30)


def test_a_checkpoint_survives_a_file_and_a_half_written_one_is_not_read(tmp_path):
    path = tmp_path / "deep" / "state.safetensors"
    assert Checkpoint.load(path) is None
    Checkpoint({"a": torch.arange(3.0)}, {"step": 7, "loss": math.nan, "best": 0.1}).save(path)
    path.with_suffix(".writing").write_bytes(b"half")
    found = Checkpoint.load(path)
    assert torch.equal(found.tensors["a"], torch.arange(3.0))
    assert found.numbers["step"] == 7
    assert found.numbers["best"] == 0.1
    assert math.isnan(found.numbers["loss"])
