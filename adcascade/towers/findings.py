"""What a training of towers says of itself, as frozen values that lie in the version. Knows no networks and no logs."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

CUT_OFFS = (10, 100)
FIRST = 10
# Of so many users or more, one ad that this share of them gets first is no taste of theirs; nor are first tens that
# hold no more than twice as many ads together, of a catalog of at least ten times as many.
_ENOUGH_USERS, _NEARLY_ALL = 20, 0.9
_SAME_TEN, _ENOUGH_ADS = 2 * FIRST, 10 * FIRST


class Passes(BaseModel):
    """How far a training came.

    Attributes:
        made: passes over the users that were finished.
        planned: of them, as --epochs has it.
        steps: of the optimizer, those of an unfinished pass among them.
        seconds: that they took.
    """

    model_config = ConfigDict(frozen=True)

    made: int
    planned: int
    steps: int
    seconds: float

    @property
    def cut_short(self) -> bool:
        """Whether the clock ended it."""
        return self.made < self.planned

    def __str__(self) -> str:
        if not self.cut_short:
            return f"all {self.planned} passes"
        place = f"after pass {self.made}" if self.made else "within pass 1"
        return f"stopped {place} of {self.planned}, by --max-minutes"

    @property
    def minutes_of_all(self) -> float | None:
        """How long all passes would take at the pace of those that were finished; None if none was."""
        return self.seconds / self.made * self.planned / 60 if self.made else None


class Lead(BaseModel):
    """A mean over users of the difference of two recalls, with its 95 % bootstrap interval, paired over users."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


class TowerComparison(BaseModel):
    """Recall of what the towers find, with all that is added to it when it is served, beside what needs no training.

    On the rows that chose, of the users who have a past: for the others popularity speaks when they are served.

    Attributes:
        users: how many.
        towers: width -> k of `CUT_OFFS` -> recall@k.
        others: what needs no training -> k -> recall@k.
        lead: width -> other -> k -> recall@k of the towers minus that of the other.
    """

    model_config = ConfigDict(frozen=True)

    users: int
    towers: dict[int, dict[int, float]]
    others: dict[str, dict[int, float]]
    lead: dict[int, dict[str, dict[int, Lead]]]

    def better_than(self, width: int | None = None) -> tuple[str, ...]:
        """What needs no training and yet finds more than vectors of this width (None: whole ones).

        It does if its recall is above theirs at a k by an interval that excludes zero, and theirs is not above its own
        in the same way at the other k: few users, or a trade of the first ten for the first hundred, refuse nothing.
        """
        if not self.lead:
            return ()
        return tuple(name for name, leads in self.lead[self._nearest(width)].items() if _is_behind(leads))

    def _nearest(self, width: int | None) -> int:
        """The widest that was compared of those that are no wider, or the narrowest."""
        if width is None:
            return max(self.lead)
        return max((known for known in self.lead if known <= width), default=min(self.lead))


def _is_behind(leads: Mapping[int, Lead]) -> bool:
    return any(lead.high < 0 for lead in leads.values()) and not any(lead.low > 0 for lead in leads.values())


class Spread(BaseModel):
    """How much the ads differ that users get from the towers, ads that they have met among them.

    Attributes:
        users: of the training log, drawn by lot.
        ads: of the catalog.
        first_ad: that most of them get first.
        first_of: how many users get it first.
        shown: different ads among anybody's `FIRST`.
    """

    model_config = ConfigDict(frozen=True)

    users: int
    ads: int
    first_ad: str
    first_of: int
    shown: int

    @property
    def is_collapsed(self) -> bool:
        """Whether nearly all users get the same ad first, or the same ten."""
        same_ten = self.ads >= _ENOUGH_ADS and self.shown <= _SAME_TEN
        return self.users >= _ENOUGH_USERS and (self.first_of >= _NEARLY_ALL * self.users or same_ten)
