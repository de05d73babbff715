"""``ctr.json`` of a model version as a frozen value: all that serving must do as training did. Knows no tensors."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from adcascade.artifacts.errors import CorruptVersion
from adcascade.reports.interval import Interval
from ranking.calibration.calibration import Calibration
from ranking.errors import ModelError
from ranking.inputs.features import Features, reads_content, unknown_features
from ranking.model.shape import ModelShape
from ranking.model.trees import Blend

CTR_FILE = "ctr.json"
# Sizes that versions of 0.1 keep beside their features.
_SIZES_OF_BEFORE = ("id_buckets", "context_words")


class ExportParity(BaseModel):
    """How near what runs the text layers is to torch in float32, over pairs of a log, or made-up ones.

    Attributes:
        auc: of a click on these pairs; None for made-up pairs.
        auc_difference: from that of torch in float32; None for made-up pairs.
    """

    model_config = ConfigDict(frozen=True)

    pairs: int
    largest_difference: float
    correlation: float
    auc: float | None = None
    auc_difference: float | None = None


class OrderBlend(BaseModel):
    """How both stages make the order: log-odds of p_click + `retrieval_weight` x retrieval's score.

    Attributes:
        retrieval_weight: from 0, which is p_click alone.
        fitted_on: requests of which it is known what was shown together and clicked, or users and what they clicked
            later.
        units: how many requests or users.
        gain: what the weight adds to p_click alone on them: log-likelihood a request, or nDCG@10 a user. Of requests,
            of the best weight, which is not taken unless its gain is certain.
    """

    model_config = ConfigDict(frozen=True)

    retrieval_weight: float = Field(ge=0, allow_inf_nan=False)
    fitted_on: Literal["requests", "users"]
    units: int
    gain: Interval


class KeywordsFit(BaseModel):
    """How the keywords of ads are read.

    Attributes:
        scale: how much they count beside a layer; 0 for not at all.
        analyzer: what cut them into words, see `adcascade.catalog.words.ANALYZER`.
    """

    model_config = ConfigDict(frozen=True)

    scale: float
    analyzer: int


class TextPriorFit(BaseModel):
    """How the weights were chosen, and what they brought.

    Attributes:
        ads: how many texts were learned from.
        penalty: of the ridge regression, times the summed weight of its rows.
        words: how much a word counts beside a layer; 0 for not at all.
        gain: log-likelihood that it adds in the mean to a request (an ad, where requests show one) of the rows that
            decided, in nats. Where requests show one ad, ads count as often as their own effects leave them weight, see
            `ranking.calibration.evidence`.
        keywords: of keywords that stand beside the text; None where they are a part of it.
        with_training: whether training rows, each without its fold, decided with those of the validation part; else
            these alone.
    """

    model_config = ConfigDict(frozen=True)

    ads: int
    penalty: float
    words: float
    gain: Interval
    keywords: KeywordsFit | None = None
    with_training: bool = False

    @model_serializer(mode="wrap")
    def _without_defaults(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """See `CtrSpec.document`."""
        return {name: value for name, value in plain(self).items() if value is not None and value is not False}


class ContentFit(BaseModel):
    """How the space was made in which texts are compared.

    Attributes:
        ads: how many texts span it.
        analyzer: what cut them into words, see `adcascade.catalog.words.ANALYZER`.
        events: how many of a user's newest events are looked at.
    """

    model_config = ConfigDict(frozen=True)

    ads: int
    analyzer: int
    events: int


class CtrSpec(BaseModel):
    """What ``ctr.json`` holds: everything beside the weights that serving must do as training did.

    Attributes:
        features: names in `ranking.inputs.features.REGISTRY`, in the order in which the network reads them.
        feature_mean, feature_std: of each of them on the training data.
        stages: how far each stage of the training came, in words.
        trees: how boosted trees are blended with the network; None if there are none.
        text_prior: how the prior of texts was fitted; None if there is none.
        content: of the space that features compare texts in; None if there is none.
        order: of recommendations, by both stages; None if it was not fitted.
    """

    model_config = ConfigDict(frozen=True)

    architecture: Literal["shared_user", "joint"]
    base: str
    layers: int
    join_layer: int
    max_user_tokens: int
    max_ad_tokens: int
    features: tuple[str, ...]
    feature_mean: tuple[float, ...]
    feature_std: tuple[float, ...]
    prior_ctr: float
    shape: ModelShape
    calibration: Calibration = Calibration()
    conversion: Calibration | None = None
    metrics: dict[str, Interval] = {}
    training: dict[str, Any] = {}
    training_sha256: str = ""
    stages: dict[str, str] = {}
    trees: Blend | None = None
    text_prior: TextPriorFit | None = None
    content: ContentFit | None = None
    exports: dict[str, ExportParity] = {}
    order: OrderBlend | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_a_shape(cls, document: Any) -> Any:
        """Earlier releases kept two of the sizes by themselves, and of the others there was but one each."""
        if not isinstance(document, dict) or "shape" in document:
            return document
        sizes = {name: document[name] for name in _SIZES_OF_BEFORE if name in document}
        return {name: value for name, value in document.items() if name not in sizes} | {"shape": sizes}

    @model_validator(mode="after")
    def _features_are_described(self) -> "CtrSpec":
        if not len(self.features) == len(self.feature_mean) == len(self.feature_std):
            raise ValueError("there are not as many means and deviations as features")
        if self.content is None and any(map(reads_content, self.features)):
            raise ValueError("features compare texts, and nothing says in which space")
        if self.content is not None and self.content.events != self.shape.history_events:
            raise ValueError("texts are compared with another number of past events than the network reads")
        return self

    @property
    def retrieval_weight(self) -> float | None:
        """What retrieval's score counts in the order of recommendations; None if it was not fitted."""
        return None if self.order is None else self.order.retrieval_weight

    def document(self) -> dict[str, Any]:
        """What ``ctr.json`` holds.

        What is not there is not named, so that a release which knows nothing of it can read the version, too.
        """
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}

    def normalise(self, features: Features) -> Features:
        """Features as the head wants them: mean 0, deviation 1 on the training data; float32 [rows, features].

        What is not known (NaN) becomes the mean.
        """
        mean, std = np.array(self.feature_mean, np.float32), np.array(self.feature_std, np.float32)
        normal: Features = features - mean
        normal /= std
        return np.nan_to_num(normal, copy=False, nan=0.0)


