"""A stage of a training as plain values: how it is to go, how it goes, and what it brought."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from adcascade.training.workers import Workers


@dataclass(frozen=True)
class Plan:
    """How long a stage trains, and how.

    Attributes:
        stage: its name, for those who watch.
        steps: how many, at most.
        seconds: wall-clock limit, None for none. With a limit the learning rate follows the clock.
        validate_every: steps between validations, where there is a loss to validate by.
        patience: validations without improvement after which the stage ends.
        accumulate: batches that make one step.
        ema_decay: of the running average of the weights (Polyak and Juditsky 1992), which is then what is
            validated and kept; None keeps the weights themselves.
        warmup_steps: over which the learning rate rises, but no more than a tenth of all.
        warmup_share: share of the stage, by steps or by the clock, over which it rises, in place of `warmup_steps`.
        lowest_rate: share of the highest learning rate that it does not fall below.
        checkpoint: file of the checkpoint, None for none; written every `checkpoint_every` steps.
        identity: of the training; a checkpoint with another one is not taken up.
    """

    stage: str
    steps: int
    seconds: float | None
    weight_decay: float
    seed: int
    validate_every: int = 50
    patience: int = 3
    accumulate: int = 1
    ema_decay: float | None = None
    warmup_steps: int = 50
    warmup_share: float | None = None
    lowest_rate: float = 0.02
    checkpoint: Path | None = None
    checkpoint_every: int = 100
    identity: str = ""
    too_fast: str = "lower the learning rate"


@dataclass(frozen=True)
class TrainingProgress:
    """What those who watch a training are told.

    Attributes:
        done: share of the stage, 0 to 1.
        training_loss: mean since the last validation, or of this step where nothing validates; NaN before the first.
        validation_loss: None unless this step was validated.
        best_loss: lowest validation loss so far; NaN where nothing validates.
    """

    stage: str
    step: int
    done: float
    learning_rate: float
    training_loss: float
    validation_loss: float | None
    best_loss: float


OnProgress = Callable[[TrainingProgress], None]


@dataclass(frozen=True)
class StageContext:
    """Under which a stage trains: who watches, which processes share it, its checkpoint's file and the identity of the
    training that it must be of, and how long it may."""

    watch: OnProgress
    workers: Workers = Workers()  # noqa: RUF009 (a frozen value)
    checkpoint: Path | None = None
    seconds: float | None = None
    identity: str = ""


@dataclass(frozen=True)
class StageResult:
    """What a stage brought: validation loss before it, and at the step that was kept (0 keeps what it began with).

    Where nothing validates, the last step is kept, and the losses are NaN.

    Attributes:
        seconds: that it took, with those before it was killed and taken up again.
        planned: steps that it was to make at most.
        by_clock: whether --max-minutes ended it before these, and before its loss stopped falling.
        note: what became of it then, in words; "" for nothing.
    """

    steps: int
    kept_step: int
    loss_before: float
    loss_kept: float
    seconds: float = field(compare=False)
    planned: int
    by_clock: bool
    note: str = ""

    def __str__(self) -> str:
        return "; ".join(filter(None, (self._how_far, self.note)))

    @property
    def _how_far(self) -> str:
        if self.by_clock:
            return f"stopped after step {self.steps:,} of {self.planned:,}, by --max-minutes"
        if self.steps < self.planned:
            return f"ended after step {self.steps:,} of {self.planned:,}, since its loss no longer fell"
        return f"all {self.planned:,} steps"
