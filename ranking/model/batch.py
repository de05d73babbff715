"""Token ids as padded tensors: the input of the models, for training and serving alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from adcascade.vectors.encoder import CHARS_PER_TOKEN

TokenIds = list[int]

# Lengths within so many tokens are about one length.
_PART_TOKENS = 8


@dataclass(frozen=True)
class TokenRows:
    """Padded rows of tokens. `ids` is int64 [rows, tokens]; `lengths` is int64 [rows], each at least 1."""

    ids: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """True where a token is, bool [rows, tokens]."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def to(self, device: torch.device) -> "TokenRows":
        """The same on another device."""
        return TokenRows(self.ids.to(device), self.lengths.to(device))

    def take(self, places: Sequence[int]) -> "TokenRows":
        """Some of the rows."""
        return TokenRows(self.ids[list(places)], self.lengths[list(places)])


@dataclass(frozen=True)
class PairBatch:
    """Users, and the ads each of them is to be scored against.

    Attributes:
        users: [users, user tokens].
        ads: [pairs, ad tokens]; the ads of the first user come first.
        ads_per_user: how many ads each user has, in order; they sum to the number of pairs.
        dense: normalised features, float32 [pairs, features].
    """

    users: TokenRows
    ads: TokenRows
    ads_per_user: tuple[int, ...]
    dense: Tensor


def pad(rows: Sequence[TokenIds], pad_id: int, least: int = 1) -> TokenRows:
    """Token ids of different lengths as one tensor of at least `least` columns, padded at the end."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    width = max(least, int(lengths.max()) if rows else 1)
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], dtype=torch.int64)
    return TokenRows(ids.reshape(len(rows), width), lengths)


def stacked(batches: Sequence[TokenRows]) -> TokenRows:
    """The rows of several batches as those of one."""
    width = max(rows.ids.shape[1] for rows in batches)
    ids = [F.pad(rows.ids, (0, width - rows.ids.shape[1])) for rows in batches]
    return TokenRows(torch.cat(ids), torch.cat([rows.lengths for rows in batches]))


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[TokenIds]:
    """Each text as [CLS] ... [SEP], cut at `max_tokens`; what is never reached is cut off before it is split."""
    if not texts:
        return []
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
    read = [text[: CHARS_PER_TOKEN * max_tokens] for text in texts]
    encoded = tokenizer(read, truncation=True, max_length=max_tokens, **only_ids)
    return [list(ids) for ids in encoded["input_ids"]]


def distinct(rows: TokenRows) -> tuple[TokenRows, Tensor]:
    """Each text once, and which of these each of the rows is, int64 [rows]."""
    found: dict[tuple[int, ...], int] = {}
    texts = (tuple(ids[:length]) for ids, length in zip(rows.ids.tolist(), rows.lengths.tolist(), strict=True))
    which = [found.setdefault(text, len(found)) for text in texts]
    first = {number: place for place, number in reversed(list(enumerate(which)))}
    return rows.take([first[number] for number in range(len(found))]), torch.tensor(which, device=rows.ids.device)


def by_length(rows: TokenRows) -> list[tuple[list[int], TokenRows]]:
    """The rows in parts of about one length, so that little is padding: the places of each part's rows, and these.

    A device that works on many tokens at once gets them in one part.
    """
    lengths = rows.lengths.tolist()
    if rows.ids.device.type != "cpu":
        return [(list(range(len(lengths))), rows)]
    parts: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        parts.setdefault(-(-length // _PART_TOKENS), []).append(place)
    return [
        (places, TokenRows(rows.ids[places, : max(lengths[place] for place in places)], rows.lengths[places]))
        for _, places in sorted(parts.items())
    ]


def read_by_length(rows: TokenRows, read: Callable[[TokenRows], Tensor]) -> Tensor:
    """What `read` makes of the rows, [rows, tokens, hidden], zeros behind each part; see `by_length`."""
    states: Tensor | None = None
    for places, part in by_length(rows):
        found = read(part)
        if states is None:
            states = found.new_zeros(*rows.ids.shape, found.shape[2])
        states[places, : found.shape[1]] = found
    assert states is not None
    return states
