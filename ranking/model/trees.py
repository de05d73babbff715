"""Boosted trees beside the behaviour part: what counters say where their effects are steps and their products.

A network of a few thousand numbers is slow to learn that a click rate counts for nothing below ten impressions; trees
(LightGBM, Ke et al. 2017) learn it in seconds. Both logits are blended on rows that neither was trained on (stacking,
Wolpert 1992). Knows no logs; LightGBM is loaded where a model has trees.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ranking.errors import ModelError
from ranking.inputs.features import Features

if TYPE_CHECKING:
    import lightgbm

Logits = npt.NDArray[np.float64]

_ROUNDS, _PATIENCE, LEARNING_RATE = 2000, 50, 0.05
# The same trees again, for a training that is taken up again and for each of its processes: LightGBM would otherwise
# time both ways of building histograms and take the faster one, and their sums round differently.
_COMMON: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": LEARNING_RATE,
    "verbose": -1,
    "seed": 0,
    "deterministic": True,
    "force_col_wise": True,
}
# The best one on the validation part is kept: LightGBM's own, few leaves for logs of little signal, and still fewer for
# those of few clicks.
_SETTINGS: tuple[dict[str, Any], ...] = (
    {"num_leaves": 31, "min_data_in_leaf": 20},
    {"num_leaves": 8, "min_data_in_leaf": 200, "feature_fraction": 0.5, "lambda_l2": 20.0},
    {"num_leaves": 4, "min_data_in_leaf": 200, "feature_fraction": 0.3, "lambda_l2": 50.0},
)
_FEW_CLICKS = 20_000


class Blend(BaseModel):
    """How two logits become one: intercept + network x that of the network + trees x that of the trees."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    network: float
    trees: float
    intercept: float


@dataclass(frozen=True)
class BoostedTrees:
    """Trees over the normalised dense features, and how much they say.

    Attributes:
        booster: LightGBM's, of as many features as the model reads.
    """

    booster: "lightgbm.Booster"
    blend: Blend

    def logits(self, dense: Features) -> Logits:
        """What the trees alone say, float64 [rows].

        Args:
            dense: As `CtrSpec.normalise` makes it, float32 [rows, features].
        """
        # One thread: a call has a few hundred rows, and other calls want the other cores.
        said: Logits = np.asarray(self.booster.predict(dense, raw_score=True, num_threads=1), np.float64)
        return said

    def blended(self, network: Logits, dense: Features) -> Logits:
        """The logits of the network with what the trees say, float64 [rows]."""
        blend = self.blend
        return blend.intercept + blend.network * network + blend.trees * self.logits(dense)

    def save(self, path: Path) -> None:
        """Writes LightGBM's text format."""
        path.write_text(self.booster.model_to_string(), encoding="ascii")


def load_trees(path: Path, blend: Blend, features: int) -> BoostedTrees:
    """Reads what `BoostedTrees.save` wrote.

    Raises:
        ModelError: LightGBM is not installed.
        ValueError: The file is no such model, or one of another number of features.
        OSError: It cannot be read.
    """
    booster = _booster_of(path.read_text(encoding="ascii"), path.name)
    if booster.num_feature() != features:
        raise ValueError(f"{path.name} reads {booster.num_feature()} features, not {features}")
    return BoostedTrees(booster, blend)


def import_lightgbm() -> Any:
    """The library. Raises ImportError, also where it is installed and a library of the system that it needs is not."""
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError("LightGBM is not installed (pip install 'adcascade[serve]')") from error
    except OSError as error:
        raise ImportError(f"LightGBM cannot be loaded: {error} (Debian: apt install libgomp1)") from error
    return lightgbm


def _check_structure(text: str, name: str) -> None:
    """Raises ValueError for a text that LightGBM would end the process over, or read beside its features.

    It reads trees in threads of its own, out of which no error comes; its header says how long each tree is.
    """
    head, _, trees = text.partition("\n\n")
    said = dict(line.partition("=")[::2] for line in head.splitlines())
    try:
        features = int(said["max_feature_idx"])
        sizes = [int(size) for size in said["tree_sizes"].split()]
        single = said["num_class"] == said["num_tree_per_iteration"] == "1"
        ends = np.cumsum([len(text) - len(trees.lstrip("\n")), *sizes]).tolist()
        whole = all(text[end : end + 5] == "Tree=" for end in ends[:-1]) and text[ends[-1] :].startswith("end of trees")
        splits = [int(one) for line in re.findall(r"(?m)^split_feature=(.*)$", trees) for one in line.split()]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name} is no model of LightGBM: {error}") from error
    if not (single and whole and all(0 <= split <= features for split in splits)):
        raise ValueError(f"{name} is no model of LightGBM of one number a row, or not a whole one")


