"""Every row of a log as the behaviour part reads it. Knows no serving and no optimizer."""

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.coded import OfCodes
from adcascade.records.hashing import blake2b_bucket
from adcascade.records.history import HistoryView, Window, ranges
from adcascade.records.packed import blocks
from ranking.artifact import Ranker
from ranking.data.dataset import Dataset
from ranking.data.feature_table import NormalFeatures
from ranking.data.interests import stated_interests
from ranking.data.text_batches import AdTexts
from ranking.data.user_units import UserUnits, make_units, tiles_of, units_together
from ranking.inputs.context import context_buckets
from ranking.inputs.features import INTERESTS_CLASS, UNKNOWN_TIME_GAP, Features, time_gap_buckets
from ranking.model.batch import pad, tokenize
from ranking.model.behaviour import BehaviourLogits, BehaviourModel
from ranking.model.behaviour_inputs import AdInputs, History, Impressions, Tile, UserBatch, with_interests
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.model.text_prior import TextPrior

# Rows scored at once where nothing is learned.
ROWS_PER_PASS = 8192
_NO_FOLD = -2
# Rows that are put in units at once, about.
_UNITS_ROWS = 1 << 21
# Rows that trees read at once.
_TREE_ROWS = 1 << 18


@dataclass(frozen=True)
class _Slots:
    """What some units look back on: what the user says of themselves, then the events; one unit after the other.

    Attributes:
        starts: where the slots of each unit begin, [units + 1].
        stated: 1 for each unit whose user states interests, else 0, [units].
        texts, types, times: of each slot, [slots].
        folds: of each slot, [slots]; None if there are no folds.
    """

    starts: Integers
    stated: Integers
    texts: Integers
    types: Integers
    times: Integers
    folds: Integers | None

    @property
    def counts(self) -> Integers:
        """Slots of each unit."""
        return np.diff(self.starts)


