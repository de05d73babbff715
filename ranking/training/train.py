"""A training from data to a model with its calibration. Knows no serving."""

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from adcascade.training.checkpoint import checkpoint_file
from adcascade.training.stage import OnProgress, StageContext, StageResult
from adcascade.training.workers import Workers, join_workers, worker_device
from ranking.artifact import ModelVersion, Ranker, RankerModel, check_lengths, default_join_layer, load_base
from ranking.calibration.calibrate import fit_calibration, fit_conversions
from ranking.data.behaviour_rows import BehaviourRows, behaviour_logits, known_logits
from ranking.data.block_features import moments
from ranking.data.dataset import Dataset
from ranking.data.known_logits import KnownLogits
from ranking.data.scorer import Scorer, predict_logits
from ranking.data.text_batches import AdTexts, BatchMaker, make_blocks
from ranking.errors import ModelError
from ranking.evaluation.results import TextFit
from ranking.model.behaviour import BehaviourLogits
from ranking.model.shape import ModelShape
from ranking.model.shared_user import JOINT, SHARED_USER, SharedUserCrossEncoder
from ranking.model.trees import BoostedTrees, as_text, of_text
from ranking.runtime.hardware import choose_device, choose_precision
from ranking.spec import CtrSpec
from ranking.training.behaviour import train_behaviour
from ranking.training.distill import keep_layers, make_lessons
from ranking.training.losses import GROUP_LOSSES
from ranking.training.options import BaseOptions, BehaviourOptions, TrainOptions
from ranking.training.text import train_text, validation_blocks
from ranking.training.trees import train_trees
from ranking.training.versions import load_named

log = logging.getLogger(__name__)

Logits = npt.NDArray[np.float64]

# Of --max-minutes, what boosted trees may take at most.
_TREES_SHARE = 0.1


@dataclass(frozen=True)
class Trained(Ranker):
    """A trained model with all that a version needs but its test metrics; its stages, and its teacher, if any."""

    text_fit: TextFit
    stages: dict[str, StageResult]
    teacher: ModelVersion | None = None


@dataclass(frozen=True)
class Start:
    """The base model before training, and every row of the log as its behaviour part reads it."""

    ranker: Ranker
    ads: AdTexts
    rows: BehaviourRows


def train(
    data: Dataset,
    options: TrainOptions,
    watch: OnProgress = lambda _: None,
    *,
    checkpoints: Path | None = None,
) -> Trained:
    """Trains on the training part, keeps the weights that are best on the validation part, and calibrates them there.

    Args:
        checkpoints: Folder that a killed training of the same data and options goes on from; None for no checkpoints.

    Raises:
        InputError: The training part holds no click, or nothing but clicks.
        ArtifactError: The version to start from is not there, or damaged.
        ModelError: The base model or an option cannot be used.
        TrainingError: The loss is not a number.
    """
    _check(options)
    _check_clicks(data)
    common = options.common
    torch.manual_seed(common.seed)
    device = worker_device(choose_device(common.device))
    workers = join_workers(device)
    start = begin(data, options, device)
    model, rows = start.ranker.model.to(device), start.rows
    seconds = None if common.max_minutes is None else 60 * common.max_minutes
    identity = "" if checkpoints is None else f"{checkpoints.name} {_weights_sha256(model)}"
    whole = StageContext(watch, workers, seconds=seconds, identity=identity)
    first = _first_part(whole, options.behaviour, checkpoints)
    is_new = not options.base.warm_start
    learned = train_behaviour(model.behaviour, rows, data, options.behaviour, common, first, is_new=is_new)
    after_network = time.monotonic()
    if _wants_trees(options, data):
        start = replace(start, ranker=replace(start.ranker, trees=_trees(data, start, whole)))
    # That of the first process for all: else they would end the text stage apart, and wait for each other.
    spent = workers.agree(learned.seconds + time.monotonic() - after_network, device)
    known = KnownLogits(len(data.log), partial(_for_text, data, start))
    maker = _batch_maker(data, start, known, device)
    bfloat16 = choose_precision(common.precision, device)
    scorer = Scorer(start.ranker, device, bfloat16, keep=options.text.train_layers == "joined")
    teacher = load_named(options.teacher.version) if options.teacher.version else None
    lessons = None
    if teacher is not None:
        lessons = make_lessons(data, teacher, model, options.teacher, device, common.precision)
    fit = train_text(model, scorer, maker, data, options.text, common, _rest(whole, spent, checkpoints), lessons)
    predicted, logits = predict_logits(scorer, maker, _calibration_blocks(model, data, options))
    spec = _calibrated(start.ranker.spec, data, predicted, logits, known.conversion(predicted).astype(np.float64))
    model.cpu()
    trees = start.ranker.trees
    spec = spec.model_copy(update={"trees": None if trees is None else trees.blend})
    stages = {"behaviour": learned, "text": fit}
    spec = spec.model_copy(update={"stages": {stage: str(one) for stage, one in stages.items() if one.planned}})
    return Trained(
        model, start.ranker.tokenizer, spec, _text_fit(model, fit, data, options), stages, teacher, trees=trees
    )


