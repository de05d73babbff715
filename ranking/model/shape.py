"""The sizes of a network, which each model version keeps beside its weights (``ctr.json``). Knows no tensors.

The defaults are those of the versions that were saved before sizes were kept, so they never change: a later release
that trains with other sizes says so in its own versions.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ranking.inputs.context import CONTEXT_BUCKETS, CONTEXT_WORDS, MAX_CONTEXT_WORDS
from ranking.inputs.features import EVENT_CLASSES, TIME_GAP_ENDS
from ranking.inputs.text import HISTORY_EVENTS


class ModelShape(BaseModel):
    """What must be known to make the part of a network that is learned from clicks anew.

    Attributes:
        id_buckets: learned ad ids; 0 is for a text that is no ad.
        context_words: values of an impression that are read, see `ranking.inputs.context`.
        context_buckets: learned vectors of these values.
        width: numbers in the vector of an ad or event.
        heads: of attention over past events, beside the one of similar texts; divides the width.
        hidden: numbers in the hidden layer of the behaviour part.
        history_events: newest events of a user that are attended to.
        event_classes: kinds of events that are told apart, see `ranking.inputs.features.event_class`.
        time_gap_ends: upper ends, in seconds, of the classes of the time between event and impression; rising.
        positions: places on a page that are told apart; from there on all are one.
        text_hidden: numbers in the hidden layer of the head above the text layers.
        text_vectors: how a text becomes the one vector that the behaviour part reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id_buckets: int = Field(ge=2)
    context_words: int = Field(default=CONTEXT_WORDS, ge=0, le=MAX_CONTEXT_WORDS)
    context_buckets: int = Field(default=CONTEXT_BUCKETS, ge=2)
    width: int = Field(default=32, ge=1)
    heads: int = Field(default=4, ge=1)
    hidden: int = Field(default=64, ge=1)
    history_events: int = Field(default=HISTORY_EVENTS, ge=1, le=HISTORY_EVENTS)
    event_classes: Literal[3] = EVENT_CLASSES
    time_gap_ends: tuple[float, ...] = TIME_GAP_ENDS
    positions: int = Field(default=64, ge=2)
    text_hidden: int = Field(default=64, ge=1)
    text_vectors: Literal["centred mean of word embeddings"] = "centred mean of word embeddings"

    @model_validator(mode="after")
    def _fits(self) -> "ModelShape":
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        if list(self.time_gap_ends) != sorted(set(self.time_gap_ends)):
            raise ValueError("the ends of the classes of time do not rise")
        return self

    @property
    def time_gap_buckets(self) -> int:
        """Classes of the time between event and impression, with the open one and that of an unknown time."""
        return len(self.time_gap_ends) + 2
