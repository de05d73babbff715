"""Fine-tuning of the text layers on top of a trained behaviour part. Knows no serving."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from adcascade.records.clicks import Integers
from adcascade.records.splits import drawn_units
from adcascade.training.loop import Loop
from adcascade.training.stage import Plan, StageContext, StageResult
from ranking.artifact import RankerModel
from ranking.data.dataset import Dataset
from ranking.data.labels import all_labels
from ranking.data.scorer import Scorer
from ranking.data.text_batches import BatchMaker, LabelledBatch, make_blocks
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.training.distill import DistillationLoss
from ranking.training.lora import add_adapters, merge_adapters
from ranking.training.options import CommonOptions, TextOptions


def train_text(
    model: RankerModel,
    scorer: Scorer,
    maker: BatchMaker,
    data: Dataset,
    options: TextOptions,
    common: CommonOptions,
    context: StageContext,
    lessons: DistillationLoss | None = None,
) -> StageResult:
    """Trains the text layers in place, the behaviour part being given; keeps the weights best on the validation part.

    Nothing is changed if the validation loss falls by less than `options.min_gain`.

    Args:
        lessons: Of a teacher, to be learned beside the labels.

    Raises:
        TrainingError: The loss is not a number.
    """
    model.eval()  # a stage that goes on from a checkpoint begins without a validation
    weights = _trained(model, options) | _bridge(lessons)
    untrained = {name: weight.detach().clone() for name, weight in weights.items()}
    steps = _Steps(model, scorer, maker, data, options, common, lessons, reads_ahead=context.workers.count == 1)
    plan = _plan(options, common, steps.rows, context)
    loop: Loop[LabelledBatch] = Loop(
        plan, weights, _groups(model, lessons, options), steps.validate, context.watch, context.workers
    )
    with _ready_made(_frozen(model, options) if scorer.bfloat16 else []):
        fit = loop.run(steps.batches, steps.loss)
    is_kept = fit.loss_before - fit.loss_kept >= options.min_gain
    if not is_kept:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(untrained[name])
    if options.lora_rank:
        merge_adapters(model.encoder)
    return fit if is_kept else replace(fit, kept_step=0, loss_kept=fit.loss_before)


class _Steps:
    """What the loop asks for: batches of blocks, their losses, and the loss of the validation part.

    Attributes:
        rows: read in a pass.
    """

    def __init__(
        self,
        model: RankerModel,
        scorer: Scorer,
        maker: BatchMaker,
        data: Dataset,
        options: TextOptions,
        common: CommonOptions,
        lessons: DistillationLoss | None,
        *,
        reads_ahead: bool,
    ) -> None:
        self._reads_ahead = reads_ahead
        self._model, self._scorer, self._maker, self._data = model, scorer, maker, data
        self._options, self._common, self._lessons = options, common, lessons
        self._labels, self._all = data.labels(common), all_labels(data.log, data.groups, data.split.valid)
        self._validation = validation_blocks(data, options, options.validation_rows, common.seed)
        self.rows = min(len(self._labels.rows), options.most_rows)

    def batches(self, epoch: int) -> Iterable[LabelledBatch]:
        """Batches of an epoch, which sees other users than the one before where there are more than it reads."""
        options, seed = self._options, self._common.seed
        drawn = drawn_units(self._data.log, self._labels.rows, self.rows, seed=[seed, epoch])
        blocks = make_blocks(self._data, drawn, max_ads=options.max_ads_per_user, merge_requests=True)
        order = np.random.default_rng([seed, epoch]).permutation(len(blocks))
        batches = self._maker.batches([blocks[place] for place in order], options.pairs_per_step)
        # Of several processes each would read the batches of all.
        return self._scorer.read_ahead(batches) if self._reads_ahead else batches

    def loss(self, batch: LabelledBatch) -> tuple[Tensor, float]:
        """Summed loss of a batch, and its impressions."""
        if not self._model.training:  # at the start, and after a validation
            _train_mode(self._model, self._options)
        scored = self._scorer.score(batch)
        value = self._labels.loss(scored.logits + batch.of_position, batch.rows, self._common)
        (impressions,) = self._labels.tensors(batch.rows, value.device, "impressions")
        if self._lessons is not None:
            weight = self._lessons.weight
            value = (1 - weight) * value + self._lessons.loss(batch, scored, impressions)
        return value, float(impressions.sum())

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of an impression of the validation part."""
        self._model.eval()
        total = 0.0
        for batch in self._scorer.read_ahead(self._maker.batches(self._validation, pairs_per_batch=256)):
            logits = self._scorer.logits(batch) + batch.of_position
            total += float(self._all.loss(logits, batch.rows, self._common))
        return total / int(self._data.log.impressions[np.concatenate(self._validation)].sum())


