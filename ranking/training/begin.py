"""What a training begins with: a base model or an earlier version, and the log as it reads it. Knows no optimizer."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ranking.artifact import Ranker, RankerModel, check_lengths, default_join_layer, load_base
from ranking.data.behaviour_rows import BehaviourRows
from ranking.data.block_features import moments
from ranking.data.dataset import Dataset
from ranking.data.text_batches import AdTexts
from ranking.errors import ModelError
from ranking.inputs.features import content_features
from ranking.model.shape import ModelShape
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.spec import CtrSpec
from ranking.training.content import FittedContent, fit_content
from ranking.training.distill import keep_layers
from ranking.training.options import BaseOptions, TrainOptions
from ranking.training.trees import wants_trees
from ranking.training.versions import load_named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The base model before training, and every row of the log as its behaviour part reads it."""

    ranker: Ranker
    ads: AdTexts
    rows: BehaviourRows


def begin(data: Dataset, options: TrainOptions, device: torch.device) -> Start:
    """What a training begins with; see `train` for what is raised."""
    base = options.base
    model, tokenizer, shape, features, space = (
        _earlier_version(options, data) if base.warm_start else _base(data, options)
    )
    if base.layers is not None:
        keep_layers(model, base.layers)
    _set_join_layer(model, base)
    check_lengths(model, base.max_user_tokens, base.max_ad_tokens)
    ads = AdTexts(data, tokenizer, base.max_ad_tokens)
    if not base.warm_start:
        model.text.center_on(ads.tokens.values(), int(tokenizer.pad_token_id or 0))
    spec = _spec(data, options, model, shape, features, space)
    ranker = Ranker(model, tokenizer, spec, content=None if space is None else space.space)
    return Start(ranker, ads, BehaviourRows(data, ads, ranker, device))


_Network = tuple[RankerModel, PreTrainedTokenizerBase, ModelShape, tuple[str, ...], FittedContent | None]


def _base(data: Dataset, options: TrainOptions) -> _Network:
    """Network, tokenizer, sizes, feature names and content space of a base model that knows no clicks."""
    shape, base = ModelShape(id_buckets=_id_buckets(len(data.ads))), options.base
    content = _content(data, options.behaviour.content, shape.history_events)
    names = data.feature_names
    if content is not None:
        names += content_features(request_rows=data.rows_per_request)
    model, tokenizer = load_base(base.name, base.architecture, 0, shape, len(names))
    if isinstance(model, SharedUserCrossEncoder):
        model.join_layer = default_join_layer(len(model.layers))
    return model, tokenizer, shape, names, content


def _content(data: Dataset, which: str, events: int) -> FittedContent | None:
    if which == "none":
        return None
    return fit_content(data, events, most_clicks=math.inf) if which == "always" else fit_content(data, events)


def _earlier_version(options: TrainOptions, data: Dataset) -> _Network:
    """Network, tokenizer, sizes, feature names and content space of a version trained before, on whichever log."""
    base = options.base
    loaded = load_named(base.warm_start)
    if loaded.spec.architecture != base.architecture:
        raise ModelError(f"version {loaded.version} is {loaded.spec.architecture}, not {base.architecture}")
    if loaded.trees is not None and not wants_trees(options, data):
        log.warning(
            "version %s has boosted trees, which are of its own log and are left out: these options fit none anew",
            loaded.version,
        )
    if loaded.text_prior is not None and not wants_prior(options, loaded.model):
        log.warning(
            "version %s has a prior of texts, which is of its own log and is left out: these options learn none anew",
            loaded.version,
        )
    content = None
    if loaded.content is not None and loaded.spec.content is not None:
        content = FittedContent(loaded.content, loaded.spec.content)
    if options.behaviour.content == ("none" if content else "always"):
        raise ModelError(
            f"version {loaded.version} compares {'' if content else 'no '}texts, and what starts from it does as it "
            "does: leave --content out, or train without --warm-start"
        )
    return loaded.model, loaded.tokenizer, loaded.spec.shape, loaded.spec.features, content


def wants_prior(options: TrainOptions, model: RankerModel) -> bool:
    """Not where the layers that it reads are to be trained; a plain cross-encoder has none that know no user."""
    frozen = options.text.train_layers == "joined" or options.text.epochs == 0
    return options.text.prior == "auto" and frozen and isinstance(model, SharedUserCrossEncoder)


def _set_join_layer(model: RankerModel, options: BaseOptions) -> None:
    if options.join_layer is None or not isinstance(model, SharedUserCrossEncoder):
        return
    if not 0 <= options.join_layer < len(model.layers):
        raise ModelError(f"the model has {len(model.layers)} layers; the join layer {options.join_layer} is not below")
    model.join_layer = options.join_layer


def _id_buckets(ads: int) -> int:
    """Learned ids: a power of two with room to spare, so that few ads share one."""
    return int(2 ** np.clip(np.ceil(np.log2(4 * ads)), 8, 20))


def _spec(
    data: Dataset,
    options: TrainOptions,
    model: RankerModel,
    shape: ModelShape,
    names: tuple[str, ...],
    content: FittedContent | None,
) -> CtrSpec:
    prior_ctr = data.prior_ctr
    table = data.feature_table(data.past, prior_ctr, names, None if content is None else content.space)
    mean, deviation = moments(table, data.split.train, data.limits)
    return CtrSpec(
        architecture="shared_user" if isinstance(model, SharedUserCrossEncoder) else "joint",
        base=options.base.name,
        layers=int(model.encoder.config.num_hidden_layers),
        join_layer=model.join_layer if isinstance(model, SharedUserCrossEncoder) else 0,
        max_user_tokens=options.base.max_user_tokens,
        max_ad_tokens=options.base.max_ad_tokens,
        features=names,
        feature_mean=tuple(mean.tolist()),
        feature_std=tuple(np.maximum(deviation, 0.1).tolist()),
        prior_ctr=prior_ctr,
        shape=shape.model_copy(update={"context_words": options.base.context_words}),
        training={name: str(value) if isinstance(value, Path) else value for name, value in options.flags.items()},
        training_sha256=data.training_sha256,
        content=None if content is None else content.fit,
    )
