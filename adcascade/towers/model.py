"""The two towers: networks that put ads and users into one space, where the inner product says what is clicked.

*Ad tower*: the projected text vector and, for an ad of the training log, a learned residual; dimension 0 is a bias, so
that plain maximum inner product finds popular ads, too. Cutting a vector after any number of dimensions leaves a
vector of the same kind (Matryoshka, Kusupati et al., arXiv 2205.13147).

*User tower*: past events as ready vectors of the ads they are about, never as text. A wide part sums them, forgetting
(an item-to-item model of low rank, as FISM, Kabbur et al. 2013); a deep part is a causal transformer over them (SASRec,
Kang and McAuley, arXiv 1808.09781). Where the ads would be shown (device, country, placement) moves the result, so
that a user of whom nothing is known gets what is clicked there. Dimension 0 of a user's vector is 1.

Knows no gRPC, no files of clicks, and nothing of how it is trained.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from adcascade.records.hashing import crc32_bucket
from adcascade.records.users import EVENT_WEIGHT, EventType

EVENT_TYPES = tuple(EventType)
# What a user says of themselves stands before their events, as one more.
INTERESTS_TYPE = len(EVENT_TYPES)
# Classes of the time between an event and the one before: powers of two of seconds; the last is for no known time.
GAP_CLASSES, UNKNOWN_GAP = 33, 32
ATTRIBUTE_BUCKETS = 4096
_SMALL = 0.02


class TowerShape(BaseModel):
    """What must be known to make the networks anew.

    Attributes:
        text_width: numbers per text vector.
        width: numbers per ad vector, without the bias.
        layers: of the deep part; 0 leaves it out.
        heads: of attention in each layer.
        history: newest events that are read.
        id_buckets: rows of the table of residuals; row 0 is for ads that were not in the training log.
    """

    model_config = ConfigDict(frozen=True)

    text_width: int
    width: int
    layers: int
    heads: int
    history: int
    id_buckets: int

    @property
    def dimension(self) -> int:
        """Numbers per vector in the index."""
        return 1 + self.width

    @property
    def event_width(self) -> int:
        """Numbers per event: what the deep part reads of it, and what it adds in the wide one."""
        return 2 * self.width

    @property
    def hashed(self) -> str:
        """As the hash of a space has it: with the number of vectors per user, which was once an option."""
        sizes = self.model_dump()
        rows = sizes.pop("id_buckets")
        return json.dumps({**sizes, "interests": 1, "id_buckets": rows}, separators=(",", ":"))


def attribute_bucket(name: str, value: str) -> int:
    """Row of an attribute of a user, or of a value of a context; 0 stands for none."""
    return crc32_bucket(f"{name}\0{value}", ATTRIBUTE_BUCKETS)


def attribute_buckets(rows: Sequence[Mapping[str, str]]) -> npt.NDArray[np.int64]:
    """`attribute_bucket`s of the values of each row, padded with 0, int64 [rows, values]."""
    found = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for place, values in enumerate(rows):
        found[place, : len(values)] = [attribute_bucket(name, value) for name, value in values.items()]
    return found


class AdTower(nn.Module):
    """Text vectors and hashed ids to vectors of the index, and to what the user tower reads of events."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.text = nn.Linear(shape.text_width, shape.dimension)
        self.residual = _table(shape.id_buckets, shape.dimension)
        self.event_text = nn.Linear(shape.text_width, shape.event_width, bias=False)
        self.event_residual = _table(shape.id_buckets, shape.event_width)

    def vectors(self, texts: Tensor, buckets: Tensor) -> Tensor:
        """Vectors of the index, float32 [ads, 1 + width], from unit text vectors and `crc32_bucket`s, 0 if unknown."""
        vectors: Tensor = self.text(texts) + self.residual(buckets)
        return vectors

    def events(self, texts: Tensor, buckets: Tensor) -> Tensor:
        """What events about these ads (or texts, with bucket 0) are to the user tower, float32 [ads, event width]."""
        events: Tensor = self.event_text(texts) + self.event_residual(buckets)
        return events


def _table(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width, padding_idx=0)
    nn.init.normal_(table.weight, std=_SMALL)
    with torch.no_grad():
        table.weight[0] = 0
    return table


@dataclass(frozen=True)
class UserEvents:
    """Events of some users, oldest first, padded at the end.

    Attributes:
        vectors: of `AdTower.events`, float32 [users, events, event width].
        types: place in `EVENT_TYPES`, or `INTERESTS_TYPE`, int64 [users, events].
        gaps: class of the time since the event before, int64 [users, events].
        lengths: how many events are real, int64 [users].
        attributes: see `attribute_buckets`, int64 [users, attributes].
    """

    vectors: Tensor
    types: Tensor
    gaps: Tensor
    lengths: Tensor
    attributes: Tensor


