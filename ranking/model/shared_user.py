"""The network that reads the user once. Knows no gRPC and no files of clicks.

`SharedUserCrossEncoder` reads the user once: user tokens attend to themselves; ad tokens attend to themselves and,
from the join layer on, also to the user's keys and values. Ad positions start at 0, so below the join layer an ad's
states do not depend on the user and can be cached. In the last layer only the ad's first token is computed. The idea
follows PreTTR (arXiv 2004.14255), DeFormer (2005.00697) and HSTU's M-FALCON (2402.17152).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ranking.model.attention import ManyUsers, UserStates, attend_both, attend_one, finish_layer, merge_heads, ranges
from ranking.model.batch import PairBatch, TokenRows, distinct, read_by_length
from ranking.model.behaviour import BehaviourModel
from ranking.model.shape import ModelShape

SHARED_USER, JOINT = "shared_user", "joint"
# Families whose layers have the shape of BERT's; those of RoBERTa count positions from padding_idx + 1.
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")
BERT_LIKE = ("bert", "electra", *_ROBERTA_LIKE)


class ClickHead(nn.Module):
    """What an ad's text, and what it says to this user, add to the logit of a click; it starts at nothing.

    It reads the ad's [CLS] row above the joined layers and the mean of the ad's states below them. The latter are what
    the base model knows of the text: a linear part learns from them at once, before any layer has been trained (a wide
    part beside a deep one, Cheng et al., arXiv 1606.07792).

    Args:
        hidden: Numbers in a state of the encoder.
        features: Number of dense features.
        own_hidden: Numbers in the hidden layer of the deep part.
    """

    def __init__(self, hidden: int, features: int, own_hidden: int) -> None:
        super().__init__()
        width = 2 * hidden + features
        self.wide = nn.Linear(width, 1, bias=False)
        self.deep = nn.Sequential(nn.Linear(width, own_hidden), nn.GELU(), nn.Linear(own_hidden, 1))
        for weight in self.last_weights:
            nn.init.zeros_(weight)

    @property
    def last_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those that make the logit; while they are zero the head adds nothing."""
        last: Any = self.deep[-1]
        return self.wide.weight, last.weight, last.bias

    def forward(self, cls: Tensor, ad: Tensor, dense: Tensor) -> Tensor:
        """`cls` and `ad` [pairs, hidden] and `dense` [pairs, features] to logits [pairs]."""
        read = torch.cat([cls, ad, dense], dim=1)
        logits: Tensor = (self.wide(read) + self.deep(read))[:, 0]
        return logits


class TextVectors(nn.Module):
    """Unit vectors of texts for the behaviour part: the centred mean of word embeddings, which are never trained."""

    center: Tensor

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        embeddings.requires_grad_(False)
        self._embeddings = (embeddings,)  # in a tuple, so that the weights are not saved twice
        weight: Any = embeddings.weight
        self.width = int(weight.shape[1])
        self.register_buffer("center", torch.zeros(self.width))

    @torch.no_grad()
    def center_on(self, texts: Iterable[list[int]], pad_id: int) -> None:
        """Makes the mean word embedding of these texts (token ids, with [CLS] and [SEP]) the center."""
        words = torch.tensor([token for ids in texts for token in ids[1:-1]] or [pad_id])
        self.center.copy_(self._embeddings[0](words).mean(dim=0))

    def forward(self, rows: TokenRows) -> Tensor:
        """float32 [rows, width]; [CLS] and [SEP] do not count, a text without words is a vector of zeros."""
        # Words are tokens 1 .. length - 2. (sum over words of e - n center) = n (mean of e - center): of one direction.
        mask = rows.mask & (torch.arange(rows.ids.shape[1], device=rows.ids.device) > 0)
        mask &= torch.arange(rows.ids.shape[1], device=rows.ids.device) < rows.lengths[:, None] - 1
        words = self._embeddings[0](rows.ids) * mask[..., None]
        return F.normalize((words.sum(dim=1) - mask.sum(dim=1, keepdim=True) * self.center).float(), dim=1)


