"""Steps of training: users, moments of their histories, and the ads that these are learned against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.clicks import Integers
from adcascade.records.hashing import crc32_bucket
from adcascade.records.users import UserProfile
from adcascade.towers.model import AdTower, TowerShape, UserEvents, attribute_buckets
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.sequences import Moment, Sequences, moments_of

# Of a sample of ads, those drawn by their clicks; the others are drawn evenly, so that none is never met.
_DRAWN_BY_CLICKS = 0.75
# Of the windows, those that may begin so late that they hold few events, or inside a request, so that short histories
# are learned from all users at all times and not from their first events alone.
_BEGUN_ANYWHERE = 0.25


@dataclass(frozen=True)
class Catalog:
    """What the towers read of the ads.

    Attributes:
        texts: unit text vectors, float32 [ads, text width].
        buckets: rows of the table of residuals; 0 for ads that are not in the training log, int64 [ads].
    """

    texts: Tensor
    buckets: Tensor

    def __len__(self) -> int:
        return len(self.buckets)


def catalog_of(ad_ids: list[str], known: frozenset[str], texts: npt.NDArray[np.float32], shape: TowerShape) -> Catalog:
    """The catalog; `known` ads are in the training log."""
    buckets = [crc32_bucket(ad_id, shape.id_buckets) if ad_id in known else 0 for ad_id in ad_ids]
    return Catalog(torch.from_numpy(texts), torch.tensor(buckets))


@dataclass(frozen=True)
class PaddedEvents:
    """Events of some users side by side: int64 [users, events], and how many are real, int64 [users]."""

    ads: Integers
    types: Integers
    gaps: Integers
    lengths: Integers


@dataclass(frozen=True)
class Step:
    """What one step learns from.

    Attributes:
        events: of each user.
        attributes: see `UserEvents`.
        user, place: which user each moment belongs to, and how many of the events given here it sees, int64 [moments].
        contexts: of what came first after each moment, see `UserTower.in_context`.
        moments: what each should foretell.
        seen: all ads that the user met before each moment, also in events that are not given here.
    """

    events: PaddedEvents
    attributes: Tensor
    user: Integers
    place: Integers
    contexts: Tensor
    moments: list[Moment]
    seen: list[Integers]


def attributes_of(users: Mapping[str, UserProfile], names: list[str]) -> Tensor:
    """Attribute buckets of the named users, int64 [users, attributes]."""
    return torch.from_numpy(attribute_buckets([users[user].attributes if user in users else {} for user in names]))


def steps(
    sequences: Sequences, attributes: Tensor, options: TowerOptions, generator: np.random.Generator
) -> Iterator[Step]:
    """One pass over the users in random order."""
    order = generator.permutation(len(sequences.users))
    for start in range(0, len(order), options.users_per_step):
        step = _step(sequences, attributes, order[start : start + options.users_per_step], options, generator)
        if step.moments:
            yield step


def _step(
    sequences: Sequences,
    attributes: Tensor,
    users: Integers,
    options: TowerOptions,
    generator: np.random.Generator,
) -> Step:
    """A window of each user's events, and moments drawn evenly from all of these."""
    windows, user, place, first_after, moments, seen = [], [], [], [], [], []
    events = np.minimum(np.diff(sequences.start)[users], options.history).sum()
    for number, of_user in enumerate(users.tolist()):
        part = sequences.of(of_user)
        count = part.stop - part.start
        latest = count - 1 if generator.random() < _BEGUN_ANYWHERE else max(0, count - options.history)
        first = int(generator.integers(0, latest + 1))
        last = min(count, first + options.history)
        windows.append(slice(part.start + first, part.start + last))
        wanted = round(options.moments_per_step * (last - first) / events)
        places = generator.integers(first, last, max(1, wanted))
        for moment in moments_of(sequences, of_user, places, options.impression_weight, options.later_decay):
            if moment.seen >= first:
                user.append(number)
                place.append(moment.seen - first)
                first_after.append(part.start + moment.seen)
                moments.append(moment)
                seen.append(sequences.ads[part.start : part.start + moment.seen])
    return Step(
        padded(sequences, windows),
        attributes[users],
        np.array(user, np.int64),
        np.array(place, np.int64),
        torch.from_numpy(sequences.contexts[np.array(first_after, np.int64)]),
        moments,
        seen,
    )


def padded(sequences: Sequences, windows: list[slice]) -> PaddedEvents:
    """The given events of each user."""
    lengths = np.array([window.stop - window.start for window in windows])
    columns = []
    for column in (sequences.ads, sequences.types, sequences.gaps):
        table = np.zeros((len(windows), max(1, int(lengths.max()))), np.int64)
        for row, window in enumerate(windows):
            table[row, : lengths[row]] = column[window]
        columns.append(table)
    return PaddedEvents(columns[0], columns[1], columns[2], lengths)


def user_events(
    tower: AdTower, catalog: Catalog, events: PaddedEvents, attributes: Tensor, dropped: Tensor | None = None
) -> UserEvents:
    """What the user tower reads; residuals of `dropped` ads (bool [ads]) are left out."""
    met, place = torch.unique(torch.from_numpy(events.ads), return_inverse=True)
    buckets = catalog.buckets[met] if dropped is None else catalog.buckets[met].masked_fill(dropped[met], 0)
    types, gaps, lengths = (torch.from_numpy(column) for column in (events.types, events.gaps, events.lengths))
    return UserEvents(tower.events(catalog.texts[met], buckets)[place], types, gaps, lengths, attributes)


@dataclass(frozen=True)
class AdSample:
    """Ads that a step is learned against: `ads` int64 [sample] in order, and their `log_q`; None if these are all."""

    ads: Integers
    log_q: Tensor | None


class AdSampler:
    """Draws the ads of each step: all of a small catalog, else the step's own and some drawn by their clicks."""

    def __init__(self, clicks: Integers, options: TowerOptions) -> None:
        evenly = np.full(len(clicks), 1 / len(clicks))
        self._chance = (1 - _DRAWN_BY_CLICKS) * evenly + _DRAWN_BY_CLICKS * clicks / max(1, clicks.sum())
        self._size = options.sampled_ads
        self._all = len(clicks) <= max(options.sampled_above, options.sampled_ads)

    @property
    def takes_all(self) -> bool:
        """Whether every step learns against all ads."""
        return self._all

    def draw(self, step: Step, generator: np.random.Generator) -> AdSample:
        """The ads of a step."""
        if self._all:
            return AdSample(np.arange(len(self._chance)), None)
        drawn = generator.choice(len(self._chance), self._size, p=self._chance)
        ads = np.unique(np.concatenate([drawn, *(moment.ads for moment in step.moments)]))
        in_sample = -np.expm1(self._size * np.log1p(-self._chance[ads]))
        return AdSample(ads, torch.from_numpy(np.log(in_sample)).float())


def targets_of(step: Step, ads: Integers) -> tuple[Tensor, Tensor]:
    """Weights of what followed, float32, and what was seen, bool, both [moments, ads]; `ads` is in order."""
    targets, seen = torch.zeros(len(step.moments), len(ads)), torch.zeros(len(step.moments), len(ads), dtype=torch.bool)
    for row, (moment, before) in enumerate(zip(step.moments, step.seen, strict=True)):
        targets[row, np.searchsorted(ads, moment.ads)] = torch.from_numpy(moment.weights)
        place = np.minimum(np.searchsorted(ads, before), len(ads) - 1)
        seen[row, place[ads[place] == before]] = True
    return targets, seen