class BehaviourRows:
    """Every row of a log as the behaviour part reads it.

    A user's interests stand at the head of their history, as a text that they liked at no known time.
    """

    def __init__(
        self,
        data: Dataset,
        ads: AdTexts,
        ranker: Ranker,
        device: torch.device,
    ) -> None:
        self._data = data
        self._ads = ads
        self._of_texts: tuple[TextPrior | None, Features] | None = None
        self._spec = spec = ranker.spec
        self._device = device
        self._ad = ads.places(data.events.ad_id)
        self._content = ranker.content
        people = data.log.user_id.compact()
        self._user = people.codes
        interests, stated = stated_interests(data, people)
        # Ads, and after them the interests that users state; which of these each row's user states, -1 for none.
        of_users = np.where(stated >= 0, len(ads.texts) + stated, -1)
        self._interest = OfCodes(self._user, of_users.astype(np.int32))
        vectors = torch.cat([ads.vectors(ranker.model.text, ranker.pad_id), _vectors_of(interests, ranker)])
        buckets = torch.tensor([blake2b_bucket(ad_id, spec.shape.id_buckets) for ad_id in ads.texts])
        self.texts = AdInputs(vectors.to(device), F.pad(buckets, (0, len(interests))).to(device))
        self._classes = _classes(data.events)
        hashes, kind = data.reading(spec.shape.context_words).context_kinds
        self._context = _filled(torch.from_numpy(context_buckets(hashes, spec.shape.context_buckets))).to(device)
        self._kind_of_context = torch.from_numpy(kind).to(device)
        self._positions = torch.from_numpy(data.log.position).to(device)
        self._look_back(data.past)

    def _look_back(self, past: HistoryView) -> None:
        self.past = past
        table = self._data.feature_table(past, self._spec.prior_ctr, self._spec.features, self._content)
        self.dense = NormalFeatures(table, self._spec.normalise)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of those in `dense`."""
        return self._spec.features

    def with_history_of(self, past: HistoryView) -> "BehaviourRows":
        """The same rows, each of which sees what `past` lets it see."""
        if past is self.past:
            return self
        other = copy.copy(self)
        other._look_back(past)
        return other

    def with_buckets(self, buckets: Tensor) -> "BehaviourRows":
        """The same rows, whose `texts` have other learned ids."""
        other = copy.copy(self)
        other.texts = AdInputs(self.texts.vectors, buckets)
        return other

    def of_texts(self, ranker: Ranker, rows: Integers) -> Tensor:
        """What the prior of texts adds to the logit of each of some rows, float32 [rows], on the CPU.

        A text is read when it is first asked for.
        """
        if ranker.text_prior is None or not isinstance(ranker.model, SharedUserCrossEncoder):
            return torch.zeros(len(rows))
        if self._of_texts is None or self._of_texts[0] is not ranker.text_prior:
            self.keep_of_texts(ranker.text_prior, np.full(len(self._ads.texts), np.nan, np.float32))
        assert self._of_texts is not None
        (_, of_texts), wanted = self._of_texts, self._ad[rows]
        new = np.unique(wanted[np.isnan(of_texts[wanted])])
        of_texts[new] = self._ads.of_prior(new, ranker.text_prior, ranker.model, ranker.pad_id)
        return torch.from_numpy(of_texts[wanted])

    def keep_of_texts(self, prior: TextPrior | None, of_ads: Features) -> None:
        """What a prior adds for each ad in the order of `AdTexts.texts`, float32 [ads]; NaN where that is not known."""
        self._of_texts = prior, of_ads

    def units(self, rows: Integers) -> UserUnits:
        """The rows in units of one user."""
        parts = 1 + len(rows) // _UNITS_ROWS
        users, events = self._user[rows], self._spec.shape.history_events
        edges = np.linspace(-1, int(self._user.max(initial=0)) + 1, parts + 1).astype(int)  # -1 is nobody
        made = []
        for low, high in pairwise(edges.tolist()):
            some = rows if parts == 1 else rows[(users >= low) & (users < high)]
            made.append(make_units(some, self._user, self._data.groups, self.past.spans(some, events)))
        return units_together(made)

    def batch(self, units: UserUnits, chosen: Integers) -> tuple[Integers, UserBatch]:
        """Some of the units in one batch: their rows, and what the model reads of these."""
        at = ranges(units.starts[chosen], units.counts[chosen])
        rows, slots = units.rows[at], self._slots(units, chosen)
        used = np.zeros(len(self.texts.buckets), np.bool_)
        used[self._ad[rows]] = used[slots.texts] = True
        number = np.cumsum(used) - 1
        texts = torch.from_numpy(np.flatnonzero(used)).to(self._device)
        tiles, places = self._tiles(units, chosen, at, slots)
        place = torch.from_numpy(rows).to(self._device)
        return rows, UserBatch(
            dense=self._tensor(self.dense[rows]),
            context=self._context[self._kind_of_context[place]],
            texts=AdInputs(self.texts.vectors[texts], self.texts.buckets[texts]),
            shown=self._tensor(number[self._ad[rows]]),
            events=self._tensor(number[slots.texts]),
            types=self._tensor(slots.types),
            tiles=tiles,
            places=self._tensor(places),
        )

    def _slots(self, units: UserUnits, chosen: Integers) -> _Slots:
        interests = self._interest[units.rows[units.starts[chosen]]]
        stated, counts = (interests >= 0).astype(np.int64), units.event_counts[chosen]
        places = ranges(units.event_starts[chosen], counts)
        events = units.spans.events[places]
        starts = np.r_[0, np.cumsum(stated + counts)]
        heads = starts[:-1][stated > 0]
        of_events = np.ones(starts[-1], np.bool_)
        of_events[heads] = False

        def filled(of_interests: npt.ArrayLike, values: npt.NDArray[np.integer[Any]]) -> Integers:
            slots = np.empty(len(of_events), np.int64)
            slots[heads], slots[of_events] = of_interests, values
            return slots

        fold = units.spans.event_fold
        return _Slots(
            starts,
            stated,
            filled(interests[stated > 0], self._ad[events]),
            filled(INTERESTS_CLASS, self._classes[events]),
            filled(NO_TIME, self._data.events.time[events]),
            None if fold is None else filled(_NO_FOLD, fold[places]),
        )

    def _tiles(
        self, units: UserUnits, chosen: Integers, at: Integers, slots: _Slots
    ) -> tuple[tuple[Tile, ...], Integers]:
        """The units in tiles, and where each row of the batch stands in these (see `UserBatch.places`)."""
        ends = np.cumsum(units.counts[chosen])
        # A user who says something has it in every row.
        counts = np.where(slots.stated > 0, units.counts[chosen], units.looking_back[chosen])
        tiles, places, padded = [], np.full(len(at), -1), 0
        for some in tiles_of(counts, slots.counts):
            width = int(counts[some].max())
            rows = (ends - counts)[some, None] + np.arange(width)
            real = np.arange(width) < counts[some, None]
            places[rows[real]] = padded + np.flatnonzero(real)
            padded += real.size
            tiles.append(self._tile(units, at, slots, some, np.where(real, rows, 0), real))
        return tuple(tiles), np.where(places < 0, padded, places)

    def _tile(
        self, units: UserUnits, at: Integers, slots: _Slots, some: Integers, rows: Integers, real: npt.NDArray[np.bool_]
    ) -> Tile:
        """The units `some` of a batch; `rows` [units, rows] are theirs in it, of which not all are `real`."""
        spans, stated = units.spans, slots.stated[some, None, None]
        slot = np.arange(int(slots.counts[some].max()))
        events = np.minimum(slots.starts[some, None] + slot, len(slots.texts) - 1)
        first, last = spans.first[at[rows]][..., None] + stated, spans.last[at[rows]][..., None] + stated
        seen = (slot >= first) & (slot < last)
        if spans.row_fold is not None and slots.folds is not None:
            seen &= spans.row_fold[at[rows]][..., None] != slots.folds[events][:, None]
        seen = (seen | (slot < stated)) & real[..., None]
        unit, row, event = np.nonzero(seen)
        now, then = self._data.log.time[units.rows[at[rows[unit, row]]]], slots.times[events[unit, event]]
        gaps = np.full(seen.shape, UNKNOWN_TIME_GAP)
        gaps[unit, row, event] = self._time_gaps(now, then)
        return Tile(*(self._tensor(one) for one in (rows, events, gaps, seen)))

    def _time_gaps(self, now: Integers, then: Integers) -> Integers:
        known = (now != NO_TIME) & (then != NO_TIME)
        return time_gap_buckets(np.where(known, (now - then) / 1e6, np.nan), self._spec.shape.time_gap_ends)

    def windows(self, rows: Integers) -> list[Window]:
        """The rows in windows of one user."""
        return list(self.past.windows(rows, self._spec.shape.history_events))

    def score(self, model: BehaviourModel, window: Window) -> BehaviourLogits:
        """Logits of the rows of a window."""
        scored: BehaviourLogits = model(self._shown(window.rows), self._history(window))
        return scored

    def of_position(self, model: BehaviourModel, rows: Integers) -> Tensor:
        """See `BehaviourModel.of_position`."""
        return model.of_position(self._positions[torch.from_numpy(rows).to(self._device)].long())

    def center_positions(self, model: BehaviourModel, rows: Integers) -> None:
        """See `BehaviourModel.center_positions`, which gets the impressions at each place."""
        log = self._data.log
        shown = np.zeros(int(log.position.max(initial=0)) + 1, np.int64)
        for some in blocks(len(rows)):
            np.add.at(shown, log.position[rows[some]], log.impressions[rows[some]])
        places = np.flatnonzero(shown)
        model.center_positions(self._tensor(places), self._tensor(shown[places]))

    def _shown(self, rows: Integers) -> Impressions:
        place = torch.from_numpy(rows).to(self._device)
        context = self._context[self._kind_of_context[place]]
        return Impressions(self._tensor(self.dense[rows]), context, self._keys(rows))

    def _history(self, window: Window) -> History:
        history = History(
            self._keys(window.events),
            self._tensor(self._classes[window.events].astype(np.int64)),
            torch.from_numpy(self._gaps(window)).to(self._device),
            torch.from_numpy(window.visible).to(self._device),
        )
        of_rows = self._interest[window.rows].astype(np.int64)
        stated = np.unique(of_rows[of_rows >= 0])
        if not len(stated):
            return history
        return with_interests(history, self.texts.vectors[stated], self._tensor(of_rows[:, None] == stated))

    def _keys(self, rows: Integers) -> AdInputs:
        ads = self._tensor(self._ad[rows].astype(np.int64))
        return AdInputs(self.texts.vectors[ads], self.texts.buckets[ads])

    def _gaps(self, window: Window) -> Integers:
        return self._time_gaps(self._data.log.time[window.rows, None], self._data.events.time[None, window.events])

    def _tensor(self, values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _classes(events: ClickLog) -> npt.NDArray[np.int8]:
    """What each event was: 0 for an impression, 1 for a click, 2 for a conversion; int8 [events]."""
    found = np.empty(len(events), np.int8)
    for some in blocks(len(events)):
        found[some] = np.where(events.conversions[some] > 0, 2, events.clicks[some] > 0)
    return found


def _filled(context: Tensor) -> Tensor:
    """Without the columns at the end that hold nothing in any row, but for the first."""
    used = int(context.any(dim=0).sum())
    return context[:, : max(1, used)].contiguous()


def _vectors_of(texts: list[str], ranker: Ranker) -> Tensor:
    """Text vectors of texts that are no ads, float32 [texts, width]."""
    text = ranker.model.text
    vectors = torch.zeros(0, text.width)
    if texts:
        rows = pad(tokenize(ranker.tokenizer, texts, ranker.spec.max_ad_tokens), ranker.pad_id)
        vectors = text(rows.to(text.center.device))
    return vectors.to(text.center.device)


def known_logits(ranker: Ranker, rows: BehaviourRows, wanted: Integers) -> BehaviourLogits:
    """Logits of the wanted rows without what a user's text says, as serving makes them; see `behaviour_logits`."""
    behaviour = behaviour_logits(ranker.model.behaviour, rows, wanted)
    if ranker.trees is not None:
        for start in range(0, len(wanted), _TREE_ROWS):
            some = slice(start, start + _TREE_ROWS)
            network = BehaviourLogits(behaviour.click[some], behaviour.conversion[some])
            behaviour.click[some] = ranker.with_trees(network, torch.from_numpy(rows.dense[wanted[some]])).click
    if ranker.text_prior is not None:
        behaviour.click.add_(rows.of_texts(ranker, wanted))
    return behaviour


@torch.no_grad()
def behaviour_logits(model: BehaviourModel, rows: BehaviourRows, wanted: Integers) -> BehaviourLogits:
    """Logits of the wanted rows in evaluation mode, float32 [wanted rows] in their order, on the CPU.

    A row that is wanted several times is scored once.
    """
    model.eval()
    once, place = np.unique(wanted, return_inverse=True)
    units = rows.units(once)
    click, conversion = (torch.empty(len(once)) for _ in range(2))
    for chosen in units.by_size(ROWS_PER_PASS):
        scored_rows, batch = rows.batch(units, chosen)
        at = torch.from_numpy(np.searchsorted(once, scored_rows))
        scored = model.of_users(batch)
        click[at], conversion[at] = scored.click.cpu(), scored.conversion.cpu()
    of_wanted = torch.from_numpy(place)
    return BehaviourLogits(click[of_wanted], conversion[of_wanted])
