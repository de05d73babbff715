"""Attention of ads over themselves and over what was kept of their users. Knows no weights but a given layer's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class UserStates:
    """What ads read of one user: per joined layer keys [heads, head size, tokens] and values [heads, tokens, size]."""

    keys: list[Tensor]
    values: list[Tensor]


@dataclass(frozen=True)
class ManyUsers:
    """What the pairs of a batch read of their users, padded at the end.

    Attributes:
        keys_values: of each joined layer but the last, both [texts, heads, tokens, size].
        below_last: states below the last layer, [texts, tokens, hidden].
        mask: True where a user's text has a token, bool [texts, tokens].
        of_pair: which of the texts each pair's user has, int64 [pairs].
    """

    keys_values: list[tuple[Tensor, Tensor]]
    below_last: Tensor
    mask: Tensor
    of_pair: Tensor


def attend_one(layer: Any, query: Tensor, states: Tensor, mask: Tensor, heads: int, dropout: float) -> Tensor:
    """Attention of one query a row over that row's states, without their keys and values.

    With K_h, k_h and V_h, v_h the weights and biases of a head's keys and values, and a_t its weights after softmax:
    q_h . (K_h x_t + k_h) = (K_h^T q_h) . x_t + q_h . k_h, and the sum of a_t (V_h x_t + v_h) is V_h (sum of a_t x_t) +
    (sum of a_t) v_h. One query a row makes this several times cheaper than keys and values of all tokens.

    Args:
        query: [rows, hidden].
        states: [rows, tokens, hidden]; `mask` is True where a token is, bool [rows, tokens].

    Returns:
        [rows, 1, hidden].
    """
    attention, size = layer.attention.self, query.shape[1] // heads
    by_head = (attention.query(query) / math.sqrt(size)).view(len(query), heads, size).transpose(0, 1)
    states = states.to(by_head.dtype)  # once, where autocast would for each product
    key, value = (_weight(one).view(heads, size, -1) for one in (attention.key, attention.value))
    folded = (by_head @ key).transpose(0, 1)  # [rows, heads, hidden]
    # The same for all tokens of a row, so that softmax drops it; here for the gradient of each weight to be known.
    same = (by_head * attention.key.bias.view(heads, 1, size)).sum(dim=2).T  # [rows, heads]
    scores = folded @ states.transpose(1, 2) + same[..., None]
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(dim=2)
    weights = F.dropout(weights, dropout) if dropout else weights
    seen = (weights @ states).transpose(0, 1) @ value.transpose(1, 2)  # [heads, rows, size]
    of_bias = weights.sum(dim=2)[..., None] * attention.value.bias.view(heads, size)
    context: Tensor = (seen.transpose(0, 1) + of_bias).flatten(1)
    return context[:, None]


def _weight(linear: Any) -> Tensor:
    """The weight of a linear layer, with what its adapters (LoRA) add."""
    is_plain = isinstance(linear, nn.Linear)
    weight: Tensor = linear.weight if is_plain else linear.get_base_layer().weight
    for name in () if is_plain else linear.active_adapters:
        weight = weight + linear.get_delta_weight(name)
    return weight


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
