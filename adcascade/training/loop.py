"""Steps of AdamW with a schedule, early stopping, a running average of the weights, and checkpoints. Knows no clicks.

Everything random in a step follows from the seed and the number of the step, so that a run that was killed and taken
up again makes the same steps as one left alone.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from adcascade.training.checkpoint import Checkpoint, DamagedCheckpointError
from adcascade.training.errors import TrainingError
from adcascade.training.schedule import rate_factor, restore_average, running_average
from adcascade.training.stage import OnProgress, Plan, StageResult, TrainingProgress
from adcascade.training.workers import Workers

log = logging.getLogger(__name__)

# The whole numbers of a checkpoint.
_COUNTS = ("step", "kept", "stale", "epoch", "in_epoch")
# A checkpoint that takes more seconds than `_LONG_SAVE` is written so seldom that training takes so many times as long.
_LONG_SAVE, _TRAINED_FOR_SAVING = 1.0, 20.0

Batch = TypeVar("Batch")


class Loop(Generic[Batch]):
    """One stage of a training.

    Args:
        weights: What is trained, by name.
        groups: The same as parameter groups of AdamW, each with its own learning rate.
        validate: Loss on the validation part with the weights as they are then; None where there is none, so that the
            stage goes to its end and its last weights (or their average) are kept.
        watch: Told of every step.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, nn.Parameter],
        groups: list[dict[str, Any]],
        validate: Callable[[], float] | None,
        watch: OnProgress,
        workers: Workers = Workers(),  # noqa: B008 (a frozen value)
    ) -> None:
        self._plan, self._weights, self._validate, self._watch, self._workers = plan, weights, validate, watch, workers
        by_group = [{**group, "initial_lr": group["lr"]} for group in groups]  # what a schedule that goes on reads
        self._optimizer = torch.optim.AdamW(by_group, weight_decay=plan.weight_decay, fused=True)
        self._device = next(iter(weights.values())).device
        self._ema = None if plan.ema_decay is None else running_average(weights.values(), plan.ema_decay)
        self._best = None if validate is None else _clones(weights)
        self._step = self._kept = self._stale = self._epoch = self._in_epoch = 0
        self._before = self._best_loss = math.nan
        self._loss_sum = self._loss_weight = 0.0
        self._seconds = 0.0
        self._last_tick = time.monotonic()
        self._next_checkpoint = 0.0

    def run(
        self, batches: Callable[[int], Iterable[Batch]], loss: Callable[[Batch], tuple[Tensor, float]]
    ) -> StageResult:
        """Trains to the end of the plan; leaves the best weights in place, or the last where nothing validates.

        Args:
            batches: Makes the batches of an epoch from its number; the same ones each time it is asked.
            loss: Sum of the losses of a batch, and the weight (impressions) that it is to be divided by.

        Raises:
            TrainingError: The loss or a gradient is not a number, or an epoch has no batch.
        """
        self._last_tick = time.monotonic()
        if not self._resume():
            self._before = self._best_loss = self._validated()
            self._report(None if self._validate is None else self._before)
        schedule = LambdaLR(
            self._optimizer, lambda step: rate_factor(self._plan, step, self._done()), last_epoch=self._step - 1
        )
        while not self._is_over():
            for group in itertools.islice(self._grouped(batches(self._epoch)), self._in_epoch, None):
                self._make_step(group, loss)
                self._tick()
                self._in_epoch += 1
                validated = self._step % self._plan.validate_every == 0 or self._done() >= 1.0
                self._report(self._check() if validated and self._validate else None)
                self._keep_checkpoint()
                schedule.step()
                if self._is_over():
                    break
            else:
                if not self._in_epoch:
                    raise TrainingError("there is nothing to learn from: a pass over the training part makes no step")
                self._epoch, self._in_epoch = self._epoch + 1, 0
        self._load_weights(self._now() if self._best is None else self._best)
        kept = self._step if self._best is None else self._kept
        by_clock = self._step < self._plan.steps and self._stale < self._plan.patience
        return StageResult(
            self._step, kept, self._before, self._best_loss, self._seconds, self._plan.steps, by_clock=by_clock
        )

    def _grouped(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """This process's share of the batches of each step."""
        size, waiting = self._plan.accumulate * self._workers.count, iter(batches)
        while group := list(itertools.islice(waiting, size)):
            yield group[self._workers.rank :: self._workers.count]

    def _make_step(self, group: list[Batch], loss: Callable[[Batch], tuple[Tensor, float]]) -> None:
        torch.manual_seed(((self._plan.seed * 1_000_003 + self._step) << 8) + self._workers.rank)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(2, dtype=torch.float64)
        for batch in group:
            summed, weight = loss(batch)
            summed.backward()  # type: ignore[no-untyped-call]
            total += torch.tensor([float(summed.detach()), weight], dtype=torch.float64)
        trained = [one for one in self._weights.values() if self._workers.count > 1 or one.grad is not None]
        total = self._workers.sum_gradients(trained, total.to(self._device)).cpu()
        if not torch.isfinite(total).all():
            raise TrainingError(f"the training loss is not a number; {self._plan.too_fast}")
        for one in trained:
            assert one.grad is not None
            one.grad /= float(total[1])
        if not torch.isfinite(nn.utils.clip_grad_norm_(trained, 1.0)):
            raise TrainingError(f"a gradient of the training is not a number; {self._plan.too_fast}")
        self._optimizer.step()
        self._step += 1
        self._loss_sum, self._loss_weight = self._loss_sum + float(total[0]), self._loss_weight + float(total[1])
        if self._ema is not None:
            self._ema.update_parameters(nn.ParameterList(self._weights.values()))

    def _check(self) -> float:
        """Validates, and keeps the weights if they are the best so far."""
        loss = self._validated()
        self._stale = 0 if loss < self._best_loss else self._stale + 1
        if loss < self._best_loss:
            self._best_loss, self._kept, self._best = loss, self._step, _clones(self._now())
        return loss

    def _validated(self) -> float:
        """The validation loss, that of the first process for all; NaN where nothing validates."""
        if self._validate is None:
            return math.nan
        mine = _clones(self._weights)
        self._load_weights(self._now())
        loss = self._validate()
        self._load_weights(mine)
        return self._workers.agree(loss, self._device)

    def _done(self) -> float:
        """From 0 to 1: the larger share of steps and of minutes."""
        by_steps = self._step / self._plan.steps if self._plan.steps else 1.0
        if self._plan.seconds is None:
            return min(1.0, by_steps)
        by_time = self._seconds / self._plan.seconds if self._plan.seconds else 1.0
        return min(1.0, max(by_steps, by_time))

    def _tick(self) -> None:
        """Adds the time since the last tick, as the first process saw it."""
        now = time.monotonic()
        self._seconds += self._workers.agree(now - self._last_tick, self._device)
        self._last_tick = now

    def _is_over(self) -> bool:
        return self._done() >= 1.0 or self._stale >= self._plan.patience

    def _report(self, validation_loss: float | None) -> None:
        mean = self._loss_sum / self._loss_weight if self._loss_weight else math.nan
        rate = float(self._optimizer.param_groups[0]["lr"])
        done = 1.0 if self._is_over() else self._done()
        self._watch(TrainingProgress(self._plan.stage, self._step, done, rate, mean, validation_loss, self._best_loss))
        if validation_loss is not None or self._validate is None:
            self._loss_sum = self._loss_weight = 0.0

    # ---- weights and checkpoints

    def _now(self) -> Mapping[str, Tensor]:
        """What would be kept at this step: the running average, or the weights themselves."""
        return self._weights if self._ema is None else self._averages(self._ema)

    def _averages(self, ema: AveragedModel) -> dict[str, Tensor]:
        return dict(zip(self._weights, ema.module.parameters(), strict=True))

    def _kinds(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint holds of each weight."""
        kinds: dict[str, Mapping[str, Tensor]] = {"weight": self._weights}
        if self._ema is not None:
            kinds["average"] = self._averages(self._ema)
        if self._best is not None:
            kinds["best"] = self._best
        return kinds

    @torch.no_grad()
    def _load_weights(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def _keep_checkpoint(self) -> None:
        plan = self._plan
        due = self._step % plan.checkpoint_every == 0 or self._is_over()
        if plan.checkpoint is None or not due or not self._workers.is_first:
            return
        if not self._is_over() and time.monotonic() < self._next_checkpoint:
            return
        started = time.monotonic()
        kinds = self._kinds().items()
        tensors = {f"{kind}/{name}": tensor for kind, tensors in kinds for name, tensor in tensors.items()}
        for name, weight in self._weights.items():
            state = self._optimizer.state.get(weight, {})
            tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
        # One tensor may not stand twice in a file.
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        Checkpoint(copies, self._numbers(), plan.identity).save(plan.checkpoint)
        took = time.monotonic() - started
        self._next_checkpoint = time.monotonic() + _TRAINED_FOR_SAVING * took if took > _LONG_SAVE else 0.0

    def _numbers(self) -> dict[str, float]:
        numbers = {name: getattr(self, f"_{name}") for name in (*_COUNTS, "loss_sum", "loss_weight", "seconds")}
        of_validation = {"before": self._before, "best_loss": self._best_loss}
        return numbers if self._validate is None else numbers | of_validation

    def _resume(self) -> bool:
        """Goes on from the checkpoint, if there is one that this training wrote."""
        path = self._plan.checkpoint
        if path is None:
            return False
        try:
            found = Checkpoint.load(path)
            if found is None:
                return False
            self._check_checkpoint(found)
        except DamagedCheckpointError as damage:
            log.warning("the stage %r begins again: its checkpoint %s is not used: %s", self._plan.stage, path, damage)
            return False
        self._restore(found)
        return True

    def _check_checkpoint(self, found: Checkpoint) -> None:
        """Raises DamagedCheckpointError unless this training could have written it."""
        if found.identity != self._plan.identity:
            raise DamagedCheckpointError("it is of a training of other data, options or weights to begin with")
        shapes = {f"{kind}/{name}": one.shape for kind in self._kinds() for name, one in self._weights.items()}
        for name, tensor in found.tensors.items():
            owner = name.removeprefix("optimizer/").rsplit("/", 1)[0]
            of_optimizer = name.startswith("optimizer/") and owner in self._weights
            if name not in shapes and not of_optimizer:
                raise DamagedCheckpointError(f"it holds {name!r}, which is not trained")
            wanted = self._weights[owner].shape if of_optimizer else shapes[name]
            if tensor.shape != wanted and not (of_optimizer and name.endswith("/step") and tensor.numel() == 1):
                raise DamagedCheckpointError(f"{name!r} has the shape {tuple(tensor.shape)}, not {tuple(wanted)}")
            if not bool(torch.isfinite(tensor).all()):
                raise DamagedCheckpointError(f"{name!r} has NaN or infinite numbers")
        lacking = sorted((shapes.keys() - found.tensors.keys()) | (self._numbers().keys() - found.numbers.keys()))
        if lacking:
            raise DamagedCheckpointError(f"it lacks {lacking[0]!r}")
        for name, number in found.numbers.items():
            if not math.isfinite(number) or (name in _COUNTS and not (number >= 0 and number == int(number))):
                raise DamagedCheckpointError(f"{name!r} is {number}")

    def _restore(self, found: Checkpoint) -> None:
        by_kind: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*self._kinds(), "optimizer")}
        for path, tensor in found.tensors.items():
            kind, name = path.split("/", 1)
            by_kind[kind][name] = tensor.to(self._device)  # steps, too: fused AdamW counts where its weights are
        self._load_weights(by_kind["weight"])
        self._best = by_kind.get("best")
        for path, tensor in by_kind["optimizer"].items():
            name, key = path.rsplit("/", 1)
            self._optimizer.state[self._weights[name]][key] = tensor
        numbers = dict(found.numbers)
        self._step, self._kept, self._stale, self._epoch, self._in_epoch = (int(numbers[name]) for name in _COUNTS)
        self._before, self._best_loss = numbers.get("before", math.nan), numbers.get("best_loss", math.nan)
        self._loss_sum, self._loss_weight = numbers["loss_sum"], numbers["loss_weight"]
        self._seconds = numbers["seconds"]
        if self._ema is not None:
            restore_average(self._ema, (by_kind["average"][name] for name in self._weights), self._step)


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
