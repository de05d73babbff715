"""Fine-tuning of the click model on a click log. Knows no serving."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ranking.ad_states import AdStateCache
from ranking.artifact import CtrSpec, RankerModel, check_lengths, default_join_layer, load_base
from ranking.batch import TokenRows
from ranking.engine import choose_device, choose_precision
from ranking.errors import ModelError
from ranking.features import FEATURES
from ranking.model import JOINT, SHARED_USER, SharedUserCrossEncoder
from ranking.training.behaviour import BehaviourRows, Progress, behaviour_logits, train_behaviour
from ranking.training.calibrate import fit_platt
from ranking.training.dataset import AdTexts, BatchMaker, Dataset, LabelledBatch, make_blocks
from ranking.training.options import TrainOptions
from ranking.training.results import TextFit
from records.clicks import Integers
from records.errors import InputError

log = logging.getLogger(__name__)

_CACHED_ADS = 50_000


@dataclass(frozen=True)
class Trained:
    """A trained model with everything a version needs but its test metrics."""

    model: RankerModel
    tokenizer: PreTrainedTokenizerBase
    spec: CtrSpec
    text_fit: TextFit


class Scorer:
    """Runs a model over batches; where nothing below the join layer is trained, those ad states are kept."""

    def __init__(self, model: RankerModel, spec: CtrSpec, device: torch.device, bfloat16: bool, *, keep: bool) -> None:
        self._model = model
        self._device = device
        self._bfloat16 = bfloat16
        self._cache: AdStateCache | None = None
        if keep and isinstance(model, SharedUserCrossEncoder):
            hidden = int(model.encoder.config.hidden_size)
            self._cache = AdStateCache(_CACHED_ADS, spec.max_ad_tokens, hidden, device)

    def logits(self, batch: LabelledBatch) -> Tensor:
        """Logits of a batch, float32 [pairs]."""
        if not torch.is_grad_enabled() and self._model.adds_nothing:
            return batch.behaviour
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            model = self._model
            if self._cache is None or not isinstance(model, SharedUserCrossEncoder):
                return batch.behaviour + model(batch.pairs).float()  # type: ignore[no-any-return]
            hidden, mask = self._ad_states(model, self._cache, batch)
            users = model.user_states(batch.pairs.users)
            added = model.join(users, batch.pairs.ads_per_user, hidden, mask, batch.pairs.dense)
            return batch.behaviour + added.float()

    @staticmethod
    @torch.no_grad()
    def _ad_states(model: SharedUserCrossEncoder, cache: AdStateCache, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        def compute(places: Sequence[int]) -> tuple[TokenRows, Tensor]:
            rows = batch.pairs.ads.take(places)
            return rows, model.ad_states(rows)

        hidden, mask, _ = cache.gather(batch.ad_texts, compute)
        return hidden, mask


def train(data: Dataset, options: TrainOptions, progress: Progress = lambda *_: None) -> Trained:
    """Trains on the training part, keeps the weights that are best on the validation part, and calibrates them there.

    Raises:
        InputError: The training part holds no click, or nothing but clicks.
        ModelError: The base model cannot be used, or the loss is not a number.
    """
    torch.manual_seed(options.seed)
    device = choose_device(options.device)
    if options.architecture not in (SHARED_USER, JOINT):
        raise ModelError(f"architecture must be {SHARED_USER} or {JOINT}, not {options.architecture!r}")
    _check_clicks(data)
    start = _start(data, options, device, progress)
    model, tokenizer, spec, maker = start.model.to(device), start.tokenizer, start.spec, start.maker
    keep = options.train_layers == "joined"
    scorer = Scorer(model, spec, device, choose_precision(options.precision, device), keep=keep)
    best, text_fit = _fit(model, scorer, maker, data, options, progress)
    model.load_state_dict(best, strict=False)
    rows, logits = predict_logits(scorer, model, maker, _calibration_blocks(model, data, options))
    calibration = fit_platt(logits, data.log.clicks[rows], data.log.impressions[rows])
    model.cpu()
    return Trained(model, tokenizer, spec.model_copy(update={"calibration": calibration}), text_fit)


def _check_clicks(data: Dataset) -> None:
    training = data.log.take(data.parts[0])
    clicks, impressions = int(training.clicks.sum()), int(training.impressions.sum())
    if clicks in (0, impressions):
        raise InputError(
            f"the training part of the log has {'no clicks' if not clicks else 'only clicks'} to learn from: {clicks} "
            f"clicks on {impressions} impressions. A log needs the impressions with a click and those without one"
        )


@dataclass(frozen=True)
class _Start:
    """The base model with a trained behaviour part, ready for fine-tuning."""

    model: RankerModel
    tokenizer: PreTrainedTokenizerBase
    spec: CtrSpec
    maker: BatchMaker


def _start(data: Dataset, options: TrainOptions, device: torch.device, progress: Progress) -> _Start:
    if options.train_layers not in ("joined", "all"):
        raise ModelError(f"train_layers must be joined or all, not {options.train_layers!r}")
    buckets = _id_buckets(len(data.ads))
    model, tokenizer = load_base(options.base, options.architecture, options.join_layer or 0, buckets)
    if isinstance(model, SharedUserCrossEncoder) and options.join_layer is None:
        model.join_layer = default_join_layer(len(model.layers))
    check_lengths(model, options.max_user_tokens, options.max_ad_tokens)
    ads = AdTexts(data, tokenizer, options.max_ad_tokens)
    model.text.center_on(ads.tokens.values(), int(tokenizer.pad_token_id or 0))
    spec = _spec(data, options, model, buckets)
    rows = BehaviourRows(data, ads, model.text, tokenizer, spec, device)
    model.behaviour.to(device)
    train_behaviour(model.behaviour, rows, data, options, progress)
    known = behaviour_logits(model.behaviour, rows, np.arange(len(data.log))).click.numpy()
    return _Start(model, tokenizer, spec, BatchMaker(data, ads, rows.dense, known, tokenizer, spec, device))


def _id_buckets(ads: int) -> int:
    """Learned ids: a power of two with room to spare, so that few ads share one."""
    return int(2 ** np.clip(np.ceil(np.log2(4 * ads)), 8, 20))


def _spec(data: Dataset, options: TrainOptions, model: RankerModel, buckets: int) -> CtrSpec:
    prior_ctr = data.prior_ctr
    features = data.features(data.past, prior_ctr)[data.parts[0]]
    return CtrSpec(
        architecture="shared_user" if isinstance(model, SharedUserCrossEncoder) else "joint",
        base=options.base,
        layers=int(model.encoder.config.num_hidden_layers),
        join_layer=model.join_layer if isinstance(model, SharedUserCrossEncoder) else 0,
        max_user_tokens=options.max_user_tokens,
        max_ad_tokens=options.max_ad_tokens,
        features=FEATURES,
        feature_mean=tuple(features.mean(axis=0).tolist()),
        feature_std=tuple(np.maximum(features.std(axis=0), 0.1).tolist()),
        prior_ctr=prior_ctr,
        id_buckets=buckets,
        training=asdict(options),
        data_sha256=data.sha256,
    )


def click_loss(logits: Tensor, clicks: Tensor, impressions: Tensor) -> Tensor:
    """Binary cross-entropy per impression, with counts as weights; all [pairs]."""
    total = clicks * F.softplus(-logits) + (impressions - clicks) * F.softplus(logits)
    return total.sum() / impressions.sum()


def predict_logits(
    scorer: Scorer, model: RankerModel, maker: BatchMaker, blocks: list[Integers], pairs_per_batch: int = 256
) -> tuple[Integers, npt.NDArray[np.float64]]:
    """Row indices and logits of all rows in `blocks`, in evaluation mode."""
    model.eval()
    rows, logits = [], []
    with torch.no_grad():
        for batch in maker.batches(blocks, pairs_per_batch):
            rows.append(batch.rows)
            logits.append(scorer.logits(batch).cpu().numpy().astype(np.float64))
    return np.concatenate(rows), np.concatenate(logits)


def _fit(
    model: RankerModel,
    scorer: Scorer,
    maker: BatchMaker,
    data: Dataset,
    options: TrainOptions,
    progress: Progress,
) -> tuple[dict[str, Tensor], TextFit]:
    """Runs the steps; returns the trained weights that were best on the validation part, and what they brought."""
    clock = _Clock(data, options)
    model.behaviour.requires_grad_(False)
    trained = _freeze(model, options)
    optimizer = torch.optim.AdamW(_groups(model, options), weight_decay=options.weight_decay)
    rates = [group["lr"] for group in optimizer.param_groups]
    validation = _validation_blocks(data, options)

    def validate() -> float:
        rows, logits = predict_logits(scorer, model, maker, validation)
        columns = (logits, data.log.clicks[rows], data.log.impressions[rows])
        return float(click_loss(*(torch.from_numpy(column).double() for column in columns)))

    untrained = _copy(model, trained)
    best_loss, best, stale = validate(), untrained, 0
    loss_before, kept_step, taken = best_loss, 0, 0
    progress("text", 0, 0.0, best_loss)
    for step, batch in enumerate(_endless_batches(maker, data, options), start=1):
        done = clock.done(step - 1)
        if done >= 1.0 or stale >= options.patience:
            break
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, max(done, 1 / clock.steps) / options.warmup_share) * (1.0 - done)
        _step(model, scorer, optimizer, batch, options)
        taken = step
        if step % options.validate_every == 0 or clock.done(step) >= 1.0:
            current = validate()
            stale = 0 if current < best_loss else stale + 1
            if current < best_loss:
                best_loss, best, kept_step = current, _copy(model, trained), step
            log.info("step %d: validation log loss %.4f, best %.4f", step, current, best_loss)
        progress("text", step, clock.done(step), best_loss)
    if loss_before - best_loss < options.min_text_gain:
        best, best_loss, kept_step = untrained, loss_before, 0
    return best, TextFit(taken, kept_step, sum(map(len, validation)), loss_before, best_loss)


def _step(
    model: RankerModel, scorer: Scorer, optimizer: torch.optim.Optimizer, batch: LabelledBatch, options: TrainOptions
) -> None:
    _train_mode(model, options)
    loss = click_loss(scorer.logits(batch), batch.clicks, batch.impressions)
    if not torch.isfinite(loss):
        raise ModelError("the training loss is not a number; lower --learning-rate")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


class _Clock:
    """How much of the run is done: the larger share of steps and of minutes."""

    def __init__(self, data: Dataset, options: TrainOptions) -> None:
        self.steps = math.ceil(options.epochs * len(data.parts[0]) / options.pairs_per_step)
        share = 1 - options.behaviour_share
        self._seconds = share * options.max_minutes * 60 if options.max_minutes is not None else None
        self._started = time.monotonic()

    def done(self, step: int) -> float:
        """From 0 to 1, after `step` steps."""
        by_time = (time.monotonic() - self._started) / self._seconds if self._seconds else 0.0
        by_steps = step / self.steps if self.steps else 1.0
        return min(1.0, max(by_steps, by_time))


def _endless_batches(maker: BatchMaker, data: Dataset, options: TrainOptions) -> Iterator[LabelledBatch]:
    blocks = make_blocks(data, data.parts[0], max_ads=options.max_ads_per_user, merge_requests=True)
    generator = np.random.default_rng(options.seed)
    while True:
        yield from maker.batches(
            [blocks[place] for place in generator.permutation(len(blocks))], options.pairs_per_step
        )


def _validation_blocks(data: Dataset, options: TrainOptions) -> list[Integers]:
    """Whole blocks drawn from the validation part, about `validation_rows` rows."""
    blocks = make_blocks(data, data.parts[1], max_ads=options.max_ads_per_user, merge_requests=True)
    order = np.random.default_rng(options.seed).permutation(len(blocks))
    rows_before = np.cumsum([0, *(len(blocks[place]) for place in order)])[:-1]
    return [blocks[place] for place in order[rows_before < options.validation_rows]]


def _calibration_blocks(model: RankerModel, data: Dataset, options: TrainOptions) -> list[Integers]:
    """All of the validation part where that costs nothing, since no text is read."""
    if model.adds_nothing:
        return make_blocks(data, data.parts[1], max_ads=options.max_ads_per_user, merge_requests=True)
    return _validation_blocks(data, options)


def _freeze(model: RankerModel, options: TrainOptions) -> list[str]:
    """Freezes what is not to be trained; returns the names of the rest."""
    for module in _frozen(model, options):
        module.requires_grad_(False)
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def _frozen(model: RankerModel, options: TrainOptions) -> list[nn.Module]:
    if options.train_layers == "all" or not isinstance(model, SharedUserCrossEncoder):
        return []
    below = list(model.layers[: model.join_layer])
    projection = getattr(model.encoder, "embeddings_project", None)
    return [model.encoder.embeddings, *below, *([projection] if projection is not None else [])]


def _train_mode(model: RankerModel, options: TrainOptions) -> None:
    """Dropout on, but not in frozen layers, whose states are cached."""
    model.train()
    for module in _frozen(model, options):
        module.eval()


def _groups(model: RankerModel, options: TrainOptions) -> list[dict[str, object]]:
    encoder = [weight for weight in model.encoder.parameters() if weight.requires_grad]
    return [
        {"params": encoder, "lr": options.learning_rate},
        {"params": list(model.head.parameters()), "lr": options.head_learning_rate},
    ]


def _copy(model: RankerModel, names: list[str]) -> dict[str, Tensor]:
    wanted = set(names)
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if name in wanted}
