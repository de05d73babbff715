"""What the engine is asked, and what it answers. Knows no wire and no models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from adcascade.records.counter_table import Total
from ranking.inputs.keywords import AdParts

MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class PastEvent:
    """What a user did with an ad, or with a text that is no ad; `seconds` ago, NaN if nobody knows."""

    ad_id: str
    text: str
    event_class: int
    seconds: float


@dataclass(frozen=True)
class RankQuery:
    """One user and their candidates.

    Attributes:
        interests: what the user says of themselves; may be empty.
        past: the user's newest events, oldest first.
        keys: for each of `ranking.inputs.features.COUNTED`, what each candidate's counters are looked up by.
        context: see `ranking.inputs.context.context_hashes`; as many words as any model reads, or more.
        timestamp_s: when the ads would be shown, seconds since 1970.
        counter_overrides: totals of some keys that go before those of the model version, by what is counted.
        shown: how many of the candidates will be shown together; 0 if nobody knows.
        cost: see `engine.RankingEngine.cost_of`.
        parts: each candidate with its keywords apart from its text, best made as they are read; () if none has any.
    """

    user_text: str
    interests: str
    past: Sequence[PastEvent]
    ad_ids: Sequence[str]
    ad_texts: Sequence[str]
    keys: Mapping[str, Sequence[str]]
    context: Sequence[int]
    timestamp_s: float
    counter_overrides: Mapping[str, Mapping[str, Total]] = field(default_factory=dict)
    shown: int = 0
    cost: int = 1
    parts: Sequence[AdParts] = ()


@dataclass(frozen=True)
class RankAnswer:
    """Probabilities in the order of the candidates, float64 [candidates].

    Attributes:
        p_click: calibrated probability of a click.
        p_conversion: of a conversion given the click; None if the log taught none.
        retrieval_weight: of the model version, see `ranking.spec.OrderBlend`; None if it was not fitted.
    """

    p_click: npt.NDArray[np.float64]
    p_conversion: npt.NDArray[np.float64] | None
    cached_ads: int
    tokenize_ms: float
    compute_ms: float
    model_version: str
    retrieval_weight: float | None = None
