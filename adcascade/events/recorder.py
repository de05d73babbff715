"""Records events: counts each once, whatever order, repetition or cut of batches it arrives in.

What the store holds afterwards depends on the set of events alone: sums are whole numbers, of an impression's events
the earliest count, and a user's history is in order of time. It needs one writer, which it does not see to itself.
Knows no disk: a `Backend` does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from adcascade.events.counter_state import CounterState, keys_of
from adcascade.events.impressions import Contribution, ImpressionState, alone
from adcascade.events.values import COUNTED, AdKeys, CounterKey, LoggedEvent, NewEvent, Outcome, Status
from adcascade.records.users import EventType

KeysOfAd = Callable[[str], AdKeys | None]


@dataclass
class Changes:
    """What a group of batches changes, to be made durable at once or not at all.

    Attributes:
        events: that go to the log, in the order of the batches.
        keys: of events that are counted, but too old to be kept.
        counters, impressions: new states; None where nothing is left to say.
        received_us: when.
    """

    received_us: int
    events: list[NewEvent] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    counters: dict[CounterKey, CounterState | None] = field(default_factory=dict)
    impressions: dict[str, ImpressionState] = field(default_factory=dict)


@dataclass(frozen=True)
class Erased:
    """How much of a user was erased."""

    events: int
    counters: int


class Backend(Protocol):
    """Where the store keeps what it knows."""

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of these events were accepted before."""

    def impressions(self, ids: Sequence[str]) -> Mapping[str, ImpressionState]:
        """Those that are known."""

    def counters(self, keys: Iterable[CounterKey]) -> Mapping[CounterKey, CounterState]:
        """Those of which something was counted."""

    def commit(self, changes: Changes) -> int:
        """Makes all of it durable, or nothing; the last offset of the log. Raises StoreError if it cannot."""

    def erase_user(self, user_id: str) -> "Erased":
        """Leaves no byte of a user in what is kept; totals of ads stay."""

    def sweep(self, older_than_us: int, most: int) -> int:
        """Erases events that are older, so many at most, and so many impressions and counters of users; how many.

        These go when the last of their events happened, and arrived, before that time. An event that is swept still
        counts once: a digest of its id stays.
        """

    def forget_log(self) -> None:
        """Takes what was overwritten off the write-ahead log. Raises StoreError while another program reads it."""

    def read_counters(self, keys: Iterable[CounterKey]) -> Mapping[CounterKey, CounterState]:
        """As `counters`, from any thread."""

    def history(self, user_id: str, limit: int, max_chars: int) -> list[NewEvent]:
        """The newest events of a user, without details, oldest first, by time and then by key.

        Args:
            max_chars: of their texts together, about; events before are left out.
        """

    def counters_of_user(self, user_id: str) -> Mapping[CounterKey, CounterState]:
        """What was counted of a user; of thousands of keys some."""

    def log_of_user(self, user_id: str, after: tuple[int, bytes], limit: int) -> list[LoggedEvent]:
        """The events of a user behind a time and key, by time and then by key; fewer where they are large."""

    def log_after(self, offset: int, limit: int) -> list[LoggedEvent]:
        """The log behind an offset, in its order; fewer where they are large, but one if there is any."""

    def close(self) -> None:
        """Lets go of the store."""


@dataclass(frozen=True)
class Rules:
    """What is refused, and what is not counted.

    Attributes:
        ahead_us: how far the clock of a sender may be ahead of ours.
        retention_us: older events are counted, and not kept.
        min_click_us: a click sooner after its impression, or before it, is kept, and not counted; 0 counts all.
    """

    ahead_us: int = 5 * 60 * 1_000_000
    retention_us: int = 400 * 86_400 * 1_000_000
    min_click_us: int = 0


class Recorder:
    """Takes events to a backend.

    Args:
        backend: where to.
        keys_of_ad: advertiser and category of an ad; None for an ad that the catalog does not have.
        rules: what is refused.
    """

    def __init__(self, backend: Backend, keys_of_ad: KeysOfAd, rules: Rules = Rules()) -> None:
        self._backend, self._keys_of_ad, self._rules = backend, keys_of_ad, rules

    def record(self, batches: Sequence[Sequence[NewEvent]], now_us: int) -> tuple[list[list[Outcome]], int]:
        """Records batches together, in one transaction: their outcomes, and the last durable offset.

        Raises:
            StoreError: Nothing was recorded.
        """
        events = [event for batch in batches for event in batch]
        group = _Group(self._backend, self._keys_of_ad, self._rules, events, now_us)
        outcomes = iter([group.take(event) for event in events])
        offset = self._backend.commit(group.changes())
        return [[next(outcomes) for _ in batch] for batch in batches], offset


