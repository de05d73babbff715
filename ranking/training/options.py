"""How to train, as plain values, each with the help that the command line shows. Light: loads no model library.

Each stage has its own; the command line shows them as one list of flags, which is also how a version writes them down.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adcascade.terminal.flags import FLAG, flat, with_values
from adcascade.vectors.encoder import EMBEDDED
from ranking.inputs.context import CONTEXT_WORDS, MAX_CONTEXT_WORDS

_MODEL, _TEXT, _BEHAVIOUR, _BOTH = "The model", "The text layers", "The behaviour part", "Both"
_TEACHER = "A teacher"


def _option(panel: str, default: Any, help: str, flag: str = "", **limits: float) -> Any:
    """A field with its help, shown under `panel`; `limits` (min, max) are checked by the command line.

    Args:
        flag: its name there, where it is not that of the field.
    """
    named = {FLAG: flag} if flag else {}
    return field(default=default, metadata={"help": help, "rich_help_panel": panel, **named, **limits})


@dataclass(frozen=True)
class BaseOptions:
    """What a training begins with, and what the model reads."""

    name: str = _option(_MODEL, EMBEDDED, "BERT-like Hugging Face directory or hub name.", flag="base")
    warm_start: str = _option(
        _MODEL, "", "Start from this model version in place of --base: ROOT for its published one, or ROOT@VERSION."
    )
    architecture: str = _option(_MODEL, "shared_user", "shared_user, or joint for the plain cross-encoder.")
    join_layer: int | None = _option(_MODEL, None, "First layer in which ads attend to the user; default: the last.")
    layers: int | None = _option(
        _MODEL, None, "Keep so many of the base's layers, evenly spaced, for a faster model; default: all.", min=1
    )
    max_user_tokens: int = _option(_MODEL, 128, "Longer user texts are cut at the oldest history.", min=8)
    max_ad_tokens: int = _option(_MODEL, 32, "Longer ad texts are cut at the end.", min=4)
    context_words: int = _option(
        _MODEL,
        CONTEXT_WORDS,
        "How many values of an impression are read: hour, weekday, context, then the user's attributes, by name.",
        min=0,
        max=MAX_CONTEXT_WORDS,
    )


@dataclass(frozen=True)
class BehaviourOptions:
    """The stage that learns from counters and past events."""

    epochs: int = _option(
        _BEHAVIOUR,
        8,
        "Passes over the training rows for counters and past events, at most; where more than 2 million rows train, "
        "fewer, so that 16 million are read, or each once.",
        min=0,
        flag="behaviour_epochs",
    )
    batch: int | None = _option(
        _BEHAVIOUR,
        None,
        "Rows in a step of the behaviour part; default: 512, and more where more than 200,000 rows train, so that a "
        "pass is about 400 steps; 16,384 at most.",
        min=1,
        flag="behaviour_batch",
    )
    min_steps: int = _option(
        _BEHAVIOUR,
        300,
        "At least so many steps, even if that is more than --behaviour-epochs.",
        min=0,
        flag="behaviour_min_steps",
    )
    learning_rate: float = _option(
        _BEHAVIOUR,
        8e-3,
        "Highest step size of the behaviour part; lower it if the loss is not a number.",
        min=0,
        flag="behaviour_learning_rate",
    )
    trees: str = _option(
        _BEHAVIOUR,
        "auto",
        "auto also trains boosted trees (LightGBM) on the counters and keeps them where they help, unless there is a "
        "--group-loss or the log has positions; none does not.",
    )
    line: str = _option(
        _BEHAVIOUR,
        "auto",
        "auto puts a logistic regression on the counters in the place of a new network that is not better for certain "
        "on the validation part (not with a --group-loss, positions in the log or a --warm-start); none keeps the "
        "network, and what it makes of past events.",
        flag="behaviour_line",
    )
    content: str = _option(
        _BEHAVIOUR,
        "auto",
        "auto compares the words of each ad with those of what its user liked (latent semantic analysis), where at "
        "least a tenth of the rows is of users who are known to like anything and at most 20,000 clicks train; "
        "always does whatever their number, none does not.",
    )
    share: float = _option(
        _BEHAVIOUR,
        0.7,
        "Share of --max-minutes that the behaviour part may take; the text gets what is left.",
        min=0,
        max=1,
        flag="behaviour_share",
    )


@dataclass(frozen=True)
class TextOptions:
    """The stage that fine-tunes the text layers, and what is calibrated on them."""

    train_layers: str = _option(
        _MODEL,
        "joined",
        "joined trains the joined layers and the head (what lies below is computed once an ad), or all.",
    )
    lora_rank: int = _option(
        _MODEL, 0, "Train adapters of this rank in place of the layers' own weights; 0 for none.", min=0
    )
    epochs: float = _option(
        _TEXT, 1.0, "Passes over the training rows for the text, at most; 0 fine-tunes nothing.", min=0
    )
    most_rows: int = _option(
        _TEXT,
        200_000,
        "Rows that such a pass reads, at most: of a larger log, those of users drawn at random.",
        min=1,
        flag="text_rows",
    )
    pairs_per_step: int = _option(_TEXT, 96, "Pairs of user and ad in a batch of the text layers.", min=1)
    accumulate: int = _option(_TEXT, 1, "Batches that make one step of the text layers.", min=1)
    max_ads_per_user: int = _option(_TEXT, 32, "Ads that one reading of a user serves in training, at most.", min=1)
    learning_rate: float = _option(
        _TEXT, 1e-4, "Highest step size of the text layers; lower it if the validation loss rises at once.", min=0
    )
    head_learning_rate: float = _option(_TEXT, 1e-3, "The same for the head above them.", min=0)
    ema_decay: float = _option(
        _TEXT,
        0.0,
        "Keep a running average of the text layers' weights: 0.99 is over about 100 steps, 0 is off.",
        min=0,
        max=1,
    )
    prior: str = _option(
        _TEXT,
        "auto",
        "auto also learns, in closed form, what an ad's text alone says, and keeps it where that helps, unless the "
        "layers that it reads are trained (--train-layers all) or each pair is read (--architecture joint); none does "
        "not.",
        flag="text_prior",
    )
    min_gain: float = _option(
        _TEXT,
        0.0005,
        "By how much the text must lower the validation loss to be kept; without it serving is faster.",
        flag="min_text_gain",
    )
    validate_every: int = _option(_TEXT, 75, "Steps of the text layers between validations.", min=1)
    validation_rows: int = _option(
        _TEXT, 2000, "Rows of the validation part that the text layers are validated on.", min=1
    )
    calibration_rows: int = _option(
        _TEXT, 20_000, "Rows of the validation part to calibrate on, if text is read; else all of it.", min=1
    )


@dataclass(frozen=True)
class TeacherOptions:
    """A better but slower version to learn from; none by default."""

    version: str = _option(
        _TEACHER,
        "",
        "Learn what this model version says, too: ROOT for its published one, or ROOT@VERSION.",
        flag="teacher",
    )
    weight: float = _option(
        _TEACHER,
        0.5,
        "Share of the teacher's probabilities, beside the clicks, in what the text learns.",
        min=0,
        max=1,
        flag="teacher_weight",
    )
    state_weight: float = _option(
        _TEACHER, 0.2, "Weight of pointing the last states where the teacher's point; 0 for none.", min=0
    )


@dataclass(frozen=True)
class CommonOptions:
    """What both stages share, and how the training runs."""

    max_minutes: float | None = _option(
        _BOTH,
        None,
        "Stop training after this long. The learning rate then follows the clock: no two runs are equal.",
        min=0,
    )
    patience: int = _option(_BOTH, 3, "Validations without improvement after which a stage ends.", min=1)
    weight_decay: float = _option(_BOTH, 0.01, "How strongly AdamW pulls weights to zero.", min=0)
    conversion_weight: float = _option(
        _BOTH, 0.5, "Of the conversion loss beside the click loss, where the log has conversions.", min=0
    )
    conversions_over: str = _option(
        _BOTH, "impressions", "What conversions are learned over: all impressions (ESMM), or clicks alone."
    )
    group_loss: str = _option(
        _BOTH,
        "none",
        "Also learn which ads of a request were clicked more: none, listwise (softmax) or pairwise (RankNet).",
    )
    group_weight: float = _option(
        _BOTH, 0.5, "Share of --group-loss in the whole loss, which validation uses, too.", min=0, max=1
    )
    negative_rate: float = _option(
        _BOTH,
        1.0,
        "Share of the impressions without a click to learn from, above 0; p_click is corrected for it.",
        max=1,
    )
    seed: int = _option(_BOTH, 0, "Of training, and of every split but that by time.")
    export: bool = _option(_BOTH, True, "Also export the text layers for OpenVINO, where that is installed.")
    tensorboard: Path | None = _option(_BOTH, None, "Folder for TensorBoard's event files.")
    device: str = _option(_BOTH, "auto", "auto, cpu or cuda.")
    precision: str = _option(_BOTH, "auto", "auto (bfloat16 where the machine is fast at it), float32 or bfloat16.")


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the help of each field says what it does, and ``adcascade train --help`` shows it.

    Example:
        >>> options = TrainOptions.of(epochs=0, seed=3)
        >>> options.text.epochs, options.common.seed
        (0, 3)
    """

    base: BaseOptions = field(default_factory=BaseOptions)
    behaviour: BehaviourOptions = field(default_factory=BehaviourOptions)
    text: TextOptions = field(default_factory=TextOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    common: CommonOptions = field(default_factory=CommonOptions)

    @classmethod
    def of(cls, **flags: Any) -> "TrainOptions":
        """The defaults but for some flags, by the names that they have on the command line.

        Raises:
            TypeError: There is no such flag.
        """
        return with_values(cls(), flags)

    def but(self, **flags: Any) -> "TrainOptions":
        """The same but for some flags; see `of`."""
        return with_values(self, flags)

    @property
    def flags(self) -> dict[str, Any]:
        """Each value by the name of its flag."""
        return flat(self)