def _booster_of(text: str, name: str) -> "lightgbm.Booster":
    try:
        library = import_lightgbm()
    except ImportError as error:
        raise ModelError(f"this model has boosted trees: {error}") from error
    _check_structure(text, name)
    try:
        booster: lightgbm.Booster = library.Booster(model_str=text)
        return booster
    except library.basic.LightGBMError as error:
        raise ValueError(f"{name} is no model of LightGBM: {error}") from error


def as_text(trees: BoostedTrees | None) -> str:
    """Trees and their blend as one text, for the other processes of a training; "" for none."""
    return "" if trees is None else f"{trees.blend.model_dump_json()}\n{trees.booster.model_to_string()}"


def of_text(text: str) -> BoostedTrees | None:
    """What `as_text` made a text of."""
    blend, _, booster = text.partition("\n")
    return BoostedTrees(_booster_of(booster, "the first process's"), Blend.model_validate_json(blend)) if text else None


@dataclass(frozen=True)
class LabelledRows:
    """Rows with a label and a weight.

    Attributes:
        features: float32 [rows, features].
        labels: 0 or 1, int64 [rows].
        weights: above 0, int64 [rows].
    """

    features: Features
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]

    @property
    def has_both(self) -> bool:
        """Whether some rows have the label 0 and others 1."""
        return bool(self.labels.any()) and not bool(self.labels.all())


# Told (share that is done, 0 to 1; trees so far; loss on the validation rows).
OnRound = Callable[[float, int, float], None]


def fit_booster(
    train: LabelledRows, valid: LabelledRows, *, seconds: float | None = None, on_round: OnRound = lambda *_: None
) -> "lightgbm.Booster | None":
    """Gradient-boosted trees (Ke et al. 2017), stopped early on the rows of `valid`; None where a part has one label.

    Args:
        seconds: after which no tree is added, for all settings that are compared together; None for no limit.
        on_round: told of each tree.

    Raises:
        ImportError: LightGBM is not installed.
    """
    library = import_lightgbm()
    if not (train.has_both and valid.has_both):
        return None

    def table(rows: LabelledRows) -> Any:
        return library.Dataset(rows.features, rows.labels, weight=rows.weights, free_raw_data=False)

    fitted = []
    compared = _SETTINGS if train.weights[train.labels == 1].sum() < _FEW_CLICKS else _SETTINGS[:-1]
    for number, settings in enumerate(compared):
        watch = _Watch(number / len(compared), 1 / len(compared), seconds, on_round)
        callbacks: list[Any] = [library.early_stopping(_PATIENCE, verbose=False), watch]
        tables = table(train), table(valid)
        booster = library.train(_COMMON | settings, tables[0], _ROUNDS, valid_sets=[tables[1]], callbacks=callbacks)
        fitted.append((booster.best_score["valid_0"]["binary_logloss"], booster))
    best: lightgbm.Booster = min(fitted, key=lambda one: one[0])[1]
    return best


class _Watch:
    """Told of each tree of one of the settings; stops when the time is over, and keeps the trees up to the best."""

    def __init__(self, done: float, share: float, seconds: float | None, on_round: OnRound) -> None:
        """`done`: share of all settings before these; `share`: theirs, also of the `seconds`."""
        self._done, self._share, self._on_round = done, share, on_round
        self._ends = None if seconds is None else time.monotonic() + share * seconds
        self._best: tuple[float, int, Any] = (np.inf, 0, None)

    def __call__(self, env: Any) -> None:
        loss, trees = env.evaluation_result_list[0][2], env.iteration + 1
        self._best = min(self._best, (loss, env.iteration, list(env.evaluation_result_list)), key=lambda one: one[0])
        self._on_round(self._done + self._share * trees / _ROUNDS, trees, loss)
        if self._ends is not None and time.monotonic() >= self._ends:
            raise import_lightgbm().callback.EarlyStopException(*self._best[1:])