class _Group:
    """Events that are recorded together, and what they change."""

    def __init__(
        self, backend: Backend, keys_of_ad: KeysOfAd, rules: Rules, events: Sequence[NewEvent], now_us: int
    ) -> None:
        self._backend, self._keys_of_ad, self._rules, self._now_us = backend, keys_of_ad, rules, now_us
        self._known = backend.known([event.key for event in events])
        named = {event.impression_id for event in events if event.impression_id}
        self._impressions = dict(backend.impressions(sorted(named)))
        self._changed: set[str] = set()
        self._counted: list[tuple[Contribution, int]] = []
        self._seen: list[tuple[NewEvent, AdKeys]] = []
        self._changes = Changes(now_us)

    def take(self, event: NewEvent) -> Outcome:
        """What becomes of an event; what it changes is remembered."""
        if event.key in self._known:
            return Outcome(Status.DUPLICATE)
        problem = self._problem(event)
        if problem:
            return Outcome(Status.REJECTED, problem)
        self._known.add(event.key)
        impression = self._impressions.get(event.impression_id)
        if not event.ad_id and not event.text and impression is not None and impression.ad is not None:
            event = replace(event, ad_id=impression.ad.said)
        if event.time_us < self._now_us - self._rules.retention_us:
            self._changes.keys.append(event.key)
        else:
            self._changes.events.append(event)
        if event.type in COUNTED and event.ad_id:
            self._count(event)
        return Outcome(Status.ACCEPTED)

    def _problem(self, event: NewEvent) -> str:
        if event.time_us > self._now_us + self._rules.ahead_us:
            ahead, allowed = ((event.time_us - self._now_us) / 1e6, self._rules.ahead_us / 1e6)
            return f"its time is {ahead:,.0f} s ahead of the store's clock, which allows {allowed:,.0f}; another unit?"
        impression = self._impressions.get(event.impression_id)
        shown = impression.ad.said if impression is not None and impression.ad is not None else ""
        if event.ad_id and event.ad_id != shown:
            return "" if self._keys_of_ad(event.ad_id) else f"there is no ad {event.ad_id[:64]!r}"
        if event.ad_id or event.text or shown:
            return ""
        if event.impression_id:
            return f"there is no impression {event.impression_id[:64]!r}; name its ad, too"
        return "it names neither an ad, nor a text, nor an impression"

    def _count(self, event: NewEvent) -> None:
        before = self._impressions.get(event.impression_id, ImpressionState())
        keys = self._keys(event.ad_id, before.counted)
        self._seen.append((event, keys))
        if not event.impression_id:
            self._counted.append((alone(event, keys), 1))
            return
        after = before.with_event(event)
        assert after.ad is not None  # the event names one, or the impression was known to
        wanted = after.contribution(self._keys(after.ad.said, before.counted), self._rules.min_click_us)
        if wanted != before.counted:
            self._counted += [(one, sign) for one, sign in ((before.counted, -1), (wanted, 1)) if one is not None]
        self._impressions[event.impression_id] = after.with_counted(wanted)
        self._changed.add(event.impression_id)

    def _keys(self, ad_id: str, counted: Contribution | None) -> AdKeys:
        """Of the catalog; of an ad that it no longer has, those that were counted before."""
        keys = self._keys_of_ad(ad_id)
        if keys is None and counted is not None and counted.ad_id == ad_id:
            keys = AdKeys(counted.advertiser, counted.category)
        return keys or AdKeys()

    def changes(self) -> Changes:
        """All that the events taken so far change."""
        of_seen = [(event, list(keys_of(event.ad_id, *_both(keys), event.user_id))) for event, keys in self._seen]
        of_counted = [(one, sign, list(keys_of(*one[4:]))) for one, sign in self._counted]
        wanted = {key for _, keys in of_seen for key in keys} | {key for *_, keys in of_counted for key in keys}
        states = dict(self._backend.counters(wanted))
        for key in wanted - states.keys():
            states[key] = CounterState.empty(key.kind)
        for event, keys in of_seen:
            for key in keys:
                states[key].touch(event.time_us, impression=event.type is EventType.IMPRESSION)
        for one, sign, keys in of_counted:
            for key in keys:
                if sign > 0 or states[key].has_counts:  # else it was swept, and there is nothing to take away
                    states[key].count(one, sign)
        self._changes.counters = {key: None if state.is_empty else state for key, state in states.items()}
        self._changes.impressions = {name: self._impressions[name] for name in sorted(self._changed)}
        return self._changes


def _both(keys: AdKeys) -> tuple[str, str]:
    return keys.advertiser, keys.category
