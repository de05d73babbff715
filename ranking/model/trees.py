"""Boosted trees beside the behaviour part: what counters say where their effects are steps and their products.

A network of a few thousand numbers is slow to learn that a click rate counts for nothing below ten impressions; trees
(LightGBM, Ke et al. 2017) learn it in seconds. Both logits are blended on rows that neither was trained on (stacking,
Wolpert 1992). Knows no logs; LightGBM is loaded where a model has trees.
"""

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

_ROUNDS, _PATIENCE = 2000, 50
_COMMON = {"objective": "binary", "learning_rate": 0.05, "verbose": -1, "seed": 0, "deterministic": True}
# The better one on the validation part is kept: LightGBM's own, and few leaves for logs of little signal.
_SETTINGS: tuple[dict[str, Any], ...] = (
    {"num_leaves": 31, "min_data_in_leaf": 20},
    {"num_leaves": 8, "min_data_in_leaf": 200, "feature_fraction": 0.5, "lambda_l2": 20.0},
)


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
    try:
        import lightgbm
    except ImportError as error:
        raise ModelError("this model has boosted trees: pip install 'adcascade[serve]' brings LightGBM") from error
    text = path.read_text(encoding="ascii")
    try:
        booster = lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(f"{path.name} is no model of LightGBM: {error}") from error
    if booster.num_feature() != features:
        raise ValueError(f"{path.name} reads {booster.num_feature()} features, not {features}")
    return BoostedTrees(booster, blend)


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


def fit_booster(train: LabelledRows, valid: LabelledRows) -> "lightgbm.Booster | None":
    """Gradient-boosted trees, stopped early on the rows of `valid`; None where a part has one label only.

    Raises:
        ImportError: LightGBM is not installed.
    """
    import lightgbm

    if not (train.has_both and valid.has_both):
        return None

    def table(rows: LabelledRows) -> "lightgbm.Dataset":
        return lightgbm.Dataset(rows.features, rows.labels, weight=rows.weights, free_raw_data=False)

    fitted = []
    for settings in _SETTINGS:
        stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
        booster = lightgbm.train(_COMMON | settings, table(train), _ROUNDS, valid_sets=[table(valid)], callbacks=[stop])
        fitted.append((booster.best_score["valid_0"]["binary_logloss"], booster))
    return min(fitted, key=lambda one: one[0])[1]
