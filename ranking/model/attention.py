"""Attention of ads over themselves and over what was kept of their users. Knows no weights but a given layer's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranking.model.batch import TokenRows


@dataclass(frozen=True)
class UserStates:
    """What ads read of one user: per joined layer keys [heads, head size, tokens] and values [heads, tokens, size]."""

    keys: list[Tensor]
    values: list[Tensor]


@dataclass(frozen=True)
class ManyUsers:
    """What the pairs of a batch read of their users.

    Attributes:
        keys_values: per joined layer, both [texts, heads, tokens, size], padded at the end.
        mask: True where a user's text has a token, bool [texts, tokens].
        of_pair: which of the texts each pair's user has, int64 [pairs].
    """

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor
    of_pair: Tensor

    @classmethod
    def of(
        cls,
        states: Sequence[tuple[Sequence[int], Sequence[tuple[Tensor, Tensor]]]],
        texts: TokenRows,
        of_pair: Tensor,
    ) -> "ManyUsers":
        """Puts together what was read in several parts.

        Args:
            states: of each part, the places of its texts, and keys and values per joined layer.
        """
        order = torch.tensor([place for places, _ in states for place in places], device=of_pair.device).argsort()
        tokens = texts.ids.shape[1]

        def whole(depth: int, which: int) -> Tensor:
            parts = [of_layers[depth][which] for _, of_layers in states]
            return torch.cat([F.pad(part, (0, 0, 0, tokens - part.shape[2])) for part in parts])[order]

        return cls([(whole(depth, 0), whole(depth, 1)) for depth in range(len(states[0][1]))], texts.mask, of_pair)


def attend_both(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, user: UserStates, depth: int, dropout: float
) -> Tensor:
    """Attention of one user's ads over themselves and over that user, in one softmax.

    The user's keys are not copied per ad: all queries of all ads meet them in one matrix product.

    Args:
        queries: [ads, heads, query tokens, size].
        keys, values: the ads' own, [ads, heads, tokens, size].
        mask: True where an ad has a token, bool [ads, 1, 1, tokens].
        user: the user's keys and values; `depth` says which joined layer.

    Returns:
        [ads, heads, query tokens, size].
    """
    ads, heads, tokens, size = queries.shape
    queries = queries / math.sqrt(size)
    flat = queries.transpose(0, 1).reshape(heads, ads * tokens, size)
    to_user = (flat @ user.keys[depth]).view(heads, ads, tokens, -1).transpose(0, 1)
    to_self = (queries @ keys.transpose(2, 3)).masked_fill(~mask, float("-inf"))
    weights = torch.cat([to_user, to_self], dim=-1).softmax(dim=-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    user_tokens = to_user.shape[-1]
    on_user, on_self = weights[..., :user_tokens], weights[..., user_tokens:]
    from_user = on_user.transpose(0, 1).reshape(heads, ads * tokens, -1) @ user.values[depth]
    both: Tensor = from_user.view(heads, ads, tokens, size).transpose(0, 1) + on_self @ values
    return both


def finish_layer(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    """What follows attention in a BERT layer; `context` and `hidden` are [rows, tokens, hidden]."""
    attended = layer.attention.output(context, hidden)
    finished: Tensor = layer.output(layer.intermediate(attended), attended)
    return finished


def merge_heads(x: Tensor) -> Tensor:
    """[rows, heads, tokens, size] to [rows, tokens, hidden]."""
    return x.transpose(1, 2).flatten(2)


def ranges(counts: Sequence[int]) -> Iterator[slice]:
    """So many places for each count, one after the other."""
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count
