"""What is known of one impression, and what it counts for: the same whatever order its events arrive in.

Of each kind the earliest event counts (by time, then by the key of its id); an event that arrives late and is earlier
takes the place of the one that was counted. Knows no counters and no disk.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple

from adcascade.events.values import AdKeys, NewEvent
from adcascade.records.users import EventType


class First(NamedTuple):
    """The earliest event that says something: its time, its key in hexadecimal, and what it says."""

    time_us: int
    key: str
    said: str = ""


class Contribution(NamedTuple):
    """What an impression, or an event without one, counts: for these keys, at this moment."""

    time_us: int
    impressions: int
    clicks: int
    conversions: int
    ad_id: str
    advertiser: str
    category: str
    user_id: str


@dataclass(frozen=True, slots=True)
class ImpressionState:
    """The earliest events of an impression by what they say, and what was counted of it.

    Attributes:
        counted: as it stands in the counters now, so that exactly this can be taken away again.
    """

    shown: First | None = None
    click: First | None = None
    conversion: First | None = None
    ad: First | None = None
    user: First | None = None
    counted: Contribution | None = None

    @classmethod
    def from_json(cls, data: str) -> "ImpressionState":
        """What `to_json` wrote."""
        fields = json.loads(data)
        counted = fields.pop("counted", None)
        firsts = {name: First(*value) for name, value in fields.items()}
        return cls(**firsts, counted=None if counted is None else Contribution(*counted))

    def to_json(self) -> str:
        """Equal states give equal texts."""
        return json.dumps({name: value for name in _FIELDS if (value := getattr(self, name)) is not None})

    def with_event(self, event: NewEvent) -> "ImpressionState":
        """The state once `event` is known, too."""
        time, key = event.time_us, event.key.hex()
        of_type, new = _SLOTS.get(event.type), First(time, key)
        return ImpressionState(
            _earliest(self.shown, new) if of_type == "shown" else self.shown,
            _earliest(self.click, new) if of_type == "click" else self.click,
            _earliest(self.conversion, new) if of_type == "conversion" else self.conversion,
            _earliest(self.ad, First(time, key, event.ad_id)) if event.ad_id else self.ad,
            _earliest(self.user, First(time, key, event.user_id)) if event.user_id else self.user,
            self.counted,
        )

    def with_counted(self, counted: Contribution | None) -> "ImpressionState":
        """The same once so much of it stands in the counters."""
        return ImpressionState(self.shown, self.click, self.conversion, self.ad, self.user, counted)

    def without_user(self) -> "ImpressionState":
        """The same without a word of whose it was; what was counted for its ad stays."""
        counted = None if self.counted is None else self.counted._replace(user_id="")
        return ImpressionState(self.shown, self.click, self.conversion, self.ad, None, counted)

    @property
    def user_id(self) -> str:
        """Whose it is; empty if no event says so."""
        return self.user.said if self.user else ""

    @property
    def newest_us(self) -> int:
        """The time of the latest of its events that is known here, microseconds since 1970."""
        known = (self.shown, self.click, self.conversion, self.ad, self.user)
        return max((one.time_us for one in known if one is not None), default=0)

    def contribution(self, keys: AdKeys, min_click_us: int) -> Contribution | None:
        """What it is to count; None while nothing says that the ad was shown.

        Args:
            keys: of its ad.
            min_click_us: a click sooner after the impression, or before it, is not counted; 0 counts all.
        """
        first = self.shown or self.click or self.conversion
        if first is None or self.ad is None:
            return None
        too_fast = (
            min_click_us > 0
            and self.shown is not None
            and self.click is not None
            and self.click.time_us - self.shown.time_us < min_click_us
        )
        return Contribution(
            time_us=first.time_us,
            impressions=1,
            clicks=int(self.click is not None and not too_fast),
            conversions=int(self.conversion is not None),
            ad_id=self.ad.said,
            advertiser=keys.advertiser,
            category=keys.category,
            user_id=self.user_id,
        )


_SLOTS = {EventType.IMPRESSION: "shown", EventType.CLICK: "click", EventType.CONVERSION: "conversion"}


_FIELDS = ("shown", "click", "conversion", "ad", "user", "counted")


def _earliest(known: First | None, new: First) -> First:
    return new if known is None else min(known, new)


def alone(event: NewEvent, keys: AdKeys) -> Contribution:
    """What an event counts that names no impression."""
    return Contribution(
        time_us=event.time_us,
        impressions=int(event.type is EventType.IMPRESSION),
        clicks=int(event.type is EventType.CLICK),
        conversions=int(event.type is EventType.CONVERSION),
        ad_id=event.ad_id,
        advertiser=keys.advertiser,
        category=keys.category,
        user_id=event.user_id,
    )
