"""What files of events must have: a click log, and the history of its users before it. Knows no values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = ("request_id", "ad_id", "clicks", "impressions")
# Sums of a hundred million rows of so many impressions hold in 64 bits.
MAX_IMPRESSIONS = 10**10


@dataclass(frozen=True)
class LogForm:
    """What a file of events must have.

    Attributes:
        name: what it is, for messages.
        required: columns that it must have.
        absent: what is read where other columns say nothing, by their names.
    """

    name: str
    required: tuple[str, ...]
    absent: Mapping[str, Any]


CLICK_LOG = LogForm("click log", REQUIRED, {})
# Nobody counts the impressions of a history: where it has none, any number of clicks is believed.
HISTORY = LogForm(
    "history", ("user_id", "ad_id", "timestamp"), {"request_id": "history", "clicks": 1, "impressions": MAX_IMPRESSIONS}
)
