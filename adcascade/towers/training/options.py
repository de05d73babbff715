"""How to train the towers, as plain values, each with the help that the command line shows. Light: loads no models."""

from dataclasses import dataclass, field
from typing import Any

_MODEL, _LEARNING = "The towers", "Learning"


def _option(panel: str, default: Any, help: str, **limits: float) -> Any:
    """A field with its help, shown under `panel`; `limits` (min, max) are checked by the command line."""
    return field(default=default, metadata={"help": help, "rich_help_panel": panel, **limits})


@dataclass(frozen=True)
class TowerOptions:
    """How to train; the help of each field says what it does, and ``adcascade train-retrieval --help`` shows it."""

    width: int = _option(_MODEL, 96, "Numbers per vector, without the popularity bias.", min=8)
    layers: int = _option(_MODEL, 1, "Transformer layers over a user's events; 0 for sums alone.", min=0)
    heads: int = _option(_MODEL, 4, "Attention heads of each layer; must divide the width.", min=1)
    history: int = _option(_MODEL, 150, "Newest events of a user that are read.", min=1)

    neighbour_ads: int = _option(
        _MODEL,
        5000,
        "Ads, of those met most, whose neighbours are kept too; 0 for none. Takes 24 bytes for each pair.",
        min=0,
    )
    neighbours: int = _option(_MODEL, 200, "Neighbours of each of them.", min=1)
    neighbour_penalty: float = _option(_MODEL, 300.0, "Ridge penalty of the model that finds them.", min=1e-3)
    exploration: float = _option(
        _MODEL,
        1.5,
        "What being new adds to an ad's log-odds: this over the square root of 1 + its impressions. 0 if new ads "
        "should wait until their texts alone bring them up.",
        min=0,
    )

    epochs: int = _option(_LEARNING, 25, "Passes over the users of the log.", min=1)
    learning_rate: float = _option(_LEARNING, 1e-3, "Highest step size.", min=0)
    weight_decay: float = _option(_LEARNING, 0.05, "How strongly AdamW pulls weights to zero.", min=0)
    users_per_step: int = _option(_LEARNING, 32, "Users of a step.", min=1)
    moments_per_step: int = _option(_LEARNING, 300, "Moments of their histories that a step learns from.", min=1)
    dropout: float = _option(_LEARNING, 0.4, "Share of what is read that is dropped at random.", min=0, max=0.95)
    event_dropout: float = _option(_LEARNING, 0.3, "Share of the events dropped from the sums.", min=0, max=0.95)
    residual_dropout: float = _option(
        _LEARNING, 0.1, "Share of the ads whose residual is dropped, so that text alone stands.", min=0, max=1
    )
    impression_weight: float = _option(
        _LEARNING,
        0.3,
        "What being shown an ad without clicking it counts beside a click, as something to foretell. 0 if what is "
        "shown has little to do with what users like.",
        min=0,
        max=1,
    )
    later_decay: float = _option(
        _LEARNING, 0.02, "How much less each later click counts than the one before it.", min=0, max=1
    )
    sampled_above: int = _option(
        _LEARNING, 20_000, "From so many ads on, learn against a sample of them (log-q corrected), not against all."
    )
    sampled_ads: int = _option(_LEARNING, 4096, "Ads of such a sample.", min=16)
    hard_negatives: int = _option(_LEARNING, 512, "Of them, those that users' vectors now find most similar.", min=0)
    max_minutes: float | None = _option(
        _LEARNING, None, "Stop after this long; passes are then as many as fit. No two runs are equal.", min=0
    )
    seed: int = _option(_LEARNING, 0, "Of training, and of a split by ad.")
