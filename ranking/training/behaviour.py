"""Training of the behaviour part: minutes on a laptop, since it reads no text. Knows no serving.

A split by time trains each row on its strictly earlier events. Any other split draws folds anew for each epoch: a row
sees only the other folds, so that what it sees never tells its own answer.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ranking.artifact import CtrSpec
from ranking.batch import pad, tokenize
from ranking.behaviour import AdKeys, Behaviour, BehaviourModel, History, with_interests
from ranking.errors import ModelError
from ranking.features import gap_classes, id_bucket
from ranking.model import TextVectors
from ranking.text import HISTORY_EVENTS
from ranking.training.baselines import fit_logistic
from ranking.training.dataset import AdTexts, Dataset
from ranking.training.options import TrainOptions
from records.clicks import NO_TIME, Integers
from records.history import Past, Window, merged

log = logging.getLogger(__name__)

# Told (stage, step, share of the stage done from 0 to 1, best validation loss so far).
Progress = Callable[[str, int, float, float], None]

_AVERAGE_DECAY = 0.998
_WARMUP_STEPS = 50
_STEPS_PER_VALIDATION = 50
# Of (impression, event) pairs in one pass; the windows of small users are merged up to this.
_CELLS_PER_WINDOW = 65_536


class BehaviourRows:
    """Every row of a log as the behaviour part reads it.

    A user's interests stand at the head of their history, as a text that they liked at no known time.
    """

    def __init__(
        self,
        data: Dataset,
        ads: AdTexts,
        text: TextVectors,
        tokenizer: PreTrainedTokenizerBase,
        spec: CtrSpec,
        device: torch.device,
    ) -> None:
        self._data = data
        self._spec = spec
        self._device = device
        place = {ad_id: number for number, ad_id in enumerate(ads.texts)}
        self._ad = torch.tensor([place[ad_id] for ad_id in data.log.ad_id])
        buckets = torch.tensor([id_bucket(ad_id, spec.id_buckets) for ad_id in ads.texts])
        pad_id = int(tokenizer.pad_token_id or 0)
        self._ads = AdKeys(ads.vectors(text, pad_id).to(device), buckets.to(device))
        self._interests = _interests(data, text, tokenizer, spec.max_ad_tokens, device)
        self._classes = torch.from_numpy(np.select([data.log.conversions > 0, data.log.clicks > 0], [2, 1], 0))
        self._look_back(data.past)

    def _look_back(self, past: Past) -> None:
        self.past = past
        self.dense = self._spec.normalise(self._data.features(past, self._spec.prior_ctr))

    def looking_back_on(self, past: Past) -> "BehaviourRows":
        """The same rows, each of which sees what `past` lets it see."""
        if past is self.past:
            return self
        other = copy.copy(self)
        other._look_back(past)
        return other

    def windows(self, rows: Integers) -> list[Window]:
        """The rows in windows of one user."""
        return list(self.past.windows(rows, HISTORY_EVENTS))

    def score(self, model: BehaviourModel, window: Window) -> Behaviour:
        """Logits of the rows of a window."""
        scored: Behaviour = model(self._tensor(self.dense[window.rows]), self._keys(window.rows), self._history(window))
        return scored

    def liking(self, model: BehaviourModel, window: Window) -> Tensor:
        """See `BehaviourModel.liking_of`."""
        return model.liking_of(self._keys(window.rows), self._history(window))

    def _history(self, window: Window) -> History:
        history = History(
            self._keys(window.past),
            self._classes[window.past].to(self._device),
            torch.from_numpy(self._gaps(window)).to(self._device),
            torch.from_numpy(window.seen).to(self._device),
        )
        users = self._data.log.user_id[window.rows].astype(str)
        stated = [user for user in np.unique(users).tolist() if user in self._interests]
        if not stated:
            return history
        interests = torch.cat([self._interests[user] for user in stated])
        return with_interests(history, interests, torch.from_numpy(users[:, None] == np.array(stated)).to(self._device))

    def loss(self, model: BehaviourModel, window: Window, conversion_weight: float) -> Tensor:
        """Sum over impressions of the click loss and of the weighted conversion loss.

        Conversions are learned over all impressions, as the product p_click x p_conversion (ESMM, arXiv 1804.07931).
        """
        scored, log_ = self.score(model, window), self._data.log
        clicks, impressions, conversions = (
            self._tensor(column[window.rows].astype(np.float32))
            for column in (log_.clicks, log_.impressions, log_.conversions)
        )
        loss = clicks * F.softplus(-scored.click) + (impressions - clicks) * F.softplus(scored.click)
        if conversion_weight:
            both = F.logsigmoid(scored.click) + F.logsigmoid(scored.conversion)
            neither = torch.log1p(-both.exp().clamp(max=1 - 1e-6))
            loss = loss - conversion_weight * (conversions * both + (impressions - conversions) * neither)
        return loss.sum()

    def _keys(self, rows: Integers) -> AdKeys:
        ads = self._ad[rows].to(self._device)
        return AdKeys(self._ads.vectors[ads], self._ads.buckets[ads])

    def _gaps(self, window: Window) -> Integers:
        now, then = self._data.log.time[window.rows, None], self._data.log.time[None, window.past]
        known = (now != NO_TIME) & (then != NO_TIME)
        return gap_classes(np.where(known, (now - then) / 1e6, np.nan))

    def _tensor(self, values: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _interests(
    data: Dataset, text: TextVectors, tokenizer: PreTrainedTokenizerBase, max_tokens: int, device: torch.device
) -> dict[str, Tensor]:
    """Text vector of the interests of each user of the log who states any, float32 [1, width]."""
    users = (data.users.get(user_id) for user_id in np.unique(data.log.user_id.astype(str)).tolist())
    stated = {user.user_id: user.interests.strip() for user in users if user and user.interests.strip()}
    if not stated:
        return {}
    rows = pad(tokenize(tokenizer, list(stated.values()), max_tokens), int(tokenizer.pad_token_id or 0))
    return dict(zip(stated, text(rows.to(text.center.device)).to(device).split(1), strict=True))


@torch.no_grad()
def behaviour_logits(model: BehaviourModel, rows: BehaviourRows, wanted: Integers) -> Behaviour:
    """Logits of the wanted rows in evaluation mode, in their order, on the CPU."""
    model.eval()
    order: list[Integers] = []
    clicks, conversions = [], []
    for window in merged(rows.windows(wanted), _CELLS_PER_WINDOW):
        scored = rows.score(model, window)
        order.append(window.rows)
        clicks.append(scored.click.cpu())
        conversions.append(scored.conversion.cpu())
    back = torch.from_numpy(np.argsort(np.concatenate(order))[np.argsort(np.argsort(wanted))])
    return Behaviour(torch.cat(clicks)[back], torch.cat(conversions)[back])


def train_behaviour(
    model: BehaviourModel, rows: BehaviourRows, data: Dataset, options: TrainOptions, progress: Progress
) -> None:
    """Trains `model` in place; keeps the (averaged) weights that are best on the validation part.

    Raises:
        ModelError: The loss is not a number.
    """
    generator = np.random.default_rng(options.seed)
    training = rows.looking_back_on(data.redrawn_past(generator))
    windows = training.windows(data.parts[0])
    validation = list(merged(rows.windows(data.parts[1]), _CELLS_PER_WINDOW))
    _start_wide_part(model, training, windows, data)
    run = _Run(model, options, len(data.parts[0]))
    conversion_weight = options.conversion_weight if data.log.conversions[data.parts[0]].any() else 0.0

    def validate() -> float:
        run.average.eval()
        with torch.no_grad():
            losses = [rows.loss(run.average, window, 0.0) for window in validation]
        return float(torch.stack(losses).sum()) / int(data.log.impressions[data.parts[1]].sum())

    best_loss, best, stale, validated = validate(), copy.deepcopy(run.average.state_dict()), 0, 0
    progress("behaviour", 0, 0.0, best_loss)
    while run.done < 1.0 and stale < options.patience:
        for batch in _batches(windows, options.behaviour_batch, generator):
            run.step([training.loss(model, window, conversion_weight) for window in batch], sum(map(_size, batch)))
            progress("behaviour", run.steps, run.done, best_loss)
            if run.done >= 1.0:
                break
        if run.steps - validated >= _STEPS_PER_VALIDATION or run.done >= 1.0:
            current, validated = validate(), run.steps
            stale = 0 if current < best_loss else stale + 1
            if current < best_loss:
                best_loss, best = current, copy.deepcopy(run.average.state_dict())
            log.info("behaviour, step %d: validation log loss %.4f, best %.4f", run.steps, current, best_loss)
        if data.split != "time":
            training = rows.looking_back_on(data.redrawn_past(generator))
            windows = training.windows(data.parts[0])
    progress("behaviour", run.steps, 1.0, best_loss)
    model.load_state_dict(best)


def _start_wide_part(model: BehaviourModel, rows: BehaviourRows, windows: list[Window], data: Dataset) -> None:
    """The wide part begins as the logistic regression on the features and on what the head of likeness says.

    The other heads know nothing yet.
    """
    model.eval()
    windows = list(merged(windows, _CELLS_PER_WINDOW))
    with torch.no_grad():
        liking = torch.cat([rows.liking(model, window) for window in windows]).cpu().numpy()
    liking[:, :-1] = 0
    training = np.concatenate([window.rows for window in windows])
    columns = np.concatenate([rows.dense[training], liking], axis=1)
    fitted = fit_logistic(columns, data.log.clicks[training], data.log.impressions[training])
    if fitted is None:
        return
    last: Any = model.deep[-1]
    with torch.no_grad():
        model.wide.weight.copy_(torch.from_numpy(fitted.coef_))
        model.wide.bias.copy_(torch.from_numpy(fitted.intercept_))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def _size(window: Window) -> int:
    return len(window.rows)


def _batches(windows: list[Window], rows_per_batch: int, generator: np.random.Generator) -> Iterator[list[Window]]:
    """Windows in random order, in batches of about so many rows."""
    batch: list[Window] = []
    for place in generator.permutation(len(windows)):
        batch.append(windows[place])
        if sum(map(_size, batch)) >= rows_per_batch:
            yield list(merged(batch, _CELLS_PER_WINDOW))
            batch = []
    if batch:
        yield list(merged(batch, _CELLS_PER_WINDOW))


class _Run:
    """Steps of AdamW under a cosine, with a running average of the weights (Polyak and Juditsky 1992)."""

    def __init__(self, model: BehaviourModel, options: TrainOptions, training_rows: int) -> None:
        self.model = model
        self.average = copy.deepcopy(model)
        self.steps = 0
        epochs = options.behaviour_epochs * training_rows // options.behaviour_batch
        self._total = max(options.behaviour_min_steps, epochs)
        self._seconds = options.behaviour_share * options.max_minutes * 60 if options.max_minutes is not None else None
        self._started = time.monotonic()
        self._rate = options.behaviour_learning_rate
        self._optimizer = torch.optim.AdamW(model.parameters(), weight_decay=options.weight_decay)

    @property
    def done(self) -> float:
        """From 0 to 1: the larger share of steps and of minutes."""
        by_time = (time.monotonic() - self._started) / self._seconds if self._seconds else 0.0
        return min(1.0, max(self.steps / self._total, by_time))

    def step(self, losses: list[Tensor], rows: int) -> None:
        """One step on the mean of `losses` over `rows`."""
        self.model.train()
        loss = torch.stack(losses).sum() / rows
        if not torch.isfinite(loss):
            raise ModelError("the training loss is not a number; lower --behaviour-learning-rate")
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * min(1.0, (self.steps + 1) / _WARMUP_STEPS) * _cosine(self.done)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.steps += 1
        decay = min(_AVERAGE_DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)


def _cosine(done: float) -> float:
    return max(0.02, 0.5 * (1 + math.cos(math.pi * done)))