def _wants_trees(options: TrainOptions, data: Dataset) -> bool:
    """Not where the order within a request is learned, too: trees learn single rows, and would turn it around again.

    Nor where the log has places on the page: scores are those of an average place, and trees know no places, so that
    they would learn of an ad what was its place's.
    """
    learns_rows = options.behaviour.epochs > 0 and options.common.group_loss == "none"
    return options.behaviour.trees == "auto" and learns_rows and not (data.log.position > 0).any()


def _trees(data: Dataset, start: Start, whole: StageContext) -> BoostedTrees | None:
    """Boosted trees of the training part, where they help the network on the validation part."""
    if whole.workers.count > 1:  # where the clock ends it, each process would end with trees of its own
        alone = replace(whole, workers=Workers())
        device = next(start.ranker.model.parameters()).device
        return of_text(whole.workers.share(lambda: as_text(_trees(data, start, alone)), device))
    seconds = None if whole.seconds is None else _TREES_SHARE * whole.seconds
    network = behaviour_logits(start.ranker.model.behaviour, start.rows, data.split.valid)
    return train_trees(data, start.rows.dense, network.click.double().numpy(), replace(whole, seconds=seconds))


def _batch_maker(data: Dataset, start: Start, known: KnownLogits, device: torch.device) -> BatchMaker:
    """Batches for the text layers, with what the trained behaviour part says of every row."""
    model, rows = start.ranker.model, start.rows
    with torch.no_grad():
        of_position = rows.of_position(model.behaviour, np.arange(len(data.log))).cpu().numpy()
    return BatchMaker(data, start.ads, rows.dense, known, of_position, start.ranker, device)


def _for_text(data: Dataset, start: Start, rows: Integers) -> BehaviourLogits:
    """What the text layers learn beside: of training rows the network alone, since trees know these rows by heart."""
    known = known_logits(start.ranker, start.rows, rows)
    at = np.flatnonzero(np.isin(rows, data.split.train))
    if start.ranker.trees is None or not len(at):
        return known
    known.click[at] = behaviour_logits(start.ranker.model.behaviour, start.rows, rows[at]).click
    return known


def _first_part(whole: StageContext, options: BehaviourOptions, checkpoints: Path | None) -> StageContext:
    """Of the behaviour part: its share of the time."""
    seconds = None if whole.seconds is None else options.share * whole.seconds
    return replace(whole, seconds=seconds, checkpoint=checkpoint_file(checkpoints, "behaviour"))


def _rest(whole: StageContext, spent: float, checkpoints: Path | None) -> StageContext:
    """Of the text layers: the time that the behaviour part and the trees left, which spent so many seconds."""
    seconds = None if whole.seconds is None else max(0.0, whole.seconds - spent)
    return replace(whole, seconds=seconds, checkpoint=checkpoint_file(checkpoints, "text"))