class UserTower(nn.Module):
    """Events to interest vectors."""

    def __init__(self, shape: TowerShape, dropout: float = 0.0, event_dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.attributes = _table(ATTRIBUTE_BUCKETS, width)
        self.start = nn.Parameter(torch.zeros(width))
        self.types = nn.Embedding(INTERESTS_TYPE + 1, width)
        self.gaps = nn.Embedding(GAP_CLASSES, width)
        for table in (self.types, self.gaps):
            nn.init.normal_(table.weight, std=_SMALL)
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.deep = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(width), False) if shape.layers else None
        self.read = nn.Linear(width, width)
        # What each type of event counts in the wide part; those that no log has keep what they are known to mean.
        weights = [EVENT_WEIGHT[kind] for kind in EVENT_TYPES]
        self.weight = nn.Parameter(torch.tensor([*weights, 1.0]))
        self.forgetting = nn.Parameter(torch.tensor(-5.0))
        self.contexts = nn.Parameter(torch.zeros(ATTRIBUTE_BUCKETS, width))
        self.dropout = nn.Dropout(dropout)
        self._event_dropout = event_dropout

    def forward(self, events: UserEvents) -> Tensor:
        """Interest vectors after each number of events, float32 [users, 1 + events, 1 + width]."""
        states = self._wide(events)
        if self.deep is not None:
            states = states + self.read(self._deep(events))
        return torch.cat([states.new_ones(*states.shape[:-1], 1), states], dim=-1)

    def interests(self, events: UserEvents, contexts: Tensor) -> Tensor:
        """Interest vectors of the users now, float32 [users, 1 + width]; see `in_context`."""
        states = self(events)
        return self.in_context(states[torch.arange(len(states)), events.lengths], contexts)

    def in_context(self, interests: Tensor, contexts: Tensor) -> Tensor:
        """Interest vectors where ads are to be shown.

        Args:
            interests: float32 [users, 1 + width].
            contexts: `attribute_buckets` of `Context.values`, int64 [users, values].
        """
        if not contexts.shape[1]:
            return interests
        # [users, interests * width]: the sum of the values' vectors; number 0, the 1 that meets the bias, stays.
        added = F.embedding_bag(contexts, self.contexts, mode="sum", padding_idx=0)
        return interests + F.pad(added, (1, 0))

    def _deep(self, events: UserEvents) -> Tensor:
        length = events.vectors.shape[1]
        assert self.deep is not None
        rows = events.vectors[..., : self.shape.width] + self.types(events.types) + self.gaps(events.gaps)
        start = (self.start + self.attributes(events.attributes).sum(1))[:, None]  # [users, 1, width]
        # later[t, i]: i > t, which t must not see; the start is place 0, event number n place n.
        later = torch.ones(1 + length, 1 + length, dtype=torch.bool, device=rows.device).triu(1)
        states: Tensor = self.deep(self.dropout(torch.cat([start, rows], dim=1)), mask=later, is_causal=True)
        return states

    def _wide(self, events: UserEvents) -> Tensor:
        """Sums of the events so far, each forgotten a little with every event since."""
        # After event t of event vectors v and weights w, with the rate of forgetting r = softplus(forgetting) > 0:
        #   wide(t) = sum over i <= t of exp(-r (t - i)) w_i v_i / sqrt(2 + t), and wide of no event is 0.
        length = events.vectors.shape[1]
        weight = self.weight[events.types]  # [users, events]
        if self.training and self._event_dropout:
            weight = F.dropout(weight, self._event_dropout)
        place = torch.arange(length, device=weight.device)
        since = place[:, None] - place  # [t, i]: how many events after i t is; below 0 where i is later
        forgotten = torch.exp(-F.softplus(self.forgetting) * since.clamp(min=0)) * (since >= 0)
        # [users, t, i] @ [users, i, interests * width]
        sums = (forgotten * weight[:, None]) @ events.vectors[..., self.shape.width :]
        # One row more in front, for no event: [users, 1 + events, interests * width].
        return F.pad(self.dropout(sums / torch.sqrt(2.0 + place)[:, None]), (0, 0, 1, 0))


class Towers(nn.Module):
    """Both towers."""

    def __init__(self, shape: TowerShape, dropout: float = 0.0, event_dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.ads = AdTower(shape)
        self.users = UserTower(shape, dropout, event_dropout)

    @property
    def sha256(self) -> str:
        """Hash of all weights: the space that they span."""
        digest = hashlib.sha256(self.shape.hashed.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).data)
        return digest.hexdigest()


def gap_class(seconds: float | None) -> int:
    """Class of the time since the event before."""
    if seconds is None:
        return UNKNOWN_GAP
    return min(int(math.log2(1 + max(0.0, seconds))), UNKNOWN_GAP - 1)