def _plan(options: TextOptions, common: CommonOptions, rows: int, context: StageContext) -> Plan:
    pairs = options.pairs_per_step * options.accumulate * context.workers.count
    return Plan(
        stage="text",
        steps=math.ceil(options.epochs * rows / pairs),
        seconds=context.seconds,
        validate_every=options.validate_every,
        patience=common.patience,
        weight_decay=common.weight_decay,
        seed=common.seed,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay or None,
        checkpoint=context.checkpoint,
        identity=context.identity,
        too_fast="lower --learning-rate",
    )


def validation_blocks(data: Dataset, options: TextOptions, rows: int, seed: int) -> list[Integers]:
    """Whole blocks drawn from the validation part, about so many rows."""
    blocks = make_blocks(data, data.split.valid, max_ads=options.max_ads_per_user, merge_requests=True)
    order = np.random.default_rng(seed).permutation(len(blocks))
    rows_before = np.cumsum([0, *(len(blocks[place]) for place in order)])[:-1]
    return [blocks[place] for place in order[rows_before < rows]]


def _trained(model: RankerModel, options: TextOptions) -> dict[str, nn.Parameter]:
    """Freezes what is not to be trained, puts adapters where they are asked for; returns what is trained by name."""
    model.behaviour.requires_grad_(False)
    frozen = _frozen(model, options)
    for module in frozen:
        module.requires_grad_(False)
    if options.lora_rank:
        layers: list[nn.Module] = list(model.layers) if isinstance(model, SharedUserCrossEncoder) else [model.encoder]
        add_adapters(model.encoder, options.lora_rank, [layer for layer in layers if layer not in frozen])
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _frozen(model: RankerModel, options: TextOptions) -> list[nn.Module]:
    if options.train_layers == "all" or not isinstance(model, SharedUserCrossEncoder):
        return []
    below = list(model.layers[: model.join_layer])
    projection = getattr(model.encoder, "embeddings_project", None)
    return [model.encoder.embeddings, *below, *([projection] if projection is not None else [])]


@contextmanager
def _ready_made(frozen: Iterable[nn.Module]) -> Iterator[None]:
    """Holds the weights of linear layers that are not trained in bfloat16 while the block runs.

    Autocast would convert them for every call; what is computed stays the same.
    """
    linear = [one for module in frozen for one in module.modules() if isinstance(one, nn.Linear)]
    kept = [(weight, weight.data) for layer in linear for weight in layer.parameters()]
    for weight, data in kept:
        weight.data = data.to(torch.bfloat16)
    try:
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _train_mode(model: RankerModel, options: TextOptions) -> None:
    """Dropout on, but not in frozen layers, whose states are cached."""
    model.train()
    model.behaviour.eval()
    for module in _frozen(model, options):
        module.eval()


def _groups(model: RankerModel, lessons: DistillationLoss | None, options: TextOptions) -> list[dict[str, object]]:
    encoder = [weight for weight in model.encoder.parameters() if weight.requires_grad]
    return [
        {"params": encoder, "lr": options.learning_rate},
        {"params": [*model.head.parameters(), *_bridge(lessons).values()], "lr": options.head_learning_rate},
    ]


def _bridge(lessons: DistillationLoss | None) -> dict[str, nn.Parameter]:
    return {} if lessons is None else dict(lessons.named_parameters())