def _weights_sha256(model: RankerModel) -> str:
    """Of what a training begins with: a folder of a base model may hold another one by the time it is taken up."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _calibrated(spec: CtrSpec, data: Dataset, rows: Integers, click: Logits, conversion: Logits) -> CtrSpec:
    """`spec` with calibrations fitted on the logits of some rows of the validation part."""
    log = data.log.take(rows)
    calibration = fit_calibration(click, log.clicks, log.impressions)
    update: dict[str, object] = {"calibration": calibration}
    if data.log.conversions[data.split.train].any():
        p_click = calibration.probability(click)
        update["conversion"] = fit_conversions(p_click, conversion, log.conversions, log.impressions)
    return spec.model_copy(update=update)


def _text_fit(model: RankerModel, fit: StageResult, data: Dataset, options: TrainOptions) -> TextFit:
    rows = sum(map(len, validation_blocks(data, options.text, options.text.validation_rows, options.common.seed)))
    return TextFit(
        not model.text_is_untrained,
        fit.steps,
        fit.kept_step,
        rows,
        fit.loss_before,
        fit.loss_kept,
        fit.planned,
        fit.by_clock,
    )


def _check(options: TrainOptions) -> None:
    choices = {
        "architecture": (SHARED_USER, JOINT),
        "train_layers": ("joined", "all"),
        "group_loss": ("none", *GROUP_LOSSES),
        "conversions_over": ("impressions", "clicks"),
        "trees": ("auto", "none"),
    }
    given = options.flags
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise ModelError(f"{name} must be {' or '.join(allowed)}, not {given[name]!r}")
    if not 0 < options.common.negative_rate <= 1:
        raise ModelError(f"negative_rate must be above 0 and at most 1, not {options.common.negative_rate}")


def _check_clicks(data: Dataset) -> None:
    training = data.log.take(data.split.train)
    clicks, impressions = int(training.clicks.sum()), int(training.impressions.sum())
    if clicks in (0, impressions):
        raise InputError(
            f"the training part of the log has {'no clicks' if not clicks else 'only clicks'} to learn from: {clicks} "
            f"clicks on {impressions} impressions. A log needs the impressions with a click and those without one"
        )


def begin(data: Dataset, options: TrainOptions, device: torch.device) -> Start:
    """What a training begins with; see `train` for what is raised."""
    base = options.base
    model, tokenizer, shape, features = _earlier_version(options, data) if base.warm_start else _base(data, base)
    if base.layers is not None:
        keep_layers(model, base.layers)
    _set_join_layer(model, base)
    check_lengths(model, base.max_user_tokens, base.max_ad_tokens)
    ads = AdTexts(data, tokenizer, base.max_ad_tokens)
    if not base.warm_start:
        model.text.center_on(ads.tokens.values(), int(tokenizer.pad_token_id or 0))
    spec = _spec(data, options, model, shape, features)
    ranker = Ranker(model, tokenizer, spec)
    return Start(ranker, ads, BehaviourRows(data, ads, ranker, device))


_Network = tuple[RankerModel, PreTrainedTokenizerBase, ModelShape, tuple[str, ...]]


def _base(data: Dataset, options: BaseOptions) -> _Network:
    """Network, tokenizer, sizes and feature names of a base model that knows no clicks."""
    shape = ModelShape(id_buckets=_id_buckets(len(data.ads)))
    names = data.feature_names
    model, tokenizer = load_base(options.name, options.architecture, 0, shape, len(names))
    if isinstance(model, SharedUserCrossEncoder):
        model.join_layer = default_join_layer(len(model.layers))
    return model, tokenizer, shape, names


def _earlier_version(options: TrainOptions, data: Dataset) -> _Network:
    """Network, tokenizer, sizes and feature names of a version trained before, on this log or on another."""
    base = options.base
    loaded = load_named(base.warm_start)
    if loaded.spec.architecture != base.architecture:
        raise ModelError(f"version {loaded.version} is {loaded.spec.architecture}, not {base.architecture}")
    if loaded.trees is not None and not _wants_trees(options, data):
        log.warning(
            "version %s has boosted trees, which are of its own log and are left out: these options fit none anew",
            loaded.version,
        )
    return loaded.model, loaded.tokenizer, loaded.spec.shape, loaded.spec.features


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
    data: Dataset, options: TrainOptions, model: RankerModel, shape: ModelShape, names: tuple[str, ...]
) -> CtrSpec:
    prior_ctr = data.prior_ctr
    mean, deviation = moments(data.feature_table(data.past, prior_ctr, names), data.split.train)
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
    )


def _calibration_blocks(model: RankerModel, data: Dataset, options: TrainOptions) -> list[Integers]:
    """All of the validation part where that costs nothing, since no text is read."""
    if model.text_is_untrained:
        return make_blocks(data, data.split.valid, max_ads=options.text.max_ads_per_user, merge_requests=True)
    return validation_blocks(data, options.text, options.text.calibration_rows, options.common.seed)