class SharedUserCrossEncoder(nn.Module):
    """A BERT-like encoder under the shared-user attention mask, with a click head.

    Args:
        encoder: Any model of the families in `BERT_LIKE`; its weights are used as they are.
        join_layer: First layer in which ads attend to the user, 0 to layers - 1.
        features: Number of dense features.
        shape: Sizes of what is learned beside the encoder.
    """

    def __init__(self, encoder: PreTrainedModel, join_layer: int, features: int, shape: ModelShape) -> None:
        super().__init__()
        config = encoder.config
        if not 0 <= join_layer < config.num_hidden_layers:
            raise ValueError(f"join_layer must be 0 to {config.num_hidden_layers - 1}, not {join_layer}")
        self.encoder: Any = encoder
        self.join_layer = join_layer
        self.head = ClickHead(config.hidden_size, features, shape.text_hidden)
        self.text = TextVectors(encoder.get_input_embeddings())
        self.behaviour = BehaviourModel(self.text.width, features, shape)
        self._heads = int(config.num_attention_heads)
        self._first_position = int(config.pad_token_id) + 1 if config.model_type in _ROBERTA_LIKE else 0
        self._ad_segment = min(1, int(getattr(config, "type_vocab_size", 1)) - 1)

    @property
    def text_is_untrained(self) -> bool:
        """Whether the text has not been trained for clicks, so that reading it would be in vain."""
        return not any(bool(weight.any()) for weight in self.head.last_weights)

    @property
    def layers(self) -> Any:
        """The transformer layers, in order."""
        return self.encoder.encoder.layer

    def forward(self, batch: PairBatch) -> Tensor:
        """What the text adds to the logits of the behaviour part, float32 [pairs]."""
        return self.read(batch)[0]

    def read(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and the last state of each pair's first ad token, [pairs, hidden]."""
        users, hidden = self.many_users(batch.users, batch.ads_per_user), self.ad_states(batch.ads)
        return self.add_many(users, hidden, batch.ads.mask, batch.dense)

    def many_users(self, users: TokenRows, ads_per_user: Sequence[int], below: Tensor | None = None) -> ManyUsers:
        """The user pass for a batch of many: equal texts are read once, and those of about one length together.

        Args:
            below: What `user_states_below` made of these users, where that is known.
        """
        texts, which = users, torch.arange(len(ads_per_user), device=users.ids.device)
        if below is None:
            texts, which = distinct(users)
            below = read_by_length(texts, self.user_states_below)
        counts = torch.tensor(ads_per_user, device=below.device)
        keys_values, hidden = [], below
        for layer in self.layers[self.join_layer : -1]:
            keys_values.append(self._keys_values(layer, hidden))
            hidden = self._attend(layer, hidden, *keys_values[-1], texts.mask)
        return ManyUsers(keys_values, hidden, texts.mask, which.repeat_interleave(counts))

    def add_many(self, users: ManyUsers, hidden: Tensor, mask: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """What `read` returns, from states that may have been kept; `hidden` and `mask` are those of `join`."""
        *joined, last = self.layers[self.join_layer :]
        states, seen = hidden, torch.cat([users.mask[users.of_pair], mask], dim=1)
        for layer, of_users in zip(joined, users.keys_values, strict=True):
            keys, values = (
                torch.cat([of_user[users.of_pair], of_ad], dim=2)
                for of_user, of_ad in zip(of_users, self._keys_values(layer, states), strict=True)
            )
            states = self._attend(layer, states, keys, values, seen)
        both = torch.cat([users.below_last[users.of_pair], states], dim=1)
        context = attend_one(last, states[:, 0], both, seen, self._heads, self._attention_dropout(last))
        cls = finish_layer(last, context, states[:, :1])[:, 0]
        return self.head(cls, self.mean_state(hidden, mask), dense), cls

    def user_states(self, users: TokenRows) -> list[UserStates]:
        """The user pass: keys and values of each joined layer for each user, padding cut off."""
        lengths = users.lengths.tolist()
        states = [UserStates([], []) for _ in lengths]
        for keys, values in self.keys_values(users):
            for row, length in enumerate(lengths):
                states[row].keys.append(keys[row, :, :length].transpose(1, 2))
                states[row].values.append(values[row, :, :length])
        return states

    def keys_values(self, users: TokenRows) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each joined layer, both [users, heads, tokens, size], padding and all."""
        hidden = self.user_states_below(users)
        *joined, last = self.layers[self.join_layer :]
        for layer in joined:
            keys, values = self._keys_values(layer, hidden)
            yield keys, values
            hidden = self._attend(layer, hidden, keys, values, users.mask)
        yield self._keys_values(last, hidden)  # above them nobody reads the user

    def user_states_below(self, users: TokenRows) -> Tensor:
        """The users' hidden states below the join layer, [users, tokens, hidden]; they do not depend on the ads."""
        *_, hidden = self._below_join(users, segment=0)
        return hidden

    def ad_states(self, ads: TokenRows) -> Tensor:
        """The ads' hidden states below the join layer, [ads, tokens, hidden]; they do not depend on the user."""
        *_, hidden = self._below_join(ads, self._ad_segment)
        return hidden

    def layer_means(self, ads: TokenRows, layers: int) -> Tensor:
        """Unit means of the ads' states above the last so many layers below the join layer, [ads, layers, hidden].

        They do not depend on the user. The state below the first layer counts as one, too.
        """
        states = list(self._below_join(ads, self._ad_segment))[-layers:]
        return torch.stack([F.normalize(self.mean_state(one, ads.mask).float(), dim=1) for one in states], dim=1)

    def _below_join(self, rows: TokenRows, segment: int) -> Iterator[Tensor]:
        """The states of texts below the first layer and above each layer below the join layer."""
        hidden = self._embed(rows, segment)
        yield hidden
        for layer in self.layers[: self.join_layer]:
            hidden = self._attend(layer, hidden, *self._keys_values(layer, hidden), rows.mask)
            yield hidden

    def _attend(self, layer: Any, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The states above a layer in which `hidden` attends to keys where `mask`, bool [rows, keys], is True."""
        dropout = self._attention_dropout(layer)
        context = F.scaled_dot_product_attention(
            self._queries(layer, hidden), keys, values, mask[:, None, None, :], dropout_p=dropout
        )
        return finish_layer(layer, merge_heads(context), hidden)

    def add(
        self, users: list[UserStates], ads_per_user: Sequence[int], hidden: Tensor, mask: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `read` returns, from states that may have been kept; see `join` for the arguments."""
        cls = self.join(users, ads_per_user, hidden, mask)
        return self.head(cls, self.mean_state(hidden, mask), dense), cls

    @staticmethod
    def mean_state(hidden: Tensor, mask: Tensor) -> Tensor:
        """Mean of an ad's states, [pairs, hidden]; see `join` for the arguments."""
        tokens = torch.where(mask[..., None], hidden, 0)
        return tokens.sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def projected(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the last layer, both [ads, tokens, hidden], from the states below it."""
        attention = self.layers[-1].attention.self
        return attention.key(hidden), attention.value(hidden)

    def top(self, cls: Tensor, keys: Tensor, values: Tensor, mask: Tensor, user: UserStates) -> Tensor:
        """What `join` returns for one user's ads where the last layer alone is joined; for serving, without dropout.

        Args:
            cls: states of the ads' first tokens below the last layer, [ads, hidden].
            keys, values: what `projected` made of their states.
            mask: True where an ad has a token, bool [ads, tokens].
        """
        # softmax([q K_user, q K_ad]) [V_user; V_ad] with one query q an ad and head: its [CLS] row's.
        layer = self.layers[-1]
        ads, tokens, hidden = keys.shape
        queries = layer.attention.self.query(cls) / math.sqrt(hidden // self._heads)
        by_head = queries.view(ads, self._heads, -1).transpose(0, 1)  # [heads, ads, size]
        # All ads meet the user's keys in one product: [heads, ads, size] @ [heads, size, user tokens].
        to_user = (by_head @ user.keys[0]).transpose(0, 1)
        # [ads, tokens, heads, size] summed over size, to [ads, heads, tokens].
        # A query a head and ad: products of so small matrices are slower than multiplying and adding up.
        to_self = (keys * queries[:, None]).view(ads, tokens, self._heads, -1).sum(dim=3).transpose(1, 2)
        to_self = to_self.masked_fill(~mask[:, None], float("-inf"))
        weights = torch.cat([to_user, to_self], dim=2).softmax(dim=2)  # [ads, heads, user tokens + ad tokens]
        user_tokens = to_user.shape[2]
        from_user = (weights[..., :user_tokens].transpose(0, 1) @ user.values[0]).transpose(0, 1).flatten(1)
        on_self = weights[..., user_tokens:].transpose(1, 2)[..., None]
        from_self = (values.view(ads, tokens, self._heads, -1) * on_self).sum(dim=1).flatten(1)
        return finish_layer(layer, (from_user + from_self)[:, None], cls[:, None])[:, 0]

    def join(self, users: list[UserStates], ads_per_user: Sequence[int], hidden: Tensor, mask: Tensor) -> Tensor:
        """The joined layers.

        Args:
            users: What `user_states` returned.
            ads_per_user: How many ads each user has, in order.
            hidden: What `ad_states` returned, [pairs, tokens, hidden].
            mask: True where an ad has a token, bool [pairs, tokens].

        Returns:
            The last state of each ad's first token, [pairs, hidden], which the head reads.
        """
        mask = mask[:, None, None, :]
        for depth, layer in enumerate(self.layers[self.join_layer :]):
            is_last = self.join_layer + depth + 1 == len(self.layers)
            keys, values = self._keys_values(layer, hidden)
            hidden = hidden[:, :1] if is_last else hidden
            queries = self._queries(layer, hidden)
            dropout = self._attention_dropout(layer)
            parts = [
                attend_both(queries[pairs], keys[pairs], values[pairs], mask[pairs], user, depth, dropout)
                for pairs, user in zip(ranges(ads_per_user), users, strict=True)
            ]
            hidden = finish_layer(layer, merge_heads(torch.cat(parts)), hidden)
        return hidden[:, 0]

    def _embed(self, rows: TokenRows, segment: int) -> Tensor:
        positions = torch.arange(rows.ids.shape[1], device=rows.ids.device) + self._first_position
        embedded: Tensor = self.encoder.embeddings(
            input_ids=rows.ids,
            token_type_ids=torch.full_like(rows.ids, segment),
            position_ids=positions.expand_as(rows.ids),
        )
        projection = getattr(self.encoder, "embeddings_project", None)  # ELECTRA's smaller embeddings
        return projection(embedded) if projection is not None else embedded

    def _queries(self, layer: Any, hidden: Tensor) -> Tensor:
        return self._split_heads(layer.attention.self.query(hidden))

    def _keys_values(self, layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        attention = layer.attention.self
        return self._split_heads(attention.key(hidden)), self._split_heads(attention.value(hidden))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[rows, tokens, hidden] to [rows, heads, tokens, head size]."""
        return x.view(*x.shape[:2], self._heads, -1).transpose(1, 2)

    @staticmethod
    def _attention_dropout(layer: Any) -> float:
        # The layer's mode, not the model's: layers that are not trained stay in evaluation, and their states are kept.
        return float(layer.attention.self.dropout.p) if layer.training else 0.0
