"""A training from data to a model with its calibration. Knows no serving."""

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from adcascade.records.memory import release_unused
from adcascade.records.packed import sum_of
from adcascade.training.checkpoint import checkpoint_file
from adcascade.training.stage import OnProgress, StageContext, StageResult
from adcascade.training.workers import join_workers, worker_device
from ranking.artifact import ModelVersion, Ranker, RankerModel
from ranking.calibration.calibrate import fit_calibration, fit_conversions
from ranking.data.dataset import Dataset
from ranking.data.scorer import Scorer, predict_logits
from ranking.data.text_batches import BatchMaker, make_blocks
from ranking.errors import ModelError
from ranking.evaluation.results import TextFit
from ranking.model.shared_user import JOINT, SHARED_USER
from ranking.runtime.hardware import choose_device, choose_precision
from ranking.spec import CtrSpec
from ranking.training.begin import begin
from ranking.training.behaviour import train_behaviour
from ranking.training.beside import fit_beside
from ranking.training.distill import make_lessons
from ranking.training.losses import GROUP_LOSSES
from ranking.training.options import BehaviourOptions, TrainOptions
from ranking.training.text import train_text, validation_blocks
from ranking.training.versions import load_named

log = logging.getLogger(__name__)

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trained(Ranker):
    """A trained model with all that a version needs but its test metrics; its stages, and its teacher, if any."""

    text_fit: TextFit
    stages: dict[str, StageResult]
    teacher: ModelVersion | None = None


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
    release_unused()
    model, rows = start.ranker.model.to(device), start.rows
    seconds = None if common.max_minutes is None else 60 * common.max_minutes
    identity = "" if checkpoints is None else f"{checkpoints.name} {_weights_sha256(model)}"
    whole = StageContext(watch, workers, seconds=seconds, identity=identity)
    first = _first_part(whole, options.behaviour, checkpoints)
    is_new = not options.base.warm_start
    started = time.monotonic()
    learned = train_behaviour(model.behaviour, rows, data, options.behaviour, common, first, is_new=is_new)
    release_unused()
    before = max(0.0, learned.seconds - (time.monotonic() - started))  # of a run that this one goes on from
    beside = fit_beside(data, start, options, whole)
    ranker, known = beside.ranker, beside.known
    release_unused()
    maker = BatchMaker(data, start.ads, rows.dense, known, beside.of_position, ranker, device)
    # That of the first process for all: else they would end the text stage apart, and wait for each other.
    spent = workers.agree(before + time.monotonic() - started, device)
    bfloat16 = choose_precision(common.precision, device)
    scorer = Scorer(ranker, device, bfloat16, keep=options.text.train_layers == "joined")
    teacher = load_named(options.teacher.version) if options.teacher.version else None
    lessons = None
    if teacher is not None:
        lessons = make_lessons(data, teacher, model, options.teacher, device, common.precision)
    rest = replace(_rest(whole, spent, checkpoints), identity=f"{identity} {beside.sha256}")
    fit = train_text(model, scorer, maker, data, options.text, common, rest, lessons)
    predicted, logits = predict_logits(scorer, maker, _calibration_blocks(model, data, options))
    spec = _calibrated(ranker.spec, data, predicted, logits, known.conversion(predicted).astype(np.float64))
    model.cpu()
    text_fit = _text_fit(ranker, fit, data, options)
    return _trained(replace(ranker, spec=spec), text_fit, {"behaviour": learned, "text": fit}, teacher)


def _trained(
    ranker: Ranker, text_fit: TextFit, stages: dict[str, StageResult], teacher: ModelVersion | None
) -> Trained:
    """`ranker` with a spec that says what stands beside its network, and how far each stage came."""
    spec = ranker.spec.model_copy(
        update={
            "trees": None if ranker.trees is None else ranker.trees.blend,
            "text_prior": None if ranker.text_prior is None else ranker.text_prior.fit,
            "stages": {stage: str(one) for stage, one in stages.items() if one.planned},
        }
    )
    return Trained(
        ranker.model,
        ranker.tokenizer,
        spec,
        text_fit,
        stages,
        teacher,
        trees=ranker.trees,
        text_prior=ranker.text_prior,
        content=ranker.content,
    )


def _first_part(whole: StageContext, options: BehaviourOptions, checkpoints: Path | None) -> StageContext:
    """Of the behaviour part: its share of the time."""
    seconds = None if whole.seconds is None else options.share * whole.seconds
    return replace(whole, seconds=seconds, checkpoint=checkpoint_file(checkpoints, "behaviour"))


def _rest(whole: StageContext, spent: float, checkpoints: Path | None) -> StageContext:
    """Of the text layers: the time that is left when so many seconds are spent."""
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
    if sum_of(data.log.conversions, data.split.train):
        p_click = calibration.probability(click)
        update["conversion"] = fit_conversions(p_click, conversion, log.conversions, log.impressions)
    return spec.model_copy(update=update)


def _text_fit(ranker: Ranker, fit: StageResult, data: Dataset, options: TrainOptions) -> TextFit:
    rows = sum(map(len, validation_blocks(data, options.text, options.text.validation_rows, options.common.seed)))
    prior = ranker.text_prior
    return TextFit(
        reads_text=not ranker.model.text_is_untrained,
        steps=fit.steps,
        kept_step=fit.kept_step,
        validation_rows=rows,
        loss_before=fit.loss_before,
        loss_kept=fit.loss_kept,
        planned=fit.planned,
        by_clock=fit.by_clock,
        prior_ads=0 if prior is None else prior.fit.ads,
        prior_gain=None if prior is None else prior.fit.gain,
        prior_with_training=prior is not None and prior.fit.with_training,
    )


def _check(options: TrainOptions) -> None:
    choices = {
        "architecture": (SHARED_USER, JOINT),
        "train_layers": ("joined", "all"),
        "group_loss": ("none", *GROUP_LOSSES),
        "conversions_over": ("impressions", "clicks"),
        "trees": ("auto", "none"),
        "text_prior": ("auto", "none"),
        "behaviour_line": ("auto", "none"),
        "content": ("auto", "always", "none"),
    }
    given = options.flags
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise ModelError(f"{name} must be {' or '.join(allowed)}, not {given[name]!r}")
    if not 0 < options.common.negative_rate <= 1:
        raise ModelError(f"negative_rate must be above 0 and at most 1, not {options.common.negative_rate}")


def _check_clicks(data: Dataset) -> None:
    clicks, impressions = (sum_of(column, data.split.train) for column in (data.log.clicks, data.log.impressions))
    if clicks in (0, impressions):
        raise InputError(
            f"the training part of the log has {'no clicks' if not clicks else 'only clicks'} to learn from: {clicks} "
            f"clicks on {impressions} impressions. A log needs the impressions with a click and those without one"
        )


def _calibration_blocks(model: RankerModel, data: Dataset, options: TrainOptions) -> list[Integers]:
    """All of the validation part where that costs nothing, since no text is read."""
    if model.text_is_untrained:
        return make_blocks(data, data.split.valid, max_ads=options.text.max_ads_per_user, merge_requests=True)
    return validation_blocks(data, options.text, options.text.calibration_rows, options.common.seed)