def read_spec(path: Path) -> CtrSpec:
    """What ``ctr.json`` of a version says.

    Raises:
        CorruptVersion: It is missing, or no such file.
        ModelError: It needs what only a later release can do.
    """
    try:
        document = json.loads((path / CTR_FILE).read_bytes())
        spec = CtrSpec.model_validate(_known_of(document, path.name))
    except (OSError, ValueError, RecursionError) as error:  # pydantic's and the JSON decoder's errors are ValueErrors
        raise CorruptVersion(f"{path / CTR_FILE} is missing or of another shape: {error}") from error
    if unknown := unknown_features(spec.features):
        raise ModelError(
            f"model version {path.name} was trained with features that this release does not compute "
            f"({', '.join(unknown)}); upgrade adcascade, or train it again"
        )
    return spec


def _known_of(document: Any, version: str) -> Any:
    """`document`; raises ModelError if it gives what this release knows nothing of, and would leave out unseen."""
    shape = document.get("shape") if isinstance(document, dict) else None
    if isinstance(shape, dict) and (later := shape.keys() - ModelShape.model_fields.keys()):
        raise ModelError(
            f"the network of model version {version} has sizes that this release knows nothing of "
            f"({', '.join(sorted(later))}); upgrade adcascade, or train it again"
        )
    known = {*CtrSpec.model_fields, *_SIZES_OF_BEFORE}
    if isinstance(document, dict) and (later := document.keys() - known):
        raise ModelError(
            f"model version {version} says what this release knows nothing of ({', '.join(sorted(later))}), and would "
            "answer otherwise than it was trained to; upgrade adcascade, or train it again"
        )
    return document
